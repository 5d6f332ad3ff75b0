"""Captions that someone typed, with poses that come from elsewhere: what is sampled when no data set is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from posegen.data.base import PoseData, Sample
from posegen.data.user_images import fitted, own_sources


class Prompts(PoseData):
    """One sample per prompt, without an image.

    Args:
        prompts: the captions.
        people: for each of them the keypoints ``[P, 17, 3]`` of its people, on a canvas of ``size``; None where nobody is known yet.
        size: (height, width) of the images, or the side of a square.
        sources: files of the pictures that the appearance is taken from, all of them for every prompt; None where no method asks for any.
    """

    name, split = "prompts", "test"

    def __init__(
        self,
        prompts: Sequence[str],
        people: Sequence[Any] | None = None,
        size: int | Sequence[int] = 64,
        sources: Sequence[str] | None = None,
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
        return known if self.sources is None else {**known, "content": digests(self.sources)}

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, index: int) -> Sample:
        given = [] if self.people is None else self.people[index]
        keypoints = np.asarray(given, np.float32).reshape(-1, 17, 3)
        return Sample(
            f"prompt/{index}/{self._prompts[index]}",
            self._prompts[index],
            keypoints,
            boxes(keypoints),
            None,
            self.size,
        )

    def source_of(self, index: int, visit: int = 0) -> Sample:
        return self._pictures[0] if self.sources else super().source_of(index, visit)

    def sources_of(self, index: int, visit: int = 0) -> Sequence[Sample]:
        return self._pictures if self.sources else super().sources_of(index, visit)

    @cached_property
    def _pictures(self) -> list[Sample]:
        return pictured(self.sources or (), self.size)


def pictured(files: Sequence[str], size: tuple[int, int]) -> list[Sample]:
    """Pictures of which nothing is known, at this size."""
    read = own_sources(list(files)) if files else []
    nobody, areas = np.zeros((0, 17, 3), np.float32), np.zeros(0, np.float32)
    return [Sample(f"source/{i}", "", nobody, areas, fitted(picture, size), size) for i, picture in enumerate(read)]


def digests(files: Sequence[str]) -> list[str]:
    """What is in files, so that results do not depend on where they lie."""
    return [hashlib.sha256(Path(file).expanduser().read_bytes()).hexdigest()[:16] for file in files]


def boxes(keypoints: np.ndarray) -> np.ndarray:
    """``[P]`` areas of the boxes around the labelled joints of ``[P, 17, 3]``, at least one pixel."""
    seen = keypoints[..., 2:] > 0
    low, high = (np.where(seen, keypoints[..., :2], fill) for fill in (np.inf, -np.inf))
    extent = np.where(seen.any(1), high.max(1) - low.min(1), 0.0) if len(keypoints) else np.zeros((0, 2))
    return np.maximum(extent.prod(-1), 1.0).astype(np.float32)
