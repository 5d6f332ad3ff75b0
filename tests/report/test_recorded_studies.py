"""Recorded studies give their tables again, and stand on one page where they are comparable."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from posegen.cli import main
from posegen.io.atomic import read_json, write_json, write_text
from posegen.io.hashes import file_hash, value_hash
from posegen.metrics.records import read_records
from posegen.report.recorded.files import entry_array, entry_text, unpacked_study
from posegen.report.table import build_table
from posegen.report.write import write_table
from posegen.runner.images import picture, write_png
from tests.report.test_judges import PROTOCOL, SECOND, write_cell, write_second

SHIFTS = {"near": 0.3, "middle": 1.0, "far": 2.5, "reference/real": 0.0}


def benchmark(folder: Path, steps: int = 600, shifts: dict[str, float] = SHIFTS, **more: Any) -> Path:
    entries = []
    for name, shift in shifts.items():
        cell = folder / name / "world/seed0"
        identity = {"estimator": SECOND, "protocol": PROTOCOL, "adapter": {"_target_": name}, "data": {"test": "t"}}
        identity |= {"budget": {"steps": steps}, "optim": {"batch": 32}, "backbone": {"id": "small"}, **more}
        key = value_hash(identity)
        write_cell(cell, {"hash": key, "identity": identity}, shift)
        for i in range(10):
            write_png(picture(cell / "samples", i), np.full((64, 64, 3), 20 * i, np.uint8))
        entries.append({"folder": f"{name}/world/seed0", "method": name, "seed": 0, "hash": key})
    write_json(folder / "cells.json", {"title": "T", "baseline": "near", "protocol": PROTOCOL, "cells": entries})
    return folder


def recorded(folder: Path, target: Path) -> Path:
    assert main(["record", str(folder), f"target={target}"]) == 0
    return target


@pytest.mark.parametrize("kind", ["<f4", "<f8", "<i4"])
def test_arrays_come_back_as_they_were(kind: str) -> None:
    dice = np.random.default_rng(0)
    for shape in ((), (3,), (0, 17, 3), (2, 17, 3)):
        array = np.asarray(1e3 * dice.normal(size=shape)).astype(kind)
        again = entry_array(entry_text(array), kind)
        assert again.dtype == array.dtype and again.shape == array.shape and (again == array).all()
    for text in ("2x2:1 2 3", "x:1 2", "2:1 a"):
        with pytest.raises(ValueError):
            entry_array(text, kind)


def test_a_recorded_study_has_the_records_of_every_cell_and_judge_and_gives_its_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = benchmark(tmp_path / "b")
    for name in SHIFTS:
        write_second(folder / name / "world/seed0", 1.0)
        place = folder / name / "world/seed0/judges/two/status.json"
        about = read_json(place)
        write_json(place, {**about, "hash": value_hash(about["identity"])})
    one, two = (recorded(folder, tmp_path / name) for name in ("one", "two"))
    for name in ("records.csv.gz", "study.json", "table.csv", "poses.webp", "methods.jpg"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    write_table(folder)
    assert (one / "table.csv").read_bytes() == (folder / "table.csv").read_bytes()
    with unpacked_study(one) as there:
        for cell in ("near/world/seed0", "near/world/seed0/judges/two", "near/world/seed0/reference"):
            ours, theirs = read_records(there / cell), read_records(folder / cell)
            assert ours.keys() == theirs.keys()
            for column in ours:
                pairs = zip(ours[column], theirs[column], strict=True)
                assert all(np.array_equal(a, b) for a, b in pairs)
        judges, before = build_table(there).judges, build_table(folder).judges
        assert judges and before and judges.notes == before.notes
    capsys.readouterr()
    assert main(["table", str(one)]) == 0
    assert "reproduced, byte by byte" in capsys.readouterr().out
    assert Image.open(one / "methods.jpg").size[0] == 2 * 838
    assert str(tmp_path) not in (one / "study.json").read_text()


def test_a_table_of_other_numbers_is_not_reproduced_and_one_of_another_machine_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = recorded(benchmark(tmp_path / "b"), tmp_path / "study")
    text = (study / "table.csv").read_text()
    value = text.splitlines()[1].split(",")[1]
    write_text(study / "table.csv", text.replace(value, repr(float(value) * (1 + 1e-12)), 1))
    assert main(["table", str(study)]) == 0 and "1 values differ" in capsys.readouterr().out
    write_text(study / "table.csv", text.replace(value, "12.5", 1))
    assert main(["table", str(study)]) == 1
    assert f"AP of near is 12.5 there, and the records give {value}" in capsys.readouterr().err


def tables_of(page: Path) -> dict[str, str]:
    """Heading of a section -> its html."""
    return dict(re.findall(r"<section id='[^']*'><h2>(.*?)</h2>(.*?)</section>", page.read_text(), re.DOTALL))


def test_the_leaderboard_never_mixes_what_is_not_comparable(tmp_path: Path) -> None:
    studies = tmp_path / "studies"
    recorded(benchmark(tmp_path / "a"), studies / "ours")
    recorded(benchmark(tmp_path / "b", shifts={"near": 0.3, "theirs": 9.0}), studies / "guests")
    recorded(benchmark(tmp_path / "c", steps=2400, shifts={"long": 0.2, "longer": 0.1}), studies / "long")
    page = tmp_path / "page.html"
    assert main(["leaderboard", str(studies), f"target={page}"]) == 0
    sections = tables_of(page)
    short, long = (next(html for name, html in sections.items() if f"{n} steps" in name) for n in (600, 2400))
    names = re.findall(r"<tr[^>]*><th scope='row'>(.*?)</th>\s*<td>(\d*)</td>\s*<td>(\w+)</td>", short)
    assert names[3] == ("theirs", "4", "guests")
    assert [name for name, *_ in names].count("near") == 1  # the same cell in two studies
    assert [rank for _, rank, _ in names[2:]] == ["3", "4", ""] and "reference/<wbr>real" in short
    assert "longer" in long and "theirs" not in long and "longer" not in short
    assert file_hash(studies / "ours/records.csv.gz", 10) in sections["Studies"]
    assert "http" not in page.read_text().replace("http-equiv", "")


def test_what_is_damaged_or_claims_another_hash_is_left_out_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    studies = tmp_path / "studies"
    good = recorded(benchmark(tmp_path / "a"), studies / "good")
    names = ("cut", "future", "liar", "outside", "number", "nothing", "invented")
    cut, future, liar, outside, number, nothing, invented = (shutil.copytree(good, studies / name) for name in names)
    (cut / "records.csv.gz").write_bytes((good / "records.csv.gz").read_bytes()[:-50])
    about = read_json(good / "study.json")
    write_json(future / "study.json", {**about, "format": 2})
    write_json(
        outside / "study.json", {**about, "cells": {"../x": about["cells"]["near/world/seed0"], **about["cells"]}}
    )
    write_json(number / "study.json", {**about, "cells": 5})
    (nothing / "study.json").unlink()
    cells = {name: {**cell, "status": {**cell["status"], "hash": "0" * 16}} for name, cell in about["cells"].items()}
    write_json(liar / "study.json", {**about, "cells": cells})
    write_text(invented / "table.csv", (good / "table.csv").read_text().replace("near,", "near,1"))
    page = tmp_path / "page.html"
    assert main(["leaderboard", str(studies), f"target={page}"]) == 0
    shown = capsys.readouterr().out
    for name, reason in {
        "cut": "SHA-256",
        "future": "format 2; this posegen reads 1",
        "liar": "and it says 0000000000000000",
        "outside": "lies outside",
        "number": "cells is 5",
        "nothing": "not a readable json",
        "invented": "is not reproduced",
    }.items():
        line = next(line for line in shown.splitlines() if line.startswith(f"left out: {studies / name}:"))
        assert reason in line and reason.split("'")[0] in tables_of(page)["Left out"], line
    assert "1 studies, 1 tables" in shown
