import numpy as np
import pytest

from posegen.poses.topology import (
    COCO_FLIP,
    COCO_LEFT,
    COCO_LIMBS,
    COCO_NAMES,
    COCO_RIGHT,
    COCO_SIGMAS,
    OPENPOSE_LIMBS,
    OPENPOSE_NAMES,
    coco_to_openpose18,
)


@pytest.fixture
def person() -> np.ndarray:
    """Joint k at (k, 100 + k) with score 0.1 + 0.05 k."""
    k = np.arange(17)
    return np.stack((k, 100 + k, 0.1 + 0.05 * k), -1)[None].astype(np.float32)


def test_names_limbs_and_sigmas_agree_in_number():
    assert len(COCO_NAMES) == len(COCO_SIGMAS) == len(COCO_FLIP) == 17
    assert len(COCO_LIMBS) == 16 and len(OPENPOSE_NAMES) == 18 and len(OPENPOSE_LIMBS) == 17
    assert {joint for limb in OPENPOSE_LIMBS for joint in limb} == set(range(18))


def test_left_and_right_are_each_others_mirror():
    assert [COCO_FLIP[k] for k in COCO_LEFT] == list(COCO_RIGHT)
    assert all(COCO_NAMES[k].startswith("left_") for k in COCO_LEFT)
    assert [COCO_FLIP[k] for k in COCO_FLIP] == list(range(17))


def test_openpose_joints_carry_their_names(person):
    points = coco_to_openpose18(person)[0]
    for name, point in zip(OPENPOSE_NAMES, points, strict=True):
        if name != "neck":
            np.testing.assert_array_equal(point, person[0, COCO_NAMES.index(name)])


def test_neck_is_between_the_shoulders_with_the_lower_score(person):
    np.testing.assert_allclose(coco_to_openpose18(person)[0, 1], (5.5, 105.5, 0.35), rtol=1e-6)


def test_neck_is_missing_without_a_shoulder(person):
    person[0, 6] = 0
    np.testing.assert_array_equal(coco_to_openpose18(person)[0, 1], 0)


def test_nobody_stays_nobody():
    assert coco_to_openpose18(np.zeros((0, 17, 3))).shape == (0, 18, 3)
