"""Matching of all images side by side against COCO's rules written out for one image."""

from __future__ import annotations

import numpy as np
import pytest

from posegen.metrics.math.average_precision import THRESHOLDS, Ranking, match, rank

NAN = float("nan")


def matched_in_turn(similarity: np.ndarray, excluded: np.ndarray, threshold: float) -> list[int]:
    """The person of each detection, -1 for none: people that count before the others, and each at least as good as the
    one before it."""
    order = sorted(range(len(excluded)), key=lambda p: bool(excluded[p]))
    taken: set[int] = set()
    result = []
    for row in similarity:
        best, chosen = threshold, -1
        for p in order:
            if p in taken or (chosen >= 0 and not excluded[chosen] and excluded[p]) or row[p] < best:
                continue
            best, chosen = row[p], p
        taken |= {chosen} - {-1}
        result.append(chosen)
    return result


@pytest.mark.parametrize("undefined", [0.0, 0.15], ids=["numbers", "with NaN"])
def test_matching(undefined):
    rng = np.random.default_rng(1)
    sizes = rng.integers(0, 7, (120, 2))
    similarities = [np.round(rng.random(tuple(size)), 1) for size in sizes]  # rounded: many are equal
    for s in similarities:
        s[rng.random(s.shape) < undefined] = NAN
    excluded = [rng.random(people) < 0.3 for people in sizes[:, 1]]
    hits, anybody = match(similarities, np.concatenate(excluded))
    for t, threshold in enumerate(THRESHOLDS):
        chosen = [matched_in_turn(s, x, threshold) for s, x in zip(similarities, excluded, strict=True)]
        assert anybody[t].tolist() == [p >= 0 for image in chosen for p in image]
        assert hits[t].tolist() == [
            p >= 0 and not x[p] for image, x in zip(chosen, excluded, strict=True) for p in image
        ]


def test_no_number_beats_every_number_and_is_beaten_by_the_next():
    def takes(*similarity: float) -> list[bool]:
        """Which of two people is left for a second detection that only fits one of them."""
        return [
            bool(match([np.array([similarity, fit])], np.zeros(2, bool))[0][9, 1]) for fit in ((1.0, 0.0), (0.0, 1.0))
        ]

    assert takes(0.99, 0.5) == [False, True]
    assert takes(0.99, NAN) == [True, False], "the second is taken at 0.95 without being similar"
    assert takes(NAN, 0.1) == [True, False], "a similarity of 0.1 follows NaN"


def small(rng: np.random.Generator, images: int) -> tuple[list[np.ndarray], ...]:
    sizes = rng.integers(0, 5, (images, 2))
    similarities = [rng.random(tuple(size)) for size in sizes]
    scores = [-np.sort(-rng.integers(1, 9, d) / 9) for d, _ in sizes]
    areas, extents = ([rng.uniform(0, 100, k) for k in sizes[:, i]] for i in (1, 0))
    return similarities, scores, areas, extents


def test_rankings_of_parts_equal_rankings_of_their_images():
    facts = small(np.random.default_rng(2), 23)
    parts = rank(*facts, area_range=(20, 80)).split(5)
    assert [len(part.people) for part in parts] == [5, 5, 5, 5, 3]
    for i, part in enumerate(parts):
        alone = rank(*(values[5 * i : 5 * i + 5] for values in facts), area_range=(20, 80))
        for name in ("image", "hits", "counted", "people"):
            assert np.array_equal(getattr(part, name), getattr(alone, name)), name


def test_resamples_at_once_equal_resamples_alone():
    rng = np.random.default_rng(3)
    ranking = rank(*small(rng, 30), area_range=(10, 90))
    weights = rng.integers(0, 4, (7, 30)).astype(float)
    weights[2] = 0
    together = ranking.precision_and_recall(weights)
    assert np.isnan(together[0][2]).all() and np.isnan(together[1][2]).all()
    for r, w in enumerate(weights):
        assert all(
            np.array_equal(a[r], b[0], equal_nan=True)
            for a, b in zip(together, ranking.precision_and_recall(w[None]), strict=True)
        )


def test_precision_by_hand():
    """Right, wrong, right of three people: precision 1 up to recall 1/3 (34 of 101 levels), then 2/3 up to recall 2/3
    (33 more)."""
    hits = np.array([[True, False, True]])
    precision, recall = Ranking(np.zeros(3, int), hits, np.ones((1, 3), bool), np.array([3.0])).precision_and_recall(
        np.ones((1, 1))
    )
    assert recall == pytest.approx(np.array([[2 / 3]])) and precision == pytest.approx(
        np.array([[(34 + 33 * 2 / 3) / 101]])
    )
    ignored = Ranking(np.zeros(3, int), hits, hits, np.array([3.0])).precision_and_recall(np.ones((1, 1)))[0]
    assert ignored == pytest.approx(np.array([[67 / 101]]))
