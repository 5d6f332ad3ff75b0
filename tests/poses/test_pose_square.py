import numpy as np
import pytest

from posegen.poses.pose_square import MARGIN, Square, from_square, to_square

PERSON = np.zeros((17, 3))
PERSON[[0, 5, 15]] = [[30, 10, 2], [20, 30, 1], [40, 90, 2]]


def test_the_square_has_the_longer_side_and_a_margin() -> None:
    square = Square.around(PERSON)
    assert square == Square(30, 50, pytest.approx(80 * (1 + 2 * MARGIN)))
    assert Square.around(np.zeros((17, 3))) is None
    assert Square.of_box(np.array([10, 20, 30, 50])) == Square(25, 45, 50)


def test_joints_lie_between_the_edges_of_the_square() -> None:
    pose = to_square(Square(30, 50, 80), PERSON)
    assert pose[[0, 15], 1].tolist() == [-1, 1] and pose[5].tolist() == [-0.25, -0.5, 1]
    assert not pose[PERSON[:, 2] == 0].any()


def test_a_pose_comes_back_where_it_is_put() -> None:
    pose = to_square(Square(30, 50, 100), PERSON)
    whole = from_square(pose, (100, 100))
    np.testing.assert_allclose(whole[[0, 5, 15], :2], PERSON[[0, 5, 15], :2] + [19.5, -0.5], rtol=1e-6)
    small = from_square(pose, (200, 100), scale=0.5, centre=(0.25, 0.75))
    np.testing.assert_allclose(small[0, :2], [25 - 0.5, 150 - 20 - 0.5], rtol=1e-6)
    assert not small[1].any()
