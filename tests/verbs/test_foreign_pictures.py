"""Folders of pictures, from any program, as rows of a benchmark."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from posegen.cli import main
from posegen.io.atomic import read_json
from tests.tiny import configured


def command(world: list[str], output: Path, *more: str) -> list[str]:
    tiny = [o for o in world if not o.startswith("progress")]
    return ["benchmark", "benchmark=smoke", "hydra/launcher=basic", f"paths.output={output}", *tiny, *more]


def rows(output: Path, study: str = "smoke") -> dict[str, dict[str, str]]:
    with (output / "benchmark" / study / "table.csv").open(newline="") as file:
        return {row["method"]: row for row in csv.DictReader(file)}


def cell(output: Path, study: str = "smoke") -> Path:
    """The folder of the only cell of a benchmark."""
    folder = output / "benchmark" / study
    return folder / read_json(folder / "cells.json")["cells"][0]["folder"]


@pytest.fixture(scope="module")
def real(world: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark of its own with the row of real images, whose pictures are what the folders hold."""
    output = tmp_path_factory.mktemp("real")
    group = output / "conf/benchmark"
    group.mkdir(parents=True)
    table = "study: benchmark/mine\nheadline: [OKS]\nreproduction: {source: GRPose, tolerance: {paper_AP: 1.0}}\n"
    (group / "mine.yaml").write_text(f"# @package _global_\n# A benchmark of tests.\n{table}")
    words = [word for word in command(world, output, "adapter=reference/real", "seed=0") if word != "benchmark=smoke"]
    assert main([*words, "benchmark=mine", f"hydra.searchpath=[file://{output / 'conf'}]"]) == 0
    return output


def test_several_folders_are_several_rows_with_the_values_of_their_pictures(
    real: Path, world: list[str], tmp_path: Path
) -> None:
    samples = cell(real, "mine") / "samples"
    shutil.copytree(samples, tmp_path / "theirs")
    (tmp_path / "others").mkdir()
    for i in range(6):  # the same pictures in another order
        shutil.copy(samples / f"{i:06d}.png", tmp_path / f"others/{5 - i:06d}.png")
    assert (
        main(
            command(
                world,
                tmp_path,
                "adapter=reference/folder",
                f"adapter.path={tmp_path / 'theirs'},{tmp_path / 'others'}",
            )
        )
        == 0
    )
    table, own = rows(tmp_path), rows(real, "mine")["reference/real"]
    assert list(table) == ["reference/folder/theirs", "reference/folder/others"]
    measured = [name for name in own if name.startswith(("AP", "PCK", "OKS", "count_", "judge_"))]
    theirs, others = table.values()
    assert [theirs[name] for name in measured] == [own[name] for name in measured]
    assert [others[name] for name in measured] != [own[name] for name in measured]
    assert theirs["faithful"] == "" and theirs["reason"] == ""


def test_missing_pictures_fail_the_cell_or_are_told_below_the_table(
    real: Path, world: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "theirs"
    shutil.copytree(cell(real, "mine") / "samples", folder)
    (folder / "000004.png").unlink()
    option = tmp_path / "conf/adapter/reference/theirs.yaml"
    option.parent.mkdir(parents=True)
    option.write_text(f"# Their pictures.\n_target_: posegen.adapters.reference_folder.Folder\npath: {folder}\n")
    assert (
        main(
            command(
                world,
                tmp_path,
                "adapter=reference/real,reference/theirs",
                f"hydra.searchpath=[file://{tmp_path / 'conf'}]",
            )
        )
        == 1
    )
    table = rows(tmp_path)
    assert table["reference/real"]["state"] == "finished", "a table can have both"
    assert (
        table["reference/theirs"]["state"] == "failed"
        and "lacks 1 of 6 pictures: mannequin/test/000004" in table["reference/theirs"]["reason"]
    )
    lenient = [
        "adapter=reference/folder",
        f"adapter.path={folder}",
        "adapter.allow_missing=true",
        "study=benchmark/lenient",
    ]
    assert main(command(world, tmp_path, *lenient)) == 0
    assert "lacks 1 of 6 pictures" in (tmp_path / "benchmark/lenient/table.md").read_text()
    about = read_json(cell(tmp_path, "lenient") / "row.json")
    assert about["faithful"] is None and "not comparable" in about["remark"]


def test_an_impossible_headline_is_told_before_anything_runs(
    world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(world, tmp_path, "adapter=reference/real", "headline=[AP,FID]")) == 1
    assert "headline: the protocol has no column FID" in capsys.readouterr().err
    assert not (tmp_path / "benchmark").exists()


def test_what_only_the_table_reads_reaches_it(real: Path) -> None:
    plan = read_json(real / "benchmark/mine/cells.json")
    assert plan["headline"] == ["OKS"] and plan["reproduction"] == {"source": "GRPose", "tolerance": {"paper_AP": 1.0}}
    assert "| method | OKS |" in (real / "benchmark/mine/table.md").read_text()


def test_only_folders_are_named_after_a_path() -> None:
    from posegen.config.resolvers import row

    assert (
        row("reference/folder", "runs/humansd/") == "reference/folder/humansd"
        and row("reference/real", None) == "reference/real"
    )
    assert row("theirs", "weights/x.pt") == "theirs"
    with configured("train", "adapter=controlnet") as cfg:
        assert cfg.method == "controlnet"
