"""A person of one's own pictures, to be dressed as other pictures show."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from posegen.data.base import Sample, Transfers
from posegen.data.prompts import boxes, digests, pictured
from posegen.data.user_images import fitted, own_mask, own_picture


class OwnTransfer(Transfers):
    """One picture, several times.

    Args:
        picture: file of the person to dress.
        mask: file of a picture of the same size, light where the person is to become anew.
        sources: files of the pictures that show what to wear; any pictures will do.
        people: keypoints ``[P, 17, 3]`` of the people in the picture, on a canvas of ``size``.
        size: (height, width) that is computed with.
        prompt: the caption.
        images: how often, each time from other noise.
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
    def _picture(self) -> np.ndarray:
        return own_picture(self.files[0], "picture")

    @cached_property
    def _mask(self) -> np.ndarray:
        return own_mask(self.files[1], self._picture)

    @cached_property
    def _sources(self) -> list[Sample]:
        return pictured(self.files[2:], self.size)

    @property
    def identity(self) -> dict[str, Any]:
        known = {
            "name": self.name,
            "prompt": self.prompt,
            "people": self.keypoints.tolist(),
            "size": self.size,
            "images": self.images,
        }
        return {**known, "content": digests(self.files)}

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, index: int) -> Sample:
        image = fitted(self._picture, self.size)
        return Sample(f"transfer/{index}", self.prompt, self.keypoints, boxes(self.keypoints), image, self.size)

    def source_of(self, index: int, visit: int = 0) -> Sample:
        return self._sources[0]

    def sources_of(self, index: int, visit: int = 0) -> Sequence[Sample]:
        return self._sources

    def picture_of(self, index: int) -> np.ndarray:
        return self._picture

    def mask_of(self, index: int) -> np.ndarray:
        return self._mask
