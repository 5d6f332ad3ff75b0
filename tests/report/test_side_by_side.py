"""Pictures show what they claim to."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from posegen.metrics.base import Poses
from posegen.report.side_by_side import picture_table, scenario_pictures
from posegen.runner.images import SCORE, picture, read_png, triple, write_png


def person(score: float) -> Poses:
    points = np.random.default_rng(0).uniform(10, 50, (1, 17, 2))
    return Poses(np.concatenate([points, np.full((1, 17, 1), score)], -1).astype(np.float32), np.ones(1, np.float32))


def test_the_judges_pose_is_drawn_over_the_sample_where_it_is_sure() -> None:
    image = np.full((64, 64, 3), 200, np.uint8)
    target, sample, judged = np.split(triple(image, person(2).keypoints, person(0.9)), 3, axis=1)
    assert (sample == 200).all() and (judged != 200).any() and target.any()
    unsure = np.split(triple(image, person(2).keypoints, person(SCORE / 2)), 3, axis=1)[2]
    assert (unsure == 200).all()


def test_the_overview_has_a_pose_column_and_two_per_method(tmp_path: Path) -> None:
    panel = triple(np.zeros((8, 8, 3), np.uint8), person(2).keypoints, person(0.9))
    for name in ("a", "b"):
        write_png(picture(tmp_path / name / "judged", 0), panel)
    grid = picture_table({name: tmp_path / name for name in ("a", "b", "absent")})
    assert grid is not None and grid.shape[1] == 24 * 5 and grid.shape[0] > 24
    assert picture_table({"absent": tmp_path / "absent"}) is None


def test_the_source_stands_beside_the_pose_where_the_data_has_some(tmp_path: Path) -> None:
    panel = triple(np.zeros((8, 8, 3), np.uint8), person(2).keypoints, person(0.9))
    for name in ("plain", "sourced"):
        write_png(picture(tmp_path / name / "judged", 0), panel)
    write_png(
        picture(tmp_path / "sourced" / "sources", 0), np.full((8, 16, 3), 200, np.uint8)
    )  # two pictures side by side
    cells = {name: tmp_path / name for name in ("plain", "sourced")}
    for grid, columns in ((picture_table(cells), 6), (scenario_pictures(["a"], cells, None)["a"], 4)):
        assert grid is not None and grid.shape[1] == 24 * columns
        source = grid[-24:, 24:48]
        assert (source[6:18] == 200).all() and not source[:6].any() and not source[18:].any()
    assert scenario_pictures(["a"], {"plain": tmp_path / "plain"}, None)["a"].shape[1] == 24 * 2


def test_a_png_comes_back(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (5, 7, 3), np.uint8)
    write_png(tmp_path / "x.png", image)
    assert np.array_equal(read_png(tmp_path / "x.png"), image)
