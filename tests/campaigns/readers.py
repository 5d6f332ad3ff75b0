"""Readers of files, called directly: thousands of damaged files in a minute, each read or refused in words."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file

from tests.campaigns.payloads import instantiated_nodes, planted
from tests.campaigns.states import DAMAGES, FILE_DAMAGES, JSON_DAMAGES, Damage
from tests.campaigns.study import CELL, NAME, Study
from tests.campaigns.trying import FOREIGN_WORDS, Campaign, Child, Try

ROUNDS = 10  # of all damages, for a file and reader
SECONDS = 5  # of one reading
Call = tuple[str, Callable[[], Any]]  # its name for people, and a reading
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
    given(study.finished / "given")
    found = [reading(campaign, study, name.strip(), *place, dice.random()) for name, place in READERS.items()]
    return [*found, hostile_protocols(campaign, study, dice.random())]


def reading(campaign: Campaign, study: Study, name: str, pattern: str, levels: int, start: float) -> Try:
    """One reader with all damages of its file."""

    def attack() -> str:
        file = next(study.copy(study.finished).glob(pattern))
        module, _, function = name.rpartition(".")
        reader, content, target = getattr(import_module(module), function), file.read_bytes(), [file, *file.parents]

        def calls() -> Iterator[Call]:
            for i, (key, damage) in product(range(ROUNDS), damages_of(file.suffix).items()):
                file.write_bytes(damage(content, random.Random(f"{start} {i} {key}")))
                yield f"round {i}: {key}", lambda: reader(target[levels])

        return all_of(campaign, calls, file.name)

    return Try(f"{name} of {pattern}", attack, always=True)


def damages_of(suffix: str) -> dict[str, Damage]:
    found = FILE_DAMAGES | DAMAGES.get(suffix, {})
    if suffix == ".safetensors":
        for kind in (b"F8_E4M3", b"I64", b"BOOL", b"C64", b"F4 ", b"X  "):
            found[f"is of {kind.decode()}"] = lambda content, dice, kind=kind: content.replace(b"F32", kind)  # type: ignore[misc]
    if suffix == ".png":
        found["claims a width"] = lambda content, dice: content[:16] + dice.randbytes(4) + content[20:]
    if suffix == ".npz":
        found["claims a size"] = lambda content, dice: content.replace(b"(", b"(%d" % dice.randrange(10**9), 1)
    return found


def hostile_protocols(campaign: Campaign, study: Study, start: float) -> Try:
    """Names of functions, and other values, at any depth of a recorded protocol."""

    def attack() -> str:
        from posegen.report.study import recorded_protocol

        file = study.finished / "outputs" / NAME / "cells.json"
        protocol = json.loads(file.read_text())["protocol"]
        text, nodes = json.dumps(protocol).encode(), instantiated_nodes(campaign.canary)

        def calls() -> Iterator[Call]:
            for i, key in product(range(ROUNDS), (*nodes, *JSON_DAMAGES)):
                dice = random.Random(f"{start} {i} {key}")
                node = (
                    planted(protocol, nodes[key], dice) if key in nodes else json.loads(JSON_DAMAGES[key](text, dice))
                )
                yield f"round {i}: {key}, {json.dumps(node)[:600]}", lambda node=node: recorded_protocol(node, file)

        return all_of(campaign, calls, file.name)

    return Try("posegen.report.study.recorded_protocol", attack, always=True)


def all_of(campaign: Campaign, calls: Callable[[], Iterator[Call]], name: str) -> str:
    """Makes all calls in a child; the kinds of falls, with an example of each."""

    def late(number: int, frame: Any) -> None:
        raise TimeoutError(f"no end within {SECONDS} s")

    def ask() -> int:
        signal.signal(signal.SIGALRM, late)
        fell: dict[str, str] = {}
        for label, call in calls():
            reason = verdict(call, name)
            if campaign.canary.exists():
                campaign.canary.unlink()
                reason = "code of a file was run"
            if reason:
                fell.setdefault("".join(c for c in reason if not c.isdigit())[:120], f"{label}: {reason[:400]}")
        print(f"{len(fell)} kinds of falls", *fell.values(), sep="\n      ")
        return bool(fell)

    ending = Child(ask).end(600)
    return campaign.fault(ending) or (ending.text.strip() if ending.code else "")


def verdict(call: Callable[[], Any], name: str) -> str:
    """How a reading fell: it must succeed, or raise an error of posegen's in a user's words that names the file."""
    signal.alarm(SECONDS)
    try:
        call()
    except BaseException as error:
        if type(error) is not ValueError and not type(error).__module__.startswith("posegen."):
            return f"{type(error).__name__}: {error}"
        if foreign := FOREIGN_WORDS.search(str(error)):
            return f"words for programmers ({foreign[0]}): {error}"
        return "" if name in str(error) else f"the message does not name {name}: {error}"
    finally:
        signal.alarm(0)
    return ""
