"""Captions that someone typed, with poses that come from elsewhere: what is sampled when no data set is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from posegen.data.base import PoseData, Sample


class Prompts(PoseData):
    """One sample per prompt, without an image.

    Args:
        prompts: the captions.
        people: for each of them the keypoints ``[P, 17, 3]`` of its people, on a canvas of ``size``; None where nobody is known yet.
        size: (height, width) of the images, or the side of a square.
    """

    name, split = "prompts", "test"

    def __init__(self, prompts: Sequence[str], people: Sequence[Any] | None = None, size: int | Sequence[int] = 64) -> None:
        if people is not None and len(people) != len(prompts):
            raise ValueError(f"{len(people)} poses for {len(prompts)} prompts; give one pose per prompt")
        self._prompts, self.people = list(prompts), people
        self.size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))

    @property
    def prompts(self) -> Sequence[str]:
        return self._prompts

    @property
    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "prompts": self._prompts, "people": self.people, "size": self.size}

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, index: int) -> Sample:
        given = [] if self.people is None else self.people[index]
        keypoints = np.asarray(given, np.float32).reshape(-1, 17, 3)
        return Sample(f"prompt/{index}/{self._prompts[index]}", self._prompts[index], keypoints, boxes(keypoints), None, self.size)


def boxes(keypoints: np.ndarray) -> np.ndarray:
    """``[P]`` areas of the boxes around the labelled joints of ``[P, 17, 3]``, at least one pixel."""
    seen = keypoints[..., 2:] > 0
    low, high = (np.where(seen, keypoints[..., :2], fill) for fill in (np.inf, -np.inf))
    extent = np.where(seen.any(1), high.max(1) - low.min(1), 0.0) if len(keypoints) else np.zeros((0, 2))
    return np.maximum(extent.prod(-1), 1.0).astype(np.float32)
