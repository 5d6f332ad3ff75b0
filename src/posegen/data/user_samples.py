"""Samples that a user types or brings: prompts with poses, and a picture of a person to dress in other clothes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from posegen.data.base import PoseData, Sample, Transfers
from posegen.data.user_images import stretch_to, user_mask, user_picture, user_pictures
from posegen.io.hashes import file_hash
from posegen.poses.pose_square import joint_box_areas
from posegen.poses.topology import COCO_JOINTS


class Prompts(PoseData):
    """One sample per prompt, without an image."""

    name, split = "prompts", "test"

    def __init__(
        self,
        prompts: Sequence[str],
        #: per prompt ``[P, 17, 3]``, or ``[P, 133, 3]`` of COCO-WholeBody, on a canvas of ``size``, as lists or as json
        #: of them; None: no poses yet
        people: Sequence[Any] | None = None,
        size: int | Sequence[int] = 64,  # (height, width) of the images, or the side of a square
        #: files of pictures that show the appearance, all for every prompt, or a list for each prompt
        sources: Sequence[str | Sequence[str]] | None = None,
        drawings: Sequence[str | None] | None = None,  # per prompt a picture of a skeleton on black, if it has one
        names: Sequence[str] | None = None,  # per prompt that of its picture
    ) -> None:
        if people is not None and len(people) != len(prompts):
            raise ValueError(f"{len(people)} poses for {len(prompts)} prompts; give one pose per prompt")
        self._prompts, self.people, self.sources = list(prompts), people, sources
        self.drawings, self.names = drawings or [None] * len(prompts), names
        self.size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))

    @property
    def prompts(self) -> Sequence[str]:
        return self._prompts

    @property
    def identity(self) -> dict[str, Any]:
        known = {"name": self.name, "prompts": self._prompts, "people": self.people, "size": self.size}
        known |= {} if self.names is None else {"names": self.names}
        each = [[file] if isinstance(file, str) else file for file in (*(self.sources or ()), *self.drawings) if file]
        return {**known, "content": _file_hashes([file for files in each for file in files])} if each else known

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, index: int) -> Sample:
        people, prompt = [] if self.people is None else self.people[index], self._prompts[index]
        people = json.loads(people) if isinstance(people, str) else people
        everything, drawing = np.asarray(people, np.float32), self.drawings[index]
        whole = everything if everything.ndim == 3 and everything.shape[1] > COCO_JOINTS else None
        keypoints = everything.reshape(-1, 17, 3) if whole is None else whole[:, :COCO_JOINTS]
        name, areas = index if self.names is None else self.names[index], joint_box_areas(keypoints)
        picture = None if drawing is None else user_picture(drawing, "poses")
        sample = Sample(f"prompt/{name}/{prompt}", prompt, keypoints, areas, None, self.size, drawing=picture)
        return replace(sample, whole_body=whole)

    def source_of(self, index: int, visit: int = 0) -> Sample:
        return self.sources_of(index, visit)[0]

    def sources_of(self, index: int, visit: int = 0) -> Sequence[Sample]:
        if not self.sources:
            return [super().source_of(index, visit)]
        if isinstance(self.sources[0], str):
            return self._shared
        return _source_samples(self.sources[index], self.size)

    @cached_property
    def _shared(self) -> list[Sample]:
        return _source_samples([str(file) for file in self.sources or ()], self.size)


class UserTransfer(Transfers):
    """A file ``picture`` of a person to dress as files ``sources`` show, ``images`` times, each from other noise.

    The file ``mask`` has the picture's size and is light where the person is repainted. ``people`` are the keypoints
    ``[P, 17, 3]`` in the picture, on a canvas of ``size`` (height, width), that of the model's images.
    """

    name, split = "own_transfer", "test"

    def __init__(
        self,
        picture: str,
        mask: str,
        sources: Sequence[str],
        people: Any,
        size: Sequence[int],
        prompt: str = "",
        images: int = 1,
        drawing: str | None = None,  # a picture of a skeleton on black, in the place of ``people``
    ) -> None:
        self.files, self.prompt, self.images = (picture, mask, *sources), prompt, images
        self.drawing = drawing
        self.keypoints = np.asarray(people, np.float32).reshape(-1, 17, 3)
        self.size = int(size[0]), int(size[1])

    @cached_property
    def _read(self) -> tuple[np.ndarray, np.ndarray, list[Sample]]:
        picture = user_picture(self.files[0], "picture")
        return picture, user_mask(self.files[1], picture), _source_samples(self.files[2:], self.size)

    @property
    def identity(self) -> dict[str, Any]:
        about = {"name": self.name, "prompt": self.prompt, "people": self.keypoints.tolist(), "size": self.size}
        files = (*self.files, *([self.drawing] if self.drawing else ()))
        return {**about, "images": self.images, "content": _file_hashes(files)}

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, index: int) -> Sample:
        image, areas = stretch_to(self._read[0], self.size), joint_box_areas(self.keypoints)
        drawing = None if self.drawing is None else user_picture(self.drawing, "poses")
        return Sample(f"transfer/{index}", self.prompt, self.keypoints, areas, image, self.size, drawing=drawing)

    def source_of(self, index: int, visit: int = 0) -> Sample:
        return self._read[2][0]

    def sources_of(self, index: int, visit: int = 0) -> Sequence[Sample]:
        return self._read[2]

    def picture_of(self, index: int) -> np.ndarray:
        return self._read[0]

    def mask_of(self, index: int) -> np.ndarray:
        return self._read[1]


def _source_samples(files: Sequence[str], size: tuple[int, int]) -> list[Sample]:
    pictures = user_pictures(list(files)) if files else []
    nobody, areas = np.zeros((0, 17, 3), np.float32), np.zeros(0, np.float32)
    return [Sample(f"source/{i}", "", nobody, areas, stretch_to(each, size), size) for i, each in enumerate(pictures)]


def _file_hashes(files: Sequence[str]) -> list[str]:
    """Hashes of contents, so that results do not depend on where files lie."""
    return [file_hash(Path(file).expanduser(), 16) for file in files]
