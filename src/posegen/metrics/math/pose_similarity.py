"""How alike two poses are wherever they stand and however large they are.

`cosine` is the similarity of HumanSD's pose metrics (CAP in the paper, SAP in its code; StablePose and GRPose share the
file): coordinates are divided by the joints' sigmas, scaled to [0, 1] and to unit length per axis, and compared by
their cosine. Where the joints of an axis coincide it is 0 / 0. All coordinates are positive, so that nearly any two
upright people are alike. `aligned_oks` has neither weakness.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from posegen.metrics.math.oks import pair_oks
from posegen.poses.topology import COCO_SIGMAS

LEAST_JOINTS = 3  # one or two joints agree with any pose once place and size are removed, or nearly so


def cosine(found: np.ndarray, keypoints: np.ndarray, literal: bool = False) -> np.ndarray:
    """Cosine similarities ``[D, P]`` of ``found [D, 17, >= 2]`` with ``[P, 17, 3]`` over each person's labelled
    joints, NaN where they are undefined.

    ``literal``: as in the published code, which overwrites the detection's y by its unit x over the length of y."""
    labelled = keypoints[None, :, :, 2] > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        person = [unit_range(keypoints[None, :, :, i] / COCO_SIGMAS, labelled) for i in (0, 1)]
        detection = [unit_range(found[:, None, :, i] / COCO_SIGMAS, labelled) for i in (0, 1)]
        x, y = (part / length(part) for part in detection)
        if literal:
            y = x / length(detection[1])
        a, b = (np.concatenate(parts, -1) for parts in ([part / length(part) for part in person], [x, y]))
        return (a * b).sum(-1) / (length(a) * length(b))[..., 0]


def unit_range(values: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """``[..., 17]`` moved and scaled so that the labelled entries span [0, 1]; 0 elsewhere, NaN where they coincide."""
    low = np.where(labelled, values, np.inf).min(-1, keepdims=True)
    high = np.where(labelled, values, -np.inf).max(-1, keepdims=True)
    return np.where(labelled, (values - low) / (high - low), 0.0)


def length(values: np.ndarray) -> np.ndarray:
    """Euclidean length of the last axis, which is kept."""
    return np.sqrt((values * values).sum(-1, keepdims=True))


def defined_cosine(found: np.ndarray, keypoints: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """`cosine`, 0 where it is undefined."""
    return np.nan_to_num(cosine(found, keypoints), nan=0.0)


def aligned_oks(found: np.ndarray, keypoints: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """OKS ``[D, P]`` after each detection is moved and scaled onto the person: Procrustes without rotation.

    A least-squares fit in units of each joint's tolerance, over the labelled ones; 0 for people with fewer than 3."""
    labelled = keypoints[..., 2] > 0
    weight = np.where(labelled, COCO_SIGMAS**-2.0, 0.0)
    weight = (weight / np.maximum(weight.sum(-1, keepdims=True), 1e-12))[None, :, :, None]
    points = found[:, None, :, :2], keypoints[None, :, :, :2]
    detection, person = np.broadcast_arrays(*(each.astype(float) for each in points))
    place = (weight * person).sum(2, keepdims=True)
    detection, person = detection - (weight * detection).sum(2, keepdims=True), person - place
    own = (weight * detection**2).sum((2, 3), keepdims=True)
    size = (weight * detection * person).sum((2, 3), keepdims=True) / np.maximum(own, 1e-12)
    similarity = pair_oks(np.maximum(size, 0) * detection + place, keypoints[None], areas[None])
    return np.where(labelled.sum(-1) < LEAST_JOINTS, 0.0, similarity)


#: Column -> the similarity whose average precision it is: of ``found [D, 17, >= 2]`` with people ``[P, 17, 3]`` of
#: ``areas [P]``, ``[D, P]``.
SIMILARITIES: Mapping[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "SAP_fixed": defined_cosine,
    "AP_aligned": aligned_oks,
}
