"""Curves and pictures arrive, without an account and without a network."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from lightning.fabric.utilities.rank_zero import rank_zero_only

from posegen.report.plots import curves_of
from posegen.verbs.train import main as train
from tests.tiny import configured


def logged(folder: Path) -> dict[Path, bytes]:
    """Offline run -> its log, once W&B's process, which writes it, has nothing left to write."""
    before: dict[Path, bytes] = {}
    for _ in range(60):
        runs = {run: b"".join(p.read_bytes() for p in run.glob("*.wandb")) for run in folder.rglob("offline-run-*")}
        if runs == before and all(len(text) > 100 for text in runs.values()):
            break
        before = runs
        time.sleep(1)
    return runs


def test_every_logger_leaves_its_curves_and_the_csv_in_the_cell(
    world: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where Lightning guessed another rank when it was imported, as it does under SLURM_PROCID=3."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    for logger, pattern in (
        ("tensorboard", "curves/events.out.tfevents.*"),
        ("wandb", "*.wandb"),
        ("csv", "curves/metrics.csv"),
    ):
        monkeypatch.setattr(rank_zero_only, "rank", 3)
        with configured(
            "train",
            *world,
            f"logger={logger}",
            "budget.steps=2",
            "trainer.log_every_n_steps=1",
            f"paths.output={tmp_path / logger}",
        ) as cfg:
            train(cfg)
        (cell,) = (tmp_path / logger).rglob("seed0")
        assert list(cell.rglob(pattern))
        assert [step for step, _ in curves_of(cell)["train/loss"]] == [0, 1]


def test_a_benchmark_on_wandb_has_values_images_methods_and_its_table(
    world: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from posegen.cli import main

    monkeypatch.setenv("WANDB_SILENT", "true")
    options = [
        "logger=wandb",
        "dashboard.methods=true",
        "dashboard.images=3",
        "budget.steps=2",
        "callbacks.checkpoint.every=2",
        f"paths.output={tmp_path}",
    ]
    assert main(["benchmark", *world, "adapter=controlnet,none", "hydra/launcher=serial", *options]) == 0
    content = logged(tmp_path)
    judged = [text for text in content.values() if b"test/PCK@0.1" in text]
    assert len(judged) == 2 and all(b"images" in text for text in judged)
    files = {path.name for run in content for path in run.rglob("*") if path.is_file()}
    assert any(name.startswith("images_") and name.endswith(".table.json") for name in files)
    tables = [json.loads(path.read_text()) for run in content for path in run.rglob("images_*.table.json")]
    assert all(
        len(table["data"]) == 3 and table["columns"][:5] == ["id", "prompt", "pose", "sample", "found"]
        for table in tables
    )
    worst = [[row[table["columns"].index("PCK@0.1")] for row in table["data"]] for table in tables]
    assert worst == [sorted(values) for values in worst] and sorted(t["data"][0][0] for t in tables)[0].startswith(
        "mannequin/test/"
    )
    (whole,) = [json.loads(path.read_text()) for run in content for path in run.rglob("table_*.table.json")]
    rows = [dict(zip(whole["columns"], row, strict=True)) for row in whole["data"]]
    assert [row["method"] for row in rows] == ["controlnet", "none"] and all(
        isinstance(row["count_error_hi"], float) for row in rows
    )
    (board,) = [text for run, text in content.items() if "dashboard" in run.parts]
    assert b"benchmark-mannequin" in board and b"table.csv" in board, set(re.findall(rb"[\w./:-]{4,}", board))
    assert any(
        b"controlnet-seed0" in text and b"diffusion_pytorch_model.safetensors" in text for text in content.values()
    )


def test_what_a_dashboard_cannot_take_is_said_and_nothing_is_lost(
    world: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from posegen.cli import main

    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setattr("posegen.report.wandb.image_table", lambda *_: 1 / 0)
    assert (
        main(["benchmark", *world, "adapter=none", "hydra/launcher=serial", "logger=wandb", f"paths.output={tmp_path}"])
        == 0
    )
    assert "W&B does not show the results of" in capsys.readouterr().out
