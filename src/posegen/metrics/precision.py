"""Average precision and recall over OKS thresholds, as COCO defines them, for many bootstrap resamples of one matching.

Matching people with detections happens within an image, so it is done once; a resample only changes how often each image's detections and people count.
Counting a detection w times moves precision and recall as w equal neighbours in the ranking would, so weights equal duplicated images exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
EVERY_AREA = (0.0, 1e10)
TINY = np.spacing(1)  # COCO's guard against a precision of 0 / 0


@dataclass(frozen=True, eq=False)
class Ranking:
    """The detections of a set, best first, with what each is worth at each of T thresholds.

    Attributes:
        image: ``[D]`` index of each detection's image.
        hits: ``[T, D]`` 1.0 where the detection matches a person that counts.
        misses: ``[T, D]`` 1.0 where it matches nobody; a detection that is ignored is neither.
        people: ``[n]`` people that count in each image.
    """

    image: np.ndarray
    hits: np.ndarray
    misses: np.ndarray
    people: np.ndarray

    def precision_and_recall(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Average precision ``[T]`` (over 101 recall levels) and final recall ``[T]``, NaN without people.

        Args:
            weights: ``[n]`` how often each image counts.
        """
        people = float(self.people @ weights)
        if people == 0:
            nothing = np.full(len(self.hits), np.nan)
            return nothing, nothing
        if not len(self.image):
            return np.zeros(len(self.hits)), np.zeros(len(self.hits))
        weight = weights[self.image]
        hits, misses = (self.hits * weight).cumsum(1), (self.misses * weight).cumsum(1)
        recall = hits / people
        precision = hits / (hits + misses + TINY)
        best_from_here = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        levels = np.concatenate([best_from_here, np.zeros((len(hits), 1))], axis=1)  # levels that are never reached have precision 0
        at = np.stack([np.searchsorted(row, RECALLS, side="left") for row in recall])
        return np.take_along_axis(levels, at, 1).mean(1), recall[:, -1]


def rank(
    similarities: Sequence[np.ndarray],
    scores: Sequence[np.ndarray],
    areas: Sequence[np.ndarray],
    extents: Sequence[np.ndarray],
    area_range: tuple[float, float] = EVERY_AREA,
    thresholds: np.ndarray = THRESHOLDS,
) -> Ranking:
    """Matches n images and ranks their detections; equal scores keep the order of the images.

    Args:
        similarities: n arrays ``[D_i, P_i]``, detections of each image best first.
        scores: n arrays ``[D_i]``.
        areas: n arrays ``[P_i]`` of people.
        extents: n arrays ``[D_i]``, box areas of detections.
        area_range: people outside do not count, and unmatched detections outside are ignored.
        thresholds: ``[T]`` similarities from which a detection matches.
    """
    low, high = area_range
    excluded = [(a < low) | (a > high) for a in areas]
    outside = [(e < low) | (e > high) for e in extents]
    matches = [match(s, x, o, thresholds) for s, x, o in zip(similarities, excluded, outside, strict=True)]
    hits, misses = (np.concatenate([m[i] for m in matches] or [np.zeros((0, len(thresholds)))]) for i in (0, 1))
    order = np.argsort(-np.concatenate([*scores, np.zeros(0)]), kind="stable")
    image = np.repeat(np.arange(len(scores)), [len(s) for s in scores])
    people = np.array([(~x).sum() for x in excluded], dtype=float)
    return Ranking(image[order], hits[order].T.astype(float), misses[order].T.astype(float), people)


def match(similarity: np.ndarray, excluded: np.ndarray, outside: np.ndarray, thresholds: np.ndarray = THRESHOLDS) -> tuple[np.ndarray, np.ndarray]:
    """COCO's greedy matching in one image, at all thresholds at once.

    Each detection, best first, takes the most similar free person that counts, else the most similar free excluded one; of equal ones the last.

    Args:
        similarity: ``[D, P]``, detections best first.
        excluded: ``[P]`` people that do not count; a detection that matches one is ignored.
        outside: ``[D]`` detections that are ignored when they match nobody.
        thresholds: ``[T]``.

    Returns:
        ``[D, T]`` hits and ``[D, T]`` misses.
    """
    detections, people = similarity.shape
    hits, taken_any = np.zeros((2, detections, len(thresholds)), bool)
    free = np.ones((len(thresholds), people), bool)
    every = np.arange(len(thresholds))
    for d in range(detections if people else 0):
        appeal = np.where(free & (similarity[d] >= thresholds[:, None]), similarity[d] - 2.0 * excluded, -np.inf)
        chosen = people - 1 - appeal[:, ::-1].argmax(1)
        found = np.isfinite(appeal[every, chosen])
        free[every[found], chosen[found]] = False
        taken_any[d] = found
        hits[d] = found & ~excluded[chosen]
    return hits, ~taken_any & ~outside[:, None]
