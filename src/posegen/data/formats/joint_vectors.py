"""GUNet's data as its authors store it: one file of 17 joint maps per person, and a list of files and captions.

    <folder>/joint_vectors/<i>.npy   [17, 4096] float32, maps of `posegen.backbones.blocks.pose_maps`, row by row
    <folder>/texts/<i>.txt           the caption once more
    <folder>/train.json              [{"image_path": "/joint_vectors/<i>.npy", "text": caption}, ...]

The released program makes these from COCO 2014: one person with more than 7 labelled joints, the first caption, the
person's box in a square without a margin, and a random flip and rotation that are fixed in the files.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from posegen.data.base import PoseData, Sample, generator
from posegen.io.arrays import NPZ_ERRORS
from posegen.io.atomic import explained, read_json, write_text
from posegen.io.foreign_files import foreign_bytes, require_array_bytes
from posegen.io.hashes import file_hash
from posegen.poses.pose_square import Square, to_square
from posegen.poses.topology import COCO_JOINTS
from posegen.ranges import AtLeastOne, Seed, ZeroToOne

MAPS_FOLDER, TEXTS_FOLDER = "joint_vectors", "texts"


@dataclass(frozen=True, eq=False)
class FramedPose(Sample):
    """A sample of one person whose canvas is the square around the person."""

    @property
    def pose(self) -> Tensor:
        square = Square(self.size[1] / 2 - 0.5, self.size[0] / 2 - 0.5, self.size[0])
        return torch.from_numpy(to_square(square, self.keypoints[0])).float()


@dataclass(frozen=True, eq=False)
class StoredPose(FramedPose):
    """A sample whose pose is stored as joint maps; its keypoints are read from them."""

    maps: np.ndarray | None = None  # ``[17, side, side] float32``

    @property
    def encodable(self) -> Tensor:
        return torch.from_numpy(self.maps)


class JointVectors(PoseData):
    """A share of the people in such a folder, in a fixed random order. Raises ValueError: a damaged or empty list."""

    name = "joint_vectors"

    def __init__(
        self,
        folder: str | Path,
        names: str = "train.json",  # the list in the folder
        split: str = "train",
        share: tuple[ZeroToOne, ZeroToOne] = (0.0, 1.0),  # (from, to) of the people; the paper trains on four fifths
        count: AtLeastOne | None = None,  # take only the first so many; None for all
        seed: Seed = 0,  # of the order
    ) -> None:
        self.folder, self.split, self.share = Path(folder).expanduser(), split, tuple(share)
        self.count, self.seed, self.list = count, seed, self.folder / names
        people, self.sha = read_joint_vector_list(self.list), file_hash(self.list, 16)
        where = f"data.{split}: {self.list} names {len(people)} people"
        self.people = [people[i] for i in random_share(len(people), self.share, count, "joint vectors", seed, where)]
        side = self.maps(0).shape[-1]
        self.size = (side, side)

    @property
    def identity(self) -> dict[str, Any]:
        about = {"name": self.name, "list": self.sha, "split": self.split, "share": list(self.share)}
        return {**about, "count": self.count, "seed": self.seed}

    def __len__(self) -> int:
        return len(self.people)

    @property
    def prompts(self) -> list[str]:
        return [caption for _, caption in self.people]

    def __getitem__(self, index: int) -> Sample:
        maps, (path, caption) = self.maps(index), self.people[index]
        keypoints, area = keypoints_of(maps)[None], np.array([maps[0].size], np.float32)
        return StoredPose(f"{self.name}/{Path(path).stem}", caption, keypoints, area, None, self.size, maps=maps)

    def maps(self, index: int) -> np.ndarray:
        """``[17, side, side] float32`` of one person. Raises ValueError: its file is missing or damaged."""
        path = self.folder / self.people[index][0]
        try:
            require_array_bytes(content := foreign_bytes(path))
            stored = np.load(io.BytesIO(content), allow_pickle=False)
        except NPZ_ERRORS as error:
            problem = f"{path}, which {self.list} names, cannot be read ({error}); copy the data again"
            raise ValueError(problem) from error
        side = isqrt(stored.size // COCO_JOINTS)
        if stored.size != COCO_JOINTS * side**2 or not np.isfinite(stored).all():
            expected = f"finite ones for {COCO_JOINTS} square joint maps, [{COCO_JOINTS}, 4096] as released"
            raise ValueError(f"{path} holds {list(stored.shape)} values; expected {expected}")
        return stored.astype(np.float32).reshape(COCO_JOINTS, side, side)


def random_share(
    people: int, share: Sequence[float], count: int | None, purpose: str, seed: int, where: str
) -> list[int]:
    """The first ``count`` of a share (from, to) of people in a fixed random order. Raises ValueError: too few."""
    order = torch.randperm(people, generator=generator(purpose, seed)).tolist()
    first, last = (round(edge * people) for edge in share)
    chosen = order[first:last][:count]
    if not chosen or (count or 0) > len(chosen):
        raise ValueError(f"{where}, of whom share={list(share)} holds {last - first}; count is {count}")
    return chosen


def read_joint_vector_list(path: Path) -> list[tuple[str, str]]:
    """(path below the folder, caption) of everybody in the list. Raises ValueError: it is missing or damaged."""
    expected = f'expected a list of {{"image_path": ..., "text": ...}}, beside the folder {MAPS_FOLDER} of its files'
    try:
        return [(str(row["image_path"]).lstrip("/"), str(row["text"])) for row in read_json(path, expected)]
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path}: {error!r}; {expected}") from error


def write_joint_vectors(
    folder: str | Path, people: Iterable[tuple[np.ndarray, str]], names: str = "train.json"
) -> None:
    """Writes (maps ``[17, side, side]``, caption) in the released layout; the list comes last."""
    root = Path(folder)
    with explained(root / names):
        _write_joint_vectors(root, people, names)


def _write_joint_vectors(root: Path, people: Iterable[tuple[np.ndarray, str]], names: str) -> None:
    entries = []
    for part in (MAPS_FOLDER, TEXTS_FOLDER):
        (root / part).mkdir(parents=True, exist_ok=True)
    (root / names).unlink(missing_ok=True)
    for i, (maps, caption) in enumerate(people):
        vectors = np.asarray(maps, np.float32).reshape(COCO_JOINTS, -1)
        np.save(root / MAPS_FOLDER / f"{i}.npy", vectors, allow_pickle=False)
        (root / TEXTS_FOLDER / f"{i}.txt").write_text(caption, encoding="utf-8")
        entries.append({"image_path": f"/{MAPS_FOLDER}/{i}.npy", "text": caption})
    write_text(root / names, json.dumps(entries, ensure_ascii=False))


def keypoints_of(maps: np.ndarray) -> np.ndarray:
    """Keypoints ``[17, 3]`` of released maps ``[17, side, side]``: the centre of the low half of each; zeros if absent.

    Maps are saturated around a joint, and neighbours cut into each other: the median error is 1 to 2 of 64 pixels.
    """
    low = np.where(maps < 0, (1 - maps) / 2, 0)  # negative where their joint is the nearest
    mass = low.sum((1, 2))
    rows, columns = np.arange(maps.shape[1]), np.arange(maps.shape[2])
    x, y = (low.sum(1) * columns).sum(1), (low.sum(2) * rows).sum(1)
    there = mass > 0
    points = np.stack([x, y], -1) / np.where(there, mass, 1)[:, None] - 0.5  # the program counts from pixel corners
    return np.where(there[:, None], np.concatenate([points, np.full((len(maps), 1), 2.0)], 1), 0).astype(np.float32)
