"""Invented DeepFashion and Market-1501 trees in their usual layouts: small pictures, lists, pairs, joints, defects."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from posegen.poses.drawing import overlay
from posegen.poses.joints import coco_joints
from posegen.poses.topology import COCO_NAMES, OPENPOSE_NAMES
from tests.data.trees import FIGURE

VIEWS = ("1_front", "2_side", "3_back")
FRAME, BAR = (256, 176), 40
TRAIN, TEST = "MEN/Denim Jackets/id_0000010{}/0{}", "WOMEN/Blouses_Shirts/id_0000020{}/0{}"


@dataclass
class Person:
    """One picture of a person: its path without suffix, and 18 integers of x and y on ``frame``, -1 where missing."""

    path: str
    points: np.ndarray
    colour: np.ndarray
    frame: tuple[int, int] = FRAME

    @property
    def flat(self) -> str:
        gender, category, item, rest = self.path.split("/")
        outfit, number, view = rest.split("_")
        return f"fashion{gender}{category}{item.replace('_', '')}{outfit}_{number}{view}"

    def picture(self, size: tuple[int, int]) -> np.ndarray:
        """The person on a plain colour."""
        scale = np.divide(size[::-1], self.frame[::-1])
        seen = (self.points >= 0).all(1)
        rows = np.where(
            seen[:, None], np.concatenate([(self.points + 0.5) * scale - 0.5, np.full((18, 1), 2.0)], 1), 0.0
        )
        return overlay(np.broadcast_to(self.colour, (*size, 3)).astype(np.uint8).copy(), coco_joints(rows)[None])


def person(path: str, key: int, frame: tuple[int, int] = FRAME, missing: Sequence[str] = ("left_ear",)) -> Person:
    """A standing figure, a function of ``key``; what it wears is a function of the outfit."""
    dice = np.random.default_rng(key)
    figure = dict(zip(COCO_NAMES, FIGURE, strict=True))
    figure["neck"] = (FIGURE[5] + FIGURE[6]) / 2
    unit = np.array([figure[name] for name in OPENPOSE_NAMES]) + dice.uniform(-0.02, 0.02, (18, 2))
    points = np.rint(unit * (frame[1] * 0.9, frame[0] * 0.9) + np.array(frame[::-1]) * 0.05).clip(
        0, np.array(frame[::-1]) - 1
    )
    points[[OPENPOSE_NAMES.index(name) for name in missing]] = -1
    return Person(
        path, points, np.random.default_rng(sum(map(ord, path.rpartition("_")[0]))).integers(60, 200, 3), frame
    )


def deepfashion(
    root: Path,
    outfits: tuple[int, int] = (6, 2),
    size: tuple[int, int] = (110, 75),
    images: str = "img_highres",
    lists: str = "fashion_data",
    flat: bool = False,
    bars: bool = False,
    lines: bool = True,
) -> dict[str, list[Person]]:
    """DeepFashion with three pictures per outfit and all six pairs of them; returns the people of each list.

    Args:
        images: folder of the pictures, png where its name says so.
        lists: folder of the csv files and lists.
        flat: the pictures have flat names and lie in one folder for each list.
        bars: the pictures are 256 x 256 with white bars.
        lines: write the lists of NTED and PCDMs as well, which say the same.
    """
    people = {
        split: [
            person(f"{outfit.format(i // 2, i % 2 + 1)}_{view}", 100 * i + j)
            for i in range(count)
            for j, view in enumerate(VIEWS)
        ]
        for split, outfit, count in (("train", TRAIN, outfits[0]), ("test", TEST, outfits[1]))
    }
    (root / lists).mkdir(parents=True, exist_ok=True)
    for split, every in people.items():
        for one in every:
            file = (
                root
                / images
                / (f"{split}_highres/{one.flat}.jpg" if flat else f"{one.path}.{'png' if 'png' in images else 'jpg'}")
            )
            file.parent.mkdir(parents=True, exist_ok=True)
            picture = one.picture(size)
            if bars:
                picture = cv2.copyMakeBorder(
                    one.picture(FRAME), 0, 0, BAR, BAR, cv2.BORDER_CONSTANT, value=(255, 255, 255)
                )
            Image.fromarray(picture).save(file, quality=98)
        write_lists(root, lists, split, every, lines)
    return people


def pairs_of(people: Sequence[Person]) -> list[tuple[Person, Person]]:
    """All ordered pairs of pictures of one outfit, source and target."""
    return [
        (a, b)
        for a in people
        for b in people
        if a is not b and a.path.rpartition("_")[0][:-2] == b.path.rpartition("_")[0][:-2]
    ]


def write_lists(root: Path, lists: str, split: str, people: Sequence[Person], lines: bool) -> None:
    folder, pairs = root / lists, pairs_of(people)
    (folder / f"{split}.lst").write_text("".join(f"{one.flat}.jpg\n" for one in people))
    (folder / f"fasion-resize-pairs-{split}.csv").write_text(
        "from,to\n" + "".join(f"{a.flat}.jpg,{b.flat}.jpg\n" for a, b in pairs)
    )
    (folder / f"fasion-resize-annotation-{split}.csv").write_text(
        annotation([(f"{one.flat}.jpg", one.points) for one in people])
    )
    if lines:
        (folder / f"{split}_data.json").write_text(
            json.dumps([{"source_image": f"{a.flat}.jpg", "target_image": f"{b.flat}.jpg"} for a, b in pairs])
        )
        listed = (
            [(b, a) for a, b in pairs]
            if split == "test"
            else [(b, *(a for a, other in pairs if other is b)) for b in people]
        )
        (folder / f"{split}_pairs.txt").write_text(
            "".join(",".join(f"img/{one.path}.jpg" for one in line) + "\n" for line in listed)
        )
        for one in people:
            file = root / f"pose/{one.path}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            np.savetxt(file, np.where(one.points >= 0, one.points + np.array([BAR, 0]), -1.0))


def annotation(rows: Sequence[tuple[str, np.ndarray]]) -> str:
    """The csv text of joints: y before x, a space after the colon."""
    lines = [
        f"{name}: {points[:, 1].astype(int).tolist()}: {points[:, 0].astype(int).tolist()}" for name, points in rows
    ]
    return "\n".join(["name:keypoints_y:keypoints_x", *lines]) + "\n"


def market1501(root: Path, persons: tuple[int, int] = (6, 2), renamed: bool = False) -> dict[str, list[Person]]:
    """Market-1501 with three pictures per person, and in the test folder a stranger and rubbish.

    Args:
        renamed: the folders are called train and test, inside ``market_data``.
    """
    people: dict[str, list[Person]] = {}
    for split, first, count in (("train", 2, persons[0]), ("test", 500, persons[1])):
        own = people[split] = [
            person(f"{first + i:04d}_c{j + 1}s1_{i:05d}{j}_01", 100 * i + j, (128, 64))
            for i in range(count)
            for j in range(3)
        ]
        folder = root / (f"market_data/{split}" if renamed else f"bounding_box_{split}")
        folder.mkdir(parents=True)
        strangers = [person(f"{start}_c1s1_000099_01", 7, (128, 64)) for start in ("0000", "-1") if split == "test"]
        for one in [*own, *strangers]:
            Image.fromarray(one.picture((128, 64))).save(folder / f"{one.path}.jpg", quality=98)
        pairs = [(a, b) for a in own for b in own if a is not b and a.path[:4] == b.path[:4]]
        (root / f"market-pairs-{split}.csv").write_text(
            "from,to\n" + "".join(f"{a.path}.jpg,{b.path}.jpg\n" for a, b in pairs)
        )
        (root / f"market-annotation-{split}.csv").write_text(
            annotation([(f"{one.path}.jpg", one.points) for one in [*own, *strangers]])
        )
    return people
