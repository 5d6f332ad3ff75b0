import hashlib
from collections import Counter

import numpy as np
import pytest

from posegen.data.mannequin.body import random_body
from posegen.data.mannequin.canvas import CANVAS_SIDE, Canvas
from posegen.data.mannequin.captions import ACTIONS, COLOURS, SCENES, STYLES
from posegen.data.mannequin.figure import GARMENTS, RIGHT_BRIGHTNESS, Figure, FigurePainter, random_outfit
from posegen.data.mannequin.rng import Dice
from posegen.data.mannequin.world import WORLD_VERSION, World, _keypoints

L_SHOULDER, R_SHOULDER, L_KNEE, R_KNEE = 5, 6, 13, 14
GOLDEN = {1: "2152dce641da5125"}  # world version -> digest of the first test images; the same with OpenCV 4.11 and 5.0


def digest(indices: range, size: int = 64) -> str:
    total = hashlib.sha256()
    for index in indices:
        sample = World(size=size).render("test", index)
        for part in (sample.image, sample.keypoints, sample.areas):
            total.update(np.ascontiguousarray(part).tobytes())
        total.update(f"{sample.id} {sample.prompt}".encode())
    return total.hexdigest()[:16]


@pytest.fixture(scope="module")
def samples():
    world = World()
    return [world.render("validation", index) for index in range(200)]


@pytest.fixture(scope="module")
def large():
    """Full canvases: 256 pixels."""
    world = World(size=256)
    return [world.render("validation", index) for index in range(150)]


def test_the_world_has_not_changed_without_a_new_version():
    assert digest(range(40)) == GOLDEN[WORLD_VERSION], (
        "pixels, keypoints or captions changed: raise WORLD_VERSION and add its digest here"
    )


def test_the_order_of_rendering_does_not_matter():
    """Other processes are compared in ``test_mannequin_dataset.py``."""
    world = World(seed=5)
    backwards = [world.render("train", index) for index in (9, 3)][::-1]
    for sample, index in zip(backwards, (3, 9), strict=True):
        np.testing.assert_array_equal(sample.image, World(seed=5).render("train", index).image)


def test_seed_split_and_index_all_matter():
    images = [
        World(seed).render(split, index).image.tobytes()
        for seed in (0, 1)
        for split in ("train", "validation", "test")
        for index in (0, 1)
    ]
    assert len(set(images)) == 12


def test_ids():
    assert World().render("test", 7).id == "mannequin/test/000007"
    assert World(seed=3).render("test", 7).id != World().render("test", 7).id


def test_sample_types(samples):
    for sample in samples:
        people = sample.attributes["count"]
        assert sample.image.shape == (64, 64, 3) and sample.image.dtype == np.uint8 and sample.size == (64, 64)
        assert sample.keypoints.shape == (people, 17, 3) and sample.keypoints.dtype == np.float32
        assert sample.areas.shape == (people,) and sample.areas.dtype == np.float32
        assert len(sample.attributes["actions"]) == people
        assert len(sample.attributes["colours"]) == (
            people if sample.attributes["style"] in ("photo", "cartoon") else 0
        )


def test_shares_of_styles_counts_and_the_rest():
    world = World()
    found = [world.describe("train", index) for index in range(4000)]
    styles, counts = Counter(d.style for d in found), Counter(len(d.people) for d in found)
    for style, share in zip(STYLES, (0.40, 0.25, 0.20, 0.15), strict=True):
        assert abs(styles[style] / 4000 - share) < 0.03
    for count, share in zip((1, 2, 3), (0.70, 0.22, 0.08), strict=True):
        assert abs(counts[count] / 4000 - share) < 0.03
    assert {d.scene for d in found} == set(SCENES)
    looks = [look for d in found for look in d.people]
    for name, options, values in (
        ("action", ACTIONS, [x.action for x in looks]),
        ("shirt", COLOURS, [x.shirt for x in looks if x.shirt]),
    ):
        assert min(Counter(values)[o] for o in options) > 0.8 * len(values) / len(options), name
    assert all(look.shirt != look.trousers for look in looks if look.shirt)


def test_keypoints_follow_the_size():
    small, big = World(size=64).render("train", 11), World(size=128).render("train", 11)
    shown = small.keypoints[..., 2] > 0
    np.testing.assert_allclose(
        (small.keypoints[..., :2][shown] + 0.5) * 2 - 0.5, big.keypoints[..., :2][shown], atol=1e-4
    )
    np.testing.assert_allclose(small.areas * 4, big.areas, rtol=1e-6)


def test_keypoints_lie_on_the_limbs_they_name(large):
    """In t-poses from the front the knees are visible: the right one has 0.62 of the left one's brightness."""
    checked = 0
    for sample in large:
        if (
            sample.attributes["style"] != "cartoon"
            or sample.attributes["count"] > 1
            or sample.attributes["actions"][0] not in ("tpose", "jumping", "waving")
        ):
            continue
        points = np.rint(sample.keypoints[0, :, :2]).astype(int)
        if abs(points[L_KNEE, 0] - points[R_KNEE, 0]) < 24:  # seen from the side: one knee may hide the other
            continue
        colour = np.array(GARMENTS[sample.attributes["colours"][0][1]], float)
        left, right = (sample.image[points[k, 1], points[k, 0]].astype(float) for k in (L_KNEE, R_KNEE))
        assert np.abs(left / left.sum() - colour / colour.sum()).max() < 0.03
        np.testing.assert_allclose(right, left * RIGHT_BRIGHTNESS, atol=2)
        checked += 1
    assert checked >= 5


def test_eyes_are_dark_where_the_keypoints_say():
    checked = 0
    for seed in range(60):
        dice, canvas = Dice(seed), Canvas("cartoon")
        figure = Figure(
            random_body("tpose", dice), random_outfit("cartoon", "red", "blue", dice), (128.0, 150.0), 230.0
        )
        FigurePainter().paint(canvas, 1, figure)
        points = _keypoints(figure, canvas.pixels[..., 3], 1)
        for x, y in np.rint(points[1:3, :2][points[1:3, 2] == 2]).astype(int):
            checked += 1
            assert canvas.pixels[y, x, :3].max() < 60, seed
    assert checked > 60


def test_every_stroke_of_a_person_has_an_owner():
    """A person changes exactly the pixels with the person's number, so areas and occlusion include the contour."""
    for seed, style in enumerate(STYLES * 5):
        dice, canvas = Dice(seed), Canvas(style)
        canvas.pixels[:] = (255, 0, 255, 0)
        FigurePainter().paint(
            canvas,
            3,
            Figure(random_body("dancing", dice), random_outfit(style, "red", "blue", dice), (128.0, 150.0), 220.0),
        )
        np.testing.assert_array_equal((canvas.pixels[..., :3] != (255, 0, 255)).any(-1), canvas.pixels[..., 3] == 3)


def test_area_is_the_silhouette(large):
    """In a shadow picture of a studio nothing but the person is darker than the backdrop."""
    checked = 0
    for sample in large:
        if (sample.attributes["style"], sample.attributes["scene"]) == (
            "shadow",
            "studio",
        ) and "sitting" not in sample.attributes["actions"]:
            dark = (sample.image.max(-1) < 106).sum()
            np.testing.assert_allclose(sample.areas.sum(), dark, rtol=0.03)
            checked += 1
    assert checked >= 1


def test_visibility_values(samples):
    states = Counter()
    for sample in samples:
        hidden = sample.keypoints[..., 2] == 0
        assert (sample.keypoints[hidden] == 0).all()
        assert ((sample.keypoints[..., :2] >= -0.5) & (sample.keypoints[..., :2] <= 63.5)).all()
        assert (sample.keypoints[:, 3:, 2] > 0).all()  # only a face can be turned away
        nose, eyes = sample.keypoints[:, 0, 2], sample.keypoints[:, 1:3, 2]
        assert (nose[(eyes > 0).all(1)] > 0).all()
        states.update(sample.keypoints[..., 2].ravel().tolist())
    assert states[2] > 20 * states[0] > 0 and states[1] > 0


def test_a_later_person_hides_keypoints():
    dice = Dice(1)
    figure = Figure(random_body("tpose", dice), random_outfit("photo", "red", "blue", dice), (128.0, 128.0), 160.0)
    nobody = _keypoints(figure, np.zeros((CANVAS_SIDE, CANVAS_SIDE), np.uint8), 1)
    assert (nobody[5:, 2] == 2).all()
    owners = np.zeros((CANVAS_SIDE, CANVAS_SIDE), np.uint8)
    owners[:, :128] = 2
    for owner, hidden in ((1, 1), (2, 2), (3, 2)):  # painted before, by and after the owner of the left half
        covered = _keypoints(figure, owners, owner)
        left_half = (nobody[:, 0] < 127) & (nobody[:, 2] == 2)
        assert left_half.any() and (covered[left_half, 2] == hidden).all()
        assert (covered[nobody[:, 0] > 128, 2] == nobody[nobody[:, 0] > 128, 2]).all()


def test_keypoints_off_the_canvas_are_not_labelled():
    dice = Dice(1)
    figure = Figure(random_body("tpose", dice), random_outfit("photo", "red", "blue", dice), (2.0, 128.0), 160.0)
    points = _keypoints(figure, np.zeros((CANVAS_SIDE, CANVAS_SIDE), np.uint8), 1)
    assert 0 < (points[5:, 2] == 0).sum() < 12
    assert (points[points[:, 2] == 0] == 0).all()


def test_people_are_told_from_left_to_right_and_remain_judgeable(samples):
    for sample in samples:
        trunks = sample.keypoints[:, [5, 6, 11, 12], 0].mean(1)
        assert (np.diff(trunks) > 0).all(), sample.id
        assert ((sample.keypoints[..., 2] == 2).mean(1) > 0.4).all() and (sample.areas > 40).all(), sample.id


def test_upright_single_people_fill_the_picture(samples):
    heights = [
        np.ptp(s.keypoints[0, 3:, 1]) / 64
        for s in samples
        if s.attributes["count"] == 1 and s.attributes["actions"][0] not in ("sitting", "lying")
    ]  # from ear to ankle: about 0.85 of the body
    assert min(heights) > 0.4 and 0.55 < np.median(heights) < 0.8 and max(heights) < 0.95


def test_everybody_turns_everywhere(samples):
    """From the front the left shoulder is on the right of the image; about a fifth are seen from behind."""
    sides = np.concatenate([s.keypoints[:, L_SHOULDER, 0] < s.keypoints[:, R_SHOULDER, 0] for s in samples])
    assert 0.05 < sides.mean() < 0.35


def test_twin_has_the_same_caption_and_another_picture():
    world = World()
    for index in range(20):
        sample, twin = world.render("test", index), world.render_caption_twin("test", index)
        assert (
            twin.prompt == sample.prompt and dict(twin.attributes) == dict(sample.attributes) and twin.id != sample.id
        )
        assert (twin.image != sample.image).mean() > 0.05
        assert not np.allclose(twin.keypoints, sample.keypoints, atol=1)
        np.testing.assert_array_equal(twin.image, World().render_caption_twin("test", index).image)


def test_errors_name_the_options():
    with pytest.raises(ValueError, match="train, validation, test"):
        World().render("val", 0)
    with pytest.raises(ValueError, match="64, 128"):
        World(size=100)
    with pytest.raises(ValueError, match="negative"):
        World().render("train", -1)
