"""Poses without their place: joints relative to a square around the person, and back on a canvas."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SQUARE_MARGIN = 0.1  # room around the joints on each side, as a share of the longer side of their box


@dataclass(frozen=True)
class Square:
    """A square on a canvas, by its centre and side in pixels."""

    x: float
    y: float
    side: float

    @classmethod
    def around(cls, keypoints: np.ndarray, margin: float = SQUARE_MARGIN) -> Square | None:
        """The square around a person's labelled joints, ``[17, 3]``, with a margin; None where none is labelled."""
        points = keypoints[keypoints[:, 2] > 0, :2].astype(float)
        if not len(points):
            return None
        low, high = points.min(0), points.max(0)
        x, y = ((low + high) / 2).tolist()
        return cls(x, y, max(1.0, float((high - low).max()) * (1 + 2 * margin)))

    @classmethod
    def of_box(cls, box: np.ndarray) -> Square:
        """The square with the centre and the longer side of a box (x, y, width, height)."""
        x, y, width, height = (float(value) for value in box)
        return cls(x + width / 2, y + height / 2, max(width, height))


def to_square(square: Square, keypoints: np.ndarray) -> np.ndarray:
    """Keypoints ``[17, 3]`` of a canvas in the coordinates of a square, ``[17, 3] float64``: x and y from -1 (left,
    top edge) to 1 (right, bottom edge), and 1; zeros for joints that are not labelled.
    """
    labelled = keypoints[:, 2:] > 0
    points = (keypoints[:, :2].astype(float) - (square.x, square.y)) / (square.side / 2)
    return np.where(labelled, np.concatenate([points, labelled], 1), 0.0)


def from_square(
    pose: np.ndarray, size: tuple[int, int], scale: float = 1.0, centre: tuple[float, float] = (0.5, 0.5)
) -> np.ndarray:
    """The inverse of `to_square`: ``[..., 17, 3] float32`` keypoints in pixels, the top-left one's centre at (0, 0).

    Args:
        pose: ``[..., 17, 3]`` joints in the coordinates of the square, and their confidence; 0 is an absent joint.
        size: (height, width) of the canvas.
        scale: side of the square as a share of the canvas's shorter side.
        centre: (x, y) of the square as shares of the canvas.
    """
    middle = np.array([size[1] * centre[0], size[0] * centre[1]])
    points = middle + pose[..., :2] * (min(size) * scale / 2) - 0.5
    return np.where(pose[..., 2:] > 0, np.concatenate([points, pose[..., 2:]], -1), 0).astype(np.float32)


def joint_box_areas(keypoints: np.ndarray) -> np.ndarray:
    """``[P]`` areas of the boxes around the labelled joints of ``[P, 17, 3]``, at least one pixel."""
    seen = keypoints[..., 2:] > 0
    low, high = (np.where(seen, keypoints[..., :2], fill) for fill in (np.inf, -np.inf))
    extent = np.where(seen.any(1), high.max(1) - low.min(1), 0.0) if len(keypoints) else np.zeros((0, 2))
    return np.maximum(extent.prod(-1), 1.0).astype(np.float32)
