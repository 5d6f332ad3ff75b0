"""Tables come from records alone and say what is missing."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest

from posegen.cli import main
from posegen.metrics.base import Judged, Poses
from posegen.metrics.distribution import DistributionMetric
from posegen.metrics.pose import PoseMetric
from posegen.metrics.protocol import Protocol
from posegen.runner.files import write_json
from posegen.runner.pictures import picture, write_png
from posegen.runner.table import build_table, latex_text, write_table

PROTOCOL = {
    "_target_": "posegen.metrics.protocol.Protocol",
    "resamples": 50,
    "metrics": [{"_target_": "posegen.metrics.pose.PoseMetric"}, {"_target_": "posegen.metrics.distribution.DistributionMetric"}],
}


def judged(shift: float, seed: int = 0, count: int = 12) -> list[Judged]:
    """One person an image, found ``shift`` pixels beside where it should be."""
    dice = np.random.default_rng(seed)
    images = []
    for i in range(count):
        target = np.concatenate([dice.uniform(10, 50, (1, 17, 2)), np.full((1, 17, 1), 2.0)], -1).astype(np.float32)
        found = target.copy()
        found[..., 0] += shift
        images.append(Judged(f"x/{i}", target, np.array([900.0]), Poses(found, np.ones(1)), features=dice.normal(size=4)))
    return images


def finished(folder: Path, name: str, shift: float, seed: int = 0) -> dict:
    protocol = Protocol([PoseMetric(), DistributionMetric()], resamples=50)
    cell = folder / name / "world" / f"seed{seed}"
    protocol.write(cell, protocol.records(judged(shift)))
    protocol.write(cell / "reference", protocol.records(judged(0, seed=9)))
    write_json(cell / "status.json", {"state": "finished", "hash": name, "wall_s": 1.0})
    write_json(cell / "costs.json", {"trained_parameters": 1_500_000, "sample_images_per_s": 3.25})
    write_png(picture(cell / "samples", 0), np.zeros((8, 8, 3), np.uint8))
    return {"folder": str(cell.relative_to(folder)), "method": name, "seed": seed, "hash": name}


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    cells = [finished(tmp_path, "near", 0.2), finished(tmp_path, "none", 6.0), finished(tmp_path, "reference/real", 0.0)]
    cells.append({"folder": "broken/world/seed0", "method": "broken", "seed": 0, "hash": "broken"})
    write_json(tmp_path / "broken/world/seed0/status.json", {"state": "failed", "hash": "broken", "reason": "ran out of luck & time"})
    cells.append({"folder": "absent/world/seed0", "method": "absent", "seed": 0, "hash": "absent"})
    write_json(tmp_path / "cells.json", {"title": "A 100% test", "baseline": "none", "protocol": PROTOCOL, "cells": cells})
    return tmp_path


def test_every_expected_cell_has_a_row(benchmark: Path) -> None:
    rows = {row["method"]: row for row in csv.DictReader(io.StringIO(build_table(benchmark).csv()))}
    assert list(rows) == ["near", "none", "reference/real", "broken", "absent"]
    assert float(rows["near"]["PCK@0.1"]) == 100.0 and float(rows["near"]["AP"]) > float(rows["none"]["AP"])
    assert rows["near"]["state"] == "finished" and rows["near"]["n_seeds"] == "1" and rows["near"]["cost_sample_images_per_s"] == "3.25"
    assert (rows["broken"]["state"], rows["broken"]["reason"]) == ("failed", "ran out of luck & time")
    assert rows["absent"]["state"] == "missing" and rows["absent"]["AP"] == ""


def test_methods_are_tested_against_the_baseline_and_references_are_not(benchmark: Path) -> None:
    rows = {row["method"]: row for row in csv.DictReader(io.StringIO(build_table(benchmark).csv()))}
    assert float(rows["near"]["AP_p"]) < 0.1
    assert rows["none"]["AP_p"] == rows["reference/real"]["AP_p"] == ""


def test_the_best_method_is_marked_and_a_reference_never_is(benchmark: Path) -> None:
    lines = build_table(benchmark).markdown().splitlines()
    near, real = (next(line for line in lines if line.startswith(f"| {name}")) for name in ("near", "reference/real"))
    assert "**100.0" in near and "**" not in real


def test_all_formats_are_written_and_the_page_is_whole(benchmark: Path) -> None:
    write_table(benchmark)
    tex, page = (benchmark / "table.tex").read_text(), (benchmark / "table.html").read_text()
    assert r"\toprule" in tex and r"A 100\% test" in tex and r"luck \& time" in tex
    assert page.count("data:image/png;base64,") == 3 and "http" not in page
    assert "ran out of luck &amp; time" in page


def test_a_table_made_again_has_the_same_bytes(benchmark: Path) -> None:
    write_table(benchmark)
    first = (benchmark / "table.csv").read_bytes()
    assert main(["table", str(benchmark)]) == 0
    assert (benchmark / "table.csv").read_bytes() == first


def test_two_settings_of_a_method_are_two_rows(tmp_path: Path) -> None:
    cells = []
    for scale in (2, 4):
        cell = finished(tmp_path, "near", scale / 10)
        target = tmp_path / f"near/world,sampler.guidance={scale}"
        (tmp_path / "near/world").rename(target)
        cells.append({**cell, "folder": f"near/{target.name}/seed0"})
    write_json(tmp_path / "cells.json", {"protocol": PROTOCOL, "cells": cells})
    assert [row["method"] for row in build_table(tmp_path).rows] == ["near (sampler.guidance=2)", "near (sampler.guidance=4)"]


def test_a_folder_without_a_benchmark_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", str(tmp_path)]) != 0
    assert "posegen benchmark" in capsys.readouterr().err


def test_latex_text_is_escaped() -> None:
    assert latex_text("**5_%**") == r"\textbf{5\_\%}"
