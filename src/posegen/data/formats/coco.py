"""COCO's captioned people who are alone in their picture, without the pictures: GUNet's data (arXiv:2409.11689, 4.1).

    <root>/[annotations/]person_keypoints_train2014.json
    <root>/[annotations/]captions_train2014.json

The released program fits a person's box into a square, takes the first of five captions, and fixes one random flip and
rotation; the paper says that the caption is a random one. Each of these is an option here.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from posegen.data.base import PoseData, Sample, generator
from posegen.data.condition import Condition, Defect
from posegen.data.formats.joint_vectors import FramedPose, random_share, write_joint_vectors
from posegen.data.on_disk.source import require_option
from posegen.errors import UserError
from posegen.io.arrays import read_arrays_or_none, write_arrays
from posegen.io.atomic import read_json
from posegen.io.hashes import file_hash, text_hash
from posegen.poses.pose_square import Square, from_square, to_square
from posegen.poses.topology import COCO_FLIP, COCO_JOINTS
from posegen.ranges import AtLeastOne, JointCount, NotNegative, Seed, Width, ZeroToOne

COCO_FIX = "download COCO's 2014 Train/Val annotations (https://cocodataset.org); name the folder with data.root=FOLDER"
CACHE_VERSION = 1  # of the cached annotations
EXPORT_BATCH = 64  # people whose maps are computed at a time
CACHED_ARRAYS = ("images", "keypoints", "boxes", "areas")
Frame = Literal["box", "joints"]
Caption = Literal["first", "random"]
Augment = Literal["fixed", "reading"]
Maps = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class SinglePeople:
    """The people who are alone in their picture, in the order of the annotations."""

    images: np.ndarray  # ``[N]`` COCO's numbers of the pictures
    keypoints: np.ndarray  # ``[N, 17, 3]`` in the picture's pixels, with COCO's visibility
    boxes: np.ndarray  # ``[N, 4]`` x, y, width, height
    areas: np.ndarray  # ``[N]`` of their outlines
    captions: list[list[str]]  # all captions of each picture
    facts: dict[str, Any]
    defects: list[Defect]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labelled(self) -> np.ndarray:  # ``[N]`` number of labelled joints, visible or hidden
        return (self.keypoints[..., 2] > 0).sum(1)


class CocoSingle(PoseData):
    """A share of these people, in a fixed random order. The canvas is the square around the person."""

    name = "coco_single"

    checkable = True  # the constructor loads nothing, see `posegen.config.checking.check.refused`

    def __init__(
        self,
        root: str | Path,  # folder of the annotations, or one that holds ``annotations``
        split: str = "train",
        year: str = "train2014",  # the files: as released, or ``val2014``
        share: tuple[ZeroToOne, ZeroToOne] = (0.0, 1.0),  # (from, to) of the people; the paper trains on four fifths
        joints: JointCount = 8,  # least number of labelled joints
        frame: Frame = "box",  # square around the annotated box, as released; ``joints``: around joints and a margin
        caption: Caption = "first",  # as released; ``random``: by the seed and the picture, as in the paper
        augment: Augment | None = None,  # mirror and rotate: ``fixed``, once, as released; ``reading``, on each visit
        flip: ZeroToOne = 0.5,  # fraction of the people, or visits, mirrored, with left and right joints exchanged
        rotation: NotNegative = 10.0,  # largest angle in degrees, either way, about the centre of the square
        size: Width = 64,  # side of the canvas
        count: AtLeastOne | None = None,  # take only the first so many; None for all
        seed: Seed = 0,  # of the order, captions and augmentation
        cache: str | Path | None = None,  # folder for the chosen annotations; None reads all annotations each time
        maps: Maps | None = None,  # joint maps ``[B, 17, side, side]`` of poses ``[B, 17, 3]``, for `export`
    ) -> None:
        require_option(f"{split}.frame", frame, get_args(Frame))
        require_option(f"{split}.caption", caption, get_args(Caption))
        require_option(f"{split}.augment", augment, (*get_args(Augment), None))
        self.root, self.split, self.year = Path(root).expanduser(), split, year
        self.share, self.joints, self.frame, self.caption = tuple(share), joints, frame, caption
        self.augment, self.flip, self.rotation = augment, flip, rotation
        self.size, self.count, self.seed, self.maps = (size, size), count, seed, maps
        self.cache = None if cache is None else Path(cache).expanduser()
        self.varies = augment == "reading"

    @cached_property
    def files(self) -> list[Path]:
        """The annotations of people and the captions. Raises FileNotFoundError: one is missing."""
        found = []
        for name in (f"{kind}_{self.year}.json" for kind in ("person_keypoints", "captions")):
            places = [file for file in (self.root / name, self.root / "annotations" / name) if file.is_file()]
            if not places:
                where = f"data.root={self.root}: no {name} in it or in its folder annotations"
                raise FileNotFoundError(f"{where}; {COCO_FIX}")
            found.append(places[0])
        return found

    @cached_property
    def people(self) -> SinglePeople:
        return single_people(self.files[0], self.files[1], self.cache)

    @cached_property
    def chosen(self) -> list[int]:
        """Indices of this share's people. Raises ValueError: there are none, or fewer than ``count``."""
        fitting = np.flatnonzero(self.people.labelled >= self.joints).tolist()
        found = f"{len(fitting)} people who are alone and have {self.joints} labelled joints"
        where = f"data.{self.split}: {self.files[0]} has {found}"
        rows = random_share(len(fitting), self.share, self.count, "coco single", self.seed, where)
        return [fitting[row] for row in rows]

    @property
    def identity(self) -> dict[str, Any]:
        names = ("split", "year", "joints", "frame", "caption", "augment", "count", "seed")
        options = {name: getattr(self, name) for name in names}
        augmentation = {"flip": self.flip, "rotation": self.rotation} if self.augment else {}
        about = {"name": self.name, "files": self.people.facts["sha256"], "share": list(self.share)}
        return {**about, "size": self.size[0], **options, **augmentation}

    def prepare(self) -> None:
        self.people  # noqa: B018 - reads and caches them

    @property
    def condition(self) -> Condition:
        few = int((self.people.labelled < self.joints).sum())
        counts = {f"fewer than {self.joints} joints": few, "kept": len(self.people) - few, "in this split": len(self)}
        return Condition({**self.people.facts, **counts}, defects=self.people.defects)

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def prompts(self) -> Sequence[str]:
        return [self._caption(i) for i in self.chosen]

    def __getitem__(self, index: int) -> Sample:
        return self.seen(index)

    def seen(self, index: int, visit: int = 0, image: bool = True) -> Sample:
        person = self.chosen[index]
        return self._sample(person, None if self.augment is None else visit if self.augment == "reading" else 0)

    def _sample(self, person: int, visit: int | None) -> Sample:
        """One person on a visit; None: without augmentation."""
        number, keypoints = int(self.people.images[person]), self.people.keypoints[person]
        square = Square.of_box(self.people.boxes[person]) if self.frame == "box" else Square.around(keypoints)
        assert square is not None
        pose = np.concatenate([to_square(square, keypoints)[:, :2], keypoints[:, 2:]], 1)
        if visit is not None:
            flip, turn = torch.rand(2, generator=generator("coco single", self.seed, number, visit, "augment")).tolist()
            pose = turned_pose(pose, flip < self.flip, (2 * turn - 1) * self.rotation)
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
        """Writes this share in the layout of GUNet's authors, see `joint_vectors`; returns the number of people.

        ``augment=fixed`` fixes flips and rotations in the files; otherwise maps are clean. Raises ValueError: no maps.
        """
        if self.maps is None:
            expected = "a function that computes maps, for instance posegen.backbones.blocks.pose_maps.joint_vectors"
            raise ValueError(f"data.{self.split}.maps is null; expected {expected}")
        write_joint_vectors(folder, self._encoded(self.maps))
        return len(self)

    def _encoded(self, maps: Maps) -> Iterator[tuple[np.ndarray, str]]:
        visit = 0 if self.augment == "fixed" else None
        with tqdm(total=len(self), desc="joint vectors", unit="pose", dynamic_ncols=True) as bar:
            for start in range(0, len(self), EXPORT_BATCH):
                samples = [self._sample(person, visit) for person in self.chosen[start : start + EXPORT_BATCH]]
                for sample, encoded in zip(samples, maps(torch.stack([s.pose for s in samples])), strict=True):
                    yield encoded.numpy(), sample.prompt
                bar.update(len(samples))


def turned_pose(pose: np.ndarray, mirrored: bool, degrees: float) -> np.ndarray:
    """A pose ``[17, 3]`` in its square, mirrored, then rotated clockwise about its centre; absent joints stay so."""
    if mirrored:
        pose = pose[list(COCO_FLIP)] * (-1, 1, 1)
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.concatenate([pose[:, :2] @ np.array([[cos, sin], [-sin, cos]]), pose[:, 2:]], 1)


def single_people(people: Path, captions: Path, cache: Path | None = None) -> SinglePeople:
    """The people who are alone in their picture, cached by files' size and date. Raises ValueError: no COCO file."""
    stamps = [f"{f.resolve()}|{(s := f.stat()).st_size}|{s.st_mtime_ns}" for f in (people, captions)]
    name = f"{people.stem}-{text_hash('|'.join([str(CACHE_VERSION), *stamps]))}.npz"
    stored = None if cache is None else read_arrays_or_none(cache / "coco" / name)
    if stored is not None and {*CACHED_ARRAYS, "texts"} <= stored.keys():
        images, keypoints, boxes, areas = (stored[name] for name in CACHED_ARRAYS)
        texts, facts, defects = json.loads(str(stored["texts"]))
        return SinglePeople(images, keypoints, boxes, areas, texts, facts, [Defect(*defect) for defect in defects])
    found = _choose(_annotations(people), _annotations(captions), people.name)
    found.facts["sha256"] = [file_hash(file, 16) for file in (people, captions)]
    if cache is not None:
        texts = np.array(json.dumps([found.captions, found.facts, found.defects]))
        with suppress(UserError):  # where it cannot be kept, it is read again
            write_arrays(cache / "coco" / name, **{key: getattr(found, key) for key in CACHED_ARRAYS}, texts=texts)
    return found


def _choose(people: Sequence[Mapping[str, Any]], captions: Sequence[Mapping[str, Any]], name: str) -> SinglePeople:
    crowd = Counter(row["image_id"] for row in people)
    texts: dict[int, list[str]] = {}
    for row in captions:
        texts.setdefault(row["image_id"], []).append(" ".join(str(row["caption"]).split()))
    rows, defects = [], []
    for row in people:
        if crowd[row["image_id"]] == 1 and row.get("num_keypoints", 1):
            problem = _annotation_fault(row, texts)
            if problem:
                defects.append(Defect(f"{name} (image {row['image_id']})", problem))
            else:
                rows.append(row)
    return SinglePeople(
        np.array([row["image_id"] for row in rows], np.int64),
        np.array([row["keypoints"] for row in rows], np.float32).reshape(-1, COCO_JOINTS, 3),
        np.array([row["bbox"] for row in rows], np.float32).reshape(-1, 4),
        np.array([row["area"] for row in rows], np.float32),
        [texts[row["image_id"]] for row in rows],
        {"pictures with people": len(crowd), "with one person": sum(count == 1 for count in crowd.values())},
        defects,
    )


def _annotation_fault(row: Mapping[str, Any], texts: Mapping[int, Sequence[str]]) -> str:
    try:
        keypoints, box = np.asarray(row["keypoints"], float), np.asarray(row["bbox"], float)
        finite = bool(np.isfinite(keypoints).all() and np.isfinite(box).all() and np.isfinite(float(row["area"])))
    except (KeyError, TypeError, ValueError) as error:
        return f"no usable keypoints, bbox and area ({type(error).__name__}: {error})"
    if keypoints.size != 3 * COCO_JOINTS:
        return f"{keypoints.size} numbers for {COCO_JOINTS} joints"
    if not finite or box.size != 4 or (box[2:] <= 0).any():
        return "an empty box, or numbers that are not finite"
    if not (keypoints.reshape(COCO_JOINTS, 3)[:, 2] > 0).any():
        return "no joint is labelled"
    return "" if texts.get(row["image_id"]) else "no caption"


def _annotations(file: Path) -> list[dict[str, Any]]:
    content = read_json(file, COCO_FIX)
    rows = content.get("annotations") if isinstance(content, dict) else None
    if isinstance(rows, list) and all(isinstance(row, dict) and "image_id" in row for row in rows):
        return rows
    raise ValueError(f"{file} holds no list of annotations with an image_id each; expected COCO's: {COCO_FIX}")
