"""The second rendering: what it shares with the first, and that its keypoints lie on the people."""

import hashlib

import numpy as np
import pytest

from posegen.data.mannequin.dataset import MannequinData, SoftMannequinData
from posegen.data.mannequin.figure import GARMENTS, RIGHT_BRIGHTNESS
from posegen.data.mannequin.pairs import SoftPairs, SoftSources, SoftTargets, Targets
from posegen.data.mannequin.soft_canvas import SoftCanvas
from posegen.data.mannequin.soft_world import SoftWorld
from posegen.data.mannequin.world import World

GOLDEN = {"1.1": "3c3903f209ecb661"}
L_KNEE, R_KNEE = 13, 14


@pytest.fixture(scope="module")
def pairs():
    """The same images of both worlds, on full canvases."""
    return [(World(size=256).render("test", i), SoftWorld(size=256).render("test", i)) for i in range(60)]


def test_the_rendering_has_not_changed_without_a_new_version():
    total = hashlib.sha256()
    for index in range(24):
        sample = SoftWorld(size=128).render("test", index)
        for part in (sample.image, sample.keypoints, sample.areas):
            total.update(np.ascontiguousarray(part).tobytes())
        total.update(f"{sample.id} {sample.prompt}".encode())
    assert total.hexdigest()[:16] == GOLDEN[SoftWorld.version], "raise RENDERING_VERSION and add its digest here"


def test_captions_and_people_are_those_of_the_first_rendering(pairs):
    alone = hidden = 0
    for first, second in pairs:
        assert (first.prompt, dict(first.attributes)) == (second.prompt, dict(second.attributes))
        there = (first.keypoints[..., 2] > 0) & (second.keypoints[..., 2] > 0)
        for k, (old, new) in enumerate(zip(first.keypoints, second.keypoints, strict=True)):
            shift = (new - old)[there[k], :2]
            np.testing.assert_allclose(shift, np.broadcast_to(shift[0], shift.shape), atol=0.13)  # 1/16 pixel each
            assert abs(shift[:, 1]).max() < 0.13
            if len(first.keypoints) == 1:
                assert (shift == 0).all()
                alone += 1
        hidden += (second.keypoints[..., 2] == 1).sum() - (first.keypoints[..., 2] == 1).sum()
        assert ((second.keypoints[..., 2] == 2).mean(1) > 0.3).all(), second.id
    assert alone > 20 and hidden > 20  # more is hidden than in the first rendering


def test_splits_are_those_of_the_first_rendering(tmp_path):
    settings = {"count": 3, "cache": tmp_path, "workers": 1}
    for split in ("train", "validation", "test"):
        first, second = MannequinData(split, **settings), SoftMannequinData(split, size=128, **settings)
        assert first.prompts == second.prompts and second[0].image.shape == (128, 128, 3)
        assert first.identity["version"] == 1 and second.identity["version"] == "1.1"
        assert first[0].id == f"mannequin/{split}/000000" and second[0].id == f"mannequin_v2/{split}/000000"


def test_the_colour_at_a_visible_knee_is_that_of_the_trousers(pairs):
    """The right one is darker, so left and right can be told apart."""
    checked = 0
    for _, sample in pairs:
        style, actions = sample.attributes["style"], sample.attributes["actions"]
        if style != "photo" or len(actions) > 1 or actions[0] in ("sitting", "lying", "kicking", "running"):
            continue
        points = np.rint(sample.keypoints[0, :, :2]).astype(int)
        visible = (sample.keypoints[0, [L_KNEE, R_KNEE], 2] == 2).all()
        if not visible or abs(points[L_KNEE, 0] - points[R_KNEE, 0]) < 24:
            continue
        colour = np.array(GARMENTS[sample.attributes["colours"][0][1]], float)
        x, y = points[[L_KNEE, R_KNEE]].T
        left, right = (sample.image[b - 1 : b + 2, a - 1 : a + 2].mean((0, 1)) for a, b in zip(x, y, strict=True))
        for seen in (left, right):
            assert np.abs(seen / seen.sum() - colour / colour.sum()).max() < 0.09, sample.id
        assert right.sum() < (RIGHT_BRIGHTNESS + 0.25) * left.sum(), sample.id
        checked += 1
    assert checked >= 3


def test_every_pixel_of_a_person_has_an_owner():
    """Nothing but the person's pixels changes when the person is painted: shadows fall on people alone."""
    world = SoftWorld(size=256)
    for index in range(8):
        canvas = world._blank(world.describe("test", index), "test", index, 1)
        assert isinstance(canvas, SoftCanvas)
        canvas.pixels[:] = (255, 0, 255, 0)
        body_image = world.figure(*_one_person(index), (128.0, 150.0), 220.0)
        world.painter.paint(canvas, 3, body_image)
        changed = (canvas.pixels[..., :3] != (255, 0, 255)).any(-1)
        np.testing.assert_array_equal(changed, canvas.pixels[..., 3] == 3)


def _one_person(seed):
    from posegen.data.mannequin.body import random_body
    from posegen.data.mannequin.figure import random_outfit
    from posegen.data.mannequin.rng import Dice

    dice = Dice(seed)
    return random_body("dancing", dice), random_outfit("photo", "red", "blue", dice)


def test_pairs_show_the_people_of_the_first_rendering(tmp_path):
    data = SoftPairs("test", 4, size=128, cache=tmp_path, workers=1)
    for index in range(4):
        assert data[index].prompt == Targets().render("test", index).prompt
        np.testing.assert_array_equal(data[index].image, SoftTargets(size=128).render("test", index).image)
        np.testing.assert_array_equal(data.source_of(index).image, SoftSources(size=128).render("test", index).image)
