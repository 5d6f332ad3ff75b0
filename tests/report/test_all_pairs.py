"""Groups of methods that cannot be told apart, detectable differences, and wins image by image."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from posegen.io.atomic import write_json
from posegen.metrics.base import Column, Judged, Metric, Poses, Records
from posegen.metrics.protocol import Protocol
from posegen.report.all_pairs import letter_display, normal_p_value
from posegen.report.formats import table_csv, table_grid
from posegen.report.table import Table, build_table


class PerImage(Metric):
    columns = (Column("score", better="higher", family="accuracy", axis=1, headline=1),)

    def record(self, judged: Judged) -> dict[str, Any]:
        return {"found": judged.features[0]}

    def resampled(
        self, records: Records, weights: np.ndarray, reference: Records | None = None
    ) -> dict[str, np.ndarray]:
        return {"score": weights @ np.asarray(records["found"]) / weights.sum(1)}


def study(folder: Path, values: dict[str, np.ndarray], baseline: str = "none") -> Table:
    cells, protocol = [], Protocol([PerImage()], resamples=400)
    for name, found in values.items():
        cell, empty = folder / name / "data" / "seed0", np.zeros((0, 17, 3))
        nobody = Poses(empty, np.zeros(0))
        judged = [Judged(f"x/{i}", empty, np.zeros(0), nobody, features=np.array([x])) for i, x in enumerate(found)]
        for place in (cell, cell / "reference"):
            protocol.write(place, protocol.records(judged))
        write_json(cell / "status.json", {"state": "finished", "hash": "h", "wall_s": 1.0})
        cells.append({"folder": f"{name}/data/seed0", "method": name, "seed": 0, "hash": "h"})
    node = {"_target_": "posegen.metrics.protocol.Protocol", "resamples": 400}
    node["metrics"] = [{"_target_": f"{__name__}.PerImage"}]  # type: ignore[assignment]
    write_json(folder / "cells.json", {"title": "T", "baseline": baseline, "protocol": node, "cells": cells})
    return build_table(folder)


def test_letters_detectable_differences_and_wins(tmp_path: Path) -> None:
    """Two methods that differ by noise alone, one far below, and the floor, which wins one image of four."""
    dice = np.random.default_rng(0)
    base = dice.normal(50, 5, 80)
    noise = dice.normal(0, 2, 80)
    values = {"one": base + 20, "two": base + 20.1 + noise - noise.mean(), "three": base + 10}
    floor = values["three"] + np.where(np.arange(80) % 4 == 0, 1.0, -30.0)
    table = study(tmp_path, {**values, "none": floor, "reference/real": base + 40})
    letters = {row["method"]: row["group"] for row in table.rows}
    assert letters == {"one": "a", "two": "a", "three": "b", "none": "c", "reference/real": ""}
    head, *lines = table_grid(table)
    assert head[1].text == "group" and [line[1].text for line in lines] == ["a", "a", "b", "c", ""]
    assert ",group" in table_csv(table).splitlines()[0]
    wins = next(note for note in table.notes if note.startswith("Images on which"))
    assert wins == "Images on which score is better than that of none, ties half, %: one 100, two 100, three 75."
    [detectable] = [note for note in table.notes if note.startswith("Detectable difference of score")]
    errors = [(a - b).std() / 80**0.5 for a, b in combinations([*values.values(), floor], 2)]
    assert float(detectable.split(": ")[1].split(" ")[0]) == pytest.approx(2.80 * np.median(errors), rel=0.15)


def test_two_methods_have_no_letters(tmp_path: Path) -> None:
    table = study(tmp_path, {"one": np.arange(20.0), "none": np.arange(20.0) / 2})
    assert not any(row.get("group") for row in table.rows)
    assert not [note for note in table.notes if note.startswith(("group", "Detectable"))]


def test_letters_are_shared_exactly_by_pairs_that_do_not_differ() -> None:
    dice, names = np.random.default_rng(3), [f"m{i}" for i in range(7)]
    for _ in range(50):
        different = [pair for pair in combinations(names, 2) if dice.random() < 0.5]
        letters = letter_display(names, different)
        for pair in combinations(names, 2):
            assert (not {*letters[pair[0]]} & {*letters[pair[1]]}) == (pair in different)
    assert set(letter_display(names, []).values()) == {"a"}
    assert list(letter_display(["x", "y", "z"], [("x", "z")]).values()) == ["a", "ab", "b"]


def test_p_values_of_differences() -> None:
    assert normal_p_value(1.96, 1.0) == pytest.approx(0.05, abs=1e-3) and normal_p_value(-3.0, 1.0) < 0.003
    assert normal_p_value(0.0, 0.0) == 1.0 and normal_p_value(0.1, 0.0) == 0.0
