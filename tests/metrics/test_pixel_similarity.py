"""Likeness to the target's picture: known values, the person's box, and the clothes' colours."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from posegen.data.base import Sample, to_tensor
from posegen.data.mannequin.pairs import MannequinPairs
from posegen.metrics.base import Judged, Poses
from posegen.metrics.pixel_similarity import Likeness, LikenessMetric, box_of, clothes, psnr, ssim

NOBODY = Poses(np.zeros((0, 17, 3), np.float32), np.zeros(0, np.float32))


def waves(shift: int, strength: float, base: float) -> np.ndarray:
    """An invented picture ``[256, 176, 3] uint8``."""
    y, x, c = np.mgrid[:256, :176, :3]
    return np.round(
        base + strength * np.sin(2 * np.pi * ((x - shift) / 16 + c / 3)) * np.cos(2 * np.pi * y / 24)
    ).astype(np.uint8)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> MannequinPairs:
    return MannequinPairs("test", 8, cache=tmp_path_factory.mktemp("cache"), workers=1)


def seen(pictures: list[np.ndarray], samples: list[Sample]) -> list[dict[str, float]]:
    # type: ignore[arg-type]
    return Likeness().observe(torch.stack([to_tensor(p) for p in pictures]), samples, None, real=False)


def test_values_of_invented_pictures() -> None:
    target, made = waves(0, 80, 128)[None], waves(2, 70, 120)[None]
    assert psnr(made, target)[0] == pytest.approx(18.4970, abs=1e-4)
    assert ssim(made, target)[0] == pytest.approx(0.6659, abs=1e-4)
    assert psnr(target, target)[0] == pytest.approx(10 * np.log10(12 * 255**2)) and ssim(target, target)[
        0
    ] == pytest.approx(1)


def test_small_pictures_have_a_smaller_window() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (1, 8, 6, 3)).astype(np.uint8)
    assert ssim(picture, picture)[0] == pytest.approx(1) and ssim(255 - picture, picture)[0] < 0.5


def test_the_target_itself_is_perfect_and_the_source_is_not(pairs: MannequinPairs) -> None:
    samples = [pairs[i] for i in range(8)]
    for looks in seen([s.image for s in samples], samples):
        assert (
            looks["colour_error"] == 0
            and looks["l1"] == looks["person_l1"] == 0
            and looks["person_psnr"] == pytest.approx(58.92, abs=0.01)
        )
    for looks in seen([pairs.source_of(i).image for i in range(8)], samples):
        assert (
            looks["person_psnr"] < looks["psnr"] < 40 and looks["ssim"] < 0.99 and looks["colour_error"] > 0
        )  # only the person has moved


def test_colours_are_those_of_the_clothes(pairs: MannequinPairs) -> None:
    target = pairs[0]
    torso, legs = clothes(target.keypoints[0], target.size)
    assert torso.any() and legs.any()
    elsewhere, dyed = target.image.copy(), target.image.copy()
    elsewhere[~(torso | legs)] = 0
    dyed[torso] = (255, 0, 0)
    away, red = seen([elsewhere, dyed], [target, target])
    assert away["colour_error"] == 0 < red["colour_error"] and away["psnr"] < red["psnr"]
    rows, columns = box_of(target.keypoints[0], target.size)
    outside = target.image.copy()
    outside[: rows.start], outside[:, columns.stop :] = 0, 0
    assert seen([outside], [target])[0]["person_l1"] == 0


def test_what_is_unknown_is_no_number_and_does_not_count(pairs: MannequinPairs) -> None:
    target = pairs[0]
    nobody = Sample("a", "", np.zeros((0, 17, 3)), np.zeros(0), target.image, target.size)
    headless = Sample("b", "", target.keypoints * np.array([1, 1, 0]), target.areas, target.image, target.size)
    records = [seen([255 - target.image], [sample])[0] for sample in (nobody, headless, target)]
    assert all(np.isnan(r["colour_error"]) and np.isnan(r["person_psnr"]) for r in records[:2])
    metric = LikenessMetric()
    rows = [metric.record(Judged("i", target.keypoints, target.areas, NOBODY, observed=r)) for r in records]
    values = metric.compute({name: [row[name] for row in rows] for name in rows[0]})
    assert values["colour_error"] == pytest.approx(records[2]["colour_error"]) and values["PSNR"] == pytest.approx(
        np.mean([r["psnr"] for r in records])
    )


def test_a_target_without_a_picture_or_of_another_size_is_said(pairs: MannequinPairs) -> None:
    target = pairs[0]
    with pytest.raises(ValueError, match="sample a has no picture to compare with"):
        seen([target.image], [Sample("a", "", target.keypoints, target.areas, None, target.size)])
    with pytest.raises(ValueError, match=r"pictures are \(32, 32\), their targets \(64, 64\) pixels"):
        seen([target.image[::2, ::2]], [target])
