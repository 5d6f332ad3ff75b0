"""The rank correlations below a table are those of a computation by hand."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from scipy.stats import kendalltau, spearmanr

from posegen.adapters.base import Paper, Published
from posegen.io.atomic import write_json
from posegen.metrics.base import Column, Judged, Metric, Poses, Records
from posegen.metrics.math.rank_correlation import kendall, permutation_p_value, spearman
from posegen.metrics.protocol import Protocol
from posegen.report.formats import agreements_csv
from posegen.report.table import Table, build_table
from posegen.report.write import write_table


class Accuracy(Metric):
    """A number of each image."""

    columns = (Column("AP", better="higher", family="accuracy", axis=1, headline=1),)

    def record(self, judged: Judged) -> dict[str, Any]:
        return {"found": judged.features[0]}

    def resampled(
        self, records: Records, weights: np.ndarray, reference: Records | None = None
    ) -> dict[str, np.ndarray]:
        return {"AP": weights @ np.asarray(records["found"]) / weights.sum(1)}


def paper(value: float) -> Paper:
    first, last = ("Human-Art", "AP", 99.0 - value, "an older table"), ("Human-Art", "AP", value, "a table")
    recalled = Published("LAION-Human", "AP", value, "a recollection", read=False)
    return Paper("A paper", "", published=(first, last, recalled))


class A:
    paper: ClassVar[Paper] = paper(48.88)


class B:
    paper: ClassVar[Paper] = paper(49.5)


class C:
    paper: ClassVar[Paper] = paper(39.52)


class D:
    paper: ClassVar[Paper] = paper(27.22)


class E:
    paper: ClassVar[Paper] = paper(44.57)


class Floor:
    trainable = False
    paper: ClassVar[Paper] = paper(0.1)


METHODS = {"A": 24.0, "B": 18.9, "C": 16.9, "D": 14.6, "E": 8.82, "Floor": 0.2}
PROTOCOL = {
    "_target_": "posegen.metrics.protocol.Protocol",
    "resamples": 50,
    "metrics": [{"_target_": f"{__name__}.Accuracy"}],
}


def study(folder: Path, values: dict[str, dict[str, list[float]]]) -> Table:
    """Setting -> method -> its value with each seed."""
    cells, protocol = [], Protocol([Accuracy()], resamples=50)
    noise = np.random.default_rng(0).normal(0, 0.01, 30)
    for setting, methods in values.items():
        for name, seeds in methods.items():
            for seed, value in enumerate(seeds):
                cell = folder / name / setting / f"seed{seed}"
                empty = np.zeros((0, 17, 3))
                nobody = Poses(empty, np.zeros(0))
                found = value + noise - noise.mean()
                judged = [
                    Judged(f"x/{i}", empty, np.zeros(0), nobody, features=np.array([x])) for i, x in enumerate(found)
                ]
                for place in (cell, cell / "reference"):
                    protocol.write(place, protocol.records(judged))
                about = {"state": "finished", "hash": "h", "wall_s": 1.0}
                write_json(cell / "status.json", {**about, "identity": {"adapter": {"_target_": f"{__name__}.{name}"}}})
                cells.append({"folder": f"{name}/{setting}/seed{seed}", "method": name, "seed": seed, "hash": "h"})
    write_json(folder / "cells.json", {"title": "T", "baseline": None, "protocol": PROTOCOL, "cells": cells})
    return build_table(folder)


def test_the_order_is_compared_with_the_numbers_that_were_read_last(tmp_path: Path) -> None:
    """By hand: of ten pairs three are in another order (A with B, E with C and D): (7 - 3) / 10. 29 of the 120 orders
    of five have at most three such pairs. The squared differences of the ranks are 1 1 1 1 4: 1 - 6 * 8 / 120."""
    table = study(tmp_path, {"human": {name: [value] for name, value in METHODS.items()}})
    [found] = table.agreements
    assert found.methods == ("A", "B", "C", "D", "E"), "the floor trains nothing"
    assert (found.tau, found.rho) == (pytest.approx(0.4), pytest.approx(0.6))
    assert (found.tau_p, found.rho_p) == (pytest.approx(29 / 120), pytest.approx(21 / 120))
    assert found.tau_interval == (pytest.approx(0.4), pytest.approx(0.4)), "no resample changes this order"
    expected = "Order by AP against AP published on Human-Art (5 methods): Kendall's tau 0.40 [0.40, 0.40], p = 0.24; "
    assert f"{expected}Spearman's rho 0.60, p = 0.17 (one-sided permutation tests)." in table.notes
    write_table(tmp_path)
    assert "Kendall" in (tmp_path / "table.md").read_text() and "Kendall" in (tmp_path / "table.html").read_text()
    [row] = csv.DictReader(io.StringIO((tmp_path / "table_orders.csv").read_text()))
    assert row["methods"] == "A B C D E" and float(row["tau"]) == pytest.approx(0.4)


def test_orders_of_two_settings_and_of_single_seeds(tmp_path: Path) -> None:
    here = {"A": [4.0], "B": [3.0], "C": [2.0]}
    turned = {"A": [4.0], "B": [2.0], "C": [3.0]}
    table = study(tmp_path / "two", {"human": here, "human,budget.steps=9": turned})
    between = table.agreements[-1]
    assert between.compared_with == "the same of human,budget.steps=9 (human)" and between.tau == pytest.approx(1 / 3)
    assert "(human)" in agreements_csv(table) and "(human,budget.steps=9)" in agreements_csv(table)
    seeds = study(tmp_path / "seeds", {"human": {"A": [4.0, 4.0, 4.0], "B": [3.0, 3.0, 2.0], "C": [2.0, 2.0, 3.0]}})
    expected = "Order by AP of one seed against another (3 seeds, 3 methods): Kendall's tau 0.56 on average."
    assert expected in seeds.notes


def test_few_methods_have_no_order(tmp_path: Path) -> None:
    table = study(tmp_path, {"human": {"A": [2.0], "B": [1.0], "Floor": [0.0]}})
    assert not table.agreements and not [note for note in table.notes if note.startswith("Order")]


@pytest.mark.parametrize("ties", [False, True])
def test_correlations_are_those_of_scipy(ties: bool) -> None:
    dice = np.random.default_rng(1)
    for n in (3, 5, 9):
        a, b = dice.normal(size=n), dice.normal(size=n)
        if ties:
            a, b = np.round(a), np.round(b * 2) / 2
        assert kendall(a, b) == pytest.approx(kendalltau(a, b).statistic, nan_ok=True)
        assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic, nan_ok=True)
    assert np.isnan(kendall(np.ones(4), np.arange(4))) and np.isnan(
        permutation_p_value(kendall, np.ones(4), np.arange(4))
    )


def test_p_values_are_exact_for_few_and_close_for_many() -> None:
    a = np.arange(6.0)
    b = a[[0, 2, 1, 3, 5, 4]]
    assert permutation_p_value(kendall, a, b) == pytest.approx(kendalltau(a, b, alternative="greater").pvalue)
    many = np.arange(12.0)
    turned = many[[3, 0, 2, 1, 4, 5, 8, 6, 7, 10, 9, 11]]
    exact = kendalltau(many, turned, alternative="greater", method="exact").pvalue
    assert permutation_p_value(kendall, many, turned) == pytest.approx(exact, abs=1e-3)
