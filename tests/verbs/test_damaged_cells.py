"""State files that are damaged on a disk: each message names a way out, and that way works."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from posegen.cli import main
from posegen.demo.loaded_methods import LoadedMethods
from posegen.errors import CellConflict, UserError
from posegen.io.atomic import read_json, write_json
from posegen.runner.cell import Cell, identity
from posegen.runner.method_folder import find_checkpoint
from posegen.runner.progress import note_costs
from posegen.verbs.benchmark import other_cells

RESULTS = ("records.csv", "samples/000003.png", "reference/records.csv")


@pytest.fixture(scope="module")
def computed(world: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a judged cell."""
    output = tmp_path_factory.mktemp("computed")
    assert main(evaluation(world, output)) == 0
    return output


def evaluation(world: list[str], output: Path, *more: str) -> list[str]:
    return ["evaluate", *world, "adapter=none", f"paths.output={output}", *more]


@pytest.fixture
def cell(computed: Path, tmp_path: Path) -> Path:
    """A copy of that cell, below ``tmp_path``."""
    shutil.copytree(computed, tmp_path / "outputs")
    return next((tmp_path / "outputs").rglob("status.json")).parent


def contents(cell: Path) -> list[bytes]:
    return [(cell / name).read_bytes() for name in RESULTS]


def test_a_damaged_status_is_deleted_and_everything_computed_stays(
    world: list[str], cell: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, times = contents(cell), (cell / RESULTS[1]).stat().st_mtime_ns
    (cell / "status.json").write_text("[1]")
    assert main(evaluation(world, tmp_path / "outputs")) == 1
    message = capsys.readouterr().err
    assert f"{cell / 'status.json'} holds a list; expected an object; delete it and run this cell again" in message
    (cell / "status.json").unlink()
    assert main(evaluation(world, tmp_path / "outputs")) == 0
    assert read_json(cell / "status.json")["state"] == "finished" and contents(cell) == before
    assert (cell / RESULTS[1]).stat().st_mtime_ns == times, "nothing was sampled again"


def test_a_damaged_configuration_is_written_again(
    world: list[str], cell: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    power = ["power", str(cell), str(cell), "column=PCK@0.1"]
    assert main(power) == 0
    before = (cell / "config.yaml").read_bytes()
    (cell / "config.yaml").write_bytes(before[:100])
    assert main(power) == 1
    assert f"delete it and {cell / 'status.json'} and run this cell again" in capsys.readouterr().err
    for name in ("config.yaml", "status.json"):
        (cell / name).unlink()
    assert main(evaluation(world, tmp_path / "outputs")) == 0 and main(power) == 0
    assert len((cell / "config.yaml").read_bytes()) > 100


def test_without_its_status_a_cell_of_other_settings_is_still_refused(tmp_path: Path) -> None:
    def of(**settings: Any) -> Cell:
        config = {"method": "m", "seed": 0, "study": "s", "sampler": settings}
        return Cell(tmp_path / "cell", identity(config), config)

    with of(steps=2).working():
        (tmp_path / "cell" / "samples").mkdir()
    (tmp_path / "cell" / "status.json").unlink()
    with pytest.raises(CellConflict, match="sampler.steps: 2 there, 3 now"):
        of(steps=3).check()
    of(steps=2).check()
    (tmp_path / "cell" / "samples").rmdir()
    of(steps=3).check()  # nothing was computed


@pytest.mark.parametrize("content", ["[]", '{"wall_s": "x"}', "{", ""])
def test_costs_that_are_damaged_are_written_again(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "costs.json").write_text(content)
    note_costs(tmp_path, wall_s=3.0)
    assert read_json(tmp_path / "costs.json") == {"wall_s": 3.0} and "costs.json is damaged" in capsys.readouterr().out
    note_costs(tmp_path, peak_memory_mb=5.0)
    assert read_json(tmp_path / "costs.json") == {"wall_s": 3.0, "peak_memory_mb": 5.0}


@pytest.mark.parametrize(
    "content", ["", "[]", "null", '"finished"', '{"state": 3}', '{"state": "finished", "identity": []}']
)
def test_a_damaged_status_of_another_cell_is_passed_over(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = OmegaConf.create({"checkpoint": None, "checkpoints": [], "method": "m", "paths": {"output": str(tmp_path)}})
    for name in ("good", "bad"):
        write_json(tmp_path / name / "status.json", {"state": "finished", "identity": identity(cfg)})
        (tmp_path / name / "method").mkdir()
        (tmp_path / name / "method" / "posegen.json").write_text("{}")
    (tmp_path / "bad" / "status.json").write_text(content)
    assert find_checkpoint(cfg) == tmp_path / "good" / "method"
    assert f"passed over: {tmp_path / 'bad' / 'status.json'}" in capsys.readouterr().out
    methods = LoadedMethods(cfg)
    assert [method.label for method in methods.methods()] == ["none"]
    assert any("bad" in reason and "status.json" in reason for reason in methods.left_out)


@pytest.mark.parametrize("study", ["../../escape", "/tmp/escape", "..", "a/../../b"])
def test_a_study_outside_the_output_folder_is_refused(
    world: list[str], tmp_path: Path, study: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "inner" / "outputs"
    for verb in ("train", "benchmark"):
        assert main([verb, *world, f"paths.output={output}", f"study={study}"]) == 1
        text = capsys.readouterr().err
        assert (
            f"study={study} leads out of {output}" in text
            and "the place as paths.output=" in text
            and "Traceback" not in text
        )
    assert not list(tmp_path.rglob("status.json")) and not list(tmp_path.rglob("cells.json"))


def test_a_second_benchmark_keeps_the_rows_of_the_first(
    world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["benchmark", "benchmark=smoke", "hydra/launcher=basic", f"paths.output={tmp_path}", *world]
    folder = tmp_path / "benchmark" / "smoke"
    assert main([*words, "adapter=none"]) == 0
    capsys.readouterr()
    assert main([*words, "adapter=reference/real"]) == 0
    assert "the table also has earlier rows of this study: none/" in capsys.readouterr().out
    with (folder / "table.csv").open() as file:
        assert [row["method"] for row in csv.DictReader(file)] == ["reference/real", "none"]
    (folder / "cells.json").write_text("[1, 2]")  # damaged: the next benchmark writes it again
    assert main([*words, "adapter=none"]) == 0
    assert [entry["method"] for entry in read_json(folder / "cells.json")["cells"]] == ["none"]


def test_rows_of_another_protocol_are_neither_mixed_nor_dropped(tmp_path: Path) -> None:
    entry = {"folder": "a/world/seed0", "method": "a", "seed": 0, "hash": "x"}
    write_json(tmp_path / "cells.json", {"protocol": {"name": "one"}, "cells": [entry]})
    new: dict[str, Any] = {"protocol": {"name": "two"}, "cells": [{**entry, "folder": "b/world/seed0"}]}
    assert other_cells(tmp_path, new) == [], "its folder was deleted"
    (tmp_path / entry["folder"]).mkdir(parents=True)  # type: ignore[operator]
    with pytest.raises(UserError, match=r"holds rows that another protocol judged .* delete .*cells.json to leave"):
        other_cells(tmp_path, new)
    assert other_cells(tmp_path, {**new, "protocol": {"name": "one"}}) == [entry]
    assert other_cells(tmp_path, {"protocol": {"name": "two"}, "cells": [entry]}) == [], "it is planned anew"
    (tmp_path / "cells.json").unlink()
    assert other_cells(tmp_path, new) == []


def test_html_in_a_reason_is_text_in_the_table(tmp_path: Path) -> None:
    entry = {"folder": "a/world/seed0", "method": "a<script>alert(1)</script>", "seed": 0, "hash": "x"}
    protocol = {
        "_target_": "posegen.metrics.protocol.Protocol",
        "metrics": [{"_target_": "posegen.metrics.pose.PoseMetric"}],
    }
    write_json(tmp_path / "cells.json", {"title": "<img src=x onerror=y>", "protocol": protocol, "cells": [entry]})
    write_json(
        tmp_path / "a/world/seed0/status.json", {"state": "failed", "hash": "x", "reason": "<b>1\n2 < 3</b> | x"}
    )
    assert main(["table", str(tmp_path)]) == 0
    text = (tmp_path / "table.md").read_text()
    assert "<script" not in text and "<img" not in text and "<b>" not in text and "&lt;b>1 2 < 3&lt;/b> \\| x" in text
