"""Several judges of the same pictures stand side by side, with how far they agree."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from posegen.cli import main
from posegen.io.atomic import read_json, write_json, write_text
from posegen.metrics.base import Judged, Poses
from posegen.metrics.math.rank_correlation import spearman
from posegen.metrics.pose import PoseMetric
from posegen.metrics.protocol import Protocol
from posegen.report.html import results_page
from posegen.report.table import build_table
from posegen.report.write import write_table
from tests.metrics.invented_people import person

PROTOCOL = {
    "_target_": "posegen.metrics.protocol.Protocol",
    "resamples": 30,
    "metrics": [{"_target_": "posegen.metrics.pose.PoseMetric"}],
}
FIRST, SECOND = ({"_target_": f"judges.{name}.from_pretrained", "folder": f"sha256:{name}"} for name in ("One", "Two"))
SHIFTS = {"near": 0.3, "middle": 1.0, "far": 2.5, "reference/real": 0.0}


def judged(shift: float, seed: int, count: int = 10) -> list[Judged]:
    """One person an image, whose joints are found about ``shift`` pixels beside where they should be."""
    dice, images = np.random.default_rng(seed), []
    for i in range(count):
        target = person(*dice.uniform(20, 40, 2)).astype(np.float32)[None]
        found = target.copy()
        found[..., :2] += dice.normal(0, 1e-3 + shift * (0.2 + i / count), found[..., :2].shape)
        images.append(Judged(f"x/{i}", target, np.array([200.0]), Poses(found, np.ones(1))))
    return images


def write_cell(cell: Path, status: dict[str, Any], shift: float, seed: int = 0) -> None:
    protocol = Protocol([PoseMetric()], resamples=30)
    protocol.write(cell, protocol.records(judged(shift, seed)))
    protocol.write(cell / "reference", protocol.records(judged(0, 9)))
    write_json(cell / "status.json", {"state": "finished", "wall_s": 1.0, **status})
    config = {"method": "m", "seed": 0, "study": "s", "protocol": PROTOCOL}
    write_text(cell / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))


def write_second(folder: Path, shift: float, name: str = "two", **about: Any) -> None:
    identity = {"cell": read_json(folder / "status.json")["hash"], "estimator": SECOND, "protocol": PROTOCOL, **about}
    write_cell(folder / "judges" / name, {"hash": f"{folder}", "identity": identity}, shift, seed=1)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    entries = []
    for name, shift in SHIFTS.items():
        cell = tmp_path / name / "world/seed0"
        write_cell(cell, {"hash": name, "identity": {"estimator": FIRST, "protocol": PROTOCOL}}, shift)
        write_second(cell, shift * 1.5)
        entries.append({"folder": str(cell.relative_to(tmp_path)), "method": name, "seed": 0, "hash": name})
    write_json(tmp_path / "cells.json", {"title": "T", "baseline": "near", "protocol": PROTOCOL, "cells": entries})
    return tmp_path


def rows(study: Path) -> dict[str, dict[str, str]]:
    with (study / "table_judges.csv").open(newline="") as file:
        return {row["method"]: row for row in csv.DictReader(file)}


def test_the_columns_carry_the_names_of_the_judges_and_the_first_table_keeps_its_bytes(study: Path) -> None:
    write_table(study)
    table = rows(study)
    assert list(table) == list(SHIFTS)
    with (study / "table.csv").open(newline="") as file:
        first = {row["method"]: row for row in csv.DictReader(file)}
    for name, row in table.items():
        for end in ("", "_lo", "_hi"):
            assert row[f"AP (One){end}"] == first[name][f"AP{end}"]
    protocol = Protocol([PoseMetric()], resamples=30)
    second = protocol.read(study / "far/world/seed0/judges/two")
    assert float(table["far"]["AP (two)"]) == protocol.metrics[0].compute(second)["AP"]
    text = (study / "table_judges.md").read_text()
    assert "| method | PCK@0.1 (One) | PCK@0.1 (two) | AP (One) | AP (two) | count_error (One) |" in text
    whole = (study / "table.csv").read_bytes()
    for cell in study.glob("**/judges"):
        cell.rename(cell.with_name("gone"))
    (study / "table_judges.csv").unlink()
    assert write_table(study).judges is None and (study / "table.csv").read_bytes() == whole
    assert not (study / "table_judges.csv").exists()


def test_the_agreement_of_the_judges_is_printed(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", str(study)]) == 0
    shown = capsys.readouterr().out
    assert "Order by PCK@0.1 against the same by judge two (3 methods): Kendall's tau 1.00" in shown
    protocol = Protocol([PoseMetric()], resamples=30)
    metric, values = protocol.metrics[0], []
    for folder in ("", "judges/two"):
        records = protocol.read(study / "far/world/seed0" / folder)
        values.append(metric.resampled(records, np.eye(10))["PCK@0.1"])
    rho = float(spearman(*values))
    assert f"far {rho:.2f}" in shown and "PCK@0.1 image by image, One and two: Spearman's rho" in shown
    assert "the same by judge two" in (study / "table_orders.csv").read_text()
    page = results_page(build_table(study), 0)
    assert "PCK@0.1 (two)" in page.replace("<wbr>", "") and "By judge" in page


def test_rows_that_a_judge_has_not_judged_have_no_values_of_it_and_a_reason(study: Path) -> None:
    cells = {name: study / name / "world/seed0" for name in SHIFTS}
    (cells["near"] / "judges/two/status.json").unlink()
    write_second(cells["middle"], 1.0, cell="another")
    write_second(cells["far"], 1.0, estimator=FIRST)
    (cells["reference/real"] / "judges/two/records.csv").write_text("id\nx\n")
    table = write_table(study).judges
    assert table is not None and [name for name, row in rows(study).items() if row["AP (two)"]] == ["far"]
    note = table.notes[0]
    assert "near (not judged by it; posegen judge mends that)" in note and "judged before the cell changed" in note
    assert "reference/real (its records are damaged; posegen judge mends that)" in note


def test_two_judges_of_one_name_are_told_apart(study: Path) -> None:
    write_second(study / "far/world/seed0", 1.0, estimator=FIRST)
    table = write_table(study).judges
    assert table is not None and "far (judged by another one of this name" in table.notes[0]
    assert rows(study)["far"]["AP (two)"] == "" != rows(study)["near"]["AP (two)"]


def test_a_row_whose_teacher_is_the_judge_is_marked(study: Path) -> None:
    cell = study / "middle/world/seed0"
    write_table(study)
    assert "§" not in (study / "table.md").read_text()
    status = read_json(cell / "status.json")
    status["identity"]["adapter"] = {"_target_": "a.B", "teacher": FIRST}
    write_json(cell / "status.json", status)
    plain = (study / "table.csv").read_bytes()
    assert [row["method"] for row in write_table(study).rows if row["taught"]] == ["middle"]
    text = (study / "table.md").read_text()
    assert "| middle § |" in text and "§: the judge was the teacher of this method's training" in text
    assert r"middle $^\S$" in (study / "table.tex").read_text()
    assert (study / "table.csv").read_bytes() == plain
    status["identity"]["adapter"]["teacher"] = SECOND
    write_json(cell / "status.json", status)
    write_table(study)
    assert "§" not in (study / "table.md").read_text()


def test_a_row_whose_reward_is_the_judge_is_marked(study: Path, tmp_path: Path) -> None:
    """Also where it was trained plainly after the reward, from that cell or the method in it."""
    reward = {"adapter": {"_target_": "a.B"}, "loss": {"_target_": "a.Reward", "teacher": FIRST, "weight": 2.0}}
    cell, trained = study / "near/world/seed0", tmp_path / "train/seed0"
    status = read_json(cell / "status.json")
    write_json(cell / "status.json", {**status, "identity": {**status["identity"], **reward}})
    assert [row["method"] for row in build_table(study).rows if row["taught"]] == ["near"]
    other = {**reward, "loss": {**reward["loss"], "teacher": SECOND}}
    write_json(cell / "status.json", {**status, "identity": {**status["identity"], **other}})
    assert not any(row["taught"] for row in build_table(study).rows)
    write_json(trained / "status.json", {"state": "finished", "identity": reward})
    for start in (trained, trained / "method"):
        config = {"method": "m", "seed": 0, "study": "s", "checkpoint": str(start)}
        write_text(cell / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
        assert [row["method"] for row in build_table(study).rows if row["taught"]] == ["near"]


def test_the_teacher_of_given_weights_is_that_of_the_cell_that_trained_them(study: Path, tmp_path: Path) -> None:
    cell, trained = study / "far/world/seed0", study / "train/seed0"
    write_json(trained / "status.json", {"state": "finished", "identity": {"adapter": {"teacher": FIRST}}})
    config = {"method": "m", "seed": 0, "study": "s", "checkpoint": str(trained / "method")}
    write_text(cell / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
    assert [row["method"] for row in build_table(study).rows if row["taught"]] == ["far"]


def test_every_two_of_three_judges_are_compared(study: Path) -> None:
    for name, shift in SHIFTS.items():
        write_second(study / name / "world/seed0", shift * 2, name="three", estimator={"_target_": "judges.Three"})
    table = build_table(study)
    assert table.judges and [judge.name for judge in table.judges.judges] == ["One", "three", "two"]
    against = [each.compared_with for each in table.judges.agreements]
    assert against == ["the same by judge three", "the same by judge two", "the same by judge two (by judge three)"]
    pairs = ("One and three", "One and two", "three and two")
    for pair, note in zip(pairs, table.judges.notes, strict=True):
        assert f"image by image, {pair}: Spearman's rho" in note
