"""Hand-made people: each kind of error is named, and repairing it brings what it must."""

from __future__ import annotations

import numpy as np
import pytest

from posegen.metrics.math import keypoint_errors as ke
from posegen.metrics.math.average_precision import summary
from posegen.metrics.math.oks import oks
from posegen.metrics.pose import PoseMetric
from posegen.poses.topology import COCO_FLIP, COCO_NAMES, COCO_SIGMAS
from tests.metrics.invented_people import jittered, person, random_set

WRIST, OTHER = COCO_NAMES.index("left_wrist"), COCO_NAMES.index("right_wrist")
AREA = 200.0


def errors(found: list[np.ndarray], people: list[np.ndarray]) -> ke.ImageErrors:
    return ke.image_errors(np.array(found), np.array(people), np.full(len(people), AREA))


def moved(pose: np.ndarray, ks: float, joint: int = WRIST) -> np.ndarray:
    """A pose with one joint where its keypoint similarity is ``ks``, below its place."""
    copy = pose.copy()
    copy[joint, 1] += 2 * COCO_SIGMAS[joint] * np.sqrt(-2 * AREA * np.log(ks))
    return copy


@pytest.mark.parametrize(
    ("ks", "kind"), [(1.0, "good"), (0.86, "good"), (0.84, "jitter"), (0.51, "jitter"), (0.4, "miss")]
)
def test_how_far_a_joint_is_from_its_place_decides(ks: float, kind: str) -> None:
    target = person(50, 50)
    found = errors([moved(target, ks)], [target])
    assert [ke.KINDS[k] for k in found.kind[0]] == ["good"] * WRIST + [kind] + ["good"] * (16 - WRIST)
    assert found.person.tolist() == [0]


def test_a_joint_at_its_counterpart_is_inverted_and_one_at_another_person_swapped() -> None:
    one, other = person(50, 50), person(80, 50)
    found = one.copy()
    found[WRIST] = one[OTHER]
    assert errors([found], [one]).kind[0, WRIST] == ke.INVERSION
    found[WRIST] = other[WRIST]
    assert errors([found, other], [one, other]).kind[0, WRIST] == ke.SWAP
    found[WRIST] = other[OTHER]
    assert errors([found, other], [one, other]).kind[0, WRIST] == ke.SWAP
    assert errors([found], [one]).kind[0, WRIST] == ke.MISS
    one[OTHER, 2] = 0  # an unlabelled counterpart cannot be taken for the joint
    found[WRIST] = one[OTHER]
    assert errors([found], [one]).kind[0, WRIST] == ke.MISS


def test_unlabelled_joints_surplus_detections_and_unseen_people_have_no_kinds() -> None:
    one, far = person(50, 50), person(200, 200)
    one[WRIST, 2] = 0
    found = errors([one, far], [one, person(400, 400)])
    assert found.kind[0, WRIST] == -1 and (found.kind[1] == -1).all()
    assert found.person.tolist() == [0, -1] and ke.seen(found, 2).tolist() == [True, False]


def test_each_person_is_matched_once_and_the_best_detection_chooses_first() -> None:
    assert ke.matched_people(np.array([[0.5, 0.9], [0.4, 0.95], [0.2, 0.3]])).tolist() == [1, 0, -1]
    assert ke.matched_people(np.array([[0.09], [0.1]])).tolist() == [-1, 0]
    assert ke.matched_people(np.zeros((2, 0))).tolist() == [-1, -1]


@pytest.mark.parametrize(("kind", "wanted"), [(ke.JITTER, 0.85), (ke.MISS, 0.5)])
def test_a_repaired_joint_has_the_similarity_that_the_kind_of_error_leaves(kind: int, wanted: float) -> None:
    people = np.array([person(50, 50)])
    found = np.array([moved(moved(people[0], 0.6), 0.2, OTHER)])
    each = ke.image_errors(found, people, np.array([AREA]))
    joint = int(np.flatnonzero(each.kind[0] == kind)[0])
    after = ke.repaired(found, people, np.array([AREA]), each, kind)
    ks = ke.joint_similarity(after[0], people[0], np.array(AREA))
    assert ks[joint] == pytest.approx(wanted, abs=1e-9)
    others = [i for i in range(17) if i != joint]
    assert (after[0, others] == found[0, others]).all()


def test_an_inverted_joint_is_repaired_as_exactly_as_it_met_the_wrong_place() -> None:
    people = np.array([person(50, 50)])
    found = people.copy()
    found[0, WRIST] = moved(people[0], 0.7, OTHER)[OTHER]
    each = ke.image_errors(found, people, np.array([AREA]))
    after = ke.repaired(found, people, np.array([AREA]), each, ke.INVERSION)
    assert ke.joint_similarity(after[0], people[0], np.array(AREA))[WRIST] == pytest.approx(0.7)


def sets(images: int = 40, noise: float = 4.0) -> tuple[list, list, list, list, list]:
    records = [PoseMetric().record(each) for each in random_set(images, noise=noise)]
    found, scores, keypoints, areas = ([r[n] for r in records] for n in ("detections", "scores", "keypoints", "areas"))
    return found, scores, keypoints, areas, [ke.image_errors(*x) for x in zip(found, keypoints, areas, strict=True)]


def test_the_average_precision_is_that_of_the_table_and_no_repair_lowers_it_much() -> None:
    found, scores, keypoints, areas, each = sets()
    extents = [np.ptp(f[..., :2].astype(float), axis=1).prod(-1) for f in found]
    similarity = [oks(*x) for x in zip(found, keypoints, areas, strict=True)]
    whole = float(summary(similarity, scores, areas, extents)["AP"][0])
    assert ke.repaired_ap(found, scores, keypoints, areas, each) == pytest.approx(whole, abs=1e-12)
    metric, images = PoseMetric(), random_set(40, noise=4.0)
    records = {name: [metric.record(image)[name] for image in images] for name in metric.record(images[0])}
    assert 100 * whole == pytest.approx(metric.compute(records)["AP"], abs=1e-3)  # poses are kept in float32
    gains = {name: ke.repaired_ap(found, scores, keypoints, areas, each, name) - whole for name in ke.REPAIRS}
    assert all(gain > -1e-3 for gain in gains.values()) and gains["jitter"] > 0.02 and gains["unseen"] > 0.01


def test_repairing_the_only_error_brings_everything() -> None:
    """Found on top of the wrong side: AP 0 before, and 1 behind the repair of the inversions."""
    people = np.array([person(50, 50)])
    found = people[:, COCO_FLIP].copy()
    found[0, 0] = people[0, 0]
    area = np.array([AREA])
    each = ke.image_errors(found, people, area)
    assert (each.kind[0, 1:] == ke.INVERSION).sum() >= 12 and ke.mirrored_people(each).tolist() == [True]
    both = [found], [np.ones(1)], [people], [area], [each]
    assert ke.repaired_ap(*both) == 0
    assert ke.repaired_ap(*both, "inversion") == pytest.approx(1.0)
    assert ke.repaired_ap(*both, "miss") == ke.repaired_ap(*both, "jitter") == 0


def test_surplus_and_unseen_people() -> None:
    people, far = np.array([person(50, 50)]), person(300, 300)
    area, found = np.array([AREA]), np.array([far, people[0]])
    each = ke.image_errors(found, people, area)
    first = [found], [np.array([0.9, 0.5])], [people], [area], [each]
    assert ke.repaired_ap(*first) == pytest.approx(0.5, abs=0.01)
    assert ke.repaired_ap(*first, "surplus") == pytest.approx(1.0)
    two, areas = np.array([person(50, 50), far]), np.full(2, AREA)
    lonely = [two[:1]], [np.ones(1)], [two], [areas], [ke.image_errors(two[:1], two, areas)]
    assert ke.repaired_ap(*lonely) == pytest.approx(51 / 101) and ke.repaired_ap(*lonely, "unseen") == pytest.approx(
        1.0
    )


def test_correct_joints_are_those_of_pck() -> None:
    metric = PoseMetric()
    for image in random_set(20):
        record = metric.record(image)
        correct = ke.correct_joints(record["detections"], record["keypoints"], record["areas"])
        assert abs(correct.sum() - record["joints_correct"]) <= 1 and correct.shape == (len(record["areas"]), 17)


def test_facing_and_turning_round() -> None:
    front, back, side = person(0, 0), person(0, 0), person(0, 0)
    back[[0, 1, 2], 2], side[2, 2] = 0, 0
    assert ke.facing(np.array([front, back, side]), np.full(3, AREA)).tolist() == [ke.FRONT, ke.BACK, ke.SIDE]
    narrow = front * [0.2, 1, 1]
    assert ke.facing(narrow[None], np.array([AREA])).tolist() == [ke.SIDE]
    assert ke.breadth(front, front) == 6 and ke.breadth(front[list(COCO_FLIP)], front) == -6
    turned = front[list(COCO_FLIP)]
    poses = np.array([front, turned, jittered(np.random.default_rng(0), front, 0.5)])
    assert ke.turned_round(poses, np.array([front] * 3)).tolist() == [False, True, False]
    unlabelled = front.copy()
    unlabelled[[5, 11], 2] = 0
    assert not ke.turned_round(turned, unlabelled)
