"""COCO's average precision and recall over similarity thresholds, for many bootstrap resamples of one matching.

People and detections are matched once, for all images side by side; a resample only changes how often those of each
image count. A weight of w moves precision and recall exactly as w equal neighbours in the ranking would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
EVERY_AREA = (0.0, 1e10)
COCO_RANGES = {"": EVERY_AREA, "_M": (32.0**2, 96.0**2), "_L": (96.0**2, 1e10)}  # COCO's, in square pixels
MAX_DETECTIONS = 20  # of an image: COCO looks at its best ones
TINY = np.spacing(1)  # COCO's guard against a precision of 0 / 0

Arrays = Sequence[np.ndarray]
Ranges = Mapping[str, tuple[float, float]]  # least and largest area by the suffix of a column


@dataclass(frozen=True, eq=False)
class Ranking:
    """The detections of a set, best first, with what each is worth at each of T thresholds."""

    image: np.ndarray  # [D] index of each detection's image
    hits: np.ndarray  # [T, D] bool: it matches a person that counts
    counted: np.ndarray  # [T, D] bool: it is a hit or matches nobody; the others are ignored
    people: np.ndarray  # [n] people that count in each image

    def precision_and_recall(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Average precision (101 levels) and final recall ``[R, T]`` under ``weights [R, n]``; NaN without people."""
        recall = np.zeros((len(weights), len(self.hits)))
        levels = np.zeros((*recall.shape, len(RECALLS)))
        people = weights @ self.people
        patterns, pattern = distinct(self.counted)
        counted = [self.image[used] for used in patterns]
        hits = [self.image[hit] for hit in self.hits]
        places = [np.flatnonzero(hit[patterns[k]]) for hit, k in zip(self.hits, pattern, strict=True)]
        for r in np.flatnonzero(people):
            ranked = [weights[r][image].cumsum() for image in counted]
            for t in range(len(hits)):
                if len(hits[t]):
                    true = weights[r][hits[t]].cumsum()
                    reached = true / people[r]
                    recall[r, t] = reached[-1]
                    precision = true / (ranked[pattern[t]][places[t]] + TINY)  # the best from a level on is at a hit
                    at = np.searchsorted(reached, RECALLS, side="left")
                    at = at[at < len(true)]  # levels that are never reached have precision 0
                    levels[r, t, : len(at)] = np.maximum.accumulate(np.maximum.reduceat(precision, at)[::-1])[::-1]
        nothing = (people == 0)[:, None]
        return np.where(nothing, np.nan, levels.mean(-1)), np.where(nothing, np.nan, recall)

    def split(self, size: int) -> list[Ranking]:
        """The rankings of every ``size`` consecutive images; the last may have fewer."""
        group, people, hits, counted = self.image // size, self.people, self.hits, self.counted
        order = np.argsort(group, kind="stable")
        parts = np.split(order, np.searchsorted(group[order], np.arange(1, -(-len(people) // size))))
        split = zip(range(0, len(people), size), parts, strict=True)
        return [Ranking(self.image[p] - i, hits[:, p], counted[:, p], people[i : i + size]) for i, p in split]

    def statistics(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """COCO's AP and AR, over all thresholds and at 0.5 and 0.75, each ``[R]`` in [0, 1], NaN without people."""
        precision, recall = self.precision_and_recall(weights)
        values = {"AP": precision.mean(1), "AP50": precision[:, 0], "AP75": precision[:, 5]}
        return values | {"AR": recall.mean(1), "AR50": recall[:, 0], "AR75": recall[:, 5]}


def distinct(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different rows of ``[T, D] bool`` among neighbours, and for each of the T rows which of them it equals."""
    new = np.ones(len(rows), bool)
    new[1:] = (rows[1:] != rows[:-1]).any(1)
    return rows[new], new.cumsum() - 1


def rank(
    similarities: Arrays, scores: Arrays, areas: Arrays, extents: Arrays, area_range: tuple[float, float] = EVERY_AREA
) -> Ranking:
    """Matches n images and ranks their detections; equal scores keep the order of the images.

    All are n arrays: ``similarities [D_i, P_i]``, detections of each image best first, their ``scores`` and box areas
    ``extents [D_i]``, and people's ``areas [P_i]``. People and unmatched detections outside the range do not count."""
    low, high = area_range
    excluded, outside = ((flat < low) | (flat > high) for flat in (concatenated(areas), concatenated(extents)))
    hits, matched = match(similarities, excluded)
    order = np.argsort(-concatenated(scores), kind="stable")
    image, owner = (np.repeat(np.arange(len(parts)), [len(part) for part in parts]) for parts in (scores, areas))
    people = np.bincount(owner, ~excluded, minlength=len(areas))
    return Ranking(image[order], hits[:, order], (hits | ~(matched | outside))[:, order], people)


def match(similarities: Arrays, excluded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """COCO's greedy matching in every image, at all thresholds at once.

    Each detection, best first, takes the most similar free person that counts, else the most similar free excluded
    one; of equal ones the last. As in COCO's own loop NaN beats everything before it, and what comes next beats it.

    Of n arrays ``similarities [D_i, P_i]``, detections best first; a detection that matches one of the people
    ``excluded [P_0 + ... + P_n-1]`` is no hit. Returns ``[T, D_0 + ... + D_n-1] bool`` hits, and matched detections."""
    sizes = np.array([s.shape for s in similarities], int).reshape(-1, 2)
    first, first_person = (sizes.cumsum(0) - sizes).T
    hits, matched = np.zeros((2, len(THRESHOLDS), sizes[:, 0].sum()), bool)
    for people in np.unique(sizes[:, 1]):
        group = np.flatnonzero(sizes[:, 1] == people)
        group = group[np.argsort(-sizes[group, 0], kind="stable")]  # images with a d-th detection come first
        depth = sizes[group, 0]
        apart = excluded[first_person[group][:, None] + np.arange(people)]
        order = np.argsort(apart, 1, kind="stable")  # people that count come first
        block = np.zeros((len(group), depth[0], people))
        block[np.arange(depth[0]) < depth[:, None]] = np.concatenate([similarities[i] for i in group.tolist()])
        block = np.take_along_axis(block, order[:, None], 2).transpose(2, 1, 0)
        apart = np.take_along_axis(apart, order, 1).T
        free = np.ones((people, len(THRESHOLDS), len(group)), bool)
        for d in range(depth[0] if people else 0):
            active = int(np.searchsorted(-depth, -d))
            chosen = choose_person(block[:, d, :active], free[:, :, :active], apart[:, :active])
            at, image = np.nonzero(chosen >= 0)
            free[chosen[at, image], at, image] = False
            matched[at, first[group[image]] + d] = True
            hits[at, first[group[image]] + d] = ~apart[chosen[at, image], image]
    return hits, matched


def choose_person(similarity: np.ndarray, free: np.ndarray, apart: np.ndarray) -> np.ndarray:
    """The person ``[T, n]`` that a detection in each of n images takes, -1 for none, by ``similarity [P, n]`` among
    the ``free [P, T, n]``; those ``apart [P, n]`` are excluded and stand behind the others."""
    images = np.arange(similarity.shape[1])
    best = np.repeat(THRESHOLDS[:, None], len(images), 1)
    chosen = np.full(best.shape, -1)
    for person, s in enumerate(similarity):
        better = free[person] & ~(s < best)
        if apart[person].any():
            better &= ~apart[person] | (chosen < 0) | apart[chosen, images]
        chosen[better] = person
        best = np.where(better, s, best)
    return chosen


def concatenated(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0), *parts])


def summary(
    similarities: Arrays,
    scores: Arrays,
    areas: Arrays,
    extents: Arrays,
    weights: np.ndarray | None = None,
    area_ranges: Ranges = COCO_RANGES,
) -> dict[str, np.ndarray]:
    """`Ranking.statistics` ``[R]`` by name, of ranges with a suffix AP and AR alone: ``AP``, ..., ``AP_M``, ``AR_M``.

    ``weights [R, n]`` is how often each image counts, None once each; the arrays before it are those of `rank`."""
    weights = np.ones((1, len(scores))) if weights is None else weights
    values: dict[str, np.ndarray] = {}
    for suffix, area_range in area_ranges.items():
        found = rank(similarities, scores, areas, extents, area_range).statistics(weights)
        values |= {name + suffix: value for name, value in found.items() if not suffix or name in ("AP", "AR")}
    return values
