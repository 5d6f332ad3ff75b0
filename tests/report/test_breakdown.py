"""Scenario by scenario: the same columns on fewer images."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from posegen.io.atomic import write_json
from posegen.metrics.base import Judged, Poses
from posegen.metrics.distribution import DistributionMetric
from posegen.metrics.pose import PoseMetric
from posegen.metrics.protocol import Protocol
from posegen.report.breakdown import MACRO
from posegen.report.formats import breakdown_csv, breakdown_grid, breakdown_markdown
from posegen.report.table import build_table
from posegen.report.write import write_table
from posegen.runner.images import picture, read_png, triple, write_png

PROTOCOL = {
    "_target_": "posegen.metrics.protocol.Protocol",
    "resamples": 20,
    "metrics": [
        {"_target_": "posegen.metrics.pose.PoseMetric"},
        {"_target_": "posegen.metrics.distribution.DistributionMetric"},
    ],
}
SCENARIOS = ["oil painting"] * 3 + ["cartoon"] * 5


def judged(shifts: dict[str, float], names: list[str], seed: int = 0) -> list[Judged]:
    """One person an image, found as far beside its place as the image's scenario says."""
    dice = np.random.default_rng(seed)
    images = []
    for i, name in enumerate(names):
        target = np.concatenate([dice.uniform(10, 50, (1, 17, 2)), np.full((1, 17, 1), 2.0)], -1).astype(np.float32)
        found = target.copy()
        found[..., 0] += shifts[name]
        images.append(
            Judged(
                f"x/{i}",
                target,
                np.array([900.0]),
                Poses(found, np.ones(1)),
                {"scenario": name},
                features=dice.normal(size=3),
            )
        )
    return images


def benchmark(folder: Path, names: list[str] = SCENARIOS, seeds: int = 2) -> Path:
    protocol, cells = Protocol([PoseMetric(), DistributionMetric()]), []
    rows: dict[str, dict[str, float]] = {
        "steady": {"oil painting": 1.0, "cartoon": 1.0},
        "painter": {"oil painting": 0.0, "cartoon": 20.0},
        "reference/real": {"oil painting": 0.0, "cartoon": 0.0},
    }
    for method, shifts in rows.items():
        for seed in range(seeds):
            cell = folder / method / "art" / f"seed{seed}"
            known = {name: shifts.get(name, 0.0) for name in names}
            protocol.write(cell, protocol.records(judged(known, names)))
            protocol.write(cell / "reference", protocol.records(judged(dict.fromkeys(names, 0.0), names, seed=5)))
            write_json(cell / "status.json", {"state": "finished", "hash": method, "wall_s": 1.0})
            cells.append({"folder": f"{method}/art/seed{seed}", "method": method, "seed": seed, "hash": method})
    write_json(
        folder / "cells.json",
        {"title": "Art", "protocol": PROTOCOL, "cells": cells, "headline": ["PCK@0.1", "AP", "judge_frechet"]},
    )
    return folder


def rows(folder: Path) -> dict[tuple[str, str], dict[str, str]]:
    found = build_table(folder).scenarios
    assert found is not None
    return {(row["method"], row["scenario"]): row for row in csv.DictReader(io.StringIO(breakdown_csv(found)))}


def test_every_method_has_a_value_per_scenario_and_their_mean(tmp_path: Path) -> None:
    table = rows(benchmark(tmp_path))
    assert len(table) == 3 * 3 and {n for _, n in table} == {"cartoon", "oil painting", MACRO}
    painter = {name: table["painter", name] for name in ("oil painting", "cartoon", MACRO)}
    assert [painter[n]["n_images"] for n in painter] == ["3", "5", "8"]
    assert float(painter["oil painting"]["PCK@0.1"]) == 100 and float(painter["cartoon"]["PCK@0.1"]) < 20
    assert float(painter[MACRO]["PCK@0.1"]) == pytest.approx((100 + float(painter["cartoon"]["PCK@0.1"])) / 2), (
        "unweighted, though there are more cartoons"
    )


def test_distances_are_to_real_pictures_of_the_same_scenario(tmp_path: Path) -> None:
    folder = benchmark(tmp_path, seeds=1)
    protocol = Protocol([PoseMetric(), DistributionMetric()])
    cell = folder / "steady/art/seed0"
    three, real = ({k: v[:3] for k, v in protocol.read(place).items()} for place in (cell, cell / "reference"))
    wanted = protocol.values(three, np.ones((1, 3)), real)["judge_frechet"][0]
    assert float(rows(folder)["steady", "oil painting"]["judge_frechet"]) == pytest.approx(wanted)


def test_a_scenario_too_small_for_a_column_has_a_gap_and_a_reason(tmp_path: Path) -> None:
    folder = benchmark(tmp_path, [*SCENARIOS, "sketch"], seeds=1)
    table = rows(folder)
    assert table["steady", "sketch"]["judge_frechet"] == "" and table["steady", MACRO]["judge_frechet"] == ""
    scenarios = build_table(folder).scenarios
    assert scenarios is not None and scenarios.notes[0].startswith("sketch: distances of sets need at least 2")
    assert "| sketch | 1 | - |" in breakdown_markdown(scenarios, "Art")


def test_readers_see_methods_side_by_side(tmp_path: Path) -> None:
    folder = benchmark(tmp_path)
    write_table(folder)
    text, page = (folder / "table_scenarios.md").read_text(), (folder / "table.html").read_text()
    assert "## PCK@0.1\n\n| scenario | images | steady | painter | reference/real |" in text
    assert "| oil painting | 3 | 100.0 | 100.0 | 100.0 |" in text and "| cartoon | 5 | **100.0** |" in text
    errors = page.partition("id='errors'")[2].partition("</section>")[0].count("<details")
    assert page.count("<details") == 3 + 1 + errors and "macro mean" in page
    first = (folder / "table_scenarios.md").read_bytes(), (folder / "table_scenarios.csv").read_bytes()
    write_table(folder)
    assert first == ((folder / "table_scenarios.md").read_bytes(), (folder / "table_scenarios.csv").read_bytes())


def test_a_method_of_which_a_seed_failed_is_not_the_best_of_a_part(tmp_path: Path) -> None:
    folder = benchmark(tmp_path)
    write_json(folder / "steady/art/seed1/status.json", {"state": "failed", "hash": "steady", "reason": "no luck"})
    found = build_table(folder).scenarios
    assert found is not None and {row["state"] for row in found.rows if row["method"] == "steady"} == {"failed"}
    assert all(entry.rank == 0 for column in found.columns for line in breakdown_grid(found, column) for entry in line)


def test_data_without_scenarios_has_no_such_table(tmp_path: Path) -> None:
    folder = benchmark(tmp_path, ["cartoon"] * 4, seeds=1)
    table = write_table(folder)
    assert (
        table.scenarios is None
        and not (folder / "table_scenarios.md").exists()
        and "By scenario" not in (folder / "table.html").read_text()
    )


def test_scenarios_may_be_numbers(tmp_path: Path) -> None:
    table = rows(benchmark(tmp_path, ["1", "1", "2", "2"], seeds=1))
    assert {name for _, name in table} == {"1", "2", MACRO}


def test_every_scenario_with_judged_pictures_has_a_grid(tmp_path: Path) -> None:
    """Target, every method, and the real picture; pictures that nobody drew leave no grid."""
    folder = benchmark(tmp_path, seeds=1)
    people = judged({"oil painting": 0.0, "cartoon": 0.0}, SCENARIOS)
    for grey, method in enumerate(("steady", "painter", "reference/real"), 1):
        for i in (0, 1):
            panel: Any = triple(np.full((16, 16, 3), 40 * grey, np.uint8), people[i].keypoints, people[i].found, zoom=1)
            write_png(picture(folder / method / "art/seed0/judged", i), panel)
    write_table(folder)
    assert [file.name for file in (folder / "pictures").iterdir()] == ["oil_painting.png"]
    grid = read_png(folder / "pictures/oil_painting.png")
    assert grid.shape == (26 + 2 * 16, 4 * 16, 3)
    _, *pictures = np.split(grid[26:], 4, axis=1)
    assert [set(panel.ravel().tolist()) for panel in pictures] == [{40}, {80}, {120}], (
        "samples without what the judge saw, the real picture last"
    )
