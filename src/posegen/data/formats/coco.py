"""COCO's captioned pictures of people who are alone in them, without the pictures: what GUNet learns from (arXiv:2409.11689, section 4.1).

    <root>/[annotations/]person_keypoints_train2014.json
    <root>/[annotations/]captions_train2014.json

The released program fits a person's box into a square, takes the first of five captions, and fixes a random flip and rotation once and for all; the paper
says that the caption is a random one. Each of these is an option here.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from posegen.data.base import PoseData, Sample, generator
from posegen.data.formats.joint_vectors import FramedPose, write_joint_vectors
from posegen.data.on_disk.source import Condition, Defect
from posegen.io.atomic import replacing
from posegen.poses.pose_square import Square, from_square, to_square
from posegen.poses.topology import COCO_FLIP

JOINTS = 17
FILES = ("person_keypoints_{year}.json", "captions_{year}.json")
HOW = "download COCO's annotations (https://cocodataset.org, 2014 Train/Val annotations) and name the folder with data.root=FOLDER"
VERSION = 1  # of what is kept of the annotations
CHUNK = 64  # people whose maps are made at a time

Frame = Literal["box", "joints"]
Caption = Literal["first", "random"]
Augment = Literal["fixed", "reading"]
Maps = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Singles:
    """The people who are alone in their picture, in the order of the annotations.

    Attributes:
        images: ``[N]`` COCO's numbers of the pictures.
        keypoints: ``[N, 17, 3]`` in the picture's pixels, with COCO's visibility.
        boxes: ``[N, 4]`` x, y, width, height.
        areas: ``[N]`` of their outlines.
        captions: of each, all that its picture has.
        facts: what was counted on the way.
        defects: what could not be used.
    """

    images: np.ndarray
    keypoints: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    captions: list[list[str]]
    facts: dict[str, Any]
    defects: list[Defect]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labelled(self) -> np.ndarray:
        """``[N]`` joints that are labelled, visible or hidden."""
        return (self.keypoints[..., 2] > 0).sum(1)


class CocoSingle(PoseData):
    """A share of them, in a fixed random order. The canvas is the person's own square.

    Args:
        root: folder of the annotations, or one that holds ``annotations``.
        split: name of the share.
        year: which files: ``train2014``, as released, or ``val2014``.
        share: (from, to) of the people, between 0 and 1; the paper trains on four fifths.
        joints: least number of labelled joints.
        frame: ``box``, the square that the annotated box is fitted into, as released, or ``joints``, the square around the labelled joints with a margin.
        caption: ``first``, as released, or ``random``, one that the seed and the picture choose, as the paper says.
        augment: ``fixed`` mirrors and rotates each person once, as released (there without a seed), ``reading`` anew on each visit; None never.
        flip: share of the people, or visits, that are mirrored, left and right with them.
        rotation: largest angle in degrees, either way, about the centre of the square.
        size: side of the canvas.
        count: take only the first so many; None for all.
        seed: of the order, captions and augmentation.
        cache: where the chosen annotations are kept, so that hundreds of megabytes are read once; None reads them each time.
        maps: makes maps ``[B, 17, side, side]`` of poses ``[B, 17, 3]``, for `export`.
    """

    name = "coco_single"

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        year: str = "train2014",
        share: tuple[float, float] = (0.0, 1.0),
        joints: int = 8,
        frame: Frame = "box",
        caption: Caption = "first",
        augment: Augment | None = None,
        flip: float = 0.5,
        rotation: float = 10.0,
        size: int = 64,
        count: int | None = None,
        seed: int = 0,
        cache: str | Path | None = None,
        maps: Maps | None = None,
    ) -> None:
        for key, value, known in (
            ("frame", frame, get_args(Frame)),
            ("caption", caption, get_args(Caption)),
            ("augment", augment, (*get_args(Augment), None)),
        ):
            if value not in known:
                raise ValueError(
                    f"data.{split}.{key}={value}; expected one of {', '.join('null' if k is None else k for k in known)}"
                )
        self.root, self.split, self.year, self.share, self.joints = (
            Path(root).expanduser(),
            split,
            year,
            tuple(share),
            joints,
        )
        self.frame, self.caption, self.augment, self.flip, self.rotation = frame, caption, augment, flip, rotation
        self.size, self.count, self.seed, self.maps = (size, size), count, seed, maps
        self.cache = None if cache is None else Path(cache).expanduser()
        self.varies = augment == "reading"

    @cached_property
    def files(self) -> tuple[Path, Path]:
        """The annotations of people and the captions.

        Raises:
            FileNotFoundError: one is missing.
        """
        folders = (self.root, self.root / "annotations")
        names = [name.format(year=self.year) for name in FILES]
        found = [next((folder / name for folder in folders if (folder / name).is_file()), None) for name in names]
        for name, file in zip(names, found, strict=True):
            if file is None:
                raise FileNotFoundError(f"data.root={self.root}: no {name} in it or in its folder annotations; {HOW}")
        return found[0], found[1]  # type: ignore[return-value]

    @cached_property
    def people(self) -> Singles:
        return singles(*self.files, self.cache)

    @cached_property
    def chosen(self) -> np.ndarray:
        """Indices of this share's people.

        Raises:
            ValueError: there are none, or fewer than were asked for.
        """
        fitting = np.flatnonzero(self.people.labelled >= self.joints)
        order = torch.randperm(len(fitting), generator=generator("coco single", self.seed)).numpy()
        first, last = (round(edge * len(fitting)) for edge in self.share)
        chosen = fitting[order[first:last]][: self.count]
        if not len(chosen) or (self.count or 0) > len(chosen):
            raise ValueError(
                f"data.{self.split}: {self.files[0]} has {len(fitting)} people who are alone and have {self.joints} labelled joints, of whom "
                f"share={list(self.share)} holds {last - first}; count is {self.count}"
            )
        return chosen

    @property
    def identity(self) -> dict[str, Any]:
        options = {
            name: getattr(self, name)
            for name in ("split", "year", "joints", "frame", "caption", "augment", "count", "seed")
        }
        augmentation = {"flip": self.flip, "rotation": self.rotation} if self.augment else {}
        return {
            "name": self.name,
            "files": self.people.facts["sha256"],
            "share": list(self.share),
            "size": self.size[0],
            **options,
            **augmentation,
        }

    def prepare(self) -> None:
        self.people  # noqa: B018 - reads and keeps them

    @property
    def condition(self) -> Condition:
        few = int((self.people.labelled < self.joints).sum())
        facts = {
            **self.people.facts,
            f"fewer than {self.joints} joints": few,
            "kept": len(self.people) - few,
            "in this split": len(self),
        }
        return Condition(facts, defects=self.people.defects)

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def prompts(self) -> Sequence[str]:
        return [self._caption(i) for i in self.chosen]

    def __getitem__(self, index: int) -> Sample:
        return self.seen(index)

    def seen(self, index: int, visit: int = 0, image: bool = True) -> Sample:
        person = int(self.chosen[index])
        return self._sample(person, None if self.augment is None else visit if self.augment == "reading" else 0)

    def _sample(self, person: int, visit: int | None) -> Sample:
        """One person as on a visit; None is without augmentation."""
        number, keypoints = int(self.people.images[person]), self.people.keypoints[person]
        square = Square.of_box(self.people.boxes[person]) if self.frame == "box" else Square.around(keypoints)
        assert square is not None
        pose = np.concatenate([to_square(square, keypoints)[:, :2], keypoints[:, 2:]], 1)
        if visit is not None:
            flip, turn = torch.rand(2, generator=generator("coco single", self.seed, number, visit, "augment")).tolist()
            pose = turned(pose, flip < self.flip, (2 * turn - 1) * self.rotation)
        area = self.people.areas[person] * (self.size[0] / square.side) ** 2
        placed, areas = from_square(pose, self.size)[None], np.array([area], np.float32)
        return FramedPose(f"{self.name}/{number}", self._caption(person), placed, areas, None, self.size)

    def _caption(self, person: int) -> str:
        every = self.people.captions[person]
        if self.caption == "first":
            return every[0]
        chance = generator("coco single", self.seed, int(self.people.images[person]), "caption")
        return every[int(torch.randint(len(every), (), generator=chance))]

    def export(self, folder: str | Path) -> int:
        """Writes this share as GUNet's authors store theirs, for their program or for ``data=joint_vectors``; returns the number of people.

        ``augment=fixed`` fixes flips and rotations in the files, as released; otherwise the maps are clean.

        Raises:
            ValueError: no ``maps`` are configured.
        """
        if self.maps is None:
            raise ValueError(
                f"data.{self.split}.maps is null; maps are made by a function, for instance posegen.backbones.blocks.pose_maps.joint_vectors"
            )
        with tqdm(total=len(self), desc="joint vectors", unit="pose", dynamic_ncols=True) as bar:
            write_joint_vectors(folder, self._encoded(self.maps, bar.update))
        return len(self)

    def _encoded(self, maps: Maps, done: Callable[[int], object]) -> Iterator[tuple[np.ndarray, str]]:
        visit = 0 if self.augment == "fixed" else None
        for start in range(0, len(self), CHUNK):
            samples = [self._sample(int(person), visit) for person in self.chosen[start : start + CHUNK]]
            for sample, made in zip(samples, maps(torch.stack([s.pose for s in samples])), strict=True):
                yield made.numpy(), sample.prompt
            done(len(samples))


def turned(pose: np.ndarray, mirrored: bool, degrees: float) -> np.ndarray:
    """A pose ``[17, 3]`` in the coordinates of its square, mirrored, then rotated clockwise about the square's centre; the absent joints stay absent."""
    if mirrored:
        pose = pose[list(COCO_FLIP)] * (-1, 1, 1)
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.concatenate([pose[:, :2] @ np.array([[cos, sin], [-sin, cos]]), pose[:, 2:]], 1)


# Annotations.


def singles(people: Path, captions: Path, cache: Path | None = None) -> Singles:
    """The people who are alone in their picture, and its captions.

    Args:
        people: ``person_keypoints_*.json``.
        captions: ``captions_*.json``.
        cache: where the result is kept; it belongs to the files' sizes and times of change.

    Raises:
        ValueError: a file is no annotation file of COCO's.
    """
    stamps = [str(VERSION), *(f"{f.resolve()}|{(s := f.stat()).st_size}|{s.st_mtime_ns}" for f in (people, captions))]
    kept = (
        None
        if cache is None
        else cache / "coco" / f"{people.stem}-{hashlib.sha256('|'.join(stamps).encode()).hexdigest()[:16]}.npz"
    )
    found = None if kept is None else _read(kept)
    if found is None:
        found = _chosen(_load(people, "annotations"), _load(captions, "annotations"), people.name)
        found.facts["sha256"] = [_sha256(file) for file in (people, captions)]
        if kept is not None:
            _write(kept, found)
    return found


def _chosen(people: Sequence[Mapping[str, Any]], captions: Sequence[Mapping[str, Any]], name: str) -> Singles:
    crowd = Counter(row["image_id"] for row in people)
    texts: dict[int, list[str]] = {}
    for row in captions:
        texts.setdefault(row["image_id"], []).append(" ".join(str(row["caption"]).split()))
    rows, defects = [], []
    for row in people:
        if crowd[row["image_id"]] == 1 and row.get("num_keypoints", 1):
            problem = _problem(row, texts)
            if problem:
                defects.append(Defect(f"{name} (image {row['image_id']})", problem))
            else:
                rows.append(row)
    return Singles(
        np.array([row["image_id"] for row in rows], np.int64),
        np.array([row["keypoints"] for row in rows], np.float32).reshape(-1, JOINTS, 3),
        np.array([row["bbox"] for row in rows], np.float32).reshape(-1, 4),
        np.array([row["area"] for row in rows], np.float32),
        [texts[row["image_id"]] for row in rows],
        {"pictures with people": len(crowd), "with one person": sum(count == 1 for count in crowd.values())},
        defects,
    )


def _problem(row: Mapping[str, Any], texts: Mapping[int, Sequence[str]]) -> str:
    """What makes a person useless."""
    try:
        keypoints, box = np.asarray(row["keypoints"], float), np.asarray(row["bbox"], float)
        plain = bool(np.isfinite(keypoints).all() and np.isfinite(box).all() and np.isfinite(float(row["area"])))
    except (KeyError, TypeError, ValueError) as error:
        return f"no usable keypoints, bbox and area ({type(error).__name__}: {error})"
    if keypoints.size != 3 * JOINTS:
        return f"{keypoints.size} numbers for {JOINTS} joints"
    if not plain or box.size != 4 or (box[2:] <= 0).any():
        return "an empty box, or numbers that are not finite"
    if not (keypoints.reshape(JOINTS, 3)[:, 2] > 0).any():
        return "no joint is labelled"
    return "" if texts.get(row["image_id"]) else "no caption"


def _load(file: Path, part: str) -> list[dict[str, Any]]:
    try:
        rows = json.loads(file.read_bytes())[part]
        if isinstance(rows, list) and all("image_id" in row for row in rows):
            return rows
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} cannot be read ({type(error).__name__}: {error}); expected COCO's annotations: {HOW}"
        ) from error
    raise ValueError(f"{file} holds no list of annotations with an image_id each; expected COCO's: {HOW}")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def _write(kept: Path, found: Singles) -> None:
    texts = json.dumps([found.captions, found.facts, found.defects])
    with replacing(kept) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(
            stream, images=found.images, keypoints=found.keypoints, boxes=found.boxes, areas=found.areas, texts=texts
        )


def _read(kept: Path) -> Singles | None:
    try:
        with np.load(kept, allow_pickle=False) as file:
            captions, facts, defects = json.loads(str(file["texts"]))
            people = file["images"], file["keypoints"], file["boxes"], file["areas"]
            return Singles(*people, captions, facts, [Defect(*defect) for defect in defects])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # missing or damaged: the annotations are read again
