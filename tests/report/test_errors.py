"""The diagnosis of a table: a row per method and slice of the people."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from posegen.io.atomic import write_json
from posegen.metrics.base import Judged, Poses
from posegen.metrics.pose import PoseMetric
from posegen.metrics.protocol import Protocol
from posegen.metrics.records import read_records, write_records
from posegen.poses.topology import COCO_FLIP, COCO_NAMES
from posegen.report.html import results_page
from posegen.report.table import build_table
from posegen.report.write import write_table
from tests.metrics.invented_people import person

PROTOCOL = {
    "_target_": "posegen.metrics.protocol.Protocol",
    "resamples": 20,
    "metrics": [{"_target_": "posegen.metrics.pose.PoseMetric"}],
}


def image(i: int, change: Any) -> Judged:
    """One or two people, the even images with a hidden wrist and a person seen from the back."""
    people = [person(60, 60, 1 + i / 6)] + ([person(160, 60)] if i % 3 == 0 else [])
    if i % 2 == 0:
        people[0][9, 2] = 1
        people[0][[0, 1, 2], 2] = 0
    found = [change(p.copy()) for p in people]
    target, areas = np.array(people, np.float32), np.array([np.ptp(p[:, :2], axis=0).prod() / 2 for p in people])
    actions = {"actions": ("waving",) if i < 4 else ("sitting",)}
    return Judged(f"x/{i}", target, areas, Poses(np.array(found, np.float32), np.ones(len(found))), actions)


def exact(pose: np.ndarray) -> np.ndarray:
    return pose


def mirrored(pose: np.ndarray) -> np.ndarray:
    return pose[list(COCO_FLIP)]


def wristless(pose: np.ndarray) -> np.ndarray:
    pose[9, 1] += 100
    return pose


@pytest.fixture
def study(tmp_path: Path) -> Path:
    entries, protocol = [], Protocol([PoseMetric()], resamples=20)
    for name, change in {"exact": exact, "mirrored": mirrored, "wristless": wristless}.items():
        cell = tmp_path / name / "world/seed0"
        protocol.write(cell, protocol.records(image(i, change) for i in range(9)))
        protocol.write(cell / "reference", protocol.records(image(i, exact) for i in range(9)))
        write_json(cell / "status.json", {"state": "finished", "hash": name})
        entries.append({"folder": str(cell.relative_to(tmp_path)), "method": name, "seed": 0, "hash": name})
    write_json(tmp_path / "cells.json", {"title": "T", "baseline": "exact", "protocol": PROTOCOL, "cells": entries})
    return tmp_path


def rows(study: Path) -> dict[tuple[str, str, str], dict[str, str]]:
    with (study / "table_errors.csv").open(newline="") as file:
        return {(row["method"], row["by"], row["slice"]): row for row in csv.DictReader(file)}


def test_kinds_of_errors_confusions_and_joints(study: Path) -> None:
    write_table(study)
    found = rows(study)
    exactly, turned, wrists = (found[name, "all", "all"] for name in ("exact", "mirrored", "wristless"))
    assert exactly["good"] == exactly["PCK@0.1"] == "100.0" and float(exactly["AP"]) == pytest.approx(100)
    assert exactly["left-right"] == exactly["front-back"] == exactly["unseen"] == exactly["surplus"] == "0.0"
    assert turned["left-right"] == turned["front-back"] == "100.0" and float(turned["AP gain inversion"]) > 30
    assert wrists["PCK left_wrist"] == "0.0" and wrists["PCK right_wrist"] == "100.0"
    assert float(wrists["miss"]) == pytest.approx(100 * 12 / (12 * 17 - 5 * 3)) and float(wrists["AP gain miss"]) > 0
    assert {f"PCK {name}" for name in COCO_NAMES} <= exactly.keys()


def test_the_average_precision_and_pck_are_those_of_the_table(study: Path) -> None:
    table = build_table(study)
    assert table.errors is not None
    values = {row["method"]: row for row in table.rows}
    for row in table.errors.rows:
        if row["by"] == "all":
            assert row["AP"] == pytest.approx(values[row["method"]]["AP"], abs=1e-6)
            assert row["PCK@0.1"] == pytest.approx(values[row["method"]]["PCK@0.1"], abs=1e-9)


def test_people_are_divided_by_occlusion_size_number_action_and_facing(study: Path) -> None:
    write_table(study)
    found = rows(study)
    slices = {(by, part): row["n_people"] for (method, by, part), row in found.items() if method == "wristless"}
    assert slices["all", "all"] == "12.0" and slices["occlusion", "none hidden"] == "7.0"
    assert slices["occlusion", "up to a quarter hidden"] == slices["facing", "back"] == "5.0"
    assert slices["facing", "front"] == "7.0" and slices["people", "2 in the image"] == "6.0"
    assert {by for by, _ in slices} == {"all", "occlusion", "size", "people", "action", "facing"}  # nobody is cut off
    assert sum(float(n) for (by, _), n in slices.items() if by == "size") == 12
    waving = found["wristless", "action", "waving"]
    assert float(waving["PCK@0.1"]) == pytest.approx(100 * (1 - 6 / (6 * 17 - 2 * 3)))


def test_markdown_and_the_page_show_it(study: Path) -> None:
    write_table(study)
    text = (study / "table_errors.md").read_text()
    assert (
        "## AP, and what repairing one kind of error would add to it" in text
        and "| occlusion: none hidden | 7 |" in text
    )
    page = results_page(build_table(study), 0)
    assert "<h2>Errors</h2>" in page and "PCK by part of the body" in page and "front-back" in page


def test_records_of_older_versions_have_no_diagnosis(study: Path) -> None:
    write_table(study)
    whole = (study / "table.csv").read_bytes()
    for name in ("exact", "mirrored", "wristless"):
        cell = study / name / "world/seed0"
        records = read_records(cell)
        write_records(cell, {k: v for k, v in records.items() if k not in ("detections", "keypoints")})
    (study / "table_errors.csv").unlink()
    assert write_table(study).errors is None and (study / "table.csv").read_bytes() == whole
    assert not (study / "table_errors.csv").exists()
