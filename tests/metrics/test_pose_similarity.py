import numpy as np
import pytest
from invented_people import person

from posegen.metrics.math.pose_similarity import aligned_oks, cosine, defined_cosine
from posegen.poses.topology import COCO_SIGMAS

AREA = np.array([400.0])


def by_hand(found: np.ndarray, target: np.ndarray, literal: bool) -> float:
    seen = target[:, 2] > 0
    axes = [(values / COCO_SIGMAS)[seen] for values in (target[:, 0], target[:, 1], found[:, 0], found[:, 1])]
    axes = [(a - a.min()) / (a.max() - a.min()) for a in axes]
    lengths = [np.linalg.norm(a) for a in axes]
    gx, gy, dx, dy = (a / n for a, n in zip(axes, lengths, strict=True))
    if literal:
        dy = dx / lengths[3]
    g, d = np.concatenate([gx, gy]), np.concatenate([dx, dy])
    return float(g @ d / np.linalg.norm(g) / np.linalg.norm(d))


@pytest.mark.parametrize("literal", [False, True])
def test_cosine_by_hand(literal):
    rng = np.random.default_rng(0)
    found = np.stack([person(*rng.uniform(50, 200, 2)) + rng.normal(0, 3, (17, 3)) for _ in range(3)])
    people = np.stack([person(80, 90, 2), person(150, 60)])
    people[0, [2, 7, 11], 2] = 0
    expected = [[by_hand(f, p, literal) for p in people] for f in found]
    assert cosine(found, people, literal) == pytest.approx(np.array(expected), abs=1e-12)


def test_the_literal_cosine_does_not_see_y():
    """The same pose is not even its own best match, and a detection with another y is as good."""
    target = person(100, 100)[None]
    other = target * [1, 1, 1]
    other[0, :, 1] = target[0, :, 1].max() + target[0, :, 1].min() - target[0, :, 1]  # standing on its head
    assert cosine(target, target)[0, 0] == pytest.approx(1)
    assert cosine(target, target, literal=True)[0, 0] < 0.95
    assert cosine(other, target, literal=True)[0, 0] == pytest.approx(
        cosine(target, target, literal=True)[0, 0], abs=0.02
    )


def test_undefined_is_zero():
    target = person(100, 100)[None]
    target[0, 1:, 2] = 0
    assert np.isnan(cosine(target, target)).all() and np.isnan(cosine(target, target, literal=True)).all()
    assert defined_cosine(target, target, AREA).tolist() == [[0.0]]
    assert cosine(np.zeros((0, 17, 3)), target).shape == (0, 1) and cosine(target, np.zeros((0, 17, 3))).shape == (
        1,
        0,
    )


def test_aligned_oks_forgives_place_and_size_alone():
    target = person(100, 100)[None]
    moved = target * [0.5, 0.5, 1] + [37, -12, 0]
    assert aligned_oks(moved, target, AREA) == pytest.approx(1)
    mirrored, stretched, bent = -target, target * [1.5, 1, 1], target.copy()
    bent[0, [9, 10], 1] -= 8
    assert aligned_oks(mirrored, target, AREA)[0, 0] < 0.2, "a person on the head is not forgiven"
    assert aligned_oks(stretched, target, AREA)[0, 0] < 0.95 and 0.6 < aligned_oks(bent, target, AREA)[0, 0] < 0.95
    assert aligned_oks(np.stack([moved[0], bent[0]]), np.concatenate([target, target]), AREA.repeat(2)).shape == (2, 2)


def test_two_joints_tell_no_pose():
    target = person(100, 100)[None]
    target[0, 2:, 2] = 0
    assert aligned_oks(target, target, AREA).tolist() == [[0.0]]
    target[0, 2, 2] = 1
    assert aligned_oks(target, target, AREA) == pytest.approx(1)
