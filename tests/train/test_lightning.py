"""What a user of Lightning expects: arguments of the Trainer, loggers and callbacks work by their names."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from posegen.cli import main
from tests.train.test_train import Stop, equal, interrupt, trained, weights


def train(world: list[str], output: Path, *overrides: str) -> int:
    return main(["train", *world, f"paths.output={output}", "trainer.log_every_n_steps=1", *overrides])


def curve(output: Path) -> pd.DataFrame:
    (file,) = output.rglob("curves/metrics.csv")
    return pd.read_csv(file).dropna(subset="train/loss")


def test_any_logger_by_its_class(world: list[str], tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logger = ["logger._target_=lightning.pytorch.loggers.CSVLogger", f"+logger.save_dir={logs}"]
    assert train(world, tmp_path / "out", *logger) == 0
    (written,) = logs.rglob("metrics.csv")
    assert written.relative_to(logs).as_posix() == "lightning_logs/version_0/metrics.csv"
    losses = pd.read_csv(written).dropna(subset="train/loss")  # the row behind them has the costs
    assert list(losses["step"]) == list(curve(tmp_path / "out")["step"]) == [0, 1, 2, 3, 4, 5]


def test_an_argument_that_a_logger_does_not_take_is_refused(
    world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = ["logger._target_=lightning.pytorch.loggers.CSVLogger", "+logger.save_folder=logs"]
    assert train(world, tmp_path, *logger) == 1
    said = capsys.readouterr().err
    assert "logger.save_folder" in said and "save_dir" in said and not list(tmp_path.rglob("status.json"))


def test_a_fast_dev_run_leaves_nothing(world: list[str], tmp_path: Path) -> None:
    assert train(world, tmp_path, "+trainer.fast_dev_run=true") == 0
    assert not list(tmp_path.rglob("*.safetensors")) and not list(tmp_path.rglob("status.json"))


def test_limited_batches_end_an_epoch_early(world: list[str], tmp_path: Path) -> None:
    """Six steps in epochs of two batches, each the first two of another permutation."""
    assert train(world, tmp_path, "+trainer.limit_train_batches=2") == 0
    assert list(curve(tmp_path)["epoch"]) == [0, 0, 1, 1, 2, 2]


def test_epochs_end_a_training(world: list[str], tmp_path: Path) -> None:
    """24 samples in batches of 8 are 3 steps; the schedule knows it."""
    assert train(world, tmp_path, "trainer.max_epochs=1", "optim.batch=8") == 0
    assert list(curve(tmp_path)["step"]) == [0, 1, 2]
    assert list(tmp_path.rglob("*.safetensors"))


def test_any_callback_by_its_class(world: list[str], tmp_path: Path) -> None:
    """Early stopping ends the training, and what is trained is exported."""
    stop = "{_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: train/loss, stopping_threshold: 100.0}"
    options = [f"+callbacks.stop={stop}", "optim.batch=8", "optim.accumulate=1", "budget.steps=30"]
    assert train(world, tmp_path, *options) == 0
    assert len(curve(tmp_path)) < 30 and list(tmp_path.rglob("*.safetensors"))


def test_callbacks_that_are_left_out(world: list[str], tmp_path: Path) -> None:
    assert train(world, tmp_path, "~callbacks.averaging", "~callbacks.live", "~callbacks.checkpoint") == 0
    assert list(tmp_path.rglob("*.safetensors")) and not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("after", [2, 3, 5])
def test_a_run_interrupted_in_any_epoch_ends_at_the_same_weights(
    after: int, world: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epochs of two steps; interrupted at the end of one, in the middle of one, and in the last."""
    options = ["optim.batch=8", "data.train.count=20", "callbacks.checkpoint.every=1"]
    whole = trained(world, tmp_path / "whole", *options)
    with monkeypatch.context() as patch:
        interrupt(patch, after=after)
        with pytest.raises(Stop):
            trained(world, tmp_path / "broken", *options)
    assert equal(whole, trained(world, tmp_path / "broken", *options))


def test_a_group_of_several_loggers(world: list[str], tmp_path: Path) -> None:
    """A mapping of loggers, as Lightning's Trainer takes a list of them."""
    both = "{a: {_target_: lightning.pytorch.loggers.CSVLogger, save_dir: %s}, b: {_target_: posegen.train.loggers.CellCSVLogger}}"
    assert train(world, tmp_path, "~logger", f"+logger={both % (tmp_path / 'logs')}") == 0
    assert list((tmp_path / "logs").rglob("metrics.csv")) and len(curve(tmp_path)) == 6
    (cell,) = tmp_path.rglob("seed0")
    assert all(torch.isfinite(value).all() for value in weights(cell).values())
