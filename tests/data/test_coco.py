"""COCO's people who are alone: the choice, frames, captions and augmentation, and files in GUNet's layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from posegen.backbones.blocks.pose_maps import joint_vectors
from posegen.data.base import Sample
from posegen.data.formats import coco
from posegen.data.formats.coco import CocoSingle, turned_pose
from posegen.data.formats.joint_vectors import JointVectors
from posegen.poses.topology import COCO_FLIP
from tests.adapters.cases import reference
from tests.data.coco_pair import person, singles, write_pair


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return singles(tmp_path_factory.mktemp("coco"), 20)


def by_image(data: CocoSingle) -> dict[int, Sample]:
    return {int(sample.id.removeprefix("coco_single/")): sample for sample in (data[i] for i in range(len(data)))}


# Who is chosen.


def test_only_people_who_are_alone_and_labelled_enough_are_chosen(tmp_path: Path) -> None:
    people = [
        person(1),
        person(2),
        person(2),
        person(3, 7),
        person(4, 8),
        person(5),
        person(5, 0, iscrowd=1),
        person(6, 0),
    ]
    root = write_pair(tmp_path, people, [(image, f"caption of {image}\n") for image in range(1, 7)])
    data = CocoSingle(root)
    assert {image: s.prompt for image, s in by_image(data).items()} == {1: "caption of 1", 4: "caption of 4"}
    facts = data.condition.facts
    assert (facts["pictures with people"], facts["with one person"], facts["fewer than 8 joints"], facts["kept"]) == (
        6,
        4,
        1,
        2,
    )
    assert set(by_image(CocoSingle(root, joints=7))) == {1, 3, 4} and not data.condition.defects


def test_what_cannot_be_used_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    broken = [
        person(1),
        person(2, bbox=[0, 0, 0, 10]),
        person(3, keypoints=[0.0] * 63),
        person(4, area=None),
        person(5),
        person(6, keypoints=[float("nan"), 1, 2] * 17),
        person(7, keypoints=[0] * 51),
    ]
    data = CocoSingle(write_pair(tmp_path, broken, [(image, "a") for image in (1, 2, 3, 4, 6, 7)]))
    assert set(by_image(data)) == {1}
    problems = {d.file.partition("image ")[2][:-1]: d.problem for d in data.condition.defects}
    assert (
        problems.keys() == set("234567")
        and problems["3"] == "63 numbers for 17 joints"
        and problems["5"] == "no caption"
    )
    assert "an empty box" in problems["2"] and "not finite" in problems["6"] and problems["7"] == "no joint is labelled"


def test_shares_are_disjoint_and_together_everybody(root: Path) -> None:
    train, test = (CocoSingle(root, name, share=share) for name, share in (("train", (0.0, 0.8)), ("test", (0.8, 1.0))))
    assert len(train) == 16 and len(test) == 4
    assert (
        by_image(train).keys() | by_image(test).keys() == set(range(1, 21))
        and not by_image(train).keys() & by_image(test).keys()
    )
    assert train.identity != test.identity and [s.prompt for s in by_image(train).values()] == list(train.prompts)
    assert (
        list(by_image(CocoSingle(root, count=3)))
        == list(by_image(CocoSingle(root)))[:3]
        != list(by_image(CocoSingle(root, seed=1)))[:3]
    )


# How they are seen.


def test_a_box_fills_the_canvas_with_its_longer_side(root: Path) -> None:
    """A box of 60 x 120 at (20, 30) on 64 pixels: the scale is 64 / 120, 30 units are free on either side."""
    for image, sample in by_image(CocoSingle(root)).items():
        given = np.array(person(image, 15)["keypoints"]).reshape(17, 3)
        there = given[:, 2] > 0
        x, y = (given[there, 0] - 20 + 30) * 64 / 120 - 0.5, (given[there, 1] - 30) * 64 / 120 - 0.5
        np.testing.assert_allclose(sample.keypoints[0, there, :2], np.stack([x, y], 1), atol=1e-4)
        np.testing.assert_array_equal(sample.keypoints[0, :, 2], given[:, 2])  # hidden stays hidden
        np.testing.assert_allclose(sample.areas, [0.5 * 60 * 120 * (64 / 120) ** 2], rtol=1e-5)
        np.testing.assert_allclose(sample.pose[there, 0], (x + 0.5) / 32 - 1, atol=1e-5)
        assert sample.image is None and sample.size == (64, 64) and not sample.pose[~there].any()


def test_joints_fill_the_canvas_up_to_a_margin(root: Path) -> None:
    for sample in by_image(CocoSingle(root, frame="joints")).values():
        there = sample.keypoints[0, :, 2] > 0
        low, high = sample.pose[there, :2].min(0).values, sample.pose[there, :2].max(0).values
        assert (high - low).max() == pytest.approx(2 / 1.2, abs=1e-4) and torch.allclose(low, -high, atol=1e-4)


def test_captions_are_the_first_or_one_of_all(root: Path) -> None:
    assert all(s.prompt == f"caption 0 of {image}" for image, s in by_image(CocoSingle(root)).items())
    chosen = {image: s.prompt for image, s in by_image(CocoSingle(root, caption="random")).items()}
    assert chosen == {image: s.prompt for image, s in by_image(CocoSingle(root, caption="random")).items()}
    assert all(prompt.endswith(f" of {image}") for image, prompt in chosen.items())
    assert len({prompt.split()[1] for prompt in chosen.values()}) > 2
    assert chosen != {image: s.prompt for image, s in by_image(CocoSingle(root, caption="random", seed=1)).items()}


def test_mirrored_people_keep_their_left_and_right() -> None:
    pose = np.concatenate([np.random.default_rng(0).uniform(-1, 1, (17, 2)), np.ones((17, 1))], 1)
    mirrored = turned_pose(pose, True, 0.0)
    np.testing.assert_allclose(mirrored[5], pose[6] * (-1, 1, 1))
    np.testing.assert_allclose(turned_pose(mirrored, True, 0.0), pose)
    np.testing.assert_allclose(turned_pose(pose, False, 90.0)[:, :2], pose[:, 1::-1] * (-1, 1), atol=1e-12)
    np.testing.assert_allclose(
        np.linalg.norm(turned_pose(pose, True, 7.0)[:, :2], axis=1), np.linalg.norm(pose[list(COCO_FLIP), :2], axis=1)
    )


def test_augmentation_is_fixed_or_new_on_each_visit(root: Path) -> None:
    clean, fixed, reading = (CocoSingle(root, augment=augment) for augment in (None, "fixed", "reading"))
    assert [data.varies for data in (clean, fixed, reading)] == [False, False, True]

    def poses(data: CocoSingle, visit: int) -> torch.Tensor:
        return torch.stack([data.seen(i, visit).pose for i in range(len(data))])

    assert torch.equal(poses(clean, 0), poses(clean, 1)) and torch.equal(poses(fixed, 0), poses(fixed, 1))
    assert not torch.equal(poses(reading, 0), poses(reading, 1)) and torch.equal(poses(reading, 1), poses(reading, 1))
    assert not torch.equal(poses(clean, 0), poses(fixed, 0)) and clean.identity != fixed.identity != reading.identity
    still = CocoSingle(root, augment="reading", flip=0.0, rotation=0.0)
    assert torch.allclose(poses(still, 3), poses(clean, 0), atol=1e-6)
    flips = CocoSingle(root, augment="reading", flip=1.0, rotation=0.0)
    assert torch.allclose(poses(flips, 3), poses(clean, 0)[:, COCO_FLIP] * torch.tensor([-1.0, 1.0, 1.0]), atol=1e-6)
    radius = poses(clean, 0)[..., :2].norm(dim=-1)
    turns = (poses(CocoSingle(root, augment="reading", flip=0.0), 0) - poses(clean, 0))[..., :2].norm(dim=-1)
    assert turns.max() > 0 and (turns <= radius * 2 * np.sin(np.radians(5.0)) + 1e-5).all()


# GUNet's files.


@pytest.mark.parametrize("augment", [None, "fixed", "reading"])
def test_exported_people_are_read_back(root: Path, tmp_path: Path, augment: Any) -> None:
    """Flips and rotations are in the files where they are fixed, and only there."""
    data = CocoSingle(root, augment=augment, share=(0.0, 0.5), maps=joint_vectors)
    assert data.export(tmp_path) == len(data) == 10
    expected = CocoSingle(root, augment="fixed" if augment == "fixed" else None, share=(0.0, 0.5))
    stored = JointVectors(tmp_path)
    assert len(stored) == 10
    for sample in (stored[i] for i in range(10)):
        number = int(sample.id.removeprefix("joint_vectors/"))
        wanted = expected[number]
        assert sample.prompt == wanted.prompt
        torch.testing.assert_close(sample.encodable, joint_vectors(wanted.pose[None])[0], atol=1e-5, rtol=0)
    assert json.loads((tmp_path / "train.json").read_text())[0]["image_path"] == "/joint_vectors/0.npy"


def test_an_interrupted_export_leaves_no_list(root: Path, tmp_path: Path) -> None:
    CocoSingle(root, count=2, maps=joint_vectors).export(tmp_path)

    def interrupted(poses: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        CocoSingle(root, count=2, maps=interrupted).export(tmp_path)
    assert not (tmp_path / "train.json").exists()


def test_the_maps_are_those_of_the_released_program(tmp_path: Path) -> None:
    """Its tensors, where they lie beside the checkout, through the annotation files, the frame and the export."""
    tensors = load_file(reference("gunet_encode") / "io.safetensors")
    count = sum(name.endswith(".bbox") for name in tensors)
    people = [
        person(i + 1, keypoints=tensors[f"in.{i}.keypoints"].flatten().tolist(), bbox=tensors[f"in.{i}.bbox"].tolist())
        for i in range(count)
    ]
    root = write_pair(tmp_path, people, [(i + 1, str(i)) for i in range(count)])
    CocoSingle(root, maps=joint_vectors).export(tmp_path / "made")
    for entry in json.loads((tmp_path / "made" / "train.json").read_text()):
        made, expected = (
            np.load(tmp_path / "made" / entry["image_path"].lstrip("/")),
            tensors[f"out.{entry['text']}.joint_vector"],
        )
        np.testing.assert_allclose(made, expected, atol=2e-4)


# Files.


def test_annotations_are_read_once(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = CocoSingle(root, cache=tmp_path)
    first.prepare()
    loads: list[Path] = []
    load = coco._annotations
    monkeypatch.setattr(coco, "_annotations", lambda file: loads.append(file) or load(file))
    again = CocoSingle(root, cache=tmp_path)
    assert again.prompts == first.prompts and again.identity == first.identity and not loads
    for kept in (tmp_path / "coco").iterdir():
        kept.write_bytes(b"damaged")
    assert CocoSingle(root, cache=tmp_path).prompts == first.prompts and len(loads) == 2


def test_annotations_may_lie_in_a_folder_of_their_own(tmp_path: Path) -> None:
    singles(tmp_path / "annotations", 3)
    assert len(CocoSingle(tmp_path)) == 3


def test_bad_input_is_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError,
        match=r"no person_keypoints_train2014\.json in it or in its folder annotations; download .*data\.root=FOLDER",
    ):
        CocoSingle(tmp_path).prepare()
    with pytest.raises(FileNotFoundError, match=r"no person_keypoints_val2014\.json"):
        CocoSingle(root, year="val2014").prepare()
    with pytest.raises(
        ValueError, match=r"data\.train: .* has 20 people who are alone .*share=\[0\.0, 1\.0\] holds 20; count is 21"
    ):
        CocoSingle(root, count=21).prompts  # noqa: B018
    with pytest.raises(ValueError, match=r"data\.test\.frame=circle: expected one of box, joints"):
        CocoSingle(root, "test", frame="circle")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"data\.train\.augment=often: expected one of fixed, reading, null"):
        CocoSingle(root, augment="often")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"data\.train\.maps is null"):
        CocoSingle(root).export(tmp_path)
    write_pair(tmp_path, [person(1)], [])
    (tmp_path / "captions_train2014.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"captions_train2014\.json holds no list of annotations .*expected COCO's"):
        CocoSingle(tmp_path).prepare()
