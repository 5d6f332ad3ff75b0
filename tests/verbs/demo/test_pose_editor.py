"""The editor's value and keypoints are the same pose."""

from __future__ import annotations

import numpy as np
import pytest

from posegen.demo.pose_editor import skeleton_facts, standing_pose, to_editor, to_keypoints
from posegen.errors import UserError


def test_a_pose_goes_to_the_editor_and_back() -> None:
    people = np.concatenate([np.random.default_rng(0).uniform(-10, 200, (2, 17, 2)), np.full((2, 17, 1), 2.0)], -1)
    people[0, 3] = 0
    assert np.abs(to_keypoints(to_editor(people, (96, 128)), (96, 128)) - people).max() < 2e-3


def test_shares_are_of_the_canvas_whatever_its_size() -> None:
    value = standing_pose()
    small, large = to_keypoints(value, (64, 64)), to_keypoints(value, (512, 512))
    assert np.abs((small[..., :2] + 0.5) * 8 - (large[..., :2] + 0.5)).max() < 1e-3
    edges = {"people": [[[0, 0, 2], [1, 1, 2], *[[0.5, 0.5, 0]] * 15]]}
    assert to_keypoints(edges, (64, 48))[0, :2, :2].tolist() == [[-0.5, -0.5], [47.5, 63.5]], (
        "the centre of the top-left pixel is (0, 0)"
    )


def test_whoever_has_no_joint_is_left_out() -> None:
    hidden = [[0.5, 0.5, 0]] * 17
    assert to_keypoints({"people": [hidden, standing_pose()["people"][0]]}, (64, 64)).shape == (1, 17, 3)
    assert to_keypoints({"people": []}, (64, 64)).shape == to_keypoints(None, (64, 64)).shape == (0, 17, 3)


@pytest.mark.parametrize("people", [[[[0.5, 0.5, 2]] * 16], [[["x", 0.5, 2]] * 17], [[[float("nan"), 0.5, 2]] * 17]])
def test_a_damaged_pose_is_refused(people: list) -> None:
    with pytest.raises(UserError, match="reload the page"):
        to_keypoints({"people": people}, (64, 64))


def test_the_script_mirrors_left_to_right() -> None:
    told = skeleton_facts()
    assert len(told["joints"]) == len(told["sides"]) == len(told["flip"]) == len(told["standing"]) == 17
    other = {"left": "right", "right": "left", "middle": "middle"}
    assert [told["sides"][i] for i in told["flip"]] == [other[side] for side in told["sides"]]
