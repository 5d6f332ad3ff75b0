"""Poses from arrays, files and pictures all become the same COCO keypoints, or one error that names what was given."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from posegen.poses.drawing import DRAWING_STYLES
from posegen.poses.reading import checked_hint, checked_people, read_poses
from posegen.poses.topology import BODY_25_NAMES, COCO_NAMES, OPENPOSE_NAMES, coco_to_openpose18

#: BODY_25 as OpenPose's documentation lists it.
BODY_25 = [
    "nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist",
    "mid_hip", "right_hip", "right_knee",
    "right_ankle", "left_hip", "left_knee", "left_ankle", "right_eye", "left_eye", "right_ear", "left_ear",
    "left_big_toe", "left_small_toe", "left_heel",
    "right_big_toe", "right_small_toe", "right_heel",
]  # fmt: skip


def people(count: int = 1, seed: int = 0) -> np.ndarray:
    """``[P, 17, 3]`` with whole coordinates, all visible but the left ear."""
    dice = np.random.default_rng(seed)
    points = np.concatenate([dice.integers(5, 60, (count, 17, 2)), np.full((count, 17, 1), 2)], -1).astype(float)
    points[:, 3] = 0
    return points


def body_25(person: np.ndarray) -> list[float]:
    named = dict(zip(OPENPOSE_NAMES, coco_to_openpose18(person[None])[0], strict=True))
    return np.stack([named.get(name, np.array([1.0, 2.0, 0.5])) for name in BODY_25]).ravel().tolist()


def write(folder: Path, content: Any) -> Path:
    file = folder / "pose.json"
    file.write_text(json.dumps(content))
    return file


# What can be given.


@pytest.mark.parametrize(
    "form",
    [
        lambda p: p,
        lambda p: p[0],
        lambda p: torch.tensor(p, requires_grad=True),
        lambda p: p.tolist(),
        lambda p: [p],
        lambda p: (p.tolist(),),
        lambda p: p[None],
    ],
    ids=["array", "one person", "tensor", "nested lists", "list of arrays", "list of nested lists", "batch"],
)
def test_arrays_are_people(form: Callable[[np.ndarray], Any]) -> None:
    [pose] = read_poses(form(people()))
    assert np.array_equal(pose.keypoints, people()) and pose.size is None


def test_a_list_has_an_entry_per_image() -> None:
    first, second = read_poses([people(2), people(1)])
    assert (len(first.keypoints), len(second.keypoints), second.name) == (2, 1, "poses[1]")
    assert [len(entry.keypoints) for entry in read_poses(np.stack([people(2), people(2, 1)]))] == [2, 2]


FILES: dict[str, Callable[[np.ndarray], Any]] = {
    "coco annotations": lambda p: {
        "images": [{"id": 7, "height": 64, "width": 96}],
        "annotations": [{"image_id": 7, "keypoints": person.ravel().tolist()} for person in p]
        + [{"image_id": 7, "keypoints": [0] * 51, "iscrowd": 1}],
    },
    "coco results": lambda p: [
        {"image_id": 7, "category_id": 1, "keypoints": person.ravel().tolist(), "score": 0.5} for person in p
    ],
    "openpose BODY_25": lambda p: {"version": 1.3, "people": [{"pose_keypoints_2d": body_25(person)} for person in p]},
    "openpose COCO": lambda p: {
        "people": [{"pose_keypoints_2d": coco_to_openpose18(person[None]).ravel().tolist()} for person in p] + [empty()]
    },
    "openpose frames": lambda p: [
        {
            "people": [{"pose_keypoints_2d": person.ravel().tolist()} for person in p],
            "canvas_height": 64,
            "canvas_width": 96,
        }
    ],
    "openpose shares of the canvas": lambda p: {
        "people": [{"pose_keypoints_2d": (person / [96, 64, 1]).ravel().tolist()} for person in p],
        "canvas_height": 64,
        "canvas_width": 96,
    },
}


def empty() -> dict[str, list[float]]:
    return {"pose_keypoints_2d": [0.0] * 54}


@pytest.mark.parametrize("form", FILES)
def test_files_of_every_format_give_the_same_people(form: str, tmp_path: Path) -> None:
    [pose] = read_poses(str(write(tmp_path, FILES[form](people(2)))))
    assert np.allclose(pose.keypoints, people(2))
    assert pose.size == ((64, 96) if "annotations" in form or "frames" in form or "shares" in form else None)


def test_a_file_of_several_images_is_several_poses(tmp_path: Path) -> None:
    rows = [
        {"image_id": image, "keypoints": people(1, seed)[0].ravel().tolist()}
        for seed, image in enumerate(["b", "a", "b"])
    ]
    file = write(tmp_path, rows)
    b, a = read_poses(file)
    assert np.array_equal(b.keypoints, np.concatenate([people(1, 0), people(1, 2)])) and np.array_equal(
        a.keypoints, people(1, 1)
    )
    assert "image a" in a.name
    with pytest.raises(ValueError, match=r"poses\[0\] holds poses of 2 images; an entry of a list is one image"):
        read_poses([file])


def test_pictures_are_skeletons_where_they_are_mostly_black(tmp_path: Path) -> None:
    drawn = DRAWING_STYLES["openpose"](people(2), (64, 96))
    cv2.imwrite(str(tmp_path / "skeleton.jpg"), drawn[..., ::-1])
    photo = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    lossy, exact, array, seen = (
        read_poses(x)[0] for x in (tmp_path / "skeleton.jpg", Image.fromarray(drawn), drawn, tmp_path / "photo.png")
    )
    assert lossy.is_drawing and exact.is_drawing and array.is_drawing and not seen.is_drawing
    assert np.array_equal(exact.picture, drawn) and np.array_equal(seen.picture, photo) and exact.size == (64, 96)


def test_keypoints_follow_their_canvas() -> None:
    [pose] = read_poses(people())
    assert pose.on((32, 32)) is pose
    corner = np.zeros((1, 17, 3))
    corner[..., :2] = [95, 63]  # the centre of the last pixel
    placed = pose.__class__("x", corner, size=(64, 96)).on((128, 96))
    assert placed.size == (128, 96) and np.allclose(placed.keypoints[0, 0, :2], [95, 126.5])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"people": [{"pose_keypoints_2d": [1.0] * 60}]},
            r"person 0: 60 numbers; 17 joints have 51; expected COCO annotations",
        ),
        ({"people": []}, r"nobody is in it"),
        ({"people": [{"points": []}]}, r"person 0: it lacks 'pose_keypoints_2d', which its format has"),
        (
            {"people": [{"pose_keypoints_2d": [0.5] * 51}]},
            r"all coordinates lie between 0 and 1, .* write them in pixels",
        ),
        ([], r"neither COCO's nor OpenPose's format"),
        ({"annotations": []}, r"nobody is in it"),
        (
            {"annotations": [{"image_id": 1}]},
            r"nobody is in it; 1 annotations without joints of a person are passed over",
        ),
    ],
)
def test_files_of_no_known_format_are_named(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"pose\.json.*{message}"):
        read_poses(write(tmp_path, content))


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    for name, content in (("a.json", b"{"), ("a.png", b"\x89PNG"), ("b.png", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}(:| is) not a readable"):
            read_poses(tmp_path / name)
    with pytest.raises(ValueError, match=r"absent\.json: no such file"):
        read_poses(tmp_path / "absent.json")


@pytest.mark.parametrize(
    "wrong", [np.zeros((17, 2)), np.zeros((1, 18, 3)), np.zeros(3), [[[1, 2], [3]]], None, np.zeros((17, 5), np.uint8)]
)
def test_arrays_of_another_shape_are_named(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"poses.* expected COCO keypoints \[17, 3\] or \[P, 17, 3\]"):
        read_poses(wrong)


# What a pose must be.


def test_people_without_a_visible_joint_are_left_out_and_strays_are_kept() -> None:
    points = np.concatenate([people(2), np.zeros((1, 17, 3))])
    points[0, 5, :2] = [-100, 1e6]
    kept = checked_people(points, (64, 64), "poses")
    assert kept.shape == (2, 17, 3) and kept.dtype == np.float32 and kept[0, 5].tolist() == [-100, 1e6, 2]
    points[0, 3] = [np.nan, np.nan, 0]  # a joint that is not there may be anywhere
    assert np.isfinite(checked_people(points, (64, 64), "poses")).all()


def spoilt(change: Callable[[np.ndarray], None], count: int = 2) -> np.ndarray:
    points = people(count)
    change(points)
    return points


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (spoilt(lambda p: p.__setitem__((1, 5, 0), np.nan)), r"person 1, joint 5 \(left_shoulder\) is not finite"),
        (spoilt(lambda p: p.__setitem__((1, 5, 2), np.nan)), r"person 1, joint 5 \(left_shoulder\) is not finite"),
        (
            spoilt(lambda p: p.__setitem__((..., 2), 0)),
            r"no joint is visible .* leave poses out to sample without a pose",
        ),
        (
            spoilt(lambda p: p.__setitem__((..., slice(2)), p[..., :2] + 64)),
            r"all joints are outside the canvas of 64 x 64 pixels: x is \d+ to \d+",
        ),
        (people(11), r"11 people; the methods know up to 10"),
    ],
    ids=["place", "score", "empty", "outside", "crowd"],
)
def test_what_cannot_be_drawn_is_refused(points: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=f"poses: {message}"):
        checked_people(points, (64, 64), "poses")


@pytest.mark.parametrize(
    ("hint", "message"),
    [
        (np.zeros((1, 64, 64)), r"of 1 channels; expected 3"),
        (np.zeros((3, 64, 64)), r"values from 0 to 0; the method reads -1 \(black\) to 1"),
        (np.linspace(-1, 255, 3 * 64 * 64).reshape(3, 64, 64), r"values from -1 to 255"),
        (np.full((3, 64, 64), np.nan), r"values from nan to nan"),
    ],
    ids=["channels", "other range", "too light", "nan"],
)
def test_a_drawn_skeleton_must_be_what_the_method_reads(hint: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=f"poses: a drawn skeleton .*{message}"):
        checked_hint(hint, (64, 64), (-1.0, 1.0), "poses")
    checked_hint(np.full((3, 64, 64), -1.0), (64, 64), (-1.0, 1.0), "poses")


def test_the_names_of_body_25_are_those_of_openpose() -> None:
    assert list(BODY_25_NAMES) == BODY_25[:19] and set(COCO_NAMES) <= set(BODY_25_NAMES)
