"""What somebody else may put into a file: code in pickles, names of functions in nodes, and bombs."""

from __future__ import annotations

import copy
import io
import os
import pickle
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Payload:
    """A pickle that calls a function when it is read."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


def pickled_calls(canary: Path) -> dict[str, Payload]:
    """Pickles that leave the canary where they are read."""
    place = str(canary)
    return {
        "os.system": Payload(os.system, f"touch {place}"),
        "exec": Payload(exec, f"open({place!r}, 'w').close()"),
        "eval": Payload(eval, f"__import__('os').mkdir({place!r})"),
        "os.mkdir": Payload(os.mkdir, place),
        "open": Payload(io.open, place, "w"),
        "torch.save": Payload(torch.save, {}, place),
        "numpy.save": Payload(np.save, place, 0),
    }


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


def planted(tree: Any, node: Mapping[str, Any], dice: random.Random) -> Any:
    """``tree`` with ``node`` at a random place, inner ones as well; one in five times in its place."""
    tree, places = copy.deepcopy(tree), []

    def walk(value: Any) -> None:
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, each in inner:
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
