"""Where curves and pictures go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import CSVLogger, Logger

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


def with_curves(configured: Logger | Mapping[str, Logger] | None, folder: Path) -> list[Logger]:
    """The configured logger, or loggers by name, and beside them, if there are any, the curves of the cell."""
    loggers = [configured] if isinstance(configured, Logger) else list((configured or {}).values())
    placed = [logger.into(folder) if isinstance(logger, CellCSVLogger) else logger for logger in loggers]
    kept = not placed or any(isinstance(logger, CellCSVLogger) for logger in placed)
    return placed if kept else [*placed, CellCSVLogger(folder)]


def keep_curves(folder: Path) -> None:
    """Renames the curves of an interrupted run to ``metrics-1.csv``, and so on; Lightning would delete them."""
    curves = folder / CURVES / "metrics.csv"
    if curves.is_file():
        number = len(list(curves.parent.glob("metrics*.csv")))
        curves.rename(curves.with_name(f"metrics-{number}.csv"))


def log_pictures(loggers: Iterable[Any], name: str, grid: np.ndarray, step: int, folder: Path) -> None:
    """A picture ``[H, W, 3] uint8`` as a png in ``folder``, and to each logger that takes pictures."""
    write_png(folder / f"{name}-{step:07d}.png", grid)
    for logger in loggers:
        if hasattr(logger, "log_image"):
            logger.log_image(key=name, images=[grid], step=step)
        elif hasattr(logger.experiment, "add_image"):
            logger.experiment.add_image(name, grid, step, dataformats="HWC")
