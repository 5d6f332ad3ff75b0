"""``posegen prepare`` on invented trees: one report of all defects, nothing twice, and training reads the result."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from posegen.config.checking.check import require_valid
from posegen.data.condition import Defect
from posegen.data.on_disk.preparation_report import MOST_LISTED, SplitReport, report_page
from posegen.errors import UserError
from posegen.runner.cell import Cell
from posegen.runner.components import Components
from posegen.runner.images import read_png, write_png
from posegen.train.loop import needs_of
from posegen.train.tasks import AdapterTask
from posegen.verbs.prepare import main as prepare
from posegen.verbs.train import main as train
from tests.data.coco_pair import singles
from tests.data.trees import Planted, human_art
from tests.tiny import configured


@pytest.fixture
def tree(tmp_path: Path, world: list[str]) -> tuple[list[str], Planted]:
    """Overrides for a tree with defects on the tiny world's backbone, and what is wrong with it."""
    planted = human_art(
        tmp_path / "HumanArt", scenarios=6, per_scenario=4, size=(72, 100), layout="mapping", defects=True
    )
    options = [
        f"data.root={tmp_path / 'HumanArt'}",
        "data.poses=mapping",
        "data.size=64",
        "data.holdout=0.3",
        "data=human_art",
    ]
    mine = [override for override in world if not override.startswith(("data.", "paths.cache"))]
    return [*mine, *options, f"paths.cache={tmp_path / 'cache'}", f"paths.output={tmp_path / 'out'}"], planted


def prepared(*overrides: str) -> Path:
    with configured("prepare", *overrides) as cfg:
        prepare(cfg)
        return Path(cfg.out)


def test_one_report_names_every_defect(tree: tuple[list[str], Planted], capsys: pytest.CaptureFixture) -> None:
    overrides, planted = tree
    out = prepared(*overrides)
    with (out / "report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["file"] for row in rows if row["left_out"] == "1"} == planted.left_out.keys()
    assert {row["file"] for row in rows if row["left_out"] == "0"} == planted.remarks.keys()
    assert {row["split"] for row in rows} == {"test"}
    report = (out / "report.md").read_text()
    for file, problem in (planted.left_out | planted.remarks).items():
        assert any(file in line and problem in line for line in report.splitlines())
    assert f"| test | {24 - len(planted.left_out)} |" in report and "the released list has 4,750" in report
    printed = capsys.readouterr().out
    assert (
        f"test: {24 - len(planted.left_out)} pictures" in printed
        and f"; {len(planted.left_out)} left out, " in printed
        and str(out / "report.md") in printed
    )
    sheets = [read_png(out / f"contact_{split}.png") for split in ("train", "validation", "test")]
    assert all(sheet.shape == (1024, 1024, 3) for sheet in sheets) and not np.array_equal(sheets[0], sheets[2])


def test_the_second_time_nothing_is_done(tree: tuple[list[str], Planted], tmp_path: Path) -> None:
    overrides = [*tree[0], "latents=true", "text=true"]
    prepared(*overrides)
    assert list((tmp_path / "cache").glob("latents/human_art-train-*/00000.npy")) and list(
        (tmp_path / "cache").glob("text/human_art-train-*/00000.npy")
    )
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*") if file.is_file()}
    prepared(*overrides)
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*") if file.is_file()}
    with configured("train", *tree[0]) as cfg:  # training reads what was prepared
        components = Components(cfg)
        needs_of(AdapterTask(components), components)
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*") if file.is_file()}


@pytest.mark.parametrize("transform", ["corrected", "humansd"])
def test_methods_train_on_what_was_prepared(tree: tuple[list[str], Planted], tmp_path: Path, transform: str) -> None:
    """Also on images that look different on every visit, of which no latents are kept."""
    with configured(
        "train",
        *tree[0],
        f"data.transform={transform}",
        "budget.steps=3",
        "validation.every=2",
        "validation.images=4",
    ) as cfg:
        train(cfg)
        assert Cell.of(cfg).finished()
    assert bool(list((tmp_path / "cache").glob("latents/*"))) == (transform == "corrected")


def test_splits_without_a_list_do_not_stop_the_others(
    tree: tuple[list[str], Planted], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "HumanArt" / "mapping_file_training.json").unlink()
    out = prepared(*tree[0])
    assert "has no list for train" in (out / "report.md").read_text() and "train: 0 pictures" in capsys.readouterr().out
    assert not (out / "contact_train.png").exists() and (out / "contact_test.png").exists()
    with pytest.raises(UserError, match="latents=true encodes the split train, which is not there"):
        prepared(*tree[0], "latents=true")
    with pytest.raises(UserError, match=r"nothing of data=human_art can be used; .*report\.md says why"):
        prepared(*tree[0], "splits=[train]")


def test_a_missing_root_is_one_problem() -> None:
    with configured("prepare", "data=human_art") as cfg, pytest.raises(UserError) as caught:
        require_valid(cfg)
    assert str(caught.value).count(
        "data."
    ) == 2 and "data.root=???: a value is missing; give one with data.root=VALUE" in str(caught.value)


def test_generated_data_is_rendered(world: list[str], tmp_path: Path) -> None:
    out = prepared(*world, f"paths.cache={tmp_path}")
    assert "- images: 24" in (out / "report.md").read_text()
    assert read_png(out / "contact_test.png").shape[1] == 1024 and list(tmp_path.glob("mannequin-*/train/*"))


def test_long_lists_are_in_the_table() -> None:
    defects = [Defect(f"{i}.jpg", f"{i} | people", i % 2 == 0) for i in range(MOST_LISTED + 20)]
    text = report_page("mine", [SplitReport("train", {"sizes": {"largest": [1, 2]}}, ["odd"], defects, 7)])
    assert "The other 20 are in report.csv." in text and "| #\\|" not in text and "1 \\| people" in text
    assert f"| ### \\| people | {(MOST_LISTED + 20 - 100) // 2} |" in text


def test_the_poses_of_single_people_are_written_as_gunets_authors_store_them(tmp_path: Path, world: list[str]) -> None:
    singles(tmp_path / "coco")
    mine = [override for override in world if not override.startswith(("data.", "paths.cache", "backbone."))]
    options = [
        "data=coco_single",
        f"data.root={tmp_path / 'coco'}",
        f"paths.cache={tmp_path / 'cache'}",
        f"joint_vectors={tmp_path / 'vectors'}",
    ]
    prepared(*mine, *options)
    assert len(list((tmp_path / "vectors/joint_vectors").glob("*.npy"))) == 8  # four fifths
    with pytest.raises(UserError, match="data=mannequin has no single people to write; choose data=coco_single"):
        prepared(*world, "splits=[validation]", f"joint_vectors={tmp_path / 'other'}")


def test_prompts_that_the_text_tower_cuts_are_counted_in_one_line(
    world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    prompts = {f"{i}.png": " ".join(["word"] * (100 if i < 2 else 2)) for i in range(3)}
    for name in prompts:
        write_png(tmp_path / "mine" / name, np.zeros((64, 64, 3), np.uint8))
    (tmp_path / "mine" / "prompts.json").write_text(json.dumps(prompts))
    own = [word for word in world if not word.startswith(("data.", "paths."))]
    data = ["data=folder", f"data.root={tmp_path / 'mine'}", "data.poses=null", "data.shares=[0.0,0.0,1.0]"]
    places = [f"paths.cache={tmp_path / 'cache'}", f"paths.output={tmp_path / 'out'}", "data.size=64", "splits=[test]"]
    report = (prepared(*own, *data, *places) / "report.md").read_text()
    for text in (report, capsys.readouterr().out):
        (line,) = [line for line in text.splitlines() if "tokens" in line]
        assert "prompts: 2 of 3 prompts are longer than the " in line
