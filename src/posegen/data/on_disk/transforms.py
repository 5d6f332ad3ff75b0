"""Crops: an image of any size becomes the square (or rectangle) of a model: scaled to cover it, cut, perhaps mirrored.

``corrected`` is the rule of this project; ``stretch``, for pairs of person images, cuts nothing. The others are the
published readers' with their faults: the crop is random even in evaluation; mirrored people keep the names of their
joints, so that left is called right; a joint outside the image moves to its corner. Their rotations (one image in ten,
by up to 90 degrees) and changes of colour are left out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import torch
from PIL import Image

from posegen.data.base import generator
from posegen.data.on_disk.source import ImageSize
from posegen.poses.pose_square import joint_box_areas
from posegen.poses.reading import LEAST_SCORE, PEOPLE
from posegen.poses.topology import COCO_FLIP


@dataclass(frozen=True)
class View:
    """A crop of a stored image: it is mirrored, then scaled, then cut."""

    stored: ImageSize  # (height, width) of the stored image
    scaled: ImageSize  # (height, width) after scaling
    top: int  # first row of the cut
    left: int  # first column of the cut
    size: ImageSize  # (height, width) of the cut
    mirrored: bool = False  # left for right
    upturned: bool = False  # top for bottom
    enlarging: int = cv2.INTER_CUBIC  # OpenCV's interpolation for images that are too small; others are averaged

    @classmethod
    def covering(
        cls, stored: ImageSize, size: ImageSize, down: float | None = None, across: float | None = None, **options: Any
    ) -> View:
        """The shorter side fills ``size``; the longer is cut in the middle, or at 0 (top, left) to 1."""
        factor = max(size[0] / stored[0], size[1] / stored[1])
        height, width = (max(least, round(factor * side)) for least, side in zip(size, stored, strict=True))
        parts = (down, height - size[0]), (across, width - size[1])
        top, left = (spare // 2 if part is None else min(int(part * (spare + 1)), spare) for part, spare in parts)
        return cls(stored, (height, width), top, left, size, **options)

    @property
    def scale(self) -> np.ndarray:  # factors of x and y
        return np.array([self.scaled[1] / self.stored[1], self.scaled[0] / self.stored[0]])

    @property
    def crop(self) -> dict[str, Any]:
        """The cut in pixels of the stored image, and how it is mirrored, for the record."""
        (x, y), (height, width) = self.scale, self.size
        box = {"left": self.left / x, "top": self.top / y, "width": width / x, "height": height / y}
        flips = {name: True for name, done in (("mirrored", self.mirrored), ("upturned", self.upturned)) if done}
        if self.mirrored:
            box["left"] = self.stored[1] - box["left"] - box["width"]
        if self.upturned:
            box["top"] = self.stored[0] - box["top"] - box["height"]
        return {name: round(float(value), 2) for name, value in box.items()} | flips

    def pixels(self, image: np.ndarray) -> np.ndarray:
        """``[H, W, 3]`` of the stored size to ``[h, w, 3]``."""
        image = image[:: -1 if self.upturned else 1, :: -1 if self.mirrored else 1]
        if self.scaled != self.stored:
            method = self.enlarging if self.scaled[0] > self.stored[0] else cv2.INTER_AREA
            image = cv2.resize(np.ascontiguousarray(image), self.scaled[::-1], interpolation=method)
        return np.ascontiguousarray(image[self.top : self.top + self.size[0], self.left : self.left + self.size[1]])

    def reflected(self, points: np.ndarray) -> np.ndarray:
        """Points ``[..., 2]`` of the stored image on the mirrored one."""
        points = points.astype(np.float64)
        for axis, done in enumerate((self.mirrored, self.upturned)):
            if done:
                points[..., axis] = self.stored[1 - axis] - 1 - points[..., axis]
        return points

    def inside(self, points: np.ndarray) -> np.ndarray:
        """Whether points ``[..., 2]`` of the cut lie on its pixels."""
        return np.all((points > -0.5) & (points < np.array(self.size[::-1]) - 0.5), axis=-1)


class Transform(ABC):
    """A rule for the crop of an image and of its joints."""

    varies = False  # whether the crop changes between visits

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Its options."""

    @abstractmethod
    def view(self, id: str, visit: int, stored: ImageSize, size: ImageSize) -> View:
        """The crop of an image; a function of the arguments alone."""

    @abstractmethod
    def joints(self, keypoints: np.ndarray, view: View) -> np.ndarray:
        """Keypoints ``[P, 17, 3]`` of the stored image in the crop, zeros where missing."""

    def people(self, keypoints: np.ndarray, areas: np.ndarray, view: View) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The people with a visible joint, of ``keypoints [P, 17, 3]`` and ``areas [P]`` on the stored image.

        Returns ``[Q, 17, 3] float32`` joints, ``[Q] float32`` areas, and ``[P] bool`` who is visible. An area stays
        that of the whole person, the person's scale; where it is NaN, it is that of the box of the visible joints.
        """
        joints = self.joints(keypoints, view)
        there = np.zeros(len(keypoints), bool)
        there[: len(joints)] = (joints[..., 2] > 0).any(-1)
        joints, areas = joints[there[: len(joints)]].astype(np.float32), areas[there] * view.scale.prod()
        return joints, np.where(np.isfinite(areas), areas, joint_box_areas(joints)).astype(np.float32), there


class Corrected(Transform):
    """The middle of the image; joints outside it, or with a score up to ``threshold``, are missing.

    ``mirror``: fraction of the visits with the image mirrored and left and right joints exchanged; for training.
    """

    def __init__(self, mirror: float = 0.0, threshold: float = LEAST_SCORE) -> None:
        self.mirror, self.threshold, self.varies = mirror, threshold, mirror > 0

    @property
    def identity(self) -> dict[str, Any]:
        return {"name": "corrected", "version": 1, "mirror": self.mirror, "threshold": self.threshold}

    def view(self, id: str, visit: int, stored: ImageSize, size: ImageSize) -> View:
        mirrored = self.varies and float(torch.rand((), generator=generator(id, visit, "view"))) < self.mirror
        return View.covering(stored, size, mirrored=mirrored)

    def joints(self, keypoints: np.ndarray, view: View) -> np.ndarray:
        if view.mirrored:
            keypoints = keypoints[:, COCO_FLIP]
        points = (view.reflected(keypoints[..., :2]) + 0.5) * view.scale - 0.5 - (view.left, view.top)
        seen = (keypoints[..., 2] > self.threshold) & view.inside(points)
        return np.where(seen[..., None], np.concatenate([points, keypoints[..., 2:]], -1), 0.0)


@dataclass(frozen=True)
class Stretched(View):
    """All of an image, or of the part between its bars, by Pillow's bicubic filter, which averages where it reduces."""

    def pixels(self, image: np.ndarray) -> np.ndarray:
        image = np.ascontiguousarray(image[:: -1 if self.upturned else 1, :: -1 if self.mirrored else 1])
        (x, y), (height, width) = self.scale.tolist(), self.size
        left, top = self.left / x, self.top / y
        box = left, top, left + width / x, top + height / y
        return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC, box=box))


class Stretch(Corrected):
    """Images are stretched to the size, as in all programs that learn from pairs of person images; two ``bars`` at the
    sides, each of that fraction of the image's width, are cut off. Others: see `Corrected`.
    """

    def __init__(self, mirror: float = 0.0, bars: float = 0.0, threshold: float = LEAST_SCORE) -> None:
        super().__init__(mirror, threshold)
        self.bars = bars

    @property
    def identity(self) -> dict[str, Any]:
        return {**super().identity, "name": "stretch", "bars": self.bars}

    def view(self, id: str, visit: int, stored: ImageSize, size: ImageSize) -> View:
        mirrored = super().view(id, visit, stored, size).mirrored
        width = round(size[1] / (1 - 2 * self.bars))
        return Stretched(stored, (size[0], width), 0, (width - size[1]) // 2, size, mirrored)


class PublishedCrop(Transform):
    """A random part of the image, as the programs of HumanSD, Stable-Pose and GRPose read it, also in evaluation.

    ``horizontal`` and ``vertical`` are the fractions of the visits with the image mirrored and left called right, and
    with the image upside down. Joints with a score up to ``threshold`` are missing; the first ``people`` are read.
    """

    varies = True

    def __init__(
        self, horizontal: float = 0.0, vertical: float = 0.0, threshold: float = LEAST_SCORE, people: int = PEOPLE
    ) -> None:
        self.horizontal, self.vertical, self.threshold, self.most = horizontal, vertical, threshold, people

    @property
    def identity(self) -> dict[str, Any]:
        options = {"horizontal": self.horizontal, "vertical": self.vertical, "threshold": self.threshold}
        return {"name": "reference", "version": 1, **options, "people": self.most}

    def view(self, id: str, visit: int, stored: ImageSize, size: ImageSize) -> View:
        down, across, horizontal, vertical = torch.rand(4, generator=generator(id, visit, "view")).tolist()
        flips = {"mirrored": horizontal < self.horizontal, "upturned": vertical < self.vertical}
        return View.covering(stored, size, down, across, **flips, enlarging=cv2.INTER_AREA)

    def joints(self, keypoints: np.ndarray, view: View) -> np.ndarray:
        keypoints = keypoints[: self.most]
        height, width = view.stored
        x, y, score = np.moveaxis(keypoints, -1, 0)
        outside = (x < 0) | (y < 0) | (x >= width) | (y >= height)
        corner = np.where(outside[..., None], 0.0, keypoints[..., :2])  # with its score, so that it is drawn there
        points = view.reflected(corner) * view.scale - (view.left, view.top)
        seen = (score > self.threshold) & ((points >= 0) & (points < view.size[::-1])).all(-1)
        return np.where(seen[..., None], np.concatenate([points, score[..., None]], -1), 0.0)


TransformName = Literal["corrected", "stretch", "reference", "stable_pose", "humansd"]
TRANSFORMS: dict[str, Transform] = {
    "corrected": Corrected(),
    "stretch": Stretch(),
    "reference": PublishedCrop(),
    "stable_pose": PublishedCrop(horizontal=0.2),
    "humansd": PublishedCrop(horizontal=0.2, vertical=0.1),
}


def transform_of(given: str | Transform) -> Transform:
    """A transform by its name. Raises ValueError: there is none of that name."""
    if isinstance(given, str) and given not in TRANSFORMS:
        raise ValueError(f"transform={given!r}: expected one of {', '.join(TRANSFORMS)}")
    return TRANSFORMS[given] if isinstance(given, str) else given
