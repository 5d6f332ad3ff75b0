"""Preference scores stand in the table as shares of images that beat the baseline's of the same caption and seed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from posegen.io.atomic import write_json, write_text
from posegen.metrics.base import Judged, Poses
from posegen.metrics.preference.win_rates import WinRateMetric
from posegen.metrics.protocol import Protocol
from posegen.report.formats import table_markdown
from posegen.report.table import Table, build_table

METRIC = {"name": "PickScore", "setting": "protocol.pickscore=FOLDER"}
NODE = {
    "_target_": "posegen.metrics.protocol.Protocol",
    "resamples": 300,
    "metrics": [{"_target_": "posegen.metrics.preference.win_rates.WinRateMetric", **METRIC}],
}


def study(folder: Path, scores: dict[str, list[np.ndarray]], baseline: str = "none") -> Table:
    """A study whose cells have these scores, one array per seed."""
    cells, protocol = [], Protocol([WinRateMetric(**METRIC)], resamples=300)
    for name, seeds in scores.items():
        for seed, found in enumerate(seeds):
            cell, empty = folder / name / "data" / f"seed{seed}", np.zeros((0, 17, 3))
            facts = [{"PickScore_score": x} for x in found]
            nobody = Poses(empty, np.zeros(0))
            images = [Judged(f"x/{i}", empty, np.zeros(0), nobody, observed=each) for i, each in enumerate(facts)]
            for place in (cell, cell / "reference"):
                protocol.write(place, protocol.records(images))
            write_json(cell / "status.json", {"state": "finished", "hash": "h", "wall_s": 1.0})
            cells.append({"folder": str(cell.relative_to(folder)), "method": name, "seed": seed, "hash": "h"})
    write_json(folder / "cells.json", {"title": "T", "baseline": baseline, "protocol": NODE, "cells": cells})
    return build_table(folder)


def test_a_row_is_compared_image_by_image_with_the_baseline_of_its_seed(tmp_path: Path) -> None:
    """Captions differ far more than methods, so that the means say nothing."""
    dice = np.random.default_rng(0)
    base = [dice.normal(0, 50, 60) for _ in range(2)]
    gain = np.where(np.arange(60) % 4 == 0, -1.0, 0.5)
    gain[:6] = 0
    better = [values + gain for values in base]
    table = study(tmp_path, {"none": base, "better": better, "reference/real": [v + 1 for v in base]})
    rows = {row["method"]: row for row in table.rows}
    wins = 100 * np.mean((np.sign(gain) + 1) / 2)
    assert [rows[name]["PickScore_wins"] for name in rows] == pytest.approx([50, wins, 100])
    assert rows["none"]["PickScore_wins_lo"] == rows["none"]["PickScore_wins_hi"] == 50
    assert (
        rows["better"]["PickScore_wins_lo"] < wins < rows["better"]["PickScore_wins_hi"]
        and rows["better"]["PickScore_wins_p"] < 0.05
    )
    assert "PickScore_wins" in table_markdown(table) and not any("mean" in column for column in table.columns)


def test_without_a_baseline_of_the_same_seeds_the_column_is_empty_and_says_why(tmp_path: Path) -> None:
    values = np.arange(20.0)
    table = study(tmp_path / "one", {"none": [values], "other": [values + 1, values]})
    assert np.isnan(table.rows[1]["PickScore_wins"]) and table.rows[0]["PickScore_wins"] == 50
    assert any(
        "No PickScore_wins of other: there is no baseline with the same images and seeds" in n for n in table.notes
    )
    table = study(tmp_path / "two", {"a": [values], "b": [values]}, baseline="none")
    assert all(np.isnan(row["PickScore_wins"]) for row in table.rows)


def test_records_without_scores_name_the_setting() -> None:
    protocol = Protocol([WinRateMetric(**METRIC)])
    nobody = Judged("0", np.zeros((0, 17, 3)), np.zeros(0), Poses(np.zeros((0, 17, 3)), np.zeros(0)))
    assert protocol.absent(protocol.records([nobody])) == {
        "PickScore_wins": "the network is not configured: set protocol.pickscore=FOLDER"
    }


def test_a_second_judge_compares_with_the_baseline_too(tmp_path: Path) -> None:
    """The preferences of finished cells stand beside the first judge's columns."""
    values = np.arange(20.0)
    study(tmp_path, {"none": [values], "better": [values + 1]})
    for cell in tmp_path.glob("*/data/seed0"):
        write_json(cell / "status.json", {"state": "finished", "hash": "h", "identity": {"estimator": {}}})
        judge = cell / "judges/preference"
        shutil.copytree(cell, judge, ignore=shutil.ignore_patterns("judges"))
        identity = {"cell": "h", "estimator": {}, "protocol": NODE}
        write_json(judge / "status.json", {"state": "finished", "hash": "h", "identity": identity})
        config = {"method": "m", "seed": 0, "study": "s", "protocol": NODE}
        write_text(judge / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
    judges = build_table(tmp_path).judges
    assert judges is not None and "PickScore_wins (preference)" in judges.columns
    assert [row["PickScore_wins (preference)"] for row in judges.rows] == [50, 100]
