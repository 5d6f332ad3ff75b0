"""Samples of any size without a data set: time and memory do not depend on what is seen."""

from __future__ import annotations

from typing import Any

import numpy as np

from posegen.data.base import PoseData, Sample

#: A standing person, COCO order, x and y as shares of the canvas.
PERSON = (
    (0.50, 0.14), (0.52, 0.12), (0.48, 0.12), (0.55, 0.13), (0.45, 0.13), (0.60, 0.28), (0.40, 0.27), (0.66, 0.43), (0.33, 0.42),
    (0.70, 0.57), (0.29, 0.56), (0.57, 0.55), (0.43, 0.55), (0.59, 0.74), (0.42, 0.73), (0.60, 0.93), (0.40, 0.92),
)  # fmt: skip


class Figures(PoseData):
    """``count`` images of noise with one person in each.

    Args:
        count: number of samples.
        size: height and width of the images.
    """

    name, split = "figures", "profile"

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, (size, size)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        rng, side = np.random.default_rng(index), self.size[0]
        joints = (np.array(PERSON) + rng.uniform(-0.03, 0.03, (17, 2))) * side
        keypoints = np.concatenate([joints, np.full((17, 1), 2.0)], 1).astype(np.float32)[None]
        image = rng.integers(0, 256, (side, side, 3), np.uint8)
        return Sample(
            f"profile/{index:06}",
            f"a photo of person {index}",
            keypoints,
            np.array([0.2 * side * side], np.float32),
            image,
            self.size,
        )

    def twin(self, index: int) -> Sample:
        return self[index]

    def source_of(self, index: int, visit: int = 0) -> Sample:
        return self[self.count + index]

    @property
    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "count": self.count, "size": list(self.size)}
