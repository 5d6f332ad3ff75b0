"""GUNet's data as its authors store it: one file of 17 joint maps per person, and a list that names the files and their captions.

    <folder>/joint_vectors/<i>.npy   [17, 4096] float32, the maps of `posegen.backbones.blocks.pose_maps.joint_vectors`, row by row
    <folder>/texts/<i>.txt           the caption once more
    <folder>/train.json              [{"image_path": "/joint_vectors/<i>.npy", "text": caption}, ...]

The released program makes these from COCO 2014: one person with more than 7 labelled joints, the first caption, the person's box fitted to_square a square without
a margin, and a random flip and rotation that are fixed once made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from posegen.data.base import PoseData, Sample, generator
from posegen.io.atomic import replacing
from posegen.poses.pose_square import Square, to_square

JOINTS = 17
MAPS, TEXTS = "joint_vectors", "texts"
PLATEAU = 0.0  # maps are lower where their own joint is the nearest


@dataclass(frozen=True, eq=False)
class FramedPose(Sample):
    """A sample of one person whose canvas is the person's own square; there is no other."""

    @property
    def pose(self) -> Tensor:
        return torch.from_numpy(
            to_square(Square(self.size[1] / 2 - 0.5, self.size[0] / 2 - 0.5, self.size[0]), self.keypoints[0])
        ).float()


@dataclass(frozen=True, eq=False)
class StoredPose(FramedPose):
    """A sample whose pose is known as joint maps; its keypoints are read off them.

    Attributes:
        maps: ``[17, side, side] float32``.
    """

    maps: np.ndarray | None = None

    @property
    def encodable(self) -> Tensor:
        return torch.from_numpy(self.maps)


class JointVectors(PoseData):
    """A share of the people in such a folder, in a fixed random order.

    Args:
        folder: where it lies.
        names: the list in it.
        split: name of the share.
        share: (from, to) of the people, between 0 and 1; the paper trains on four fifths.
        count: take only the first so many; None for all.
        seed: of the order.

    Raises:
        ValueError: the list is missing or damaged, or the share is empty.
    """

    name = "joint_vectors"

    def __init__(
        self,
        folder: str | Path,
        names: str = "train.json",
        split: str = "train",
        share: tuple[float, float] = (0.0, 1.0),
        count: int | None = None,
        seed: int = 0,
    ) -> None:
        self.folder, self.split, self.share, self.count, self.seed = (
            Path(folder).expanduser(),
            split,
            tuple(share),
            count,
            seed,
        )
        self.list = self.folder / names
        people = read_list(self.list)
        order = torch.randperm(len(people), generator=generator("joint vectors", seed)).tolist()
        first, last = (round(edge * len(people)) for edge in share)
        self.people = [people[i] for i in order[first:last]][:count]
        if not self.people or (count or 0) > len(self.people):
            raise ValueError(
                f"data.{split}: {self.list} names {len(people)} people, of whom share={list(share)} holds {last - first}; count is {count}"
            )
        side = self.maps(0).shape[-1]
        self.size = (side, side)

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "list": self._digest,
            "split": self.split,
            "share": list(self.share),
            "count": self.count,
            "seed": self.seed,
        }

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(self.list.read_bytes()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.people)

    @property
    def prompts(self) -> list[str]:
        return [caption for _, caption in self.people]

    def __getitem__(self, index: int) -> Sample:
        maps = self.maps(index)
        path, caption = self.people[index]
        keypoints = keypoints_of(maps)[None]
        area = np.array([maps[0].size], np.float32)
        return StoredPose(f"{self.name}/{Path(path).stem}", caption, keypoints, area, None, self.size, maps=maps)

    def maps(self, index: int) -> np.ndarray:
        """``[17, side, side] float32`` of one person.

        Raises:
            ValueError: the file is missing or holds something else.
        """
        path = self.folder / self.people[index][0]
        try:
            stored = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(
                f"{path}, which {self.list} names, cannot be read ({error}); copy the data again"
            ) from error
        side = isqrt(stored.size // JOINTS)
        if stored.size != JOINTS * side**2 or not np.isfinite(stored).all():
            raise ValueError(
                f"{path} holds {list(stored.shape)} values; expected finite ones for {JOINTS} square joint maps, [{JOINTS}, 4096] as released"
            )
        return stored.astype(np.float32).reshape(JOINTS, side, side)


def read_list(path: Path) -> list[tuple[str, str]]:
    """(path below the folder, caption) of everybody in the list; released paths begin with a slash and are below it nevertheless.

    Raises:
        ValueError: it is missing or damaged.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return [(str(entry["image_path"]).lstrip("/"), str(entry["text"])) for entry in entries]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f'{path}: {error!r}; expected a list of {{"image_path": ..., "text": ...}}, beside the folder {MAPS} that it points to_square'
        ) from error


def write_joint_vectors(
    folder: str | Path, people: Iterable[tuple[np.ndarray, str]], names: str = "train.json"
) -> None:
    """Writes people in the released layout. The list comes last and makes the folder complete; an older one is removed first.

    Args:
        folder: where to write.
        people: (maps ``[17, side, side]``, caption) of each.
        names: name of the list.
    """
    root, entries = Path(folder), []
    for part in (MAPS, TEXTS):
        (root / part).mkdir(parents=True, exist_ok=True)
    (root / names).unlink(missing_ok=True)
    for i, (maps, caption) in enumerate(people):
        np.save(root / MAPS / f"{i}.npy", np.asarray(maps, np.float32).reshape(JOINTS, -1), allow_pickle=False)
        (root / TEXTS / f"{i}.txt").write_text(caption, encoding="utf-8")
        entries.append({"image_path": f"/{MAPS}/{i}.npy", "text": caption})
    with replacing(root / names) as temporary:
        temporary.write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")


def keypoints_of(maps: np.ndarray) -> np.ndarray:
    """Keypoints ``[17, 3]`` on the canvas of released maps ``[17, side, side]``: the centre of the low half of each, absent where a map is zero.

    The maps are saturated around a joint, and neighbours cut to_square each other, so this is good to about 1 to 2 of 64 pixels (median).
    """
    low = np.where(maps < PLATEAU, (1 - maps) / 2, 0)
    mass = low.sum((1, 2))
    rows, columns = np.arange(maps.shape[1]), np.arange(maps.shape[2])
    x, y = (low.sum(1) * columns).sum(1), (low.sum(2) * rows).sum(1)
    there = mass > 0
    points = (
        np.stack([x, y], -1) / np.where(there, mass, 1)[:, None] - 0.5
    )  # the program computes with the corners of pixels
    return np.where(there[:, None], np.concatenate([points, np.full((len(maps), 1), 2.0)], 1), 0).astype(np.float32)
