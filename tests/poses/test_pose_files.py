"""Files of poses as programs and people write them; a damaged entry spoils its own image."""

from __future__ import annotations

import json
import math
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posegen.errors import UserError
from posegen.poses.joints import person_joints
from posegen.poses.pose import Pose
from posegen.poses.pose_files import id_text, read_posed_images
from posegen.poses.reading import checked_people, read_poses
from posegen.poses.topology import (
    COCO_17,
    COCO_NAMES,
    HUMAN_ART_21,
    MPII_16,
    OPENPOSE_18,
    OPENPOSE_NAMES,
    WHOLE_BODY_133,
    coco_to_openpose18,
    joint_name,
)

CANVAS = (768, 512)  # height, width
FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def person(shift: float = 0.0) -> np.ndarray:
    """``[17, 3]`` somewhere on the canvas; no joint at a corner."""
    dice = np.random.default_rng(5)
    points = np.column_stack([dice.uniform(100, 400, 17), dice.uniform(100, 700, 17), np.full(17, 2)]).round(2)
    return points + np.array([shift, 0, 0])


def flat(points: np.ndarray) -> list[float]:
    return points.ravel().tolist()


def write(folder: Path, content: Any, name: str = "poses.json") -> Path:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder / name


def coco(rows: list[Any], images: Any = None, **more: Any) -> dict[str, Any]:
    images = [{"id": 1, "file_name": "a.jpg", "height": 768, "width": 512}] if images is None else images
    return {"images": images, "annotations": rows, **more}


def row(image: Any = 1, points: np.ndarray | None = None, **more: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": 1, "keypoints": flat(person() if points is None else points), **more}


def only(folder: Path, content: Any) -> np.ndarray:
    [image] = read_posed_images(write(folder, content)).images
    assert not image.problem
    [found] = image.people
    return found


# The formats


def whole_body(points: np.ndarray) -> np.ndarray:
    return np.concatenate([points, np.full((133 - 17, 3), 9.0)])


def pairs(points: np.ndarray) -> list[list[float]]:
    return points[:, :2].tolist()


OPENPOSE = [OPENPOSE_NAMES.index(name) for name in COCO_NAMES]
SCORES = [2.0] * 17
FORMS: dict[str, Any] = {
    "coco": coco([row()]),
    "results": [row("a.jpg")],
    "results without ids": [{"keypoints": flat(person())}],
    "133 joints": [row(points=whole_body(person()))],
    "mmpose inferencer": [{"keypoints": pairs(person()), "keypoint_scores": SCORES, "bbox": [[1, 2, 3, 4]]}],
    "mmpose inferencer, returned": {"predictions": [[{"keypoints": pairs(person()), "keypoint_scores": SCORES}]]},
    "mmpose demo": {
        "meta_info": {"keypoint_id2name": {str(i): name for i, name in enumerate(COCO_NAMES)}},
        "instance_info": [{"frame_id": 1, "instances": [{"keypoints": pairs(person()), "keypoint_scores": SCORES}]}],
    },
    "mmpose whole body": [{"keypoints": pairs(whole_body(person())), "keypoint_scores": [2.0] * 133}],
    "columns": [{"keypoints": dict(zip(("x", "y", "visible"), person().T.tolist(), strict=True))}],
    "json lines": "\n".join(json.dumps(each) for each in ({"people": []}, {"people": []})),
}


def with_parts(points: np.ndarray) -> np.ndarray:
    """``[133, 3]`` with feet, face and hands at places of their own."""
    rest = np.column_stack([np.linspace(20, 480, 116), np.linspace(20, 700, 116), np.full(116, 2.0)]).round(2)
    return np.concatenate([points, rest])


def coco_whole_body(points: np.ndarray, image: Any = 1) -> dict[str, Any]:
    keys = ("keypoints", "foot_kpts", "face_kpts", "lefthand_kpts", "righthand_kpts")
    parts = np.split(points, [17, 23, 91, 112])
    return {"image_id": image, "category_id": 1, **{k: flat(p) for k, p in zip(keys, parts, strict=True)}}


def openpose_whole_body(points: np.ndarray, pupils: bool = True) -> dict[str, Any]:
    _, feet, face, left, right = np.split(points, [17, 23, 91, 112])
    body = Pose(WHOLE_BODY_133, points[None]).to(OPENPOSE_18).keypoints[0]
    eyes = np.array([[5.0, 5, 1], [6, 6, 1]]) if pupils else np.zeros((0, 3))
    return {
        "pose_keypoints_2d": flat(body), "foot_keypoints_2d": flat(feet),
        "face_keypoints_2d": flat(np.concatenate([face, eyes])), "hand_left_keypoints_2d": flat(left),
        "hand_right_keypoints_2d": flat(right),
    }  # fmt: skip


def dwpose_arrays(points: np.ndarray) -> dict[str, Any]:
    """What DWPose's own programs return, on a canvas of 512 x 768, with the left wrist missing."""
    shares = points[:, :2] / [512, 768]
    body = Pose(WHOLE_BODY_133, points[None]).to(OPENPOSE_18).keypoints[0, :, :2] / [512, 768]
    places = np.arange(18.0)
    places[OPENPOSE_NAMES.index("left_wrist")] = -1
    return {
        "bodies": {"candidate": body, "subset": places[None]}, "hands": np.stack([shares[91:112], shares[112:]]),
        "faces": shares[None, 23:91], "canvas_width": 512, "canvas_height": 768,
    }  # fmt: skip


WHOLE_BODY_FORMS: dict[str, Any] = {
    "coco-wholebody": coco([coco_whole_body(with_parts(person()))]),
    "coco-wholebody results": [coco_whole_body(with_parts(person()), "a.jpg")],
    "133 joints": [row(points=with_parts(person()))],
    "133 joints below 17 names": coco(
        [row(points=with_parts(person()))], categories=[{"id": 1, "keypoints": list(COCO_NAMES)}]
    ),
    "openpose": {"people": [openpose_whole_body(with_parts(person()))]},
    "controlnet_aux": {"people": [openpose_whole_body(with_parts(person()), pupils=False)]},
    "mmpose": [{"keypoints": pairs(with_parts(person())), "keypoint_scores": [2.0] * 133}],
    "rtmlib": {"keypoints": [pairs(with_parts(person()))], "scores": [[2.0] * 133]},
}


@pytest.mark.parametrize("form", WHOLE_BODY_FORMS)
def test_whole_bodies_of_every_format_are_the_same(form: str, tmp_path: Path) -> None:
    [image] = read_posed_images(file := write(tmp_path, WHOLE_BODY_FORMS[form])).images
    np.testing.assert_allclose(image.pose.to(WHOLE_BODY_133).keypoints[0], with_parts(person()), atol=1e-9)
    np.testing.assert_allclose(image.people[0], person(), atol=1e-9)
    with pytest.warns(
        UserWarning, match=r"poses\.json: .* is read as COCO-17, without .*the hands \(42 joints\)"
    ) as said:
        read_poses(file)
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if form != "openpose":  # whose pupils nobody draws
            [pose] = read_poses(file, wanted=WHOLE_BODY_133)
            assert pose.keypoints is not None and pose.keypoints.shape == (1, 133, 3)


def test_dwposes_arrays_as_they_are_and_as_json(tmp_path: Path) -> None:
    points, arrays = with_parts(person()), dwpose_arrays(with_parts(person()))
    listed = json.loads(json.dumps(arrays, default=lambda array: array.tolist()))
    expected = points.copy()
    expected[:, 2], expected[17:23], expected[COCO_NAMES.index("left_wrist")] = 1, 0, 0
    for given_poses in (arrays, write(tmp_path, listed)):
        [pose] = read_poses(given_poses, wanted=WHOLE_BODY_133)
        np.testing.assert_allclose(pose.keypoints[0], expected, atol=1e-9)
        assert pose.size == CANVAS
    with pytest.raises(ValueError, match=r"poses: entry|poses: 1 hands of one side for 2 bodies"):
        read_poses({**arrays, "bodies": {"candidate": np.ones((36, 2)), "subset": np.arange(36.0).reshape(2, 18)}})


def test_what_programs_return_can_be_handed_over() -> None:
    points = person()
    predictions = {"predictions": [[{"keypoints": pairs(points), "keypoint_scores": SCORES}]]}
    for given_poses in (predictions, (points[None, :, :2], np.full((1, 17), 2.0))):
        [pose] = read_poses(given_poses)
        np.testing.assert_array_equal(pose.keypoints[0], points)
    halpe = np.concatenate([points, np.ones((9, 3))])  # rtmlib's body with feet
    with pytest.warns(UserWarning, match=r"poses: Halpe-26 is read as COCO-17, without head, neck, mid_hip, the feet"):
        [pose] = read_poses((halpe[None, :, :2], halpe[None, :, 2]))
    np.testing.assert_array_equal(pose.keypoints[0], points)
    with pytest.warns(UserWarning, match=r"poses: COCO-WholeBody-133 is read as COCO-17, without"):
        [pose] = read_poses(Pose(WHOLE_BODY_133, with_parts(points)[None], depth=np.array([3.0])))
    assert pose.keypoints is not None and pose.keypoints.shape == (1, 17, 3) and pose.depth == 3


def test_human_arts_tips_beside_cocos_joints(tmp_path: Path) -> None:
    tips = np.concatenate([person(), [[1, 2, 2], [3, 4, 2], [5, 6, 2], [7, 8, 0]]])
    names = [{"id": 1, "keypoints": list(HUMAN_ART_21.names)}]
    for rows in ([row(keypoints_21=flat(tips))], [row(points=tips)]):
        [image] = read_posed_images(write(tmp_path, coco(rows, categories=names))).images
        assert image.pose.topology is HUMAN_ART_21 and image.pose.lost(COCO_17) == list(HUMAN_ART_21.names[17:20])
        np.testing.assert_array_equal(image.people[0], person())


def test_mpii_counts_from_one(tmp_path: Path) -> None:
    joints = [[float(10 * i), float(5 * i)] for i in range(1, 17)]
    joints[9], shown = [-1, -1], [1] * 16
    shown[3] = 0
    rows = [{"image": "a.jpg", "joints": joints, "joints_vis": shown, "scale": 1, "center": [1, 1]}] * 2
    [image] = read_posed_images(write(tmp_path, rows)).images
    assert image.pose.topology is MPII_16 and image.picture == "a.jpg" and len(image.pose) == 2
    assert image.people[0, COCO_NAMES.index("right_ankle")].tolist() == [9, 4, 1]
    assert image.people[0, COCO_NAMES.index("left_hip")].tolist() == [0, 0, 0]
    with pytest.warns(UserWarning, match="its skeleton lacks nose, left_eye, right_eye, left_ear, right_ear"):
        read_poses(write(tmp_path, rows))


# Ambiguities, and the way out that their message names


def test_numbers_that_several_skeletons_have_are_named(tmp_path: Path) -> None:
    tips = np.concatenate([person(), np.ones((4, 3))])
    for points, key, reason in (
        (person()[:16], "mpii16", "those of MPII-16"),
        (tips, "humanart21", "those of Human-Art-21 or of one hand"),
        (person()[:14], "crowdpose14", "those of CrowdPose-14 or of LSP"),
    ):
        file = write(tmp_path, [row(points=points)])
        with pytest.raises(
            ValueError, match=f"{len(points)} joints without names may be {reason}; add topology={key} "
        ):
            read_poses(file)
        with pytest.warns(UserWarning, match="is read as COCO-17, without|lacks nose"):
            [pose] = read_poses(file, topology=key)
        assert pose.keypoints is not None and (pose.keypoints[0, :, 2] > 0).sum() == (17 if key == "humanart21" else 12)


def test_names_of_annotation_tools_that_say_nothing(tmp_path: Path) -> None:
    """CVAT numbers the points of a skeleton unless somebody names them; Label Studio has the words of its labels."""
    numbered = [{"id": 1, "name": "person", "supercategory": "", "keypoints": [str(i) for i in range(1, 18)]}]
    file = write(tmp_path, coco([row(attributes={"occluded": False}, segmentation=[])], categories=numbered))
    with pytest.raises(
        ValueError, match=r"its joints are 1, 2, 3, 4, .* add topology=coco17 if they are those of COCO"
    ):
        read_poses(file)
    [pose] = read_poses(file, topology="coco17")
    np.testing.assert_array_equal(pose.keypoints[0], person())
    order = [*range(5, 17), *range(5)]
    words = [COCO_NAMES[i].replace("_", " ").title() for i in order]
    label_studio = coco([row(points=person()[order])], categories=[{"id": 0, "name": "Person"},
                        {"id": 1, "name": "default", "keypoints": words, "skeleton": []}])  # fmt: skip
    np.testing.assert_array_equal(only(tmp_path, label_studio), person())
    raw = [{"id": 1, "data": {"image": "a.jpg"}, "annotations": [{"result": []}]}]
    with pytest.raises(ValueError, match="it is Label Studio's own json; export it as COCO"):
        read_poses(write(tmp_path, raw))


def test_a_declared_skeleton_must_be_the_files(tmp_path: Path) -> None:
    named = [{"id": 1, "keypoints": list(COCO_NAMES)}]
    with pytest.raises(ValueError, match=r"annotation 3: 51 numbers; 18 joints have 54"):
        read_poses(write(tmp_path, coco([row(id=3)])), topology="openpose18")
    with pytest.raises(ValueError, match=r"not as OpenPose-18 has them \(left_eye\); leave topology out"):
        eighteen = [{"id": 1, "keypoints": [*COCO_NAMES, "neck"]}]
        rows = [row(points=np.concatenate([person(), [[1, 1, 2]]]))]
        read_poses(write(tmp_path, coco(rows, categories=eighteen)), topology="openpose18")
    [pose] = read_poses(write(tmp_path, coco([row()], categories=named)), topology="coco17")
    np.testing.assert_array_equal(pose.keypoints[0], person())
    with pytest.raises(ValueError, match=r"topology=halpe; did you mean \w+\? Known are coco17"):
        read_poses(person(), topology="halpe")
    arrays = np.concatenate([person(), [[1, 1, 2]]])[None]
    with pytest.raises(ValueError, match=r"of another skeleton say which one: topology=openpose18"):
        read_poses(arrays)
    assert read_poses(arrays, topology="openpose18")[0].keypoints.shape == (1, 17, 3)  # type: ignore[union-attr]


def test_mixed_skeletons_in_one_file(tmp_path: Path) -> None:
    whole, openpose = with_parts(person(10)), coco_to_openpose18(person(20)[None])[0]
    rows = [row(1), row(1, whole), row(2, openpose), coco_whole_body(with_parts(person(30)), 2)]
    file = write(tmp_path, coco(rows, [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}]))
    with pytest.warns(UserWarning, match="is read as COCO-17, without"):
        first, second = read_poses(file)
    np.testing.assert_allclose(first.keypoints, [person(), person(10)])
    np.testing.assert_allclose(second.keypoints, [person(20), person(30)])
    first, second = read_poses(file, wanted=WHOLE_BODY_133)
    assert [(image.keypoints[:, 91:, 2] > 0).any(1).tolist() for image in (first, second)] == [[False, True]] * 2


def test_hands_without_a_body(tmp_path: Path) -> None:
    hand = {"hand_left_keypoints_2d": flat(with_parts(person())[91:112])}
    for body in ({}, {"pose_keypoints_2d": None}, {"pose_keypoints_2d": [0] * 54}):
        file = write(tmp_path, {"people": [{**body, **hand}]})
        with pytest.raises(
            ValueError, match=r"nobody in it has a joint of COCO-17; .*the hands \(21 joints\); .*style=dwpose"
        ):
            read_poses(file)
        [pose] = read_poses(file, wanted=WHOLE_BODY_133)
        assert (pose.keypoints[0, :, 2] > 0).nonzero()[0].tolist() == list(range(91, 112))
    with pytest.raises(ValueError, match=r"hand_left_keypoints_2d: 60 numbers; 21 joints have 63"):
        read_poses(write(tmp_path, {"people": [{"hand_left_keypoints_2d": [1.0] * 60}]}))


def test_a_thousand_people_are_one_sentence(tmp_path: Path) -> None:
    file = write(tmp_path, coco([row(points=person(i / 10)) for i in range(1000)]))
    [pose] = read_poses(file)
    with pytest.raises(ValueError, match="1000 people; the methods know up to 10: keep the largest"):
        checked_people(pose.keypoints, CANVAS, "poses")


@FEW
@given(st.lists(st.sampled_from([2, 1, 0, 0.5, 0.01, 1.0]), min_size=17, max_size=17), st.integers(0, 16))
def test_scores_and_visibilities_are_kept_as_they_are(thirds: list[float], zero: int) -> None:
    points = person()
    points[:, 2] = thirds
    points[zero, :2] = 0  # what programs write for a joint that they did not find, whatever score they add
    read = person_joints(flat(points))
    expected = np.where((points[:, 2:] > 0) & points[:, :2].any(1, keepdims=True), points, 0)
    np.testing.assert_array_equal(np.where(read[:, 2:] > 0, read, 0), expected)


REAL_FILES = os.environ.get("POSEGEN_POSE_FILES", "")


@pytest.mark.skipif(not REAL_FILES, reason="POSEGEN_POSE_FILES names no folder of files that others wrote")
def test_real_files_are_read_or_refused_in_one_sentence() -> None:
    """Of mmpose's tests/data, for instance: test_coco.json, test_coco_wholebody.json, test_humanart.json, test_mpii.json,
    test_crowdpose.json, test_halpe.json."""
    files = sorted(Path(REAL_FILES).rglob("*.json"))
    assert files
    known = {
        "test_coco_wholebody": WHOLE_BODY_133,
        "test_humanart": HUMAN_ART_21,
        "test_mpii": MPII_16,
        "test_coco": COCO_17,
    }
    for file in files:
        try:
            found = read_posed_images(file)
        except (ValueError, UserError) as error:
            assert file.name in str(error) and "\n" not in str(error), file
            continue
        assert all(image.problem or np.isfinite(image.people).all() for image in found.images), file
        if file.stem in known:
            assert {image.pose.topology for image in found.images if len(image.pose)} == {known[file.stem]}
            assert not any(image.problem for image in found.images)


@pytest.mark.parametrize("form", [form for form in FORMS if form != "json lines"])
def test_every_format_gives_the_same_person(form: str, tmp_path: Path) -> None:
    np.testing.assert_allclose(only(tmp_path, FORMS[form]), person())


@pytest.mark.parametrize("nested", [True, False])
def test_the_export_of_pose_editors(nested: bool, tmp_path: Path) -> None:
    points = coco_to_openpose18(person()[None])[0]
    parts: list[Any] = pairs(points)
    parts[OPENPOSE_NAMES.index("left_ear")] = None
    content = {"width": 512, "height": 768, "keypoints": [parts, parts] if nested else parts + parts}
    [image] = read_posed_images(write(tmp_path, content)).images
    assert image.size == CANVAS and image.is_canvas and len(image.people) == 2
    expected = np.where(np.arange(17)[:, None] == COCO_NAMES.index("left_ear"), 0, person() * [1, 1, 0.5])
    np.testing.assert_allclose(image.people[0], expected)


def test_lines_of_frames_and_of_controlnets_data(tmp_path: Path) -> None:
    frame = {"people": [{"pose_keypoints_2d": flat(person())}], "canvas_height": 768, "canvas_width": 512}
    file = write(tmp_path, "\n".join(json.dumps(each) for each in (frame, {"people": []}, frame)), "poses.jsonl")
    first, nobody, last = read_poses(file)
    assert nobody.keypoints is None and np.array_equal(first.keypoints, last.keypoints) and first.size == CANVAS
    from PIL import Image

    (tmp_path / "source").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "source" / "0.png")
    line = json.dumps({"source": "source/0.png", "target": "target/0.png", "prompt": "a dancer"})
    [drawn, _] = read_poses(write(tmp_path, f"{line}\n{line}\n"))
    assert drawn.is_drawing


# Joints


@FEW
@given(st.permutations(range(17)), st.data())
def test_names_say_which_joint_is_which(order: list[int], data: st.DataObject) -> None:
    spell = {
        "left_hip": ["LHip", "l_hip", "left hip", "Left-Hip", "hip_left", "LEFT_HIP", "leftHip"],
        "nose": ["Nose", "NOSE"],
    }
    names = [data.draw(st.sampled_from(spell.get(COCO_NAMES[i], [COCO_NAMES[i]]))) for i in order]
    np.testing.assert_array_equal(person_joints(flat(person()[order]), names), person())


def test_categories_name_the_joints(tmp_path: Path) -> None:
    order = [*range(5, 17), *range(5)]
    named = {"id": 1, "name": "person", "keypoints": [COCO_NAMES[i] for i in order]}
    rows = [row(points=person()[order])]
    np.testing.assert_array_equal(only(tmp_path, coco(rows, categories=[named])), person())
    np.testing.assert_array_equal(only(tmp_path, coco([{**rows[0], "category_id": "1"}], categories=[named])), person())
    hand = {"id": 2, "name": "hand", "keypoints": ["thumb", "palm"]}
    found = read_posed_images(write(tmp_path, coco([*rows, row(category_id=2)], categories=[named, hand])))
    assert len(found.images[0].people) == 1 and "1 annotations without joints of a person" in found.remarks[0]


def test_another_skeleton_is_taken_by_name_and_said(tmp_path: Path) -> None:
    names = ["root", "left_hip", "right_hip", "left_foot", *(f"spine {i}" for i in range(13))]
    file = write(tmp_path, coco([row()], categories=[{"id": 1, "keypoints": names}]))
    with pytest.warns(UserWarning, match=r"poses\.json: its skeleton lacks nose, .*right_ankle"):
        [pose] = read_poses(file)
    assert pose.keypoints is not None and (pose.keypoints[0, :, 2] > 0).sum() == 2
    np.testing.assert_array_equal(pose.keypoints[0, COCO_NAMES.index("right_hip")], person()[2])
    unknown = [{"id": 1, "keypoints": [f"p{i}" for i in range(17)]}]
    with pytest.raises(ValueError, match=r"annotation 7: its joints are p0, p1, .*: none is one of COCO's names"):
        read_poses(write(tmp_path, coco([row(id=7)], categories=unknown)))
    twice = [{"id": 1, "keypoints": ["nose", "Nose", *(f"p{i}" for i in range(15))]}]
    with pytest.raises(ValueError, match="its category names nose twice"):
        read_poses(write(tmp_path, coco([row()], categories=twice)))
    with pytest.raises(ValueError, match="51 numbers; 3 joints have 9"):
        read_poses(write(tmp_path, coco([row()], categories=[{"id": 1, "keypoints": ["nose", "left_eye", "x"]}])))


@pytest.mark.parametrize("missing", [[None, None, None], [math.nan] * 3, [-1, -1, -1], [-1, -1, 2], [0, 0, 0]])
def test_joints_that_are_not_labelled(missing: list[Any], tmp_path: Path) -> None:
    numbers = [*missing, *flat(person())[3:]]
    found = only(tmp_path, coco([{"image_id": 1, "keypoints": numbers}]))
    assert not found[0, 2] > 0 and np.isfinite(found).all()
    np.testing.assert_array_equal(found[1:], person()[1:])
    nested = [None, *person()[1:].tolist()]
    np.testing.assert_array_equal(only(tmp_path, coco([{"image_id": 1, "keypoints": nested}]))[1:], person()[1:])


# Images and ids


def test_images_are_in_the_order_of_their_list(tmp_path: Path) -> None:
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in (1, 2, 3)]
    first, nobody, last = read_poses(write(tmp_path, coco([row(3, person(20)), row(1)], images)))
    assert nobody.keypoints is None and "image 2 (2.jpg)" in nobody.name
    np.testing.assert_array_equal(first.keypoints[0], person())
    np.testing.assert_array_equal(last.keypoints[0], person(20))


@pytest.mark.parametrize(
    ("listed", "used"), [(1, "1"), ("1", 1), (1, 1.0), ("0001", 1), (1, "0001"), ("a", "a"), (7, "a.jpg"), (" 1 ", 1)]
)
def test_ids_are_the_same_as_text_and_as_numbers(listed: Any, used: Any, tmp_path: Path) -> None:
    images = [{"id": listed, "file_name": "a.jpg", "height": 768, "width": "512"}, {"id": 99, "file_name": "b.jpg"}]
    a, b = read_posed_images(write(tmp_path, coco([row(used)], images))).images
    assert (len(a.people), len(b.people), a.size, b.size) == (1, 0, CANVAS, None)


def test_exact_ids_come_before_equal_numbers(tmp_path: Path) -> None:
    images = [{"id": "1", "file_name": "a.jpg"}, {"id": "01", "file_name": "b.jpg"}]
    content = coco([row("01"), row(1), row(1)], images)
    assert [len(image.people) for image in read_posed_images(write(tmp_path, content)).images] == [2, 1]
    [a, b] = read_posed_images(write(tmp_path, coco([row("001")], images))).images
    assert "the id 001 is used by 2 images" in a.problem and b.problem == a.problem


def test_a_doubled_id_spoils_its_images_alone(tmp_path: Path) -> None:
    images = [{"id": i, "file_name": name} for i, name in ((1, "a.jpg"), (2, "b.jpg"), (1, "c.jpg"), (2, "b.jpg"))]
    file = write(tmp_path, coco([row(1), row(2), row(1)], images))
    a, b, c = read_posed_images(file).images
    assert "the id 1 is used by 2 images" in a.problem and a.problem == c.problem and len(b.people) == 1
    with pytest.raises(ValueError, match=r"image 1 \(a\.jpg\)\): entry 0: the id 1 is used by 2 images"):
        read_poses(file)


DAMAGE: dict[str, Any] = {
    "16 numbers too few": {"keypoints": flat(person())[:35]},
    "a word": {"keypoints": ["x", *flat(person())[1:]]},
    "infinite": {"keypoints": [math.inf, *flat(person())[1:]]},
    "far away": {"keypoints": [1e30, *flat(person())[1:]]},
    "thousands of digits": {"keypoints": [10**400, *flat(person())[1:]]},
    "a text": {"keypoints": "none"},
    "a number": {"keypoints": 5},
    "a mapping": {"keypoints": {"nose": [1, 2]}},
    "ragged": {"keypoints": [[1, 2, 3], [1, 2]]},
    "other scores": {"keypoints": pairs(person()), "keypoint_scores": [1.0]},
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_entry_spoils_its_own_image(kind: str, tmp_path: Path) -> None:
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in (1, 2)]
    found = read_posed_images(write(tmp_path, coco([row(1), {"id": 9, "image_id": 2, **DAMAGE[kind]}], images)))
    good, bad = found.images
    assert bad.problem.startswith("annotation 9: ") and not good.problem and len(good.people) == 1
    assert not found.faults


@pytest.mark.parametrize("box", [{}, {"keypoints": []}, {"keypoints": None}, {"keypoints": [0] * 51}])
def test_boxes_are_no_poses(box: dict[str, Any], tmp_path: Path) -> None:
    [image] = read_posed_images(write(tmp_path, coco([row(), {"image_id": 1, "bbox": [1, 2, 3, 4], **box}]))).images
    assert len(image.people) == 1 and not image.problem


def test_entries_that_belong_to_no_image_are_said(tmp_path: Path) -> None:
    images = [{"id": i, "file_name": f"{i}.jpg", "height": None, "width": 0} for i in (1, 2)]
    rows = [row(1), row(None), {"id": 5, "keypoints": flat(person())}, 7, row([1]), row(99)]
    found = read_posed_images(write(tmp_path, coco(rows, [*images, {"height": 3}])))
    assert [len(image.people) for image in found.images] == [1, 0] and found.images[0].size is None
    starts = ["image 2 of the list", "entry 1: no image_id", "annotation 5: no image_id", "entry 3", "entry 4: '[1]'"]
    assert all(fault.startswith(start) for fault, start in zip(found.faults, starts, strict=True))
    assert found.remarks == ["1 annotations belong to images that are not listed, such as 99"]


# The canvas


def shares(points: np.ndarray) -> dict[str, Any]:
    return {"pose_keypoints_2d": flat(points / [512, 768, 1])}


@pytest.mark.parametrize("place", [(212, 798.72), (-10, 700), (2000, 3000)])
def test_shares_of_a_canvas_may_lie_outside(place: tuple[float, float], tmp_path: Path) -> None:
    points = person()
    points[16, :2] = place
    content = {"people": [shares(points)], "canvas_width": 512, "canvas_height": 768}
    np.testing.assert_allclose(only(tmp_path, content), points, atol=1e-6)
    beside = person(600)  # all of a second person is outside
    content["people"] = [shares(person()), shares(beside)]
    [image] = read_posed_images(write(tmp_path, content)).images
    np.testing.assert_allclose(image.people, [person(), beside], atol=1e-6)


def test_one_frame_in_shares_and_one_in_pixels(tmp_path: Path) -> None:
    size = {"canvas_width": 512, "canvas_height": 768}
    frames = [{"people": [shares(person())], **size}, {"people": [{"pose_keypoints_2d": flat(person())}], **size}]
    one, other = read_posed_images(write(tmp_path, frames)).images
    np.testing.assert_allclose(one.people, other.people, atol=1e-6)


@FEW
@given(st.floats(0.1, 10), st.floats(0.1, 10))
def test_the_canvas_scales_with_its_person(wide: float, tall: float) -> None:
    scaled = person() * [wide, tall, 1]
    size = round(768 * tall), round(512 * wide)
    from posegen.poses.reading import PoseInput

    there = PoseInput("x", scaled[None], size=size).on((300, 200)).on(size)
    np.testing.assert_allclose(there.keypoints[0], scaled, atol=1e-6)


def test_joints_that_are_not_drawn_do_not_count_as_inside() -> None:
    points = person()
    points[3] = [30, 30, 0.01]
    with pytest.raises(ValueError, match=r"all joints are outside the canvas of 64 x 64 .*canvas=\[HEIGHT,WIDTH\]"):
        checked_people(points[None], (64, 64), "poses")
    points[3] = [30, 30, 0.5]
    with pytest.warns(UserWarning, match="poses: only 1 of 17 joints lie on the canvas of 64 x 64 pixels"):
        checked_people(points[None], (64, 64), "poses")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checked_people(person()[None], CANVAS, "poses")
    with pytest.raises(ValueError, match="is too far away"):
        checked_people((person() * [1e9, 1, 1])[None], CANVAS, "poses")


# Any content


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
KEYS = ("foot_kpts", "lefthand_kpts", "keypoints_21", "bodies", "candidate", "subset", "hands", "faces", "joints",
        "joints_vis", "scores", "hand_left_keypoints_2d", "face_keypoints_2d", "bbox", "data", "image", "people", "pose_keypoints_2d", "annotations", "images", "keypoints", "image_id", "id", "categories", "width",
        "height", "canvas_width", "canvas_height", "instances", "instance_info", "keypoint_scores", "file_name",
        "meta_info", "predictions", "source", "category_id", "keypoint_id2name", "iscrowd", "area")  # fmt: skip
known_values = st.recursive(
    json_values | st.just(flat(person())) | st.just(pairs(person())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=15,
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(known_values)
def test_any_json_gives_poses_or_one_error(tmp_path: Path, value: Any) -> None:
    file = write(tmp_path, json.dumps(value))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = read_poses(file)
        except ValueError as error:
            assert "poses.json" in str(error) or "readable picture" in str(error)
            return
    assert all(pose.keypoints is None or pose.keypoints.shape[1:] == (17, 3) for pose in found)


@FEW
@given(st.lists(st.lists(st.floats(1, 500), min_size=34, max_size=34), min_size=1, max_size=3))
def test_what_is_written_is_read(tmp_path: Path, rows: list[list[float]]) -> None:
    people = np.dstack([np.array(rows).reshape(-1, 17, 2), np.full((len(rows), 17), 2)])
    [pose] = read_poses(write(tmp_path, coco([row(points=points) for points in people])))
    np.testing.assert_array_equal(pose.keypoints, people)


def test_deep_and_endless_json_is_one_error(tmp_path: Path) -> None:
    for content in ("[" * 100_000, '{"people": [{"pose_keypoints_2d": [1' + "0" * 5000 + "]}]}"):
        with pytest.raises(UserError, match=r"poses\.json is not a readable json file"):
            read_poses(write(tmp_path, content))


@FEW
@given(st.integers(-(10**30), 10**30))
def test_ids(number: int) -> None:
    assert id_text(number) == id_text(str(number)) == str(number)
    for wrong in (None, True, "", [], math.nan, math.inf):
        with pytest.raises(ValueError, match="is no id"):
            id_text(wrong)


def test_names_of_joints() -> None:
    for text in ("left_eye_inner", "leftover", "left", "", "l", "hand_left", "鼻"):
        assert joint_name(text) not in COCO_NAMES
