"""Clothes in the mannequin world: exactly where they show, and who is dressed as whom."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from posegen.data.mannequin.captions import ACTIONS
from posegen.data.mannequin.dataset import MannequinData
from posegen.data.mannequin.pairs import MannequinPairs, Targets
from posegen.data.mannequin.world import REALISATION


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> MannequinPairs:
    return MannequinPairs("test", 40, cache=tmp_path_factory.mktemp("cache"), workers=1)


def test_a_garments_pixels_are_those_that_change_with_its_colour() -> None:
    world = Targets(size=256)
    for index in range(12):
        shirt, trousers = (world.garment("test", index, part) for part in ("shirt", "trousers"))
        assert shirt.any() and trousers.any() and not (shirt & trousers).any()
        plain = world._paint("test", index, REALISATION)[0]
        green = world._paint("test", index, REALISATION, shirt=(0, 255, 0))[0]
        changed = (plain != green).any(-1)
        assert not (changed & ~shirt).any() and changed[shirt].mean() > 0.99
        small = Targets(size=64).garment("test", index, "shirt")
        assert np.array_equal(small, shirt.reshape(64, 4, 64, 4).any((1, 3))), (
            "a small pixel counts as soon as it shares in the garment"
        )


def test_people_are_dressed_as_others_in_other_colours(data: MannequinPairs) -> None:
    people = data.transfers(None, "clothes")
    assert len(people) > 15 and len({people[i].id for i in range(len(people))}) == len(people)
    for i, (person, style, wrong) in enumerate(people.people):  # type: ignore[attr-defined]
        looks = [data[each].attributes for each in (person, style, wrong)]
        assert len({look["style"] for look in looks}) == 1 and looks[0]["style"] in ("photo", "cartoon")
        assert all(len(set(colours)) == 3 for colours in zip(*(look["colours"][0] for look in looks), strict=True))
        assert (
            np.array_equal(people.picture_of(i), data[person].image)
            and people.source_of(i).id == data.source_of(style).id
        )
        words = people[i].prompt.split()
        assert " ".join(words) and not {"shirt", "trousers"} & set(words) and any(action in words for action in ACTIONS)
        assert np.array_equal(people[i].keypoints, data[person].keypoints)


def test_masks_and_garments_belong_together(data: MannequinPairs) -> None:
    shirts, both = data.transfers(3, "shirt"), data.transfers(3, "clothes")
    for i in range(3):
        garments = both.garments_of(i)
        assert np.array_equal(both.mask_of(i), garments["picture"][0].mask | garments["picture"][1].mask)
        assert (
            np.array_equal(shirts.mask_of(i), garments["picture"][0].mask) and len(shirts.garments_of(i)["style"]) == 1
        )
        assert np.array_equal(garments["style"][0].image, both.source_of(i).image)
        assert garments["style_again"][0].image is not garments["style"][0].image and set(garments) == {
            "picture",
            "style",
            "style_again",
            "wrong_style",
        }
    assert shirts.identity != both.identity


def test_captions_tell_the_colours_that_are_to_be_worn_where_they_are_told_to(data: MannequinPairs) -> None:
    for garment in ("shirt", "clothes"):
        people = data.transfers(4, garment, told=True)
        for i, (person, style, _) in enumerate(people.people):  # type: ignore[attr-defined]
            (own,), (other,) = (data[each].attributes["colours"] for each in (person, style))
            assert f"{other[0]} shirt and {(own if garment == 'shirt' else other)[1]} trousers" in people[i].prompt
    assert data.transfers(4, "shirt", told=True).identity != data.transfers(4, "shirt").identity


def test_what_cannot_be_dressed_is_said(data: MannequinPairs, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="garment='hat'; expected one of shirt, trousers, clothes"):
        data.transfers(None, "hat")
    with pytest.raises(
        ValueError, match=r"count=400: the first 40 pairs of test have \d+ people to dress; raise data.test.count"
    ):
        data.transfers(400, "shirt")
    with pytest.raises(ValueError, match="data 'mannequin' does not know where clothes are"):
        MannequinData("test", 3, cache=tmp_path, workers=1).transfers(None, "shirt")
    worded = MannequinPairs("test", 20, cache=tmp_path, workers=1, prompt="")
    assert worded.transfers(2, "clothes")[0].prompt == ""
