"""Tables come from records alone and say what is missing."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from posegen.cli import main
from posegen.errors import UserError
from posegen.io.atomic import write_json
from posegen.metrics.base import Column, Judged, Metric, Poses, Records
from posegen.metrics.distribution import DistributionMetric
from posegen.metrics.pose import PoseMetric
from posegen.metrics.protocol import Protocol
from posegen.report.formats import (
    TableEntry,
    latex_text,
    left_aligned,
    ranking,
    table_csv,
    table_latex,
    table_markdown,
    table_terminal,
)
from posegen.report.table import build_table
from posegen.report.write import write_table
from posegen.runner.images import picture, write_png


class Silent(Metric):
    """A column of another protocol whose weights are not there, and one that has a remark."""

    columns = ("clean_FID", Column("paper_AP", remark="batches of 4, as published"))

    def absent(self, records: Records) -> dict[str, str]:
        return {"clean_FID": "set protocol.inception_file to the Inception network"}

    def record(self, judged: Judged) -> dict[str, Any]:
        return {"paper": float(len(judged.found))}

    def resampled(
        self, records: Records, weights: np.ndarray, reference: Records | None = None
    ) -> dict[str, np.ndarray]:
        return {
            "clean_FID": np.full(len(weights), np.nan),
            "paper_AP": weights @ np.asarray(records["paper"]) / weights.sum(1),
        }


PROTOCOL = {
    "_target_": "posegen.metrics.protocol.Protocol",
    "resamples": 50,
    "metrics": [
        {"_target_": "posegen.metrics.pose.PoseMetric"},
        {"_target_": "posegen.metrics.distribution.DistributionMetric"},
    ],
}
THREE = {**PROTOCOL, "metrics": [*PROTOCOL["metrics"], {"_target_": f"{__name__}.Silent"}]}  # type: ignore[misc]


def judged(shift: float, seed: int = 0, count: int = 12) -> list[Judged]:
    """One person an image, found ``shift`` pixels beside where it should be."""
    dice = np.random.default_rng(seed)
    images = []
    for i in range(count):
        target = np.concatenate([dice.uniform(10, 50, (1, 17, 2)), np.full((1, 17, 1), 2.0)], -1).astype(np.float32)
        found = target.copy()
        found[..., 0] += shift
        images.append(
            Judged(f"x/{i}", target, np.array([900.0]), Poses(found, np.ones(1)), features=dice.normal(size=4))
        )
    return images


def finished(folder: Path, name: str, shift: float, seed: int = 0, data: str = "world") -> dict:
    protocol = Protocol([PoseMetric(), DistributionMetric(), Silent()], resamples=50)
    cell = folder / name / data / f"seed{seed}"
    protocol.write(cell, protocol.records(judged(shift)))
    protocol.write(cell / "reference", protocol.records(judged(0, seed=9)))
    write_json(cell / "status.json", {"state": "finished", "hash": name, "wall_s": 1.0})
    write_json(
        cell / "costs.json", {"trained_parameters": 1_500_000, "sample_images_per_s": 3.25, "peak_memory_mb": 2048}
    )
    write_png(picture(cell / "samples", 0), np.zeros((8, 8, 3), np.uint8))
    return {"folder": str(cell.relative_to(folder)), "method": name, "seed": seed, "hash": name}


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    cells = [
        finished(tmp_path, "near", 0.2),
        finished(tmp_path, "none", 6.0),
        finished(tmp_path, "reference/real", 0.0),
    ]
    cells.append({"folder": "broken/world/seed0", "method": "broken", "seed": 0, "hash": "broken"})
    write_json(
        tmp_path / "broken/world/seed0/status.json",
        {"state": "failed", "hash": "broken", "reason": "ran out of luck & time"},
    )
    cells.append({"folder": "absent/world/seed0", "method": "absent", "seed": 0, "hash": "absent"})
    write_json(
        tmp_path / "cells.json", {"title": "A 100% test", "baseline": "none", "protocol": PROTOCOL, "cells": cells}
    )
    return tmp_path


def plan(folder: Path, cells: list[dict], **facts: Any) -> Path:
    write_json(folder / "cells.json", {"protocol": PROTOCOL, "cells": cells, **facts})
    return folder


def rows_of(folder: Path) -> dict[str, dict[str, str]]:
    return {row["method"]: row for row in csv.DictReader(io.StringIO(table_csv(build_table(folder))))}


def line_of(folder: Path, name: str) -> str:
    return next(line for line in table_markdown(build_table(folder)).splitlines() if line.startswith(f"| {name} "))


def test_every_expected_cell_has_a_row(benchmark: Path) -> None:
    rows = rows_of(benchmark)
    assert list(rows) == ["near", "none", "reference/real", "broken", "absent"]
    assert float(rows["near"]["PCK@0.1"]) == 100.0 and float(rows["near"]["AP"]) > float(rows["none"]["AP"])
    assert (
        rows["near"]["state"] == "finished"
        and rows["near"]["n_seeds"] == "1"
        and rows["near"]["cost_sample_images_per_s"] == "3.25"
    )
    assert (rows["broken"]["state"], rows["broken"]["reason"]) == ("failed", "ran out of luck & time")
    assert rows["absent"]["state"] == "missing" and rows["absent"]["AP"] == ""


def test_methods_are_tested_against_the_baseline_and_references_are_not(benchmark: Path) -> None:
    rows = rows_of(benchmark)
    assert float(rows["near"]["AP_p"]) < 0.1
    assert rows["none"]["AP_p"] == rows["reference/real"]["AP_p"] == ""


def test_the_best_method_is_marked_and_a_reference_never_is(benchmark: Path) -> None:
    assert "**100.0" in line_of(benchmark, "near") and "**" not in line_of(benchmark, "reference/real")
    assert "2.0 GiB" in line_of(benchmark, "near") and "3.2" in line_of(benchmark, "near")


def test_the_second_best_of_three_is_underlined_in_every_format(tmp_path: Path) -> None:
    folder = plan(
        tmp_path,
        [
            finished(tmp_path, name, shift)
            for name, shift in (("near", 0.2), ("far", 6.0), ("middle", 2.0), ("reference/real", 0.0))
        ],
    )
    write_table(folder)
    assert "<u>" in line_of(folder, "middle") and "<u>" not in line_of(folder, "far") + line_of(
        folder, "near"
    ) + line_of(folder, "reference/real")
    assert (
        r"\underline{" in (folder / "table.tex").read_text() and "class='second'" in (folder / "table.html").read_text()
    )


def test_ranks_follow_the_columns_direction_and_a_bias_has_none() -> None:
    rows = [
        {"method": m, "ranked": True, "state": "finished", "AP": v, "FID": v, "count_bias": v}
        for m, v in (("a", 1.0), ("b", 2.0), ("c", 3.0))
    ]
    rows.append({"method": "reference/x", "ranked": False, "state": "finished", "AP": 9.0, "FID": 0.0})
    accuracy, distance, bias = Column("AP"), Column("FID", "lower"), Column("count_bias", None)
    assert ranking(rows, accuracy) == {3.0: 1, 2.0: 2} and ranking(rows, distance) == {1.0: 1, 2.0: 2}
    assert ranking(rows, bias) == {} and ranking(rows[:1], accuracy) == {}
    assert ranking(rows[:2], accuracy) == {2.0: 1}, "of two, the other one is no second best worth a mark"


def test_a_difference_from_the_baseline_is_marked_and_explained(benchmark: Path) -> None:
    assert "100.0 [100.0, 100.0]**†" in line_of(benchmark, "near")
    assert "†" not in line_of(benchmark, "none") + line_of(benchmark, "reference/real")
    assert "†: differs from none" in build_table(benchmark).caption
    cells = [finished(benchmark, "near", 0.2), finished(benchmark, "none", 0.2)]
    assert "†" not in line_of(plan(benchmark, cells, baseline="none"), "near"), "equal methods do not differ"


def test_faithful_rows_say_so(tmp_path: Path) -> None:
    cells = [finished(tmp_path, name, 0.2) for name in ("near", "far", "none", "reference/real")]
    for name, faithful in (("near", True), ("none", None)):
        write_json(tmp_path / name / "world/seed0/row.json", {"faithful": faithful, "remark": ""})
    write_json(tmp_path / "far/world/seed0/method/posegen.json", {"faithful": False})
    folder = plan(tmp_path, cells)
    assert {name: row["faithful"] for name, row in rows_of(folder).items()} == {
        "near": "true",
        "far": "false",
        "none": "",
        "reference/real": "",
    }
    assert line_of(folder, "near").startswith("| near ‡ |") and "‡" not in line_of(folder, "far")
    assert "‡: official quirks" in build_table(folder).caption


def test_empty_columns_say_why_and_remarks_stand_below(tmp_path: Path) -> None:
    cells = [finished(tmp_path, "near", 0.2), finished(tmp_path, "none", 6.0)]
    table = build_table(plan(tmp_path, cells, protocol=THREE))
    assert {"clean_FID", "paper_AP"} <= set(table.headline)
    assert "No clean_FID: set protocol.inception_file to the Inception network." in table.notes
    assert "paper_AP: batches of 4, as published." in table.notes
    head, near = (
        next(line for line in table_markdown(table).splitlines() if line.startswith(start))
        for start in ("| method", "| near")
    )
    assert near.split(" | ")[head.split(" | ").index("clean_FID")] == "-"
    assert (
        "protocol.inception" in table_latex(table)
        and "protocol.inception_file" in table_terminal(table)
        and "- No clean_FID" in table_markdown(table)
    )


def test_a_column_that_only_some_rows_lack_names_them(tmp_path: Path) -> None:
    cells = [finished(tmp_path, "near", 0.2), finished(tmp_path, "none", 6.0)]
    protocol = Protocol([PoseMetric(), Silent()])
    protocol.write(
        tmp_path / "none/world/seed0",
        protocol.records([Judged(j.id, j.keypoints, j.areas, j.found) for j in judged(6.0)]),
    )
    notes = build_table(plan(tmp_path, cells)).notes
    assert notes == ["No judge_frechet, judge_kernel of none: the records hold nothing to compute it from."]


def test_what_a_method_says_about_its_pictures_stands_below(tmp_path: Path) -> None:
    cell = finished(tmp_path, "reference/folder/theirs", 0.2)
    write_json(tmp_path / cell["folder"] / "row.json", {"remark": "theirs lacks 2 of 12 pictures"})
    table = build_table(plan(tmp_path, [cell]))
    assert (
        "reference/folder/theirs: theirs lacks 2 of 12 pictures." in table.notes
        and table.rows[0]["reason"] == "theirs lacks 2 of 12 pictures"
    )


class Novelty(Silent):
    """Columns of a third party: one that is plain, one that stays in the csv, and one without a direction."""

    columns = ("my_FID", Column("detail", headline=None), Column("novelty", None))
    lower_is_better = frozenset({"my_FID"})

    def absent(self, records: Records) -> dict[str, str]:
        return {}

    def resampled(
        self, records: Records, weights: np.ndarray, reference: Records | None = None
    ) -> dict[str, np.ndarray]:
        return dict.fromkeys(self.columns, weights @ np.asarray(records["paper"]) / weights.sum(1))


def test_a_further_metric_adds_its_columns_and_removes_none(tmp_path: Path) -> None:
    cells = [finished(tmp_path, "near", 0.2), finished(tmp_path, "none", 6.0)]
    before = build_table(plan(tmp_path, cells)).headline
    more = {**PROTOCOL, "metrics": [*PROTOCOL["metrics"], {"_target_": f"{__name__}.Novelty"}]}  # type: ignore[misc]
    table = build_table(plan(tmp_path, cells, protocol=more))
    assert table.headline == [*before, "my_FID", "novelty"] and {"AP50", "AP75", "AR", "count_bias"} <= set(before)
    assert [column.better for column in table.headline[-2:]] == ["lower", None]
    assert "detail" in table_csv(table) and "detail" not in table_markdown(table)
    hidden = build_table(plan(tmp_path, cells, protocol={**more, "hidden": ["AP50"]})).headline
    assert hidden == [column for column in table.headline if column != "AP50"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("cells.json", [], r"cells.json holds a list; expected an object; run posegen benchmark again"),
        ("cells.json", {"cells": []}, r"cells.json has no protocol; run posegen benchmark again"),
        (
            "cells.json",
            {"protocol": {}, "cells": [{"folder": "a"}]},
            r"cells.json has no cells.0.method; run posegen benchmark again",
        ),
        ("near/world/seed0/status.json", {"hash": "near"}, r"near/world/seed0/status.json has no state; delete it"),
        ("near/world/seed0/status.json", {"state": "finished", "hash": "near", "wall_s": "long"}, "wall_s is 'long'"),
        ("near/world/seed0/costs.json", [1], r"near/world/seed0/costs.json holds a list; .*delete it"),
        (
            "near/world/seed0/costs.json",
            {"peak_memory_mb": "much"},
            r"costs.json: peak_memory_mb is 'much'; expected a valid number",
        ),
    ],
)
def test_a_damaged_file_is_one_message(
    benchmark: Path, file: str, content: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(benchmark / file, content)
    assert main(["table", str(benchmark)]) == 1
    error = capsys.readouterr().err
    assert re.search(message, error) and "Traceback" not in error


def test_a_damaged_cell_stands_in_the_table_and_the_others_have_their_values(
    benchmark: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_table(benchmark)
    before, records = rows_of(benchmark), benchmark / "near/world/seed0/records.csv"
    text = records.read_text()
    records.write_text(text.replace("1.0", "0.0", 1))
    for verb in ("table", "report"):
        assert main([verb, str(benchmark)]) == 1
        error = capsys.readouterr().err
        assert f"{records.parent}: records.csv and features.npz do not belong together" in error
        assert "delete records.csv and features.npz there" in error and "Traceback" not in error
    now = rows_of(benchmark)
    assert now["near"]["state"] == "damaged" and now["near"]["AP"] == ""
    assert {name: row["AP"] for name, row in now.items() if name != "near"} == {
        name: row["AP"] for name, row in before.items() if name != "near"
    }
    records.write_text(text)
    assert main(["table", str(benchmark)]) == 0 and rows_of(benchmark) == before


def test_records_of_another_cell_are_noticed(benchmark: Path) -> None:
    protocol, cell = Protocol([PoseMetric(), DistributionMetric(), Silent()]), benchmark / "near/world/seed0"
    owner = "0123456789abcdef"
    protocol.write(cell, protocol.records(judged(0.2)), owner)
    assert protocol.read(cell, owner)["id"] == protocol.read(cell)["id"]
    with pytest.raises(UserError, match="these records are those of another cell"):
        protocol.read(cell, owner[::-1])


def test_records_of_another_protocol_are_one_message(benchmark: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = Protocol([DistributionMetric()])
    other.write(benchmark / "near/world/seed0", other.records(judged(0.2)))
    assert main(["table", str(benchmark)]) == 1
    error = capsys.readouterr().err
    assert "near/world/seed0 are not those of protocol" in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("samples/prompts.txt", b"caf\xe9", r"prompts\.txt is no text in UTF-8"),
        ("samples/000000.png", b"\x89PNG", r"000000\.png is not a readable picture"),
        ("curves/metrics.csv", b"step,train/loss\n0,\xff\n", r"metrics\.csv is damaged"),
    ],
)
def test_a_damaged_picture_or_curve_is_named_and_the_way_out_works(
    benchmark: Path, file: str, content: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = benchmark / "near/world/seed0" / file
    damaged.parent.mkdir(exist_ok=True)
    damaged.write_bytes(content)
    assert main(["table", str(benchmark)]) == 1
    error = capsys.readouterr().err
    assert re.search(f"{message}.*delete it", error) and str(damaged) in error and "Traceback" not in error
    damaged.unlink()
    assert main(["table", str(benchmark)]) == 0


@pytest.mark.parametrize("size", [(24, 71), (12, 36)])
def test_judged_pictures_of_other_sizes_are_named(
    benchmark: Path, size: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    files = [picture(benchmark / name / "world/seed0/judged", 0) for name in ("near", "none")]
    for file, shape in zip(files, (size, (24, 72)), strict=True):
        write_png(file, np.zeros((*shape, 3), np.uint8))
    assert main(["table", str(benchmark)]) == 1
    error = capsys.readouterr().err
    assert f"{files[0]} has {size[1]} x {size[0]}" in error and "delete what is wrong" in error
    files[0].unlink()
    assert main(["table", str(benchmark)]) == 0


def test_the_headline_is_a_choice(tmp_path: Path) -> None:
    folder = plan(tmp_path, [finished(tmp_path, "near", 0.2)], headline=["OKS", "AP"])
    assert table_markdown(build_table(folder)).splitlines()[2].startswith("| method | OKS | AP | trained |")
    with pytest.raises(UserError, match="headline: the protocol has no column FID; it has AP"):
        build_table(plan(tmp_path, [finished(tmp_path, "near", 0.2)], headline=["FID"]))


def test_all_formats_are_written_and_the_page_is_whole(benchmark: Path) -> None:
    write_table(benchmark)
    tex, page = (benchmark / "table.tex").read_text(), (benchmark / "table.html").read_text()
    assert r"\toprule" in tex and r"A 100\% test" in tex and r"luck \& time" in tex
    assert page.count("data:image/png;base64,") == 3 and "://" not in page
    assert "ran out of luck &amp; time" in page


def test_large_pictures_are_small_on_the_page(benchmark: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (512, 512, 3)).astype(np.uint8)
    write_png(picture(benchmark / "near/world/seed0/samples", 0), noise)
    write_table(benchmark)
    assert (benchmark / "table.html").stat().st_size < 512 * 512 * 3 / 2


def test_a_table_made_again_has_the_same_bytes(benchmark: Path) -> None:
    write_table(benchmark)
    files = [benchmark / f"table.{suffix}" for suffix in ("csv", "md", "tex", "html")]
    first = [file.read_bytes() for file in files]
    assert main(["table", str(benchmark)]) == 0
    assert [file.read_bytes() for file in files] == first


def test_the_first_columns_of_the_csv_never_change(benchmark: Path) -> None:
    names = table_csv(build_table(benchmark)).splitlines()[0].split(",")
    assert names[:5] == ["method", "AP", "AP_lo", "AP_hi", "AP_p"]
    end = [
        "n_images",
        "n_seeds",
        "state",
        "reason",
        "cost_trained_parameters",
        "cost_train_images_per_s",
        "cost_sample_images_per_s",
    ]
    assert names[names.index("n_images") :] == [
        *end,
        "cost_wall_s",
        "cost_peak_memory_mb",
        "faithful",
        "reproduction",
        "group",
    ]


def test_two_settings_of_a_method_are_two_rows(tmp_path: Path) -> None:
    cells = []
    for scale in (2, 4):
        cell = finished(tmp_path, "near", scale / 10)
        target = tmp_path / f"near/world,sampler.guidance={scale}"
        (tmp_path / "near/world").rename(target)
        cells.append({**cell, "folder": f"near/{target.name}/seed0"})
    assert [row["method"] for row in build_table(plan(tmp_path, cells)).rows] == [
        "near (sampler.guidance=2)",
        "near (sampler.guidance=4)",
    ]


def test_a_folder_without_a_benchmark_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", str(tmp_path)]) != 0
    assert "posegen benchmark" in capsys.readouterr().err


def test_latex_text_is_escaped() -> None:
    assert latex_text(r"5_% \ †") == r"5\_\% \textbackslash{} $^\dagger$"
    assert (
        TableEntry("5_%", rank=1, differs=True).marked(r"\textbf{{}}", r"\underline{{}}", latex_text)
        == r"\textbf{5\_\%}$^\dagger$"
    )


def test_the_terminal_shows_as_many_columns_as_fit() -> None:
    lines = ["method", "AP", "PCE", "x" * 30], ["a", "1", "2", "3"], ["b", "failed: " + "y" * 60, "", ""]
    assert left_aligned(lines, width=20).splitlines()[0] == "method  AP  PCE"
    assert "y" * 60 in left_aligned(lines, width=20)


TEX = shutil.which("pdflatex")
PAGE = r"""\documentclass[twocolumn]{article}
\usepackage{booktabs,graphicx}
\begin{document}\input{table.tex}\end{document}
"""


@pytest.mark.skipif(not TEX, reason="no pdflatex: the Debian packages texlive-latex-base and -recommended are missing")
@pytest.mark.parametrize("name", ["near", "a_method_of_another_package/with_a_name_that_nobody_wants_to_read_twice"])
def test_the_latex_table_fits_a_page_of_two_columns(benchmark: Path, name: str) -> None:
    facts = json.loads((benchmark / "cells.json").read_text())
    facts["cells"][0]["method"] = name
    facts["cells"].append({"folder": "lost/world/seed0", "method": "lost", "seed": 0, "hash": "lost"})
    reason = f"no file {'weights/' * 30}x_y.pth: a < b & 5 % | more"
    write_json(benchmark / "lost/world/seed0/status.json", {"state": "failed", "hash": "lost", "reason": reason})
    write_json(benchmark / "cells.json", facts)
    text = table_latex(build_table(benchmark))
    assert text.count(r"\begin{table*}") == 1 and "trained" not in text and r"PCK@0.1 $\uparrow$" in text
    (benchmark / "table.tex").write_text(text)
    (benchmark / "page.tex").write_text(PAGE)
    command = [str(TEX), "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    said = subprocess.run(command, cwd=benchmark, capture_output=True, text=True, check=False)
    assert said.returncode == 0 and "page.pdf" in said.stdout, said.stdout
    assert not re.findall(r"^(?:Overfull|Missing character).*", said.stdout, re.MULTILINE)
