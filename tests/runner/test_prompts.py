"""Prompts in the place of a test split: with poses from a file, from a prior, or without."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from posegen.cli import main
from posegen.io.atomic import read_json
from posegen.runner.user_requests.prompts import people_from_file
from tests.tiny import making

PROMPT = "prompt=a photo of a person dancing"


@pytest.fixture
def trained(world: list[str], tmp_path: Path) -> list[str]:
    """Overrides for sampling with a trained ControlNet."""
    own = [*world, f"paths.output={tmp_path / 'outputs'}"]
    assert main(["train", *own, "budget.steps=1"]) == 0
    return own


def cell(tmp_path: Path) -> Path:
    (status,) = (tmp_path / "outputs" / "sample").rglob("status.json")
    return status.parent


def pose_file(folder: Path) -> Path:
    dice = np.random.default_rng(0)
    person = np.concatenate([dice.uniform(5, 60, (17, 2)), np.full((17, 1), 2.0)], 1)
    file = folder / "pose.json"
    file.write_text(json.dumps([{"image_id": 1, "keypoints": person.flatten().tolist()}]))
    return file


def test_a_prompt_with_the_poses_of_a_file(trained: list[str], tmp_path: Path) -> None:
    words = ["sample", *trained, PROMPT, f"poses={pose_file(tmp_path)}", "images=3"]
    assert main(words) == 0
    folder = cell(tmp_path)
    made = {name: sorted(p.name for p in (folder / name).glob("*.png")) for name in ("samples", "judged")}
    assert len(made["samples"]) == 3 and made["judged"] == made["samples"]
    pixels = {p.read_bytes() for p in (folder / "samples").glob("*.png")}
    assert len(pixels) == 3, "every image of a prompt starts from its own noise"
    test = read_json(folder / "status.json")["identity"]["data"]["test"]
    assert test["prompts"] == ["a photo of a person dancing"] * 3 and np.shape(test["people"]) == (3, 1, 17, 3)


def test_a_method_that_draws_a_pose_needs_one(
    trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", *trained, PROMPT]) != 0
    assert "set poses=FILE (COCO or OpenPose json), or prior=gunet" in capsys.readouterr().err
    assert main(["sample", *trained, f"poses={pose_file(tmp_path)}"]) != 0
    assert "there is no prompt" in capsys.readouterr().err
    assert main(["sample", *trained, "adapter=none", PROMPT]) == 0


def test_a_file_for_another_number_of_prompts_is_refused(
    trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = pose_file(tmp_path)
    (one,) = json.loads(file.read_text())
    file.write_text(json.dumps([one, {**one, "image_id": 2}]))
    assert main(["sample", *trained, PROMPT, f"poses={file}", "images=3"]) != 0
    assert "holds 2 images and there are 3 prompts" in capsys.readouterr().err


def test_images_and_prompts_are_paired_in_the_order_of_the_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = pose_file(tmp_path)
    [row] = json.loads(file.read_text())
    low = np.reshape(row["keypoints"], (17, 3))
    high = low + np.array([3, 0, 0])
    rows = [{"image_id": i, "keypoints": points.ravel().tolist()} for i, points in (("3", high), (1, low))]
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 64} for i in (1, 2, 3)]
    file.write_text(json.dumps({"images": images, "annotations": [*rows, {"image_id": 2, "bbox": [1, 2, 3, 4]}]}))
    first, nobody, last = people_from_file(file, 3, (64, 64))
    assert np.allclose(first, [low]) and nobody == [] and np.allclose(last, [high], atol=1e-4)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"{file}: 1 annotations without joints of a person are passed over"
    far = low * [1, 9, 1]
    file.write_text(json.dumps([{"keypoints": far.ravel().tolist()}]))
    people_from_file(file, 1, (64, 64))
    assert "joints lie on the canvas of 64 x 64 pixels: x is" in capsys.readouterr().err


def test_text_to_pose_to_image(
    trained: list[str], world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sample", *trained, PROMPT, "prior=gunet", "prior.sampler.steps=2", "prior.scale=0.5", "images=2"]
    assert main(words) != 0
    assert "no finished cell of adapter gunet" in capsys.readouterr().err
    prior = [word for word in making("pose", world) if not word.startswith("backbone.path")]
    assert main(["train", "adapter=gunet", *prior, f"paths.output={tmp_path / 'outputs'}", "budget.steps=1"]) == 0
    assert main(words) == 0
    people = np.array(read_json(cell(tmp_path) / "status.json")["identity"]["data"]["test"]["people"])
    assert people.shape == (2, 1, 17, 3) and not np.array_equal(people[0], people[1])
    seen = people[people[..., 2] > 0][:, :2]
    assert (seen > 13).all() and (seen < 51).all(), "a square of half the canvas, around its middle"
