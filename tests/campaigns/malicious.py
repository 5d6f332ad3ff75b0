"""Files from somebody else in every place that reads a file: code in pickles, classes in configurations, html, bombs."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import random
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from tests.campaigns.study import CELL, NAME, Study
from tests.campaigns.trying import Campaign, Child, Ending, Try, posegen

#: What stands in a file: bytes, or a function of what stood there.
Content = bytes | Callable[[bytes], bytes]
MARK = "<script>alert(7)</script><img src=x onerror=alert(7)>"
FIELD, BRACKETS = b"x" * 200_000, b"[" * 1_000_000


class Payload:
    """A pickle that calls a function when it is read."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


class Received:
    """A study with a method, a backbone and pictures, all from somebody else, and the commands that read them."""

    def __init__(self, campaign: Campaign, study: Study) -> None:
        self.campaign, self.study = campaign, study
        self.source, self.place = study.root / "received", study.root / "place"
        shutil.copytree(study.finished, self.source, dirs_exist_ok=True)
        shutil.copytree(
            next(self.source.glob(f"{CELL.format('controlnet')}/method")), self.source / "method", dirs_exist_ok=True
        )
        shutil.copytree(study.root / "world/backbone", self.source / "backbone", dirs_exist_ok=True)
        (self.source / "given").mkdir(exist_ok=True)
        Image.new("RGB", (96, 64)).save(self.source / "given/picture.png")

    def words(self, verb: str) -> list[str]:
        place, world = self.place, self.study.world
        results, given, inner = (
            str(place / "outputs" / NAME),
            place / "given",
            [f"paths.output={place / 'o'}", f"paths.cache={place / 'cache'}"],
        )
        cells = [str(next(place.glob(CELL.format(method)), place)) for method in ("none", "controlnet")]
        without = [word for word in world if not word.startswith("backbone.path")]
        parts = [word for word in world if word.startswith("backbone.")]
        sample, prepare = (
            ["sample", *world, f"checkpoint={place / 'method'}", *inner],
            ["prepare", "data=folder", f"data.root={given}", "data.size=64", *inner[1:]],
        )
        return {
            "table": ["table", results],
            "report": ["report", results],
            "power": ["power", *cells],
            "benchmark": self.study.command(place),
            "sample": sample,
            "convert": ["convert", "adapter=controlnet", *parts, f"source={next(given.glob('weights.*'), given)}", f"target={place / 'new'}"],
            "evaluate": ["evaluate", *without, "adapter=none", f"backbone.path={place / 'backbone'}", *inner],
            "annotate": ["annotate", f"source={given}", f"target={place / 'found.json'}", *[word for word in world if word.startswith("estimator.")]],
            "prepare prompts": [*prepare, "data.poses=null", "data.prompts=prompts.csv"],
            "prepare poses": [*prepare, "data.poses=poses.json", "data.prompts=null"],
            "prepare": [*prepare, "data.poses=null", "data.prompts=null"],
            "sample poses": [*sample, "prompt=dancer", f"poses={given / 'poses.json'}"],
            "sample picture": [*sample, "prompt=dancer", f"poses={given / 'picture.png'}"],
        }[verb]  # fmt: skip

    def attack(self, name: str, files: Mapping[str, Content | None], *verbs: str) -> Try:
        """The files (pattern -> content; None: deleted) stand in the study, and the verbs are run."""

        def attack() -> str:
            self.study.copy(self.source)
            for pattern, content in files.items():
                for file in sorted(self.place.glob(pattern)) or [self.place / pattern]:
                    if content is None:
                        file.unlink()
                    else:
                        file.parent.mkdir(parents=True, exist_ok=True)
                        file.write_bytes(
                            content(file.read_bytes() if file.is_file() else b"") if callable(content) else content
                        )
            for verb in verbs:
                ending = self.pipeline() if verb == "pipeline" else posegen(self.words(verb), self.place).end()
                if fault := self.campaign.fault(ending):
                    return f"posegen {verb}: {fault}"
            pages = [file for file in self.place.rglob("*") if file.suffix in (".html", ".md", ".svg")]
            raw = [file.name for file in pages if MARK[:17] in file.read_text(encoding="utf-8")]
            return f"raw html in {', '.join(raw)}" if raw else ""

        return Try(f"{name}; posegen {', '.join(verbs)}", attack)

    def pipeline(self) -> Ending:
        """A received cell in Python's pipeline."""

        def load() -> int:
            from posegen.errors import UserError
            from posegen.pipeline import PoseGuidedPipeline

            try:
                PoseGuidedPipeline.from_pretrained(next(self.place.glob(CELL.format("controlnet"))))
            except UserError as error:
                print(error)
                return 1
            return 0

        return Child(load).end()


def tries(campaign: Campaign, study: Study, dice: random.Random) -> list[Try]:
    received = Received(campaign, study)
    groups = [list(group(received, dice)) for group in (pickled, instantiated, tagged, marked, bombs, outside)]
    dice.shuffle(groups[0])
    return dice.sample(groups[0], 60) + dice.sample(groups[1], 120) + [each for group in groups[2:] for each in group]


def pickled(received: Received, dice: random.Random) -> Iterator[Try]:
    """Code in the place of weights and arrays."""
    canary = str(received.campaign.canary)
    calls = {
        "os.system": Payload(os.system, f"touch {canary}"),
        "exec": Payload(exec, f"open({canary!r}, 'w').close()"),
        "eval": Payload(eval, f"__import__('os').mkdir({canary!r})"),
        "os.mkdir": Payload(os.mkdir, canary),
        "open": Payload(io.open, canary, "w"),
        "getattr": Payload(getattr, Path(canary), "touch"),
        "torch.save": Payload(torch.save, {}, canary),
        "numpy.save": Payload(np.save, canary, 0),
    }
    spots = {
        **{
            f"given/weights{suffix}": "convert"
            for suffix in (".ckpt", ".pt", ".pth", ".bin", ".safetensors", ".npz", "")
        },
        **{f"method/controlnet/diffusion_pytorch_model.{suffix}": "sample" for suffix in ("bin", "safetensors")},
        "method/adapter.safetensors": "sample",
        **{f"backbone/unet/diffusion_pytorch_model.{suffix}": "evaluate" for suffix in ("bin", "safetensors")},
        **{
            f"backbone/text_encoder/{name}": "evaluate"
            for name in ("model.safetensors", "pytorch_model.bin", "model.bin")
        },
        f"{CELL.format('*')}/features.npz": "table",
        f"{CELL.format('*')}/records.csv": "table",
        "cache/**/*.np[yz]": "benchmark",
    }
    for call, payload in calls.items():
        for kind, content in containers(payload).items():
            for spot, verb in spots.items():
                absent: dict[str, Content | None] = (
                    {str(Path(spot).with_suffix(".safetensors")): None} if spot.endswith("model.bin") else {}
                )
                if spot.startswith("cache"):
                    absent = {f"{CELL.format('*')}/{name}": None for name in ("records.csv", "status.json")}
                yield received.attack(f"{spot} is a {kind} that calls {call}", {**absent, spot: content}, verb)
            unfinished: dict[str, Content | None] = {
                f"{CELL.format('controlnet')}/{name}": None
                for name in ("status.json", "records.csv", "method/posegen.json")
            }
            yield received.attack(
                f"last.ckpt is a {kind} that calls {call}",
                {**unfinished, f"{CELL.format('controlnet')}/last.ckpt": content},
                "benchmark",
            )


def containers(payload: Payload) -> dict[str, bytes]:
    """All forms of files with weights and arrays, with the payload among the tensors."""
    content = {"state_dict": {"x": torch.zeros(2)}, "hyper": payload}
    array = np.empty(1, object)
    array[0] = payload
    writers: dict[str, Callable[[io.BytesIO], Any]] = {
        "pickle": lambda stream: pickle.dump(content, stream),
        "old pickle": lambda stream: pickle.dump(content, stream, 0),
        "torch file": lambda stream: torch.save(content, stream),
        "old torch file": lambda stream: torch.save(content, stream, _use_new_zipfile_serialization=False),
        "npy": lambda stream: np.save(stream, array, allow_pickle=True),
        "npz": lambda stream: np.savez(stream, a=array, keypoints=array, images=array),
    }
    found = {}
    for kind, write in writers.items():
        write(stream := io.BytesIO())
        found[kind] = stream.getvalue()
    return found


def instantiated_nodes(canary: Path) -> dict[str, dict[str, Any]]:
    """Nodes that leave the canary where they are instantiated."""
    path, touch = str(canary), f"touch {canary}"
    place, shell = {"_target_": "pathlib.Path", "_args_": [path]}, {"_target_": "os.system", "_args_": [touch]}
    text = f"__import__('os').system('{touch}')"
    calls: dict[str, list[Any]] = {
        "sympy.sympify": [text], "os.system": [touch], "os.mkdir": [path], "builtins.eval": [text], "builtins.open": [path, "w"],
        "subprocess.check_output": [["touch", path]], "shutil.copyfile": ["/etc/hostname", path], "numpy.save": [path, 1],
        "torch.save": [{}, path], "logging.FileHandler": [path], "zipfile.ZipFile": [path, "w"], "sqlite3.connect": [path],
        "pathlib.Path.touch": [place], "pathlib.Path.write_text": [place, "x"], "posegen.io.atomic.write_text": [place, "x"],
        "posegen.io.atomic.write_json": [place, {}], "posegen.cli.os.system": [touch], "posegen.runner.cell.os.mkdir": [path],
        "hydra.utils.call": [shell], "builtins.dict": [shell], "posegen.metrics.protocol.Protocol": [shell],
    }  # fmt: skip
    return {name: {"_target_": name, "_args_": arguments} for name, arguments in calls.items()}


def instantiated(received: Received, dice: random.Random) -> Iterator[Try]:
    """Classes and functions that a results folder names, at any depth."""
    touch, text = f"touch {received.campaign.canary}", f"__import__('os').system('touch {received.campaign.canary}')"
    path = str(received.campaign.canary)
    cell = CELL.format("*")
    spots = {
        f"outputs/{NAME}/cells.json": ("protocol", {}),
        f"{cell}/config.yaml": ("protocol", {f"outputs/{NAME}/cells.json": None}),
        f"{CELL.format('controlnet')}/config.yaml": ("backbone", {}),
        f"{cell}/status.json": ("identity", {}),
        f"{cell}/row.json": ("", {}),
        f"{cell}/method/posegen.json": ("", {}),
    }
    for name, node in instantiated_nodes(received.campaign.canary).items():
        for spot, (part, others) in spots.items():
            for _ in range(4):
                plant = partial(replanted, part, node, dice.randrange(1 << 30))
                yield received.attack(
                    f"{spot} names {name}", {spot: plant, **others}, "table", "report", "power", "pipeline"
                )
    for name in (
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "sympy.sympify",
        "antigravity.x",
        "posegen.io.atomic.write_text",
    ):
        about: dict[str, Any] = {"class": name, "kwargs": {"command": touch, "cmd": touch, "s": text, "source": text}}
        method = f"{CELL.format('controlnet')}/method/posegen.json"
        yield received.attack(
            f"posegen.json names the class {name}",
            {method: joined(about | {"pipeline": about})},
            "pipeline",
            "benchmark",
        )
    for file, facts in {
        "unet/config.json": {"_class_name": "os.system", "auto_map": {"AutoModel": "evil.Model"}},
        "scheduler/scheduler_config.json": {"_class_name": "os.system"},
        "text_encoder/config.json": {"auto_map": {"AutoModel": "evil.Model"}, "architectures": ["Evil"]},
        "tokenizer/tokenizer_config.json": {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.T", None]}},
    }.items():
        code = f"open({path!r}, 'w').close()\n".encode()
        evil = {f"backbone/{folder}/evil.py": code for folder in (".", Path(file).parent)}
        yield received.attack(
            f"a backbone's {file} names code of its own", {f"backbone/{file}": joined(facts), **evil}, "evaluate"
        )


def replanted(part: str, node: Mapping[str, Any], seed: int, old: bytes) -> bytes:
    """A json or yaml file with a node planted in a part of it; in all of it where the part is empty."""
    content = yaml.safe_load(old)
    new = planted(content[part] if part else content, node, random.Random(seed))
    content = {**content, part: new} if part else new
    return (json.dumps if old[:1] == b"{" else yaml.safe_dump)(content).encode()


def planted(tree: Any, node: Mapping[str, Any], dice: random.Random) -> Any:
    """``tree`` with ``node`` at a random place, inner ones as well; one in five times in its place."""
    tree, places = copy.deepcopy(tree), []

    def walk(value: Any) -> None:
        for key, each in (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        ):
            places.append((value, key))
            walk(each)

    walk(tree)
    if dice.random() < 0.2:
        return node
    holder, key = dice.choice(places)
    old = holder[key]
    choices = [node, [node]] if not isinstance(old, dict) else [node, {**old, **node}, {**old, "extra": node}]
    holder[key] = dice.choice(choices)
    return tree


def joined(facts: Mapping[str, Any]) -> Callable[[bytes], bytes]:
    return lambda old: json.dumps({**json.loads(old), **facts}).encode()


def tagged(received: Received, dice: random.Random) -> Iterator[Try]:
    for tag in ("!!python/object/apply:os.system", "!!python/object/new:os.system", "!!python/name:os.system"):
        for spot in (f"{CELL.format('*')}/config.yaml", f"outputs/{NAME}/cells.json"):
            text = f"{tag} ['touch {received.campaign.canary}']\n".encode()
            yield received.attack(f"{spot} is the yaml {tag}", {spot: text}, "table", "report", "power", "benchmark")


def marked(received: Received, dice: random.Random) -> Iterator[Try]:
    """Html in what a results folder says."""
    cell = CELL.format("*")
    reason = joined({"state": "failed", "reason": MARK, "remark": MARK})

    def ends(old: bytes) -> bytes:
        return old.replace(b"\n", f"{MARK}\n".encode())

    def cells(old: bytes) -> bytes:
        plan = json.loads(old)
        return json.dumps(
            {**plan, "title": MARK, "cells": [{**c, "method": c["method"] + MARK} for c in plan["cells"]]}
        ).encode()

    for spot, content in {
        f"outputs/{NAME}/cells.json": cells,
        f"{cell}/status.json": reason,
        f"{cell}/row.json": reason,
        f"{cell}/samples/prompts.txt": ends,
    }.items():
        yield received.attack(f"html in {spot}", {spot: content}, "table", "report")


def bombs(received: Received, dice: random.Random) -> Iterator[Try]:
    """Small files that become large, and numbers that claim more than there is."""
    cell, read = CELL.format("*"), ("table", "report")
    for what, (spot, verbs, content) in {
        "deflated gigabytes": (f"{cell}/features.npz", read, lambda old: npz_bomb(8)),
        "an array that claims 10^15 bytes": (f"{cell}/features.npz", read, npz_bomb(0, 10**15)),
        "an array of a negative size": (f"{cell}/features.npz", read, npz_bomb(0, -1)),
        "a field of 200,000 characters": (f"{cell}/records.csv", read, b"id,a\n" + FIELD + b",1\n"),
        "50 MB of quotes": (f"{cell}/records.csv", read, lambda old: b'"' * 50_000_000),
        "1,000,000 brackets": (f"outputs/{NAME}/cells.json", read, BRACKETS),
        "1,000,000 digits": (f"outputs/{NAME}/cells.json", read, b"9" * 1_000_000),
        "300 MB": (f"outputs/{NAME}/cells.json", read, lambda old: b'{"a": "' + bytes(300_000_000) + b'"}'),
        "objects in objects": (f"{cell}/status.json", read, b'{"a":' * 200_000),
        "1e999": (f"{cell}/status.json", read, joined({"wall_s": 1e999})),
        "100,000 brackets": (f"{cell}/config.yaml", ("power",), b"a: " + BRACKETS[:100_000]),
        "50,000 levels": (f"{cell}/config.yaml", ("power",), b"- " * 50_000),
        "1.6 gigapixels": ("given/picture.png", ("prepare", "annotate", "sample picture"), lambda old: zeros_png(40_000)),
        "a claim of 4 gigapixels": ("given/picture.png", ("prepare", "annotate", "sample picture"), zeros_png(64, 65_535)),
        "brackets": ("given/poses.json", ("prepare poses", "sample poses"), BRACKETS),
        "huge numbers": ("given/poses.json", ("prepare poses", "sample poses"), json.dumps({"people": [{"pose_keypoints_2d": [10**400] * 54}]}).encode()),
        "a huge canvas": ("given/poses.json", ("prepare poses", "sample poses"), json.dumps({"people": [{"pose_keypoints_2d": [1.0] * 54}], "canvas_width": 10**12, "canvas_height": 10**12}).encode()),
        "a long field": ("given/prompts.csv", ("prepare prompts",), b"picture.png," + FIELD),
        "zeros": ("given/prompts.csv", ("prepare prompts",), bytes(1000)),
        "a header of a terabyte": ("given/weights.safetensors", ("convert",), struct.pack("<Q", 1 << 40) + b"{}"),
        "a deep header": ("given/weights.safetensors", ("convert",), struct.pack("<Q", 1_000_000) + BRACKETS),
    }.items():  # fmt: skip
        yield received.attack(f"{spot} with {what}", {spot: content}, *verbs)


def zeros_png(side: int, claimed: int | None = None) -> bytes:
    """A picture of some kilobytes that takes gigabytes when it is decoded; ``claimed``: the side that it says it has."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + 3 * side) * 64) for _ in range(side // 64)) + packer.flush()
    head = struct.pack(">IIBBBBB", claimed or side, claimed or side // 64 * 64, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def npz_bomb(gigabytes: int, claimed: int | None = None) -> bytes:
    """Zeros by the gigabyte in a small archive; ``claimed``: the size that the array says it has."""
    stream, head = io.BytesIO(), io.BytesIO()
    facts = {"descr": "|u1", "fortran_order": False, "shape": (claimed or gigabytes << 30,)}
    np.lib.format.write_array_header_1_0(head, facts)
    with (
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("judge_features.npy", "w", force_zip64=True) as file,
    ):
        file.write(head.getvalue())
        for _ in range(gigabytes * 16):
            file.write(bytes(1 << 26))
    return stream.getvalue()


def outside(received: Received, dice: random.Random) -> Iterator[Try]:
    """Names that lead out of the folder that a user named."""
    for where in ("../../escape", "../escape", "/tmp/posegen-escape", "a/../../../escape", ".."):

        def escape(where: str = where) -> str:
            place = received.study.copy(received.source) / "inner/outputs"
            words = [
                "evaluate",
                *received.study.world,
                "adapter=none",
                f"study={where}",
                f"paths.output={place}",
                f"paths.cache={received.place / 'cache'}",
            ]
            before = set(received.place.rglob("*"))
            fault = received.campaign.fault(posegen(words, received.place).end())
            new = [
                p for p in {*received.place.rglob("*"), *Path("/tmp").glob("posegen-escape*")} - before if p.is_file()
            ]
            stray = [p for p in new if not p.is_relative_to(place) and not p.is_relative_to(received.place / "cache")]
            shutil.rmtree("/tmp/posegen-escape", ignore_errors=True)
            return fault or (f"wrote {stray[0]}" if stray else "")

        yield Try(f"evaluate study={where}", escape)

        def elsewhere(old: bytes, where: str = where) -> bytes:
            plan = json.loads(old)
            return json.dumps({**plan, "cells": [{**cell, "folder": where} for cell in plan["cells"]]}).encode()

        yield received.attack(
            f"cells.json names the folder {where}", {f"outputs/{NAME}/cells.json": elsewhere}, "table", "report"
        )
