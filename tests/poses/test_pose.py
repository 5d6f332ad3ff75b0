"""Skeletons as data, and what is lost on the way from one to another."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posegen.poses.pose import Pose, lacking, loss_sentence
from posegen.poses.topology import (
    BEGIN_AS_COCO,
    BODY_25,
    COCO_17,
    COCO_FLIP,
    COCO_SIGMAS,
    HUMAN_ART_21,
    MPII_16,
    OPENPOSE_18,
    TOPOLOGIES,
    WHOLE_BODY_133,
    Topology,
    coco_to_openpose18,
    joint_name,
    topology_named,
)

KNOWN = [*TOPOLOGIES.values(), *BEGIN_AS_COCO.values()]


def people(topology: Topology, count: int = 2, seed: int = 0) -> Pose:
    dice = np.random.default_rng(seed)
    points = dice.uniform(1, 500, (count, len(topology), 2))
    return Pose(topology, np.concatenate([points, dice.uniform(0.1, 1, (count, len(topology), 1))], -1))


@pytest.mark.parametrize("topology", KNOWN, ids=lambda topology: topology.title)
def test_skeletons_are_consistent(topology: Topology) -> None:
    assert len(set(topology.names)) == len(topology) and all(joint_name(name) == name for name in topology.names)
    assert [topology.flip[k] for k in topology.flip] == list(range(len(topology)))
    for joint, other in topology.pairs:
        assert joint_name(topology.names[joint]).partition("_")[2] or topology.names[joint].startswith("face")
        assert topology.flip[joint] == other
    assert topology.sigmas is None or len(topology.sigmas) == len(topology)
    assert sorted(joint for joints in topology.parts.values() for joint in joints) == list(range(len(topology)))
    assert all(a != b and max(a, b) < len(topology) for a, b in topology.limbs)


def test_what_is_published_about_them() -> None:
    assert [len(each) for each in TOPOLOGIES.values()] == [17, 18, 25, 133, 16, 21, 14] and list(BEGIN_AS_COCO) == [
        len(each) for each in BEGIN_AS_COCO.values()
    ]
    assert COCO_17.flip == COCO_FLIP and {part: len(j) for part, j in WHOLE_BODY_133.parts.items()} == {
        "body": 17, "feet": 6, "face": 68, "hands": 42,
    }  # fmt: skip
    assert len(WHOLE_BODY_133.pairs) == 8 + 3 + 29 + 21
    for topology in (WHOLE_BODY_133, HUMAN_ART_21):
        assert topology.sigmas is not None
        np.testing.assert_array_equal(topology.sigmas[:17], COCO_SIGMAS)
    # of the authors' evaluation: toes, the left corner of the mouth, and both thumbs' second joints
    sigmas = dict(zip(WHOLE_BODY_133.names, np.asarray(WHOLE_BODY_133.sigmas).tolist(), strict=True))
    assert (sigmas["left_big_toe"], sigmas["right_heel"], sigmas["face_48"]) == (0.068, 0.094, 0.008)
    assert sigmas["left_thumb_2"] == sigmas["right_thumb_2"] == 0.035
    assert WHOLE_BODY_133.names[91] == "left_hand_root" and WHOLE_BODY_133.names[132] == "right_pinky_finger_4"
    assert len(BODY_25.limbs) == 24 and len(MPII_16.limbs) == 15 and MPII_16.sigmas is None


@pytest.mark.parametrize("source", KNOWN, ids=lambda topology: topology.title)
@pytest.mark.parametrize("target", KNOWN, ids=lambda topology: topology.title)
def test_conversions_keep_joints_by_name_and_say_what_they_lose(source: Topology, target: Topology) -> None:
    pose = people(source)
    moved, lost = pose.to(target), pose.lost(target)
    shared = [name for name in source.names if name in target.names]
    for name in shared:
        there, here = moved.keypoints[:, target.names.index(name)], pose.keypoints[:, source.names.index(name)]
        np.testing.assert_array_equal(there, here)
    assert {*shared, *lost} == {*source.names} and not {*shared} & {*lost}
    sentence = loss_sentence(source, target, lost)
    assert bool(sentence) == bool(lost)
    if lost:
        assert sentence.startswith(f"{source.title} is read as {target.title}, without ")
    back = moved.to(source)
    kept = [source.names.index(name) for name in shared]
    np.testing.assert_array_equal(back.keypoints[:, kept], pose.keypoints[:, kept])


def test_sentences_count_what_somebody_has() -> None:
    pose = people(WHOLE_BODY_133)
    assert loss_sentence(WHOLE_BODY_133, COCO_17, pose.lost(COCO_17)) == (
        "COCO-WholeBody-133 is read as COCO-17, without the feet (6 joints), the face (68 joints), the hands (42 joints)"
    )
    pose.keypoints[:, 17:91] = 0
    assert "the hands (42 joints)" in loss_sentence(WHOLE_BODY_133, COCO_17, pose.lost(COCO_17))
    assert "feet" not in loss_sentence(WHOLE_BODY_133, COCO_17, pose.lost(COCO_17))
    pose.keypoints[:, 91:] = 0
    assert pose.lost(COCO_17) == []
    assert people(OPENPOSE_18).lost(COCO_17) == ["neck"]
    assert lacking(MPII_16) == ["nose", "left_eye", "right_eye", "left_ear", "right_ear"]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_a_neck_lies_between_the_shoulders_as_drawings_have_it(seed: int, missing: float) -> None:
    pose = people(COCO_17, 3, seed)
    pose.keypoints[np.random.default_rng(seed).random((3, 17)) < missing] = 0
    np.testing.assert_array_equal(pose.to(OPENPOSE_18).keypoints, coco_to_openpose18(pose.keypoints))
    middle = pose.to(BODY_25).keypoints[:, BODY_25.names.index("mid_hip")]
    assert ((middle[:, 2] > 0) == (pose.keypoints[:, 11:13, 2] > 0).all(1)).all()
    np.testing.assert_array_equal(middle, pose.to(MPII_16).keypoints[:, MPII_16.names.index("pelvis")])


def test_visibility_and_scores_are_told_apart() -> None:
    points = np.ones((1, 17, 3))
    points[0, :, 2] = [2] * 8 + [1] * 6 + [0] * 3
    assert Pose(COCO_17, points).visibility[0].tolist() == [2] * 8 + [1] * 6 + [0] * 3
    assert Pose(COCO_17, points).scores[0].tolist() == [1] * 14 + [0] * 3
    scored = np.concatenate([points[..., :2], np.linspace(0, 1, 17)[None, :, None]], -1)  # 1 is no hidden joint
    assert Pose(COCO_17, scored).visibility[0].tolist() == [0] + [2] * 16
    np.testing.assert_array_equal(Pose(COCO_17, scored).scores, scored[..., 2])
    assert Pose(COCO_17, points, confidences=np.full((1, 17), 0.3)).scores[0, 0] == 0.3
    whole = np.ones((1, 133, 3))  # scores of a face beside a body with visibilities
    whole[0, :17] = points
    assert (Pose(WHOLE_BODY_133, whole).visibility[0, 23:] == 2).all()
    assert Pose(WHOLE_BODY_133, whole).visibility[0, 8] == 1


def test_people_of_different_skeletons_are_together_without_loss() -> None:
    coco, openpose = people(COCO_17, 1), people(OPENPOSE_18, 2)
    both = Pose.joined([coco, openpose])
    assert len(both) == 3 and both.topology.title == "OpenPose-18" and both.to(COCO_17).keypoints[0, 0, 0] > 0
    three = Pose.joined([people(BODY_25, 1), people(MPII_16, 1), coco])
    assert three.topology.title == "BODY_25 and MPII-16 and COCO-17" and not people(MPII_16).lost(three.topology)
    assert Pose.joined([people(WHOLE_BODY_133, 1), coco]).topology is WHOLE_BODY_133
    depth = Pose(COCO_17, coco.keypoints, depth=np.arange(17.0)[None]).to(OPENPOSE_18).depth
    assert depth is not None and depth[0, 1] == 5.5  # between the shoulders


def test_errors_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"keypoints of the shape \[1, 18, 3\]; COCO-17 has \[P, 17, 3\]"):
        Pose(COCO_17, np.zeros((1, 18, 3)))
    with pytest.raises(ValueError, match=r"depth of the shape \[2\]; expected \[1, 17\]"):
        Pose(COCO_17, np.zeros((1, 17, 3)), depth=np.zeros(2))
    with pytest.raises(ValueError, match=r"topology=coco_17; did you mean coco17\? Known are coco17, openpose18, "):
        topology_named("coco_17")
