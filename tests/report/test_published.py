"""Published numbers stand beside measured ones, and are compared only where somebody says that they should agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from posegen.adapters.base import Paper, Published
from posegen.cli import main
from posegen.errors import UserError
from posegen.io.atomic import read_json, write_json
from posegen.metrics.base import Column, Judged, Metric, Poses, Records
from posegen.metrics.protocol import Protocol
from posegen.report.formats import table_markdown
from posegen.report.published import Reproduction, read_expected, same_name
from posegen.report.table import Table, build_table
from posegen.report.write import write_table


class Paperlike(Metric):
    """The number of people found, as a published program would call it."""

    columns = (Column("paper_AP", published=True), Column("paper_SAP", published=True))

    def record(self, judged: Judged) -> dict[str, Any]:
        return {"found": judged.features[0]}

    def resampled(
        self, records: Records, weights: np.ndarray, reference: Records | None = None
    ) -> dict[str, np.ndarray]:
        mean = weights @ np.asarray(records["found"]) / weights.sum(1)
        return dict.fromkeys(self.columns, mean)


class Method:
    """What an adapter says about its paper."""

    paper: ClassVar[Paper] = Paper(
        "A paper",
        "",
        published=(
            ("Human-Art", "AP", 10.0, "table 2 of A paper"),
            ("Human-Art", "CAP", 10.2, "table 2 of A paper"),
            ("Human-Art", "FID", 7.0, "table 2 of A paper"),
            ("Human-Art", "AP", 50.0, "table 1 of another paper"),
            ("Elsewhere", "AP", 1.0, "table 3 of A paper"),
            Published("Human-Art", "AP", 77.77, "somebody's recollection", read=False),
        ),
    )


PROTOCOL = {
    "_target_": "posegen.metrics.protocol.Protocol",
    "resamples": 50,
    "metrics": [{"_target_": f"{__name__}.Paperlike"}],
}


def benchmark(folder: Path, data: str = "human_art", **facts: Any) -> Path:
    """Two methods of the paper's class and a reference row; the values are around 10."""
    cells = []
    for name, mean in (("method", 10.0), ("other", 9.0), ("reference/real", 12.0)):
        cell = folder / name / data / "seed0"
        protocol = Protocol([Paperlike()], resamples=50)
        dice = np.random.default_rng(0).normal(0, 1, 40)
        judged = [
            Judged(
                f"x/{i}",
                np.zeros((0, 17, 3)),
                np.zeros(0),
                Poses(np.zeros((0, 17, 3)), np.zeros(0)),
                features=np.array([mean + x]),
            )
            for i, x in enumerate(dice - dice.mean())
        ]
        for place in (cell, cell / "reference"):
            protocol.write(place, protocol.records(judged))
        target = f"{__name__}.Method"
        write_json(
            cell / "status.json",
            {"state": "finished", "hash": name, "wall_s": 1.0, "identity": {"adapter": {"_target_": target}}},
        )
        cells.append({"folder": f"{name}/{data}/seed0", "method": name, "seed": 0, "hash": name})
    write_json(folder / "cells.json", {"title": "T", "baseline": None, "protocol": PROTOCOL, "cells": cells, **facts})
    return folder


def rows(table: Table) -> dict[str, dict[str, Any]]:
    return {row["method"]: row for row in table.rows}


def test_reported_rows_stand_below_their_method_with_their_source(tmp_path: Path) -> None:
    table = build_table(benchmark(tmp_path))
    assert list(rows(table)) == [
        "method",
        "method [1]",
        "method [2]",
        "other",
        "other [1]",
        "other [2]",
        "reference/real",
    ]
    reported = rows(table)["method [1]"]
    assert (reported["state"], reported["reason"]) == ("reported", "table 2 of A paper")
    assert (reported["paper_AP"], reported["paper_SAP"]) == (10.0, 10.2), "what papers call CAP is the programs' SAP"
    assert "[2] Reported, not measured here: table 1 of another paper." in table.notes


def test_remembered_numbers_and_those_of_other_data_are_never_printed(tmp_path: Path) -> None:
    write_table(benchmark(tmp_path))
    for file in tmp_path.glob("table.*"):
        text = file.read_text()
        assert (
            "77.77" not in text and "recollection" not in text and "Elsewhere" not in text and "another paper" in text
        )


def test_a_reported_number_is_neither_best_nor_second_best(tmp_path: Path) -> None:
    """50 is more than any method here reached."""
    lines = {
        line.split(" | ")[0]: line
        for line in table_markdown(build_table(benchmark(tmp_path))).splitlines()
        if line.startswith("| ")
    }
    assert "50" in lines["| method [2]"] and "**" not in lines["| method [2]"] and "**10.0" in lines["| method"]


def test_nothing_is_compared_unless_the_benchmark_names_the_table(tmp_path: Path) -> None:
    table = build_table(benchmark(tmp_path))
    assert rows(table)["method"]["reproduction"] == "not comparable"
    assert any(
        note.startswith("method, other: not comparable with published numbers: the benchmark does not say")
        for note in table.notes
    )
    assert "reproduction" not in table_markdown(table).splitlines()[2]
    assert "reproduction" not in rows(table)["reference/real"]


def test_numbers_of_other_data_are_not_comparable(tmp_path: Path) -> None:
    table = build_table(benchmark(tmp_path, data="mannequin", reproduction={"source": "A paper"}))
    assert list(rows(table)) == ["method", "other", "reference/real"]
    assert (
        "method, other: not comparable with published numbers: published on Elsewhere, Human-Art; this is mannequin."
        in table.notes
    )


def test_a_number_is_reproduced_inside_the_interval_or_the_tolerance(tmp_path: Path) -> None:
    table = build_table(benchmark(tmp_path, reproduction={"source": "A paper"}))
    assert {name: row.get("reproduction") for name, row in rows(table).items() if row["ranked"]} == {
        "method": "reproduced",
        "other": "not reproduced",
    }
    assert any(
        "other: not reproduced (table 2 of A paper): paper_AP 9 [" in note and "where 10 was reported" in note
        for note in table.notes
    )
    assert table_markdown(table).splitlines()[2].startswith("| method | reproduction | paper_AP")
    close = build_table(
        benchmark(tmp_path, reproduction={"source": "A paper", "tolerance": {"paper_AP": 1.1, "paper_SAP": 1.5}})
    )
    assert rows(close)["other"]["reproduction"] == "reproduced"


def test_two_settings_of_a_method_share_its_reported_rows(tmp_path: Path) -> None:
    folder = benchmark(tmp_path)
    plan = read_json(folder / "cells.json")
    for cell in plan["cells"][:2]:
        cell["method"] = "method"
    (folder / "other").rename(folder / "method/2")
    (folder / "method/2/human_art").rename(folder / "method/human_art,sampler.steps=2")
    plan["cells"][1]["folder"] = "method/human_art,sampler.steps=2/seed0"
    write_json(folder / "cells.json", plan)
    names = ["method (default)", "method [1]", "method [2]", "method (sampler.steps=2)", "reference/real"]
    assert [row["method"] for row in build_table(folder).rows] == names


def test_a_method_can_be_left_out_with_a_reason(tmp_path: Path) -> None:
    table = build_table(
        benchmark(
            tmp_path, reproduction={"source": "A paper", "excluded": {"other": "trained for a tenth of the steps"}}
        )
    )
    assert rows(table)["other"]["reproduction"] == "not comparable"
    assert "other: not comparable with published numbers: trained for a tenth of the steps." in table.notes


def test_a_recorded_run_can_be_compared_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, file = benchmark(tmp_path), tmp_path / "expected.yaml"
    file.write_text("method: {paper_AP: 10.1}\nreference/real: {paper_AP: 11.0}\n")
    assert main(["table", str(folder), f"expected={file}"]) == 0
    out = capsys.readouterr().out
    assert (
        "reference/real: not reproduced (the recorded run): paper_AP 12 [" in out
        and "Compared with the recorded run" in out
    )
    file.write_text("method: {AP: 10.1}\n")
    with pytest.raises(UserError, match="the recorded run has values of AP, which are no columns"):
        build_table(folder, file)


@pytest.mark.parametrize("text", ["method: 3", "- a", "method: {AP: high}", "method: {AP: .nan}", "{"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "e.yaml").write_text(text)
    with pytest.raises(UserError, match=r"expected=.*controlnet: \{AP: 16.1\}"):
        read_expected(tmp_path / "e.yaml")


def test_a_protocol_without_published_columns_imports_no_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posegen.report.published.found_class", lambda _: pytest.fail("imported"))
    from posegen.report.rows import Group

    row = {"method": "m", "state": "finished"}
    assert (
        Reproduction([Column("AP")]).beside(
            Group("m", [{"folder": "m/human_art/seed0", "method": "m", "state": "finished"}], tmp_path), row
        )
        == []
    )


def test_names_of_data_sets_may_be_spelt_differently() -> None:
    assert (
        same_name("Human-Art", "human_art")
        and same_name("LAION-Human", "laion_human")
        and not same_name("Human-Art", "human_art_hd")
    )
