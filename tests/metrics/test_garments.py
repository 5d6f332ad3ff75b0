"""Colours of garments: what is close, what is missing, and what a summary says."""

from __future__ import annotations

import math

import numpy as np
import pytest

from posegen.data.base import Garment
from posegen.metrics.garments import colour, distance, summarised, transferred

RED, BLUE, GREEN = (200, 40, 40), (40, 40, 200), (40, 160, 60)


def painted(shirt: tuple[int, int, int], trousers: tuple[int, int, int] = RED) -> list[Garment]:
    image, masks = np.full((20, 20, 3), 128, np.uint8), np.zeros((2, 20, 20), bool)
    masks[0, 2:8, 5:15], masks[1, 10:18, 5:15] = True, True
    image[masks[0]], image[masks[1]] = shirt, trousers
    return [Garment(image, mask) for mask in masks]


def test_a_colour_is_the_median_and_distances_are_those_of_lab() -> None:
    shirt = painted(RED)[0]
    noisy = shirt.image.copy()
    noisy[2, 5:12] = 0  # a dark contour
    assert np.array_equal(colour(noisy, shirt.mask), colour(shirt.image, shirt.mask))
    white, grey = (colour(np.full((2, 2, 3), value, np.uint8), np.ones((2, 2), bool)) for value in (255, 0))
    assert white == pytest.approx([100, 0, 0], abs=0.01) and distance([white], [grey]) == pytest.approx(100, abs=0.01)
    nothing = colour(shirt.image, np.zeros_like(shirt.mask))
    assert distance([nothing, white], [white, grey]) == pytest.approx(100, abs=0.01) and math.isnan(
        distance([nothing], [white])
    )


def test_a_result_in_the_styles_colours_follows_it() -> None:
    garments = {
        "picture": painted(RED, BLUE),
        "style": painted(BLUE, GREEN),
        "style_again": painted(BLUE, GREEN),
        "wrong_style": painted(GREEN, RED),
    }
    picture, mask = garments["picture"][0].image, garments["picture"][0].mask | garments["picture"][1].mask
    good, same = painted(BLUE, GREEN)[0].image, picture
    row = transferred(picture, mask, good, garments)
    assert row["to_style"] == row["style_again_to_style"] == row["outside_max_difference"] == 0 and row["follows"] == 1
    assert (
        row["gain"] == row["to_picture"] == row["picture_to_style"] > 30 and row["margin"] == row["to_wrong_style"] > 30
    )
    kept = transferred(picture, mask, same, garments)
    assert kept["gain"] == kept["follows"] == kept["inside_mean_difference"] == 0
    spoilt = good.copy()
    spoilt[0, 0, 1] += 7
    assert transferred(picture, mask, spoilt, garments)["outside_max_difference"] == 7
    assert set(transferred(picture, mask, good, {})) == {"outside_max_difference", "inside_mean_difference"}


def test_a_summary_has_means_intervals_and_the_largest() -> None:
    rows = [{"a": float(i), "b": 1.0 if i else math.nan} for i in range(9)]
    first, second = summarised(rows, resamples=200)
    assert (
        first["mean"] == 4
        and 2 < first["lo"] < 4 < first["hi"] < 6
        and first["largest"] == 8
        and first["n_images"] == 9
    )
    assert (second["mean"], second["lo"], second["hi"], second["n_images"]) == (1, 1, 1, 8)
