"""Skeletons: COCO-17, the one of posegen, and OpenPose-18, which some methods were trained on."""

from __future__ import annotations

import numpy as np

COCO_NAMES = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip
COCO_JOINTS = len(COCO_NAMES)
# Limbs as HumanSD and its successors draw them: ears join the shoulders, no neck, no bar across shoulders or hips.
COCO_LIMBS = (
    (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6), (5, 7), (6, 8), (7, 9), (8, 10), (5, 11), (6, 12), (11, 13),
    (12, 14), (13, 15), (14, 16),
)  # fmt: skip
COCO_BARS = ((5, 6), (11, 12))
# The skeleton of GUNet and of COCO's annotations: with the bars, without the lines from the ears to the shoulders.
COCO_BONES = tuple(sorted({*COCO_LIMBS, *COCO_BARS} - {(3, 5), (4, 6)}))
# Per-joint spread of the object keypoint similarity: OKS = exp(-d^2 / (2 area (2 sigma)^2)).
COCO_SIGMAS = np.array(
    [.026, .025, .025, .035, .035, .079, .079, .072, .072, .062, .062, .107, .107, .087, .087, .089, .089]
)  # fmt: skip
COCO_LEFT = (1, 3, 5, 7, 9, 11, 13, 15)
COCO_RIGHT = (2, 4, 6, 8, 10, 12, 14, 16)
# The joint that takes each place in a mirrored image.
COCO_FLIP = (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)

OPENPOSE_NAMES = (
    "nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist",
    "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle", "right_eye", "left_eye",
    "right_ear", "left_ear",
)  # fmt: skip
BODY_25_NAMES = (*OPENPOSE_NAMES[:8], "mid_hip", *OPENPOSE_NAMES[8:])  # its feet come last; COCO has no such joints
OPENPOSE_LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (1, 0),
    (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
_OPENPOSE_FROM_COCO = [0, 5, *(COCO_NAMES.index(name) for name in OPENPOSE_NAMES[2:])]


def coco_to_openpose18(keypoints: np.ndarray) -> np.ndarray:
    """COCO-17 ``[P, 17, 3]`` to OpenPose-18 ``[P, 18, 3]``.

    The neck lies midway between the shoulders and takes the lower of their scores: without either, it is missing.
    """
    keypoints = np.asarray(keypoints)
    points = keypoints[:, _OPENPOSE_FROM_COCO].copy()
    shoulders = keypoints[:, 5:7]
    points[:, 1, :2] = shoulders[..., :2].mean(1)
    points[:, 1, 2] = shoulders[..., 2].min(1)
    points[points[:, 1, 2] <= 0, 1] = 0
    return points
