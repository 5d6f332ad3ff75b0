"""The evaluation of whole sets against the programs that everybody uses."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.profile.coco import evaluate
from experiments.profile.keypoint_ap import STATISTICS, People, invented_people, measure_keypoint_ap, prepared

pytest.importorskip("pycocotools")


def values(made: People) -> np.ndarray:
    found = evaluate(made.keypoints, made.areas, made.found, made.scores)
    return np.nan_to_num([found[name] for name in STATISTICS], nan=-1.0)


@pytest.mark.parametrize(
    ("images", "people", "detections"),
    [(100, 250, 600), (1000, 2518, 6000), (20, 150, 700), (30, 5, 300), (30, 300, 20), (1, 1, 1)],
    ids=["usual", "a thousand images", "crowds", "few people", "few detections", "one person"],
)
def test_equals_pycocotools(images, people, detections):
    made = invented_people(images, people, detections, seed=images)
    expected, _ = prepared("pycocotools", made)()
    assert images == 1 or 0.001 < expected[0] < 0.95, "the case says nothing"
    assert values(made) == pytest.approx(expected, abs=1e-9)


def test_crowds_are_larger_than_what_counts():
    made = invented_people(20, 150, 700, seed=20)
    assert max(map(len, made.scores)) > 30
    kept = [np.argsort(-s, kind="stable")[:20] for s in made.scores]
    best = People(
        made.keypoints,
        made.areas,
        *([part[i] for part, i in zip(parts, kept, strict=True)] for parts in (made.found, made.scores)),
    )
    assert np.array_equal(values(made), values(best))


def test_ties_keep_their_order():
    made = invented_people(60, 150, 400, seed=3)
    made = People(made.keypoints, made.areas, made.found, [np.round(s) for s in made.scores])
    expected, _ = prepared("pycocotools", made)()
    assert values(made) == pytest.approx(expected, abs=1e-9)


def test_borders_of_area_ranges():
    """A person of exactly 32^2 or 96^2 pixels belongs to both ranges that meet there."""
    made = invented_people(40, 100, 200, seed=5)
    areas = [np.where(np.arange(len(a)) % 2, 32.0**2, 96.0**2) for a in made.areas]
    made = People(made.keypoints, areas, made.found, made.scores)
    expected, _ = prepared("pycocotools", made)()
    assert values(made) == pytest.approx(expected, abs=1e-9)


def test_nobody_and_nothing():
    nobody, nothing = np.zeros((0, 17, 3)), np.zeros(0)
    person = np.concatenate([np.random.default_rng(0).uniform(0, 50, (1, 17, 2)), np.ones((1, 17, 1))], -1)
    unseen = evaluate([person, nobody], [np.array([1500.0]), nothing], [nobody, person], [nothing, np.array([0.5])])
    assert unseen["AP"] == unseen["AR"] == unseen["AP_M"] == 0 and np.isnan(unseen["AP_L"])
    assert all(np.isnan(value) for value in evaluate([nobody], [nothing], [person], [np.array([0.5])]).values())
    assert all(np.isnan(value) for value in evaluate([], [], [], []).values())


def test_the_comparison_measures_both_programs():
    pytest.importorskip("faster_coco_eval")
    timings = measure_keypoint_ap(1, images=50, people=120, detections=300)
    assert [t.name.rpartition(" ")[2] for t in timings] == ["pycocotools", "faster-coco-eval"]
    assert all(t.agreement < 1e-9 and t.ours_s > 0 and t.theirs_s > 0 for t in timings)
