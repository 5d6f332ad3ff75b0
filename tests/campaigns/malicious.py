"""Files from somebody else in every place that reads a file: code in pickles, classes in configurations, html, bombs."""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from tests.campaigns.payloads import containers, instantiated_nodes, npz_bomb, pickled_calls, planted, zeros_png
from tests.campaigns.study import CELL, NAME, Study, remove
from tests.campaigns.trying import Campaign, Child, Ending, Try, posegen

#: What stands in a file: bytes, or a function of what stood there.
Content = bytes | Callable[[bytes], bytes]
CELLS, ANY, TRAINED = f"outputs/{NAME}/cells.json", CELL.format("*"), CELL.format("controlnet")
MARK = "<script>alert(7)</script><img src=x onerror=alert(7)>"
FIELD, BRACKETS = b"x" * 200_000, b"[" * 1_000_000


class Received:
    """A study with a method, a backbone and pictures, all from somebody else, and the commands that read them."""

    def __init__(self, campaign: Campaign, study: Study) -> None:
        self.campaign, self.study = campaign, study
        self.source, self.place = study.root / "received", study.root / "place"
        shutil.copytree(study.finished, self.source, dirs_exist_ok=True)
        shutil.copytree(next(self.source.glob(f"{TRAINED}/method")), self.source / "method", dirs_exist_ok=True)
        shutil.copytree(study.root / "world/backbone", self.source / "backbone", dirs_exist_ok=True)
        (self.source / "given").mkdir(exist_ok=True)
        Image.new("RGB", (96, 64)).save(self.source / "given/picture.png")

    def words(self, verb: str) -> list[str]:
        place, world = self.place, self.study.world
        results, given = str(place / "outputs" / NAME), place / "given"
        inner = [f"paths.output={place / 'o'}", f"paths.cache={place / 'cache'}"]
        cells = [str(next(place.glob(CELL.format(method)), place)) for method in ("none", "controlnet")]
        without = [word for word in world if not word.startswith("backbone.path")]
        parts = [word for word in world if word.startswith("backbone.")]
        sample = ["sample", *world, f"checkpoint={place / 'method'}", *inner]
        prepare = ["prepare", "data=folder", f"data.root={given}", "data.size=64", *inner[1:]]
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
                    old = file.read_bytes() if callable(content) and file.is_file() else b""
                    remove(file)
                    if content is not None:
                        file.parent.mkdir(parents=True, exist_ok=True)
                        file.write_bytes(content(old) if callable(content) else content)
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
                PoseGuidedPipeline.from_pretrained(next(self.place.glob(TRAINED)))
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
    spots = {f"given/weights{suffix}": "convert" for suffix in (".ckpt", ".pt", ".bin", ".safetensors", ".npz", "")}
    spots |= {f"method/controlnet/diffusion_pytorch_model.{end}": "sample" for end in ("bin", "safetensors")}
    spots |= {f"backbone/unet/diffusion_pytorch_model.{end}": "evaluate" for end in ("bin", "safetensors")}
    spots |= {f"backbone/text_encoder/{name}": "evaluate" for name in ("model.safetensors", "pytorch_model.bin")}
    spots |= {"method/adapter.safetensors": "sample", "cache/**/*.np[yz]": "benchmark"}
    spots |= {f"{ANY}/features.npz": "table", f"{ANY}/records.csv": "table", f"{TRAINED}/last.ckpt": "benchmark"}
    for call, payload in pickled_calls(received.campaign.canary).items():
        for kind, content in containers(payload).items():
            for spot, verb in spots.items():
                absent: dict[str, Content | None] = {}
                if spot.endswith("model.bin"):
                    absent = {f"{Path(spot).parent}/*.safetensors": None}
                elif verb == "benchmark":  # the cells are computed again
                    absent = {f"{ANY}/{name}": None for name in ("records.csv", "status.json", "method")}
                yield received.attack(f"{spot} is a {kind} that calls {call}", {**absent, spot: content}, verb)


def instantiated(received: Received, dice: random.Random) -> Iterator[Try]:
    """Classes and functions that a results folder names, at any depth."""
    touch, text = f"touch {received.campaign.canary}", f"__import__('os').system('touch {received.campaign.canary}')"
    path = str(received.campaign.canary)
    spots = {
        CELLS: ("protocol", {}),
        f"{ANY}/config.yaml": ("protocol", {CELLS: None}),
        f"{TRAINED}/config.yaml": ("backbone", {}),
        f"{ANY}/status.json": ("identity", {}),
        f"{ANY}/row.json": ("", {}),
        f"{ANY}/method/posegen.json": ("", {}),
    }
    for name, node in instantiated_nodes(received.campaign.canary).items():
        for spot, (part, others) in spots.items():
            for _ in range(4):
                plant = partial(replanted, part, node, dice.randrange(1 << 30))
                yield received.attack(
                    f"{spot} names {name}", {spot: plant, **others}, "table", "report", "power", "pipeline"
                )
    for name in ("os.system", "builtins.eval", "subprocess.Popen", "sympy.sympify", "antigravity.x", "shutil.copy"):
        about: dict[str, Any] = {"class": name, "kwargs": {"command": touch, "cmd": touch, "s": text, "source": text}}
        changed = joined(about | {"pipeline": about})
        yield received.attack(
            f"posegen.json names {name}", {f"{TRAINED}/method/posegen.json": changed}, "pipeline", "benchmark"
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


def joined(facts: Mapping[str, Any]) -> Callable[[bytes], bytes]:
    return lambda old: json.dumps({**json.loads(old), **facts}).encode()


def tagged(received: Received, dice: random.Random) -> Iterator[Try]:
    for tag in ("!!python/object/apply:os.system", "!!python/object/new:os.system", "!!python/name:os.system"):
        for spot in (f"{ANY}/config.yaml", CELLS):
            text = f"{tag} ['touch {received.campaign.canary}']\n".encode()
            yield received.attack(f"{spot} is the yaml {tag}", {spot: text}, "table", "report", "power", "benchmark")


def marked(received: Received, dice: random.Random) -> Iterator[Try]:
    """Html in what a results folder says."""
    reason = joined({"state": "failed", "reason": MARK, "remark": MARK})

    def ends(old: bytes) -> bytes:
        return old.replace(b"\n", f"{MARK}\n".encode())

    def cells(old: bytes) -> bytes:
        plan = json.loads(old)
        return json.dumps(
            {**plan, "title": MARK, "cells": [{**c, "method": c["method"] + MARK} for c in plan["cells"]]}
        ).encode()

    for spot, content in {
        CELLS: cells,
        f"{ANY}/status.json": reason,
        f"{ANY}/row.json": reason,
        f"{ANY}/samples/prompts.txt": ends,
    }.items():
        yield received.attack(f"html in {spot}", {spot: content}, "table", "report")


def bombs(received: Received, dice: random.Random) -> Iterator[Try]:
    """Small files that become large, and numbers that claim more than there is."""
    read, poses = ("table", "report"), ("prepare poses", "sample poses")
    pictures = ("prepare", "annotate", "sample picture")
    for what, (spot, verbs, content) in {
        "deflated gigabytes": (f"{ANY}/features.npz", read, lambda old: npz_bomb(8)),
        "an array that claims 10^15 bytes": (f"{ANY}/features.npz", read, npz_bomb(0, 10**15)),
        "an array of a negative size": (f"{ANY}/features.npz", read, npz_bomb(0, -1)),
        "a field of 200,000 characters": (f"{ANY}/records.csv", read, b"id,a\n" + FIELD + b",1\n"),
        "50 MB of quotes": (f"{ANY}/records.csv", read, lambda old: b'"' * 50_000_000),
        "1,000,000 brackets": (CELLS, read, BRACKETS),
        "1,000,000 digits": (CELLS, read, b"9" * 1_000_000),
        "300 MB": (CELLS, read, lambda old: b'{"a": "' + bytes(300_000_000) + b'"}'),
        "objects in objects": (f"{ANY}/status.json", read, b'{"a":' * 200_000),
        "1e999": (f"{ANY}/status.json", read, joined({"wall_s": 1e999})),
        "100,000 brackets": (f"{ANY}/config.yaml", ("power",), b"a: " + BRACKETS[:100_000]),
        "50,000 levels": (f"{ANY}/config.yaml", ("power",), b"- " * 50_000),
        "1.6 gigapixels": ("given/picture.png", pictures, lambda old: zeros_png(40_000)),
        "a claim of 4 gigapixels": ("given/picture.png", pictures, zeros_png(64, 65_535)),
        "brackets": ("given/poses.json", poses, BRACKETS),
        "huge numbers": ("given/poses.json", poses, json.dumps({"people": [{"pose_keypoints_2d": [10**400] * 54}]}).encode()),
        "a huge canvas": ("given/poses.json", poses, json.dumps({"people": [{"pose_keypoints_2d": [1.0] * 54}], "canvas_width": 10**12, "canvas_height": 10**12}).encode()),
        "a long field": ("given/prompts.csv", ("prepare prompts",), b"picture.png," + FIELD),
        "zeros": ("given/prompts.csv", ("prepare prompts",), bytes(1000)),
        "a header of a terabyte": ("given/weights.safetensors", ("convert",), struct.pack("<Q", 1 << 40) + b"{}"),
        "a deep header": ("given/weights.safetensors", ("convert",), struct.pack("<Q", 1_000_000) + BRACKETS),
    }.items():  # fmt: skip
        yield received.attack(f"{spot} with {what}", {spot: content}, *verbs)


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

        yield received.attack(f"cells.json names the folder {where}", {CELLS: elsewhere}, "table", "report")
