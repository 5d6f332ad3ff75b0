"""GUNet's data: read as its authors store it, and written the same way."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from posegen.backbones.blocks.pose_maps import joint_vectors
from posegen.data.formats.joint_vectors import JointVectors, write_joint_vectors
from posegen.data.mannequin.world import World

PEOPLE = 10


@pytest.fixture(scope="module")
def poses() -> torch.Tensor:
    world = World(0, 64)
    samples = (world.render("validation", i) for i in range(40))
    poses = torch.stack([s.pose for s in samples if len(s.keypoints) == 1][:PEOPLE])
    poses[:, 3:5] = 0  # some joint must be absent, see `joint_vectors`
    return poses


@pytest.fixture(scope="module")
def folder(poses: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("gunet")
    write_joint_vectors(place, ((maps.numpy(), f"caption {i}") for i, maps in enumerate(joint_vectors(poses))))
    return place


def test_the_files_are_laid_out_as_released(folder: Path) -> None:
    assert np.load(folder / "joint_vectors" / "3.npy").shape == (17, 4096)
    assert (folder / "texts" / "3.txt").read_text() == "caption 3"
    assert json.loads((folder / "train.json").read_text())[3] == {
        "image_path": "/joint_vectors/3.npy",
        "text": "caption 3",
    }


def test_what_was_written_is_read(folder: Path, poses: torch.Tensor) -> None:
    data = JointVectors(folder)
    assert len(data) == PEOPLE and data.size == (64, 64)
    for i in range(PEOPLE):
        sample = data[i]
        number = int(sample.prompt.removeprefix("caption "))
        assert sample.id == f"joint_vectors/{number}" and data.prompts[i] == sample.prompt
        assert torch.equal(sample.encodable, joint_vectors(poses[number][None])[0])


def test_keypoints_are_read_off_the_maps(folder: Path, poses: torch.Tensor) -> None:
    errors = []
    for sample in JointVectors(folder):
        true = poses[int(sample.prompt.removeprefix("caption "))]
        there = sample.pose[:, 2] > 0
        assert not (there & (true[:, 2] == 0)).any()
        errors.append((32 * (sample.pose - true)[there, :2]).norm(dim=-1))
        np.testing.assert_allclose((sample.keypoints[0, :, 0] + 0.5)[there] / 32 - 1, sample.pose[there, 0], atol=1e-5)
    assert torch.cat(errors).median() < 1.5  # of 64 pixels


def test_shares_are_disjoint_and_together_everybody(folder: Path) -> None:
    parts = [
        JointVectors(folder, split=name, share=share)
        for name, share in {"train": (0.0, 0.8), "test": (0.8, 1.0)}.items()
    ]
    names = [{s.id for s in part} for part in parts]
    assert [len(part) for part in parts] == [8, 2] and not names[0] & names[1] and len(names[0] | names[1]) == PEOPLE
    assert parts[0].identity != parts[1].identity
    assert len(JointVectors(folder, count=3)) == 3


def test_broken_data_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.json is not a readable json file.*expected a list of"):
        JointVectors(tmp_path)
    with pytest.raises(
        ValueError, match=r"data\.train: .* names 10 people, of whom share=\[0\.0, 1\.0\] holds 10; count is 11"
    ):
        JointVectors(folder, count=11)
    (tmp_path / "joint_vectors").mkdir()
    np.save(tmp_path / "joint_vectors" / "0.npy", np.zeros((17, 10)))
    (tmp_path / "train.json").write_text(json.dumps([{"image_path": "/joint_vectors/0.npy", "text": "a"}]))
    with pytest.raises(
        ValueError, match=r"0\.npy holds \[17, 10\] values; expected finite ones for 17 square joint maps"
    ):
        JointVectors(tmp_path)
    (tmp_path / "joint_vectors" / "0.npy").unlink()
    with pytest.raises(ValueError, match=r"0\.npy, which .*train\.json names, cannot be read"):
        JointVectors(tmp_path)
