"""Readers of files, called directly: thousands of damaged files in a minute, each read or refused in words."""

from __future__ import annotations

import json
import random
import signal
import struct
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file

from tests.campaigns.payloads import instantiated_nodes, planted
from tests.campaigns.states import DAMAGES, FILE_DAMAGES, JSON_DAMAGES
from tests.campaigns.study import CELL, NAME, Study
from tests.campaigns.trying import FOREIGN_WORDS, Campaign, Child, Try

ROUNDS = 10  # of all damages, for a file and reader
SECONDS = 5  # of one reading
#: Reader -> file in the study, and how it is called: with the file, or with a folder above it (how many levels).
READERS = {
    "posegen.report.study.study_plan": (f"outputs/{NAME}/cells.json", 1),
    "posegen.runner.received.state_files.read_status": (f"{CELL.format('none')}/status.json", 1),
    "posegen.runner.received.state_files.read_costs": (f"{CELL.format('none')}/costs.json", 1),
    "posegen.runner.received.state_files.read_row": (f"{CELL.format('none')}/row.json", 0),
    "posegen.runner.received.state_files.read_cell_config": (f"{CELL.format('none')}/config.yaml", 1),
    "posegen.metrics.records.read_records": (f"{CELL.format('none')}/records.csv", 1),
    "posegen.metrics.records.read_records ": (f"{CELL.format('none')}/features.npz", 1),
    "posegen.runner.method_folder.read_about": (f"{CELL.format('controlnet')}/method/posegen.json", 1),
    "posegen.runner.images.read_png": (f"{CELL.format('none')}/samples/000000.png", 0),
    "posegen.io.weights.read_tensors": ("given/weights.safetensors", 0),
    "posegen.io.weights.read_tensors ": ("given/weights.ckpt", 0),
    "posegen.poses.reading.read_poses": ("given/coco.json", 0),
    "posegen.poses.reading.read_poses ": ("given/openpose.json", 0),
    "posegen.poses.reading.read_poses  ": ("given/picture.png", 0),
    "posegen.data.user_images.user_pictures": ("given/picture.png", 0),
}


def given(folder: Path) -> None:
    """Files as users bring them."""
    folder.mkdir(exist_ok=True)
    joints = [number for i in range(17) for number in (20.0 + i, 10.0 + 3 * i, 2)]
    row = {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "keypoints": joints,
        "area": 9.0,
        "bbox": [1, 2, 3, 4],
        "score": 1.0,
    }
    image = {"id": 1, "file_name": "picture.png", "width": 64, "height": 64}
    category = {"id": 1, "name": "person"}
    person = {"person_id": [-1], "pose_keypoints_2d": [0.5] * 54}
    (folder / "coco.json").write_text(json.dumps({"images": [image], "annotations": [row], "categories": [category]}))
    (folder / "openpose.json").write_text(json.dumps({"people": [person], "canvas_width": 64, "canvas_height": 64}))
    Image.new("RGB", (96, 64)).save(folder / "picture.png")
    tensors = {"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(3)}
    save_file(tensors, folder / "weights.safetensors")
    torch.save({"state_dict": tensors, "step": 3}, folder / "weights.ckpt")


def tries(campaign: Campaign, study: Study, dice: random.Random) -> list[Try]:
    source = study.finished
    given(source / "given")
    readings = [reading(campaign, study, name.strip(), *place, dice.random()) for name, place in READERS.items()]
    return [*readings, protocols(campaign, study, dice.random())]


def reading(campaign: Campaign, study: Study, name: str, pattern: str, levels: int, start: float) -> Try:
    def attack() -> str:
        place = study.copy(study.finished)
        file = next(place.glob(pattern))
        module, _, function = name.rpartition(".")
        reader: Callable[[Path], Any] = getattr(import_module(module), function)
        content, target = file.read_bytes(), [file, *file.parents][levels]

        def damaged() -> Iterator[tuple[str, Callable[[], Any]]]:
            for i in range(ROUNDS):
                for key, damage in {**FILE_DAMAGES, **DAMAGES.get(file.suffix, {}), **extra(file)}.items():
                    inner = random.Random(f"{start} {i} {key}")
                    file.write_bytes(damage(content, inner))
                    yield f"round {i}: {key}", lambda: reader(target)

        return campaign_of_calls(campaign, damaged, file.name)

    return Try(f"{name} of {pattern}, {start}", attack)


def extra(file: Path) -> dict[str, Callable[[bytes, random.Random], bytes]]:
    """Damages that only a format has."""
    if file.suffix == ".safetensors":
        kinds = ("F8_E4M3", "I64", "BOOL", "C64", "F4", "X")
        return {
            f"is of {kind}": lambda content, dice, kind=kind: content.replace(b"F32", kind.encode().ljust(3))
            for kind in kinds
        }  # type: ignore[misc]
    if file.suffix == ".npz":
        return {
            "claims more": lambda content, dice: content.replace(
                b"'shape': (", b"'shape': (" + b"9" * dice.randint(1, 9), 1
            )
        }
    if file.suffix == ".png":
        return {
            "claims more": lambda content, dice: (
                content[:16] + struct.pack(">I", dice.randrange(1 << 31)) + content[20:]
            )
        }
    return {}


def protocols(campaign: Campaign, study: Study, start: float) -> Try:
    """Hostile nodes at any depth of a recorded protocol."""

    def attack() -> str:
        from posegen.report.study import recorded_protocol

        file = study.finished / "outputs" / NAME / "cells.json"
        protocol = json.loads(file.read_text())["protocol"]

        def hostile() -> Iterator[tuple[str, Callable[[], Any]]]:
            for i in range(ROUNDS):
                for name, node in instantiated_nodes(campaign.canary).items():
                    node = planted(protocol, node, random.Random(f"{start} {i} {name}"))
                    yield (
                        f"round {i}: {name} in {json.dumps(node)[:600]}",
                        lambda node=node: recorded_protocol(node, file),
                    )
                for key, damage in JSON_DAMAGES.items():
                    node = json.loads(damage(json.dumps(protocol).encode(), random.Random(f"{start} {i} {key}")))
                    yield f"round {i}: {key}: {json.dumps(node)[:600]}", lambda node=node: recorded_protocol(node, file)

        return campaign_of_calls(campaign, hostile, file.name)

    return Try(f"posegen.report.study.recorded_protocol, {start}", attack)


def campaign_of_calls(
    campaign: Campaign, calls: Callable[[], Iterator[tuple[str, Callable[[], Any]]]], name: str
) -> str:
    """In a child: what each call raises, if it is no ValueError in a user's words that names the file."""

    def late(number: int, frame: Any) -> None:
        raise TimeoutError(f"no end within {SECONDS} s")

    def ask() -> int:
        signal.signal(signal.SIGALRM, late)
        fell: dict[str, str] = {}
        count = 0
        for label, call in calls():
            signal.alarm(SECONDS)
            count += 1
            try:
                call()
                reason = ""
            except (ValueError, RuntimeError) as error:
                foreign = FOREIGN_WORDS.search(str(error))
                reason = (
                    f"words for programmers: {error}"
                    if foreign
                    else ""
                    if name in str(error)
                    else f"the message does not name {name}: {error}"
                )
                reason = f"{type(error).__name__}: {error}" if type(error) in (RuntimeError, RecursionError) else reason
            except BaseException as error:
                reason = f"{type(error).__name__}: {error}"
            signal.alarm(0)
            if campaign.canary.exists():
                campaign.canary.unlink()
                reason = "code of a file was run"
            if reason:
                fell.setdefault("".join(c for c in reason if not c.isdigit())[:120], f"{label}: {reason[:400]}")
        print(f"{len(fell)} kinds of {count} calls:", *fell.values(), sep="\n      ")
        return bool(fell)

    ending = Child(ask).end(600)
    if ending.code is None or ending.code < 0:
        return campaign.fault(ending)
    return ending.text.strip() if ending.code else ""
