"""What is wrong with found poses: the error types of Ronchi and Perona, and the AP that repairing each would bring.

"Benchmarking and Error Diagnosis in Multi-Instance Pose Estimation" (Ronchi and Perona 2017). The similarity ks of a
found joint to a place is one term of OKS: exp(-d^2 / (2 area (2 sigma)^2)). A detection is matched with a person at an
OKS of 0.1 or more, best scores first. A labelled joint of a matched person is

* good where its ks is above 0.85, ``jitter`` from 0.5 on;
* an ``inversion`` where it is nearest to its left or right counterpart, with a ks of 0.5 or more;
* a ``swap`` where it is nearest to that joint, or its counterpart, of another person;
* a ``miss`` elsewhere.

Detections without a person are ``surplus``, people without a detection ``unseen``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from posegen.metrics.math.average_precision import summary
from posegen.metrics.math.oks import TINY, oks, sides
from posegen.poses.topology import COCO_FLIP, COCO_SIGMAS

KINDS = ("good", "jitter", "inversion", "swap", "miss")
GOOD, JITTER, INVERSION, SWAP, MISS = range(len(KINDS))
REPAIRS = (*KINDS[1:], "surplus", "unseen")
LEAST_OKS = 0.1  # of a match
JITTER_RANGE = 0.5, 0.85  # ks
PAIRED = np.array(COCO_FLIP) != np.arange(len(COCO_FLIP))  # joints with a counterpart
WIDTHS = ((5, 6), (11, 12))  # left and right shoulder, left and right hip
NOSE_AND_EYES = [0, 1, 2]
FRONT, SIDE, BACK = 1, 0, -1


@dataclass(frozen=True, eq=False)
class ImageErrors:
    """The errors in one image with D detections, best first, and P people."""

    person: np.ndarray  # [D] the person that a detection is matched with, -1 for surplus ones
    kind: np.ndarray  # [D, 17] index in `KINDS`, -1 for joints that are not labelled
    similarity: np.ndarray  # [D, 17] ks to the nearest place, 0 where there is none


def image_errors(found: np.ndarray, keypoints: np.ndarray, areas: np.ndarray) -> ImageErrors:
    """Of ``found [D, 17, >= 2]``, people ``[P, 17, 3]`` and their ``areas [P]``."""
    people = len(keypoints)
    person = matched_people(oks(found, keypoints, areas))
    kind, similarity = np.full((len(found), 17), -1), np.zeros((len(found), 17))
    mirrored = keypoints[:, COCO_FLIP]
    places, sizes = np.concatenate([keypoints, mirrored]), np.concatenate([areas, areas])
    for d in np.flatnonzero(person >= 0):
        p = person[d]
        ks = np.where(places[..., 2] > 0, joint_similarity(found[d], places, sizes), -1.0)
        order = [p, p + people, *(k for k in range(2 * people) if k % people != p)]  # at equal values the first wins
        nearest, best = ks[order].argmax(0), ks[order].max(0)
        low, high = JITTER_RANGE
        own = np.where(best > high, GOOD, JITTER)
        found_kind = np.where(nearest == 0, own, np.where(nearest == 1, INVERSION, SWAP))
        kind[d] = np.where(keypoints[p, :, 2] > 0, np.where(best < low, MISS, found_kind), -1)
        similarity[d] = np.maximum(best, 0)
    return ImageErrors(person, kind, similarity)


def joint_similarity(found: np.ndarray, keypoints: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """ks ``[..., 17]`` of ``found [..., 17, >= 2]`` to ``keypoints [..., 17, >= 2]`` of people with ``areas [...]``."""
    squares = ((found[..., :2].astype(float) - keypoints[..., :2]) ** 2).sum(-1)
    return np.exp(-squares / np.square(2 * COCO_SIGMAS) / (np.asarray(areas, float)[..., None] + TINY) / 2)


def matched_people(similarity: np.ndarray, least: float = LEAST_OKS) -> np.ndarray:
    """``[D]`` the free person of the largest ``similarity [D, P]`` of at least ``least``, best detections first."""
    person, free = np.full(len(similarity), -1), np.ones(similarity.shape[1:], bool)
    for d, row in enumerate(similarity):
        if free.any() and (best := np.where(free, row, -1.0)).max() >= least:
            person[d] = best.argmax()
            free[person[d]] = False
    return person


def repaired(found: np.ndarray, keypoints: np.ndarray, areas: np.ndarray, errors: ImageErrors, kind: int) -> np.ndarray:
    """``found [D, 17, >= 2]`` with the joints of one kind of error beside their true places: jitter at a ks of 0.85,
    misses at 0.5, inverted and swapped joints as far as they are from the place that they were taken for."""
    d, joint = np.nonzero(errors.kind == kind)
    person = errors.person[d]
    wanted = {JITTER: JITTER_RANGE[1], MISS: JITTER_RANGE[0]}.get(kind, errors.similarity[d, joint])
    away = 2 * COCO_SIGMAS[joint] * np.sqrt(-2 * (areas[person].astype(float) + TINY) * np.log(wanted))
    moved = found.astype(float)
    moved[d, joint, :2] = keypoints[person, joint, :2] + np.stack([away, np.zeros_like(away)], -1)
    return moved


def repaired_ap(
    found: Sequence[np.ndarray],
    scores: Sequence[np.ndarray],
    keypoints: Sequence[np.ndarray],
    areas: Sequence[np.ndarray],
    errors: Sequence[ImageErrors],
    repair: str = "",
) -> float:
    """AP in [0, 1] of n images with one of `REPAIRS`, or none, applied; NaN without people. Surplus detections are
    removed, and so are people whom nobody found."""
    found, scores, keypoints, areas = ([*each] for each in (found, scores, keypoints, areas))
    for i, each in enumerate(errors):
        if repair == "surplus":
            found[i], scores[i] = found[i][each.person >= 0], scores[i][each.person >= 0]
        elif repair == "unseen":
            keypoints[i], areas[i] = keypoints[i][seen(each, len(areas[i]))], areas[i][seen(each, len(areas[i]))]
        elif repair:
            found[i] = repaired(found[i], keypoints[i], areas[i], each, KINDS.index(repair))
    similarities = [oks(*each) for each in zip(found, keypoints, areas, strict=True)]
    extents = [np.ptp(each[..., :2].astype(float), axis=1).prod(-1) for each in found]
    return float(summary(similarities, scores, areas, extents, area_ranges={"": (0.0, 1e10)})["AP"][0])


def seen(errors: ImageErrors, people: int) -> np.ndarray:
    """``[P]`` whether a person has a detection."""
    return np.isin(np.arange(people), errors.person)


def correct_joints(found: np.ndarray, keypoints: np.ndarray, areas: np.ndarray, radius: float = 0.1) -> np.ndarray:
    """``[P, 17]`` whether a labelled joint of each person is where its most similar detection has it, within ``radius``
    of the longer side of the person's box (PCK)."""
    if not len(found) or not len(keypoints):
        return np.zeros((len(keypoints), 17), bool)
    distance = np.linalg.norm(found[oks(found, keypoints, areas).argmax(0)][..., :2] - keypoints[..., :2], axis=-1)
    side = sides(keypoints).max(-1)
    reach = radius * np.where(side > 0, side, np.sqrt(areas))
    return (keypoints[..., 2] > 0) & (distance <= reach[:, None])


def facing(keypoints: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """``[P]`` FRONT where nose and eyes of ``[P, 17, 3]`` are labelled, BACK where none is; SIDE for other people, and
    for those who are not broad enough to tell (shoulders and hips less than a fifth of the root of ``areas [P]``)."""
    face, broad = keypoints[:, NOSE_AND_EYES, 2] > 0, np.abs(breadth(keypoints, keypoints)) >= 0.2 * np.sqrt(areas)
    return np.where(broad & face.all(1), FRONT, np.where(broad & ~face.any(1), BACK, SIDE))


def turned_round(found: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
    """``[...]`` whether shoulders and hips of ``found [..., 17, >= 2]`` have left and right the other way round than
    those of the person ``[..., 17, 3]``, as far as they are labelled."""
    return breadth(found, keypoints) * breadth(keypoints, keypoints) < 0


def breadth(pose: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
    """``[...]`` how far left shoulder and hip of ``pose [..., 17, >= 2]`` are to the right of the right ones, the mean
    in pixels over the pairs that ``keypoints [..., 17, 3]`` has labels of; 0 without any."""
    left, right = np.array(WIDTHS).T
    labelled = (keypoints[..., left, 2] > 0) & (keypoints[..., right, 2] > 0)
    widths = np.where(labelled, pose[..., left, 0].astype(float) - pose[..., right, 0], 0)
    return widths.sum(-1) / np.maximum(labelled.sum(-1), 1)


def mirrored_people(errors: ImageErrors) -> np.ndarray:
    """``[D]`` whether more than half of a detection's labelled joints that have a counterpart are inverted."""
    paired = errors.kind[:, PAIRED]
    return (paired == INVERSION).sum(1) > (paired >= 0).sum(1) / 2
