"""LAION-Human in miniature: 2 shards of 6 pictures, as tars and unpacked, with mapping, pose files and tables."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

KEYS = tuple(shard * 10_000 + i for shard in (0, 33) for i in range(6))


def name_of(key: int) -> str:
    return f"{key // 10_000:05d}/{key:09d}"


def jpeg(key: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.full((48, 64, 3), key % 256, np.uint8)).save(content, "JPEG")
    return content.getvalue()


def people(key: int, count: int = 1) -> np.ndarray:
    """As HumanSD stores them: an array of dicts."""
    rng = np.random.default_rng(key)
    found = np.empty(count, object)
    for i in range(count):
        keypoints = np.concatenate([rng.uniform(4, 44, (17, 2)), np.full((17, 1), 0.9)], 1).astype(np.float32)
        found[i] = {"keypoints": keypoints, "score": np.float32(0.8), "area": np.float32(900 + key)}
    return found


def tar_of(file: Path, members: Mapping[str, bytes], mode: str = "w") -> None:
    with tarfile.open(file, mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def members_of(keys: Sequence[int], prompts: str = "txt") -> dict[str, bytes]:
    """What img2dataset puts into a tar: each picture, a json and a text beside it."""
    members = {}
    for key in keys:
        members[f"{key:09d}.jpg"] = jpeg(key)
        if prompts == "json":
            members[f"{key:09d}.json"] = json.dumps({"caption": f"prompt of {key}"}).encode()
        elif prompts == "txt":
            members[f"{key:09d}.txt"] = f"prompt of {key}\n".encode()
    return members


def poses_and_mapping(root: Path, prefix: str = "Aesthetics_Human/") -> dict[str, dict[str, str]]:
    """Writes the pose files and the mapping; returns the mapping."""
    mapping = {}
    for key in KEYS:
        file = root / "pose" / f"{name_of(key)}.npz"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, people(key))
        row = {
            "img_path": f"{prefix}images/{name_of(key)}.jpg",
            "prompt": f"prompt of {key}",
            "pose_path": f"{prefix}pose/{name_of(key)}.npz",
        }
        mapping[name_of(key).replace("/", "_")] = row
    (root / "mapping_file_training.json").write_text(json.dumps(mapping))
    return mapping


def unpacked(root: Path, missing: Sequence[int] = (), prefix: str = "Aesthetics_Human/") -> Path:
    poses_and_mapping(root, prefix)
    for key in KEYS:
        file = root / "images" / f"{name_of(key)}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        if key not in missing:
            file.write_bytes(jpeg(key))
    return root


def in_tars(root: Path, missing: Sequence[int] = (), prompts: str = "txt") -> Path:
    poses_and_mapping(root)
    (root / "images").mkdir()
    for shard in (0, 33):
        keys = [key for key in KEYS if key // 10_000 == shard and key not in missing]
        tar_of(root / "images" / f"{shard:05d}.tar", members_of(keys, prompts))
    return root


def parquet(file: Path, keys: Sequence[int | str]) -> None:
    import pyarrow as pa
    from pyarrow.parquet import write_table

    write_table(
        pa.table(
            {"url": [f"https://example.org/{int(key)}" for key in keys], "key": list(keys), "width": [64] * len(keys)}
        ),
        file,
    )
