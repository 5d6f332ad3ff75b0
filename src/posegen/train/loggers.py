"""Where curves, settings and pictures go: any Lightning logger."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.logger import _flatten_dict, _sanitize_params
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from posegen.errors import UserError
from posegen.io.atomic import explained
from posegen.ranges import AtLeastOne
from posegen.runner.images import write_png

CURVES = "curves"  # folder of a cell


class CellCSVLogger(CSVLogger):
    """Lightning's CSVLogger, writing ``curves/metrics.csv`` in the cell, where tables and pages read it; the training
    sets ``save_dir`` to the cell's folder."""

    def __init__(self, save_dir: str | Path = "", flush_logs_every_n_steps: AtLeastOne = 100) -> None:
        super().__init__(str(save_dir), name="", version=CURVES, flush_logs_every_n_steps=flush_logs_every_n_steps)

    def save(self) -> None:
        with explained(Path(self.log_dir) / "metrics.csv"):
            super().save()

    def into(self, folder: Path) -> CellCSVLogger:
        return CellCSVLogger(folder, self._flush_logs_every_n_steps)


def with_curves(configured: Sequence[Logger], folder: Path) -> list[Logger]:
    """The configured loggers and beside them, if there are any, the curves of the cell."""
    placed = [logger.into(folder) if isinstance(logger, CellCSVLogger) else logger for logger in configured]
    kept = not placed or any(isinstance(logger, CellCSVLogger) for logger in placed)
    return placed if kept else [*placed, CellCSVLogger(folder)]


def open_runs(loggers: Iterable[Logger], quiet: bool = False) -> None:
    """Starts the runs of W&B and says where they are; a UserError where W&B refuses."""
    for logger in (each for each in loggers if isinstance(each, WandbLogger)):
        try:
            address = None if logger.experiment.offline else logger.experiment.url
        except Exception as error:  # whatever the network, the account or W&B has to say
            fix = "log in with wandb login, or log offline with logger.offline=true"
            raise UserError(f"logger=wandb: W&B starts no run ({type(error).__name__}: {error}); {fix}") from error
        if address and not quiet:
            print(f"W&B: {address}", flush=True)


def close_runs(loggers: Iterable[Logger], failed: bool) -> None:
    """Ends the runs of W&B, which stay open otherwise, so that the next cell of this process starts another."""
    for logger in loggers:
        if callable(finish := getattr(logger.experiment, "finish", None)):  # type: ignore[attr-defined]
            finish(exit_code=int(failed)) if isinstance(logger, WandbLogger) else finish()


def keep_curves(folder: Path) -> None:
    """Renames the curves of an interrupted run to ``metrics-1.csv``, and so on; Lightning would delete them."""
    curves = folder / CURVES / "metrics.csv"
    if curves.is_file():
        number = len(list(curves.parent.glob("metrics*.csv")))
        curves.rename(curves.with_name(f"metrics-{number}.csv"))


def log_settings(loggers: Iterable[Logger], values: Mapping[str, Any]) -> None:
    """Nested settings to each logger."""
    for logger in loggers:
        logger.log_hyperparams(dict(values))
        if isinstance(logger, TensorBoardLogger) and rank_zero_only.rank == 0:
            # Its logger would name the columns of the tab HPARAMS for good; without them TensorBoard shows all scalars.
            from torch.utils.tensorboard.summary import hparams

            _, session, _ = hparams(_sanitize_params(_flatten_dict(values)), {})
            logger.experiment.file_writer.add_summary(session)


def log_values(trainer: Trainer, values: Mapping[str, float]) -> None:
    """Values at the current step to each logger, and to callbacks that monitor one."""
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
    for logger in trainer.loggers:
        logger.log_metrics(dict(values), step=trainer.global_step)


def log_pictures(
    loggers: Iterable[Any], name: str, rows: Sequence[np.ndarray], captions: Sequence[str], step: int, folder: Path
) -> None:
    """Pictures ``[H, W, 3] uint8`` below each other as a png in ``folder``, and to each logger that takes pictures: to
    those that take captions one by one."""
    grid = np.concatenate(rows)
    write_png(folder / f"{name}-{step:07d}.png", grid)
    for logger in loggers:
        if hasattr(logger, "log_image"):
            logger.log_image(key=name, images=list(rows), step=step, caption=list(captions))
        elif hasattr(logger.experiment, "add_image"):
            logger.experiment.add_image(name, grid, step, dataformats="HWC")
            logger.experiment.add_text(name, "\n\n".join(captions), step)
