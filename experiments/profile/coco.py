"""COCO's keypoint evaluation of a whole set in one call, from arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from posegen.metrics.math.average_precision import COCO_RANGES, MAX_DETECTIONS, Ranges, summary
from posegen.metrics.math.oks import pair_oks


def evaluate(
    keypoints: Sequence[np.ndarray],
    areas: Sequence[np.ndarray],
    found: Sequence[np.ndarray],
    scores: Sequence[np.ndarray],
    area_ranges: Ranges = COCO_RANGES,
) -> dict[str, float]:
    """COCO's statistics over n images: ``AP``, ``AP50``, ``AP75``, ``AR``, ``AR50``, ``AR75``, ``AP_M``, ``AR_M``,
    ``AP_L``, ``AR_L`` in [0, 1].

    They are NaN where pycocotools says -1: there is nobody in that range of areas.

    Args:
        keypoints: n arrays ``[P_i, 17, 3]`` with visibility; everybody has a labelled keypoint.
        areas: n arrays ``[P_i]`` in square pixels.
        found: n arrays ``[D_i, 17, >= 2]``, detections in any order.
        scores: n arrays ``[D_i]``.
        area_ranges: suffix -> (least, largest) person area in square pixels.
    """
    chosen, score, counts = best(scores)
    detections = np.concatenate([np.zeros((0, 17, 2)), *(image[..., :2] for image in found)])[chosen]
    people = np.concatenate([np.zeros((0, 17, 3)), *keypoints])
    rows = np.array([len(image) for image in keypoints], int)
    per_detection = np.repeat(rows, counts)
    first = np.repeat(rows.cumsum() - rows, counts)
    detection = np.repeat(np.arange(len(detections)), per_detection)
    person = np.arange(len(detection)) - np.repeat(per_detection.cumsum() - per_detection - first, per_detection)
    similarity = pair_oks(detections[detection], people[person], np.concatenate([np.zeros(0), *areas])[person])
    extents = np.ptp(detections, axis=1).prod(-1)
    similarities = [
        part.reshape(shape) for part, *shape in zip(parts(similarity, counts * rows), counts, rows, strict=True)
    ]
    values = summary(similarities, parts(score, counts), areas, parts(extents, counts), area_ranges=area_ranges)
    return {name: float(value[0]) for name, value in values.items()}


def best(scores: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The detections that count, image by image and best first: their places in the list of all, their scores, and
    their number ``[n]`` per image."""
    counts = np.array([len(image) for image in scores], int)
    score, image = np.concatenate([np.zeros(0), *scores]), np.repeat(np.arange(len(scores)), counts)
    order = np.lexsort((-score, image))
    place = np.arange(len(order)) - np.repeat(counts.cumsum() - counts, counts)
    order = order[place < MAX_DETECTIONS]
    return order, score[order], np.minimum(counts, MAX_DETECTIONS)


def parts(values: np.ndarray, counts: np.ndarray) -> list[np.ndarray]:
    """n consecutive parts of ``counts [n]`` entries each."""
    ends = counts.cumsum()
    return [values[start:end] for start, end in zip(ends - counts, ends, strict=True)]
