"""Samples that a user types or brings: prompts with poses, and a picture of a person to dress in other clothes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from posegen.data.base import PoseData, Sample, Transfers
from posegen.data.user_images import stretch_to, user_mask, user_picture, user_pictures
from posegen.io.hashes import file_hash
from posegen.poses.pose_square import joint_box_areas


class Prompts(PoseData):
    """One sample per prompt, without an image."""

    name, split = "prompts", "test"

    def __init__(
        self,
        prompts: Sequence[str],
        people: Sequence[Any] | None = None,  # per prompt ``[P, 17, 3]`` on a canvas of ``size``; None: no poses yet
        size: int | Sequence[int] = 64,  # (height, width) of the images, or the side of a square
        sources: Sequence[str] | None = None,  # files of pictures that show the appearance, all for every prompt
    ) -> None:
        if people is not None and len(people) != len(prompts):
            raise ValueError(f"{len(people)} poses for {len(prompts)} prompts; give one pose per prompt")
        self._prompts, self.people, self.sources = list(prompts), people, sources
        self.size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))

    @property
    def prompts(self) -> Sequence[str]:
        return self._prompts

    @property
    def identity(self) -> dict[str, Any]:
        known = {"name": self.name, "prompts": self._prompts, "people": self.people, "size": self.size}
        return known if self.sources is None else {**known, "content": _file_hashes(self.sources)}

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, index: int) -> Sample:
        people, prompt = [] if self.people is None else self.people[index], self._prompts[index]
        keypoints = np.asarray(people, np.float32).reshape(-1, 17, 3)
        return Sample(f"prompt/{index}/{prompt}", prompt, keypoints, joint_box_areas(keypoints), None, self.size)

    def source_of(self, index: int, visit: int = 0) -> Sample:
        return self._pictures[0] if self.sources else super().source_of(index, visit)

    def sources_of(self, index: int, visit: int = 0) -> Sequence[Sample]:
        return self._pictures if self.sources else super().sources_of(index, visit)

    @cached_property
    def _pictures(self) -> list[Sample]:
        return _source_samples(self.sources or (), self.size)


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
    ) -> None:
        self.files, self.prompt, self.images = (picture, mask, *sources), prompt, images
        self.keypoints = np.asarray(people, np.float32).reshape(-1, 17, 3)
        self.size = int(size[0]), int(size[1])

    @cached_property
    def _read(self) -> tuple[np.ndarray, np.ndarray, list[Sample]]:
        picture = user_picture(self.files[0], "picture")
        return picture, user_mask(self.files[1], picture), _source_samples(self.files[2:], self.size)

    @property
    def identity(self) -> dict[str, Any]:
        about = {"name": self.name, "prompt": self.prompt, "people": self.keypoints.tolist(), "size": self.size}
        return {**about, "images": self.images, "content": _file_hashes(self.files)}

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, index: int) -> Sample:
        image, areas = stretch_to(self._read[0], self.size), joint_box_areas(self.keypoints)
        return Sample(f"transfer/{index}", self.prompt, self.keypoints, areas, image, self.size)

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
