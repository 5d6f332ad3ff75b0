import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from posegen.poses.drawing import (
    DRAWING_STYLES,
    HUMANSD_COLOURS,
    LEFT_COLOUR,
    OPENPOSE_COLOURS,
    RIGHT_COLOUR,
    PoseDrawing,
    dwpose,
    humansd,
    keypose,
    openpose,
    overlay,
)
from posegen.poses.pose import Pose
from posegen.poses.topology import COCO_17, COCO_LIMBS, WHOLE_BODY_133

GOLDENS = Path(__file__).parents[3] / "shared" / "parity" / "skeleton_render"
CASES = json.loads((Path(__file__).parent / "data" / "strokes.json").read_text())


def star(scale: float = 1.0) -> np.ndarray:
    """One person on a 512 canvas whose joints are far apart from each other, ``[1, 17, 3]``."""
    angle = np.arange(17) * 2.4
    radius = 60 + 10 * np.arange(17)
    points = np.stack((256 + radius * np.cos(angle), 256 + radius * np.sin(angle), np.ones(17)), -1)[None]
    points[..., :2] = (points[..., :2] + 0.5) * scale - 0.5
    return points


def only(*joints: int) -> np.ndarray:
    points = star()
    hidden = np.setdiff1d(np.arange(17), joints)
    points[:, hidden, 2] = 0
    return points


def colours_of(image: np.ndarray) -> set[tuple[int, int, int]]:
    red, green, blue = image.astype(int).transpose(2, 0, 1)
    return {(code >> 16, code >> 8 & 255, code & 255) for code in np.unique(red << 16 | green << 8 | blue).tolist()}


@pytest.mark.parametrize("case", CASES, ids=[case["what"] for case in CASES])
def test_strokes(case):
    """Hand-checked pixels: [x, y, colour] on a small canvas."""
    points = np.zeros((len(case["people"]), 17, 3))
    for person, joints in zip(points, case["people"], strict=True):
        for joint, value in joints.items():
            person[int(joint)] = value
    image = DRAWING_STYLES[case["style"]](points, tuple(case["size"]), 0.02, 1.0)
    assert image.shape == (*case["size"], 3) and image.dtype == np.uint8
    for x, y, colour in case["pixels"]:
        assert image[y, x].tolist() == colour, (x, y)


@pytest.mark.parametrize(
    "name",
    ["one_person", "three_people", "missing_joints", "off_canvas_dataset_rule", "tiny_crowd", "eval_panel_off_canvas"],
)
def test_humansd_reproduces_the_reference(name):
    if not GOLDENS.is_dir():
        pytest.skip(f"the reference drawings are not at {GOLDENS}")
    case = json.loads((GOLDENS / "inputs.json").read_text())["images"][name]
    expected = cv2.imread(str(GOLDENS / case["file"]))[..., ::-1]
    image = humansd(
        np.array(case["canvas_keypoints"]), tuple(case["canvas_height_width"]), case["keypoint_threshold"], 1.0
    )
    differing = (image != expected).any(-1).mean()
    assert differing <= (
        0.001 if name == "eval_panel_off_canvas" else 0
    )  # OpenCV 5 clips thick lines off the canvas a little differently


def test_auto_is_the_reference_at_512():
    for style in DRAWING_STYLES.values():
        np.testing.assert_array_equal(style(star(), (512, 512), scale="auto"), style(star(), (512, 512), scale=1.0))


@pytest.mark.parametrize("style", DRAWING_STYLES)
def test_auto_at_64_looks_like_the_reduced_reference(style):
    small = DRAWING_STYLES[style](star(1 / 8), (64, 64)).astype(float)
    reduced = cv2.resize(DRAWING_STYLES[style](star(), (512, 512)), (64, 64), interpolation=cv2.INTER_AREA).astype(
        float
    )
    assert np.corrcoef(small.ravel(), reduced.ravel())[0, 1] > 0.9
    assert 0.7 < small.sum() / reduced.sum() < 1.5


def test_auto_does_not_shift_the_skeleton():
    """The centre of mass of a drawn dot stays on its joint to a tenth of a pixel."""
    points = np.zeros((1, 17, 3))
    points[0, [5, 7]] = (20.25, 31.75, 1)
    image = humansd(points, (64, 64)).sum(-1).astype(float)
    y, x = np.indices(image.shape)
    np.testing.assert_allclose(
        ((image * x).sum() / image.sum(), (image * y).sum() / image.sum()), (20.25, 31.75), atol=0.13
    )


def test_every_limb_has_its_colour():
    for (a, b), colour in zip(COCO_LIMBS, HUMANSD_COLOURS, strict=True):
        image = humansd(only(a, b), (512, 512))
        assert colours_of(image) == {(0, 0, 0), colour}


def test_scores_at_the_threshold_are_not_drawn():
    points = only(5, 7)
    points[..., 2] *= 0.05
    assert humansd(points, (512, 512), threshold=0.04).any() and not humansd(points, (512, 512), threshold=0.05).any()


def test_later_people_cover_earlier_ones():
    two = np.concatenate((only(5, 7), only(6, 8)))
    two[1, [6, 8], :2] = two[0, [5, 7], :2]  # the same stroke in another colour
    assert colours_of(humansd(two, (512, 512))) == {(0, 0, 0), HUMANSD_COLOURS[7]}


def test_openpose_blends_spindles_over_dots():
    points = only(6, 8)  # without the other shoulder there is no neck: one limb, two dots
    image = openpose(points, (512, 512), scale=1.0)
    middle = points[0, [6, 8], :2].mean(0).astype(int)
    assert image[middle[1], middle[0]].tolist() == [round(0.6 * c) for c in OPENPOSE_COLOURS[2]]


@pytest.mark.parametrize("style", DRAWING_STYLES)
@pytest.mark.parametrize("size", [(64, 64), (48, 80), (512, 512)])
def test_people_off_the_canvas_draw_nothing_and_do_not_fail(style, size):
    for shift in (-3000, 3000):
        points = star()
        points[..., :2] += shift
        assert not DRAWING_STYLES[style](points, size).any()
    assert not DRAWING_STYLES[style](np.zeros((0, 17, 3)), size).any()


def test_pose_drawing_has_the_range_it_was_asked_for():
    drawn = PoseDrawing("humansd", range=(-1, 1))(star(1 / 8), (64, 48))
    assert drawn.shape == (3, 64, 48) and drawn.dtype == np.float32
    assert drawn.min() == -1 and 0.5 < drawn.max() <= 1
    np.testing.assert_allclose(PoseDrawing()(star(1 / 8), (64, 48)) * 2 - 1, drawn, atol=1e-6)


def test_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match=r"did you mean 'openpose'.*humansd, openpose"):
        PoseDrawing("open_pose")
    points = star()
    points[0, 9, 1] = np.nan
    with pytest.raises(ValueError, match=r"person 0, joint 9 \(left_wrist\)"):
        PoseDrawing()(points, (64, 64))
    with pytest.raises(ValueError, match=r"\[P, 17, 3\]"):
        humansd(np.zeros((17, 3)), (64, 64))
    with pytest.raises(ValueError, match="scale"):
        humansd(star(), (64, 64), scale=0)


def test_overlay_tells_left_from_right_and_leaves_the_rest_alone():
    image = np.full((512, 512, 3), 90, np.uint8)
    for joints, colour in (((5, 7), LEFT_COLOUR), ((6, 8), RIGHT_COLOUR)):
        points = only(*joints)
        out = overlay(image, points, opacity=1.0)
        x, y = points[0, list(joints), :2].mean(0).astype(int)
        assert tuple(out[y, x].tolist()) == colour
        assert (out == 90).all(-1).mean() > 0.95
    np.testing.assert_array_equal(overlay(image, np.zeros((0, 17, 3))), image)


@pytest.mark.parametrize("number", range(4))
def test_gunet_reproduces_the_reference(number):
    folder = GOLDENS.parent / "gunet_draw"
    if not folder.is_dir():
        pytest.skip(f"the reference drawings are not at {folder}")
    case = json.loads((folder / "inputs.json").read_text())["cases"][number]
    points = np.array([[*(16 * np.array(case["keypoints"][joint])), joint >= 0] for joint in case["subset"]], float)
    image = DRAWING_STYLES["gunet"](points[None], (512, 512), 0.02, 1.0)
    saved = cv2.imread(
        str(folder / case["file"])
    )  # read as BGR, and its red and blue were swapped before it was written
    assert np.abs(image.astype(float) * 255 / image.max() - saved).max() <= 1


# Hands, face and feet


def whole_star() -> np.ndarray:
    """`star` with feet, a face and hands, each joint at a place of its own, ``[1, 133, 3]``."""
    points = np.ones((1, 133, 3))
    points[:, :17] = star()
    points[0, 17:23, :2] = np.stack([np.linspace(20, 200, 6), np.full(6, 500)], -1)
    points[0, 23:91, :2] = np.stack([np.linspace(10, 500, 68), np.full(68, 20)], -1)
    points[0, 91:, :2] = np.stack([np.tile(np.linspace(30, 480, 21), 2), np.repeat([40, 470], 21)], -1)
    return points


def dim(colour: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(0.6 * c) for c in colour)


def test_dwpose_draws_dark_limbs_below_bright_dots() -> None:
    image = dwpose(star(), (512, 512), scale=1.0)
    dots = OPENPOSE_COLOURS
    assert colours_of(image) == {(0, 0, 0), *dots, *(dim(colour) for colour in dots[:17])}
    for a, b, limb in ((6, 8, 2), (5, 7, 4), (0, 1, 15)):  # right and left upper arm, nose and left eye
        pair = only(a, b)
        x, y = pair[0, [a, b], :2].mean(0).astype(int)
        assert tuple(dwpose(pair, (512, 512), scale=1.0)[y, x].tolist()) == dim(dots[limb])
    x, y = star()[0, 9, :2].astype(int)  # the left wrist is OpenPose's seventh joint
    assert tuple(image[y, x].tolist()) == dots[7]


def test_dwpose_draws_hands_and_face_over_the_body() -> None:
    points, size = whole_star(), (512, 512)
    image = dwpose(points, size, scale=1.0)
    for joint, colour in ((50, (255, 255, 255)), (91, (0, 0, 255)), (132, (0, 0, 255))):
        x, y = points[0, joint, :2].astype(int)
        assert tuple(image[y, x].tolist()) == colour
    thumb = points.copy()
    thumb[:, np.setdiff1d(np.arange(133), [92, 93]), 2] = 0
    x, y = thumb[0, [92, 93], :2].mean(0).astype(int)  # red, a twentieth of the circle towards green
    assert tuple(dwpose(thumb, size, scale=1.0)[y, x].tolist()) == (255, 77, 0)
    assert image[20, 10:500:8].any(-1).all() and not image[23, 10 + 4].any()  # discs of radius 3
    outside = points.copy()
    outside[0, 91:, :2] = 0.5  # programs leave out hands and faces in the first row and column
    assert not dwpose(outside, size, scale=1.0, parts=("hands",)).any()


@pytest.mark.parametrize("part", ["body", "feet", "hands", "face"])
def test_parts_can_be_switched(part: str) -> None:
    joints = {"body": range(17), "feet": range(15, 23), "hands": range(91, 133), "face": range(23, 91)}[part]
    alone = whole_star()
    alone[:, np.setdiff1d(np.arange(133), list(joints)), 2] = 0
    others = [other for other in ("body", "hands", "face") if other != part]
    everything = PoseDrawing("dwpose", parts=["body", "feet", "hands", "face"], scale=1.0)
    assert everything(alone, (512, 512)).any()
    without = PoseDrawing("dwpose", parts=others, scale=1.0)(alone, (512, 512))
    assert bool(without.any()) == (part == "feet")  # the ankles are the body's
    assert PoseDrawing("dwpose", parts=[part]).topology is (COCO_17 if part == "body" else WHOLE_BODY_133)
    if part == "feet":
        drawn = PoseDrawing("dwpose", parts=["body", "feet"], scale=1.0)(alone, (512, 512))
        x, y = alone[0, 17:19, :2].mean(0).astype(int)  # left toes, and Wan-Animate's colour for them
        np.testing.assert_allclose(drawn[:, y, x] * 255, (200, 200, 0), atol=0.01)


def test_keypose_has_the_colours_of_its_weights() -> None:
    left, right, middle = (0, 255, 0), (0, 128, 255), (255, 153, 51)
    assert colours_of(keypose(star(), (512, 512), scale=1.0)) == {(0, 0, 0), left, right, middle}
    for joints, colour in (((7, 9), left), ((12, 14), right), ((5, 6), middle), ((0, 1), middle), ((3, 5), middle)):
        points = only(*joints)
        x, y = points[0, list(joints), :2].mean(0).astype(int)
        assert tuple(keypose(points, (512, 512), scale=1.0)[y, x].tolist()) == colour
    x, y = star()[0, 6, :2].astype(int)
    assert tuple(keypose(only(6), (512, 512), scale=1.0)[y, x].tolist()) == right
    outside = only(7, 9)
    outside[0, 9, 0] = 600  # lines end on the canvas
    assert colours_of(keypose(outside, (512, 512), scale=1.0)) == {(0, 0, 0), left}
    assert keypose(outside, (512, 512), scale=1.0).any(-1).sum() < 30


# Hidden joints, and depth


@pytest.mark.parametrize("style", DRAWING_STYLES)
def test_hidden_joints_are_drawn_faint_or_left_out(style: str) -> None:
    points = star()
    points[..., 2], hidden = 2, [7, 9]
    visible = points.copy()
    points[0, hidden, 2], visible[0, hidden, 2] = 1, 0
    drawings = {way: PoseDrawing(style, occlusion=way)(points, (512, 512)) for way in ("drawn", "faint", "left_out")}
    np.testing.assert_array_equal(drawings["drawn"], PoseDrawing(style)(points, (512, 512)))
    np.testing.assert_array_equal(drawings["left_out"], PoseDrawing(style)(visible, (512, 512)))
    shown = drawings["left_out"].any(0)
    fainter = drawings["faint"].any(0) & ~shown
    assert fainter.any() and (drawings["faint"] >= drawings["left_out"]).all()
    assert (
        drawings["faint"][:, fainter].max() <= 0.41
        and (drawings["faint"].any(0) == drawings["drawn"].any(0)).mean() > 0.999
    )
    scored = np.where([[[False, False, True]]], np.where(points == 1, 1.0, 0.5), points)  # a score of 1 is not hidden
    np.testing.assert_array_equal(
        PoseDrawing(style, occlusion="left_out")(scored, (512, 512)), PoseDrawing(style)(scored, (512, 512))
    )


@pytest.mark.parametrize("style", ["humansd", "dwpose", "keypose", "gunet"])
def test_near_people_and_limbs_cover_far_ones(style: str) -> None:
    first, second = only(5, 7), only(6, 8)
    second[0, [6, 8], :2] = first[0, [5, 7], :2]  # the same stroke in another colour
    two, draw = np.concatenate((first, second)), PoseDrawing(style)
    size = (512, 512)
    np.testing.assert_array_equal(draw(two, size, np.array([2.0, 1.0])), draw(two, size))
    np.testing.assert_array_equal(draw(two, size, np.array([1.0, 2.0])), draw(two[::-1], size))
    np.testing.assert_array_equal(draw(Pose(COCO_17, two, depth=np.array([1.0, 2.0])), size), draw(two[::-1], size))
    one, near = star(), np.ones((1, 17))
    one[0, [6, 8], :2] = one[0, [5, 7], :2]
    assert (draw(one, size, near) == draw(one, size)).all()
    near[0, [5, 7]] = 0  # the left arm is nearer, and later limbs no longer cover it
    assert (draw(one, size, near) != draw(one, size)).any()
    assert (PoseDrawing("openpose")(one, size, near) != PoseDrawing("openpose")(one, size)).any()


def test_settings_that_a_style_lacks_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"parts=\['hands'\]: style=humansd draws body; style=dwpose draws feet, hands"
    ):
        PoseDrawing("humansd", parts=["hands"])
    with pytest.raises(ValueError, match=r"parts=\['legs'\]: style=dwpose draws body, feet, hands, face"):
        PoseDrawing("dwpose", parts=["legs"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"occlusion=hidden; expected one of drawn, faint, left_out"):
        PoseDrawing("humansd", occlusion="hidden")  # type: ignore[arg-type]
