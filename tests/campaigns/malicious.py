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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from tests.campaigns.study import NAME, Study
from tests.campaigns.trying import Campaign, Child, Ending, Try, posegen

Writer = Callable[[Path], None]


class Payload:
    """A pickle that calls ``function`` when it is read."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


def pickles(canary: Path) -> dict[str, Payload]:
    code = f"open({str(canary)!r}, 'w').close()"
    return {
        "os.system": Payload(os.system, f"touch {canary}"),
        "exec": Payload(exec, code),
        "eval": Payload(eval, f"__import__('os').mkdir({str(canary)!r})"),
        "os.mkdir": Payload(os.mkdir, str(canary)),
        "Path.touch": Payload(getattr, Path(canary), "touch"),
        "open": Payload(io.open, str(canary), "w"),
        "copytree": Payload(shutil.copytree, "/usr/share/doc/bash", str(canary)),
        "torch.load": Payload(torch.save, {}, str(canary)),
        "numpy": Payload(np.save, str(canary), 0),
    }


def containers(payload: Payload) -> dict[str, bytes]:
    """Everything that weights and arrays are stored in, with the payload beside or in the place of tensors."""
    content = {"state_dict": {"x": torch.zeros(2)}, "hyper": payload}
    found = {"pickle": pickle.dumps(content), "old pickle": pickle.dumps(content, 0)}
    for name, old in {"torch": True, "old torch": False}.items():
        stream = io.BytesIO()
        torch.save(content, stream, _use_new_zipfile_serialization=old)
        found[name] = stream.getvalue()
    array = np.empty(1, object)
    array[0] = payload
    for name, write in {"npy": np.save, "npz": lambda s, a: np.savez(s, a=a, keypoints=a, images=a)}.items():
        stream = io.BytesIO()
        write(stream, array, allow_pickle=True) if name == "npy" else write(stream, array)
        found[name] = stream.getvalue()
    return found


def nodes(canary: Path) -> dict[str, dict[str, Any]]:
    """Nodes that run something where they are instantiated."""
    path, touch = str(canary), f"touch {canary}"
    text = f"__import__('os').system('{touch}')"
    found = {
        "sympy.sympify": [text],
        "os.system": [touch],
        "os.mkdir": [path],
        "builtins.eval": [text],
        "builtins.open": [path, "w"],
        "subprocess.check_output": [["touch", path]],
        "shutil.copyfile": ["/etc/hostname", path],
        "numpy.save": [path, 1],
        "torch.save": [{}, path],
        "logging.FileHandler": [path],
        "zipfile.ZipFile": [path, "w"],
        "sqlite3.connect": [path],
        "pathlib.Path.touch": [{"_target_": "pathlib.Path", "_args_": [path]}],
        "pathlib.Path.write_text": [{"_target_": "pathlib.Path", "_args_": [path]}, "x"],
        "posegen.io.atomic.write_text": [{"_target_": "pathlib.Path", "_args_": [path]}, "x"],
        "posegen.io.atomic.write_json": [{"_target_": "pathlib.Path", "_args_": [path]}, {}],
        "posegen.cli.os.system": [touch],
        "posegen.runner.cell.os.mkdir": [path],
        "hydra.utils.call": [{"_target_": "os.system", "_args_": [touch]}],
        "lightning.pytorch.loggers.CSVLogger.log_metrics": [{"_target_": "os.system", "_args_": [touch]}],
        "unittest.mock.patch.object": [{"_target_": "os.system", "_args_": [touch]}],
    }
    return {name: {"_target_": name, "_args_": arguments} for name, arguments in found.items()}


def planted(tree: Any, node: Any, dice: random.Random) -> Any:
    """``tree`` with ``node`` at a random place, at any depth."""
    tree = copy.deepcopy(tree)
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        for key, each in (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        ):
            places.append((value, key))
            walk(each)

    walk(tree)
    holder, key = dice.choice(places)
    if isinstance(holder[key], dict) and dice.random() < 0.5:
        holder[key] = {**holder[key], **node} if dice.random() < 0.5 else {**holder[key], "extra": node}
    else:
        holder[key] = node
    return tree


def zeros_png(side: int) -> bytes:
    """A picture of a few kilobytes that takes gigabytes when it is decoded."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, rows = zlib.compressobj(9), b""
    line = bytes(1 + 3 * side) * 64
    for _ in range(side // 64):
        rows += packer.compress(line)
    head = struct.pack(">IIBBBBB", side, side // 64 * 64, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows + packer.flush()) + chunk(b"IEND", b"")


def claiming(png: bytes, side: int) -> bytes:
    """The picture with another size in its head."""
    head = b"IHDR" + struct.pack(">II", side, side) + png[24:29]
    return png[:12] + head + struct.pack(">I", zlib.crc32(head)) + png[33:]


def npz_bomb(gigabytes: int, claimed: tuple[int, ...] | None = None) -> bytes:
    """Zeros by the gigabyte in a small archive; ``claimed``: another shape than what is in it."""
    stream, count = io.BytesIO(), gigabytes << 30
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("keypoints", "images", "judge_features"):
            head = io.BytesIO()
            shape = claimed or (count,)
            np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": shape})
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                file.write(head.getvalue())
                for _ in range(gigabytes * 16 if name == "keypoints" else 0):
                    file.write(bytes(1 << 26))
    return stream.getvalue()


MARK = "<script>alert(7)</script><img src=x onerror=alert(7)>"


def tries(campaign: Campaign, study: Study, dice: random.Random) -> list[Try]:
    kinds = (weights, received_nodes, texts, bombs, paths)
    return [each for kind in kinds for each in kind(campaign, study, dice)]


def attacked(
    campaign: Campaign, study: Study, damage: Callable[[Path], None], *commands: Callable[[Path], list[str]]
) -> str:
    """A copy of the finished study with a file of somebody else, and what the commands make of it."""
    place = study.copy(study.finished)
    damage(place)
    for command in commands:
        words = command(place)
        if fault := campaign.fault(posegen(words, place).end()):
            return f"posegen {' '.join(words[:2])}: {fault}"
    return ""


def cell_of(place: Path, method: str) -> Path:
    return next((place / "outputs" / NAME / method).glob("*/seed0"))


def weights(campaign: Campaign, study: Study, dice: random.Random) -> Iterator[Try]:
    """Code in the place of weights and arrays."""
    world = [word for word in study.world if word.startswith("backbone.")]

    def convert(place: Path, file: Path) -> list[str]:
        return ["convert", "adapter=controlnet", *world, f"source={file}", f"target={place / 'converted'}"]

    def sample(place: Path) -> list[str]:
        return [
            "sample",
            *study.world,
            f"checkpoint={place / 'method'}",
            f"paths.output={place / 'o'}",
            f"paths.cache={place / 'cache'}",
        ]

    def on_backbone(place: Path) -> list[str]:
        words = [word for word in study.world if not word.startswith("backbone.path")]
        return [
            "evaluate",
            *words,
            "adapter=none",
            f"backbone.path={place / 'backbone'}",
            f"paths.output={place / 'o'}",
            f"paths.cache={place / 'cache'}",
        ]

    for call, payload in pickles(campaign.canary).items():
        for kind, content in containers(payload).items():
            for suffix in (".ckpt", ".pt", ".pth", ".bin", ".safetensors", ".npz"):

                def source(content: bytes = content, suffix: str = suffix) -> str:
                    def damage(place: Path) -> None:
                        (place / f"given{suffix}").write_bytes(content)

                    return attacked(campaign, study, damage, lambda place: convert(place, place / f"given{suffix}"))

                yield Try(f"convert source=given{suffix}, a {kind} that calls {call}", source)
            for part in (
                "controlnet/diffusion_pytorch_model.safetensors",
                "controlnet/diffusion_pytorch_model.bin",
                "adapter.safetensors",
            ):

                def method(content: bytes = content, part: str = part) -> str:
                    def damage(place: Path) -> None:
                        folder = shutil.copytree(cell_of(place, "controlnet") / "method", place / "method")
                        (folder / "controlnet/diffusion_pytorch_model.safetensors").unlink()
                        (folder / part).write_bytes(content)

                    return attacked(campaign, study, damage, sample)

                yield Try(f"sample checkpoint=method with {part}, a {kind} that calls {call}", method)
            for part in ("unet/diffusion_pytorch_model", "text_encoder/model", "text_encoder/pytorch_model"):

                def backbone(content: bytes = content, part: str = part) -> str:
                    def damage(place: Path) -> None:
                        folder = shutil.copytree(study.root / "world/backbone", place / "backbone")
                        for old in (folder / part).parent.glob("*.safetensors"):
                            old.unlink()
                        for suffix in (".bin", ".safetensors"):
                            (folder / f"{part}{suffix}").write_bytes(content)

                    return attacked(campaign, study, damage, on_backbone)

                yield Try(f"evaluate backbone.path=FOLDER with {part}, a {kind} that calls {call}", backbone)
            inner = ["features.npz", "records.csv", "last.ckpt"]
            for name in inner:

                def state(content: bytes = content, name: str = name) -> str:
                    def damage(place: Path) -> None:
                        cell = cell_of(place, "controlnet")
                        (cell / name).write_bytes(content)
                        if name == "last.ckpt":
                            shutil.rmtree(cell / "method")
                            status = json.loads((cell / "status.json").read_text())
                            (cell / "status.json").write_text(json.dumps({**status, "state": "running"}))

                    return attacked(
                        campaign, study, damage, lambda place: ["table", str(place / "outputs" / NAME)], study.command
                    )

                yield Try(f"a cell's {name} is a {kind} that calls {call}", state)

            def cached(content: bytes = content) -> str:
                def damage(place: Path) -> None:
                    for file in place.rglob("cache/*/**/*.np[yz]"):
                        file.write_bytes(content)
                    for cell in (place / "outputs").glob("**/seed0"):
                        shutil.rmtree(cell)

                return attacked(campaign, study, damage, study.command)

            yield Try(f"all arrays of the caches are a {kind} that calls {call}", cached)


def received_nodes(campaign: Campaign, study: Study, dice: random.Random) -> Iterator[Try]:
    """Classes and functions that a received results folder names."""

    def verbs(place: Path) -> list[Callable[[Path], list[str]]]:
        return [lambda place: [verb, str(place / "outputs" / NAME)] for verb in ("table",)]

    for name, node in nodes(campaign.canary).items():
        for spot in ("cells.json", "config.yaml", "status.json", "row.json", "posegen.json"):
            for _ in range(3):

                def attack(node: dict = node, spot: str = spot, seed: int = dice.randrange(1 << 30)) -> str:
                    def damage(place: Path) -> None:
                        inner = random.Random(seed)
                        folder = place / "outputs" / NAME
                        files = [folder / spot] if spot == "cells.json" else sorted(folder.rglob(spot))
                        for file in files:
                            content = yaml.safe_load(file.read_text())
                            if spot in ("cells.json", "config.yaml"):  # where posegen instantiates
                                part = "protocol" if spot == "cells.json" else inner.choice(["protocol", "backbone"])
                                top = inner.random() < 0.3
                                content[part] = node if top else planted(content[part], node, inner)
                            else:
                                content = planted(content, node, inner)
                            file.write_text(json.dumps(content) if file.suffix == ".json" else yaml.safe_dump(content))
                        if spot != "cells.json" and inner.random() < 0.5:
                            (folder / "cells.json").unlink()

                    def power(place: Path) -> list[str]:
                        return ["power", str(cell_of(place, "none")), str(cell_of(place, "controlnet"))]

                    folder = ["table", "report"]
                    asked = [lambda place, verb=verb: [verb, str(place / "outputs" / NAME)] for verb in folder]
                    fault = attacked(campaign, study, damage, *asked, power)
                    return fault or campaign.fault(pipeline(study.root / "place"))

                yield Try(f"a received {spot} names {name}", attack)
    for name in (
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "sympy.sympify",
        "antigravity",
        "posegen.io.atomic.write_text",
    ):

        def named(name: str = name) -> str:
            def damage(place: Path) -> None:
                for file in place.rglob("posegen.json"):
                    about = json.loads(file.read_text())
                    about |= {"class": name, "kwargs": {"cmd": f"touch {campaign.canary}"}}
                    about |= {"pipeline": {"class": name, "kwargs": {"command": f"touch {campaign.canary}"}}}
                    file.write_text(json.dumps(about))

            fault = attacked(campaign, study, damage)
            return fault or campaign.fault(pipeline(study.root / "place"))

        yield Try(f"posegen.json names the class {name}", named)
    for tag in ("!!python/object/apply:os.system", "!!python/object/new:os.system", "!!python/name:os.system"):
        for spot in ("config.yaml", "cells.json"):

            def tagged(tag: str = tag, spot: str = spot) -> str:
                def damage(place: Path) -> None:
                    for file in (place / "outputs").rglob(spot):
                        file.write_text(f"{tag} ['touch {campaign.canary}']\n")

                folder = ["table", "report"]
                asked = [lambda place, verb=verb: [verb, str(place / "outputs" / NAME)] for verb in folder]
                return attacked(campaign, study, damage, *asked, study.command)

            yield Try(f"{spot} is the yaml {tag}", tagged)
    for file, entry in {
        "unet/config.json": {"_class_name": "os.system", "auto_map": {"AutoModel": "evil.Model"}},
        "scheduler/scheduler_config.json": {"_class_name": "os.system"},
        "text_encoder/config.json": {"auto_map": {"AutoModel": "evil.Model"}, "architectures": ["Evil"]},
        "tokenizer/tokenizer_config.json": {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.T", None]}},
    }.items():

        def custom(file: str = file, entry: dict = entry) -> str:
            def damage(place: Path) -> None:
                folder = shutil.copytree(study.root / "world/backbone", place / "backbone")
                content = json.loads((folder / file).read_text())
                (folder / file).write_text(json.dumps({**content, **entry}))
                for spot in (folder, (folder / file).parent):
                    (spot / "evil.py").write_text(f"open({str(campaign.canary)!r}, 'w').close()\n")

            def words(place: Path) -> list[str]:
                given = [word for word in study.world if not word.startswith("backbone.path")]
                return [
                    "evaluate",
                    *given,
                    "adapter=none",
                    f"backbone.path={place / 'backbone'}",
                    f"paths.output={place / 'o'}",
                    f"paths.cache={place / 'cache'}",
                ]

            return attacked(campaign, study, damage, words)

        yield Try(f"a backbone's {file} names code of its own", custom)


def pipeline(place: Path) -> Ending:
    """A received cell in Python's pipeline."""

    def load() -> int:
        from posegen.errors import UserError
        from posegen.pipeline import PoseGuidedPipeline

        try:
            PoseGuidedPipeline.from_pretrained(cell_of(place, "controlnet"))
        except UserError as error:
            print(error)
            return 1
        return 0

    return Child(load, place).end()


def texts(campaign: Campaign, study: Study, dice: random.Random) -> Iterator[Try]:
    """Html in what a results folder says."""

    def marked(value: Any, inner: random.Random, key: str = "") -> Any:
        if isinstance(value, dict):
            return {k: marked(v, inner, k) for k, v in value.items()}
        if isinstance(value, list):
            return [marked(v, inner, key) for v in value]
        return (
            f"{value}{MARK}"
            if isinstance(value, str) and key in ("title", "method", "reason", "remark", "baseline")
            else value
        )

    for spot in ("cells.json", "status.json", "row.json", "prompts.txt", "records.csv"):

        def attack(spot: str = spot) -> str:
            place = study.copy(study.finished)
            folder = place / "outputs" / NAME
            for file in [folder / spot] if spot == "cells.json" else sorted(folder.rglob(spot)):
                if file.suffix == ".json":
                    content = json.loads(file.read_text())
                    content |= (
                        {"title": MARK} if spot == "cells.json" else {"reason": MARK, "remark": MARK, "state": "failed"}
                    )
                    file.write_text(json.dumps(marked(content, dice)))
                elif file.suffix == ".csv":
                    head, *rest = file.read_text().splitlines()
                    file.write_text("\n".join([head, *(f"{MARK}{line}" for line in rest)]) + "\n")
                else:
                    file.write_text("\n".join(f"{line}{MARK}" for line in file.read_text().splitlines()) + "\n")
            for verb in ("table", "report"):
                if fault := campaign.fault(posegen([verb, str(folder)], place).end()):
                    return f"posegen {verb}: {fault}"
            raw = [
                f.name
                for f in folder.rglob("*")
                if f.suffix in (".html", ".md", ".svg") and "<script>alert(7)" in f.read_text()
            ]
            return f"raw html in {', '.join(raw)}" if raw else ""

        yield Try(f"html in {spot}", attack)


def bombs(campaign: Campaign, study: Study, dice: random.Random) -> Iterator[Try]:
    """Small files that become large, and numbers that claim more than there is."""
    fields = "x" * 200_000
    safetensors = struct.pack("<Q", 1 << 40) + b"{}"
    state: dict[str, dict[str, bytes | Callable[[], bytes]]] = {
        "features.npz": {
            "deflated gigabytes": lambda: npz_bomb(8),
            "a shape of 10^15": npz_bomb(0, (10**15,)),
            "a negative shape": npz_bomb(0, (-1,)),
        },
        "records.csv": {
            "a field of 200,000 characters": f"id,a\n{fields},1\n".encode(),
            "50 MB of quotes": lambda: b'"' * 50_000_000,
        },
        "cells.json": {
            "1,000,000 brackets": b"[" * 1_000_000,
            "a number of 1,000,000 digits": b"9" * 1_000_000,
            "300 MB": lambda: b'{"a": "' + b"x" * 300_000_000 + b'"}',
        },
        "status.json": {"1,000,000 brackets": b'{"a":' * 200_000, "1e999": b'{"state": "finished", "wall_s": 1e999}'},
        "config.yaml": {
            "100,000 brackets": b"a: " + b"[" * 100_000,
            "100,000 levels": b"".join(b" " * 1 + b"- " for _ in range(50_000)),
        },
    }
    for name, contents in state.items():
        for what, content in contents.items():

            def attack(name: str = name, content: bytes | Callable[[], bytes] = content) -> str:
                def damage(place: Path) -> None:
                    folder = place / "outputs" / NAME
                    for file in [folder / name] if name == "cells.json" else sorted(folder.rglob(name)):
                        file.write_bytes(content() if callable(content) else content)

                folder = ["table", "report"]
                return attacked(
                    campaign,
                    study,
                    damage,
                    *[lambda place, verb=verb: [verb, str(place / "outputs" / NAME)] for verb in folder],
                )

            yield Try(f"{name} with {what}", attack)
    given: dict[str, dict[str, bytes | Callable[[], bytes]]] = {
        "picture.png": {
            "a picture of 1.6 gigapixels": lambda: zeros_png(40_000),
            "a picture that claims 4 gigapixels": lambda: claiming(zeros_png(64), 65_535),
        },
        "poses.json": {
            "1,000,000 brackets": b"[" * 1_000_000,
            "huge numbers": json.dumps({"people": [{"pose_keypoints_2d": [10**400] * 54}]}).encode(),
            "a huge canvas": json.dumps(
                {"people": [{"pose_keypoints_2d": [1.0] * 54}], "canvas_width": 10**12, "canvas_height": 10**12}
            ).encode(),
        },
        "prompts.csv": {"a field of 200,000 characters": f"picture.png,{fields}\n".encode(), "zeros": bytes(1000)},
        "weights.safetensors": {
            "a header of a terabyte": safetensors,
            "deep json": struct.pack("<Q", 200_000) + b"[" * 200_000,
        },
    }

    def asked(place: Path, name: str) -> list[list[str]]:
        root = place / "given"
        world = [word for word in study.world if word.startswith("backbone.")]
        prepare = [
            "prepare",
            "data=folder",
            f"data.root={root}",
            "data.size=64",
            f"data.poses={'poses.json' if name == 'poses.json' else 'null'}",
            f"data.prompts={'prompts.csv' if name == 'prompts.csv' else 'null'}",
            f"paths.cache={place / 'cache'}",
        ]
        sample = [
            "sample",
            *study.world,
            f"checkpoint={cell_of(place, 'controlnet')}",
            "prompt=dancer",
            f"poses={root / name}",
            f"paths.output={place / 'o'}",
            f"paths.cache={place / 'cache'}",
        ]
        judge = next(word for word in study.world if word.startswith("estimator"))
        annotate = ["annotate", f"source={root}", f"target={place / 'found.json'}", judge]
        convert = ["convert", "adapter=controlnet", *world, f"source={root / name}", f"target={place / 'converted'}"]
        return {
            "picture.png": [prepare, annotate, sample],
            "poses.json": [prepare, sample],
            "prompts.csv": [prepare],
            "weights.safetensors": [convert],
        }[name]

    for name, contents in given.items():
        for what, content in contents.items():

            def attack(name: str = name, content: bytes | Callable[[], bytes] = content) -> str:
                def damage(place: Path) -> None:
                    (place / "given").mkdir()
                    (place / "given" / name).write_bytes(content() if callable(content) else content)
                    if name != "picture.png":
                        small = io.BytesIO()
                        from PIL import Image

                        Image.new("RGB", (80, 64)).save(small, "png")
                        (place / "given" / "picture.png").write_bytes(small.getvalue())

                place = study.copy(study.finished)
                return attacked(
                    campaign, study, damage, *[lambda _, words=words: words for words in asked(place, name)]
                )

            yield Try(f"{name} is {what}", attack)


def paths(campaign: Campaign, study: Study, dice: random.Random) -> Iterator[Try]:
    """Names that lead out of the folder that a user named."""
    for where in ("../../escape", "/tmp/escape", "a/../../../escape", "..", "benchmark/../../../escape"):

        def escape(where: str = where) -> str:
            place = study.copy(study.finished)
            before = set(place.parent.rglob("*")) | set(Path("/tmp").glob("escape*"))
            words = [
                "evaluate",
                *study.world,
                "adapter=none",
                f"study={where}",
                f"paths.output={place / 'inner/o'}",
                f"paths.cache={place / 'cache'}",
            ]
            ending = posegen(words, place).end()
            outside = [
                p
                for p in (set(place.parent.rglob("*")) | set(Path("/tmp").glob("escape*"))) - before
                if "inner" not in p.parts and "cache" not in p.parts
            ]
            for path in outside:
                shutil.rmtree(path, ignore_errors=True)
            return campaign.fault(ending) or (f"wrote {outside[0]}" if outside else "")

        yield Try(f"evaluate study={where}", escape)

        def cells(where: str = where) -> str:
            def damage(place: Path) -> None:
                file = place / "outputs" / NAME / "cells.json"
                content = json.loads(file.read_text())
                shutil.copytree(cell_of(place, "none"), place / "escape/seed0")
                for cell in content["cells"]:
                    cell["folder"] = where if where.startswith("/") else f"../../../{where}"
                file.write_text(json.dumps(content))

            folder = ["table", "report"]
            return attacked(
                campaign,
                study,
                damage,
                *[lambda place, verb=verb: [verb, str(place / "outputs" / NAME)] for verb in folder],
            )

        yield Try(f"cells.json names the folder {where}", cells)
