"""Object keypoint similarity (OKS), COCO's measure of how well two poses agree.

OKS of a detection and a person is the mean over the person's labelled keypoints of exp(-d^2 / (2 s^2 k^2)), with d the distance in pixels, s^2 the person's
area and k twice the keypoint's annotation noise (https://cocodataset.org/#keypoints-eval).
"""

from __future__ import annotations

import numpy as np

from posegen.poses.topology import COCO_SIGMAS

TINY = np.spacing(1)  # COCO's guard against an area of 0


def oks(found: np.ndarray, keypoints: np.ndarray, areas: np.ndarray, sigmas: np.ndarray = COCO_SIGMAS) -> np.ndarray:
    """Similarities ``[D, P]`` of D detections with P people; 0 for a person without labelled keypoints.

    Args:
        found: ``[D, 17, >= 2]`` x, y in pixels.
        keypoints: ``[P, 17, 3]`` with visibility.
        areas: ``[P]`` in square pixels.
        sigmas: ``[17]`` annotation noise of each keypoint relative to the square root of the area.
    """
    labelled = keypoints[None, :, :, 2] > 0
    distance2 = np.square(found[:, None, :, :2].astype(float) - keypoints[None, :, :, :2]).sum(-1)
    exponent = distance2 / np.square(2 * sigmas) / (areas[None, :, None].astype(float) + TINY) / 2
    return np.where(labelled, np.exp(-exponent), 0).sum(-1) / np.maximum(labelled.sum(-1), 1)
