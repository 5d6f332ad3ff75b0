"""Which person and which pictures a model of single poses sees."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from posegen.data.base import PoseData, Sample
from posegen.data.formats.single_person import SinglePerson


def sample(index: int, people: int, joints: int = 17) -> Sample:
    keypoints = np.zeros((people, 17, 3), np.float32)
    for person in range(people):
        keypoints[person, :joints] = [[10 * person + j % 4, 3 * j, 2] for j in range(joints)]
    actions = tuple(f"action {i}" for i in range(people))
    return Sample(
        str(index),
        f"prompt {index}",
        keypoints,
        np.arange(1.0, people + 1),
        None,
        (64, 64),
        {"actions": actions, "style": "photo"},
    )


class Crowd(PoseData):
    """Samples with 0, 1, 2, 0, 1, 2, ... people; of the single ones, every second has but 5 joints."""

    name, split, size = "crowd", "train", (64, 64)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Sample:
        return sample(index, index % 3, 5 if index % 2 == 0 else 17)

    def twin(self, index: int) -> Sample:
        return sample(100 + index, 1)

    @property
    def identity(self) -> dict[str, Any]:
        return {"name": self.name}


def test_only_single_people_with_enough_joints_are_taken() -> None:
    data = SinglePerson(Crowd())
    assert [s.id for s in (data[i] for i in range(len(data)))] == ["1", "7"]
    assert list(data.prompts) == ["prompt 1", "prompt 7"]
    assert data.twin(1).id == "107"
    assert len(SinglePerson(Crowd(), joints=5)) == 4


def test_the_first_so_many_are_taken_and_more_than_there_are_refused() -> None:
    assert [SinglePerson(Crowd(), 1)[0].id] == ["1"] and len(SinglePerson(Crowd(), 1)) == 1
    with pytest.raises(
        ValueError,
        match=r"data\.train\.count=3: only 2 of the 12 samples of crowd show .* raise data\.train\.data\.count",
    ):
        SinglePerson(Crowd(), 3)[0]


def test_its_identity_holds_what_it_chooses_from() -> None:
    assert SinglePerson(Crowd(), 2).identity != SinglePerson(Crowd(), 1).identity
    assert SinglePerson(Crowd()).identity["data"] == {"name": "crowd"}


def test_the_main_person_is_the_largest() -> None:
    several = sample(0, 3)
    assert several.main == 2 and several.about_main == {"actions": "action 2", "style": "photo"}
    several.keypoints[2, :, 2] = 0  # nobody has labelled it
    assert several.main == 1
    assert sample(0, 0).main is None and not sample(0, 0).pose.any()


def test_its_pose_has_no_place_and_no_size() -> None:
    pose = sample(0, 1).pose
    assert pose.shape == (17, 3) and pose.dtype == torch.float32
    assert pose[..., :2].abs().max().item() == pytest.approx(1 / 1.2)
    moved = sample(0, 1)
    moved.keypoints[..., :2] = 0.5 * moved.keypoints[..., :2] + 20
    torch.testing.assert_close(moved.pose, pose)
