"""Object keypoint similarity (OKS), COCO's measure of how well two poses agree.

OKS of a detection and a person is the mean over the person's labelled keypoints of exp(-d^2 / (2 s^2 k^2)), with d the
distance in pixels, s^2 the person's area and k twice the keypoint's annotation noise
(https://cocodataset.org/#keypoints-eval).
"""

from __future__ import annotations

import numpy as np

from posegen.poses.topology import COCO_SIGMAS

TINY = np.spacing(1)  # COCO's guard against an area of 0


def oks(found: np.ndarray, keypoints: np.ndarray, areas: np.ndarray, sigmas: np.ndarray = COCO_SIGMAS) -> np.ndarray:
    """Similarities ``[D, P]`` of D detections ``[D, 17, >= 2]`` with P people ``[P, 17, 3]`` of ``areas [P]``, in
    pixels; 0 for a person without labelled keypoints. ``sigmas [17]`` are relative to the root of the area."""
    return pair_oks(found[:, None], keypoints[None], areas[None], sigmas)


def pair_oks(
    found: np.ndarray, keypoints: np.ndarray, areas: np.ndarray, sigmas: np.ndarray = COCO_SIGMAS
) -> np.ndarray:
    """As `oks`, ``[...]``, for pairs of a detection ``[..., 17, >= 2]`` and a person ``[..., 17, 3]``."""
    labelled = keypoints[..., 2] > 0
    x, y = (found[..., i].astype(float) - keypoints[..., i] for i in (0, 1))
    exponent = (x * x + y * y) / np.square(2 * sigmas) / (areas[..., None].astype(float) + TINY) / 2
    return np.where(labelled, np.exp(-exponent), 0).sum(-1) / np.maximum(labelled.sum(-1), 1)


def box_areas(keypoints: np.ndarray) -> np.ndarray:
    """``[P]`` areas of the boxes around the labelled keypoints of ``[P, 17, 3]``; 0 without any."""
    return sides(keypoints).prod(-1)


def sides(keypoints: np.ndarray) -> np.ndarray:
    """Width and height ``[P, 2]`` of the boxes around the labelled keypoints of ``[P, 17, 3]``; 0 without any."""
    labelled = keypoints[..., 2:] > 0
    low = np.where(labelled, keypoints[..., :2], np.inf).min(1)
    high = np.where(labelled, keypoints[..., :2], -np.inf).max(1)
    return np.where(labelled.any(1), high - low, 0.0)
