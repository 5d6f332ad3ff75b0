"""Where curves and pictures go; each function is a ``logger`` option, ``(parts, cell folder, ...) -> Lightning logger``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from posegen.errors import UserError
from posegen.runner.components import Parts


def csv(parts: Parts, folder: Path) -> Any:
    """``curves/metrics.csv`` in the cell's folder; the curves of an interrupted run stay beside it as ``metrics-1.csv``, ``metrics-2.csv``, ..."""
    from lightning.pytorch.loggers import CSVLogger

    curves = folder / "curves" / "metrics.csv"
    if curves.is_file():  # Lightning would delete it
        curves.rename(curves.with_name(f"metrics-{len(list(curves.parent.glob('metrics*.csv')))}.csv"))
    return CSVLogger(str(folder), name="", version="curves")


def tensorboard(parts: Parts, folder: Path) -> Any:
    """Event files in ``curves`` in the cell's folder.

    Raises:
        UserError: tensorboard is not installed; names the command.
    """
    from lightning.pytorch.loggers import TensorBoardLogger

    try:
        return TensorBoardLogger(str(folder), name="", version="curves", default_hp_metric=False)
    except ModuleNotFoundError as error:
        raise UserError("logger=tensorboard needs the extra: pip install 'posegen[tensorboard]'") from error


def wandb(parts: Parts, folder: Path, **settings: Any) -> Any:
    """A W&B run per cell, see `posegen.report.dashboard`; ``settings`` are those of ``conf/logger/wandb.yaml``."""
    from lightning.pytorch.loggers import WandbLogger

    from posegen.report.dashboard import Dashboard

    return WandbLogger(experiment=Dashboard(**settings).run_of(parts.cfg, folder, parts.protocol.columns))


def log_pictures(loggers: Iterable[Any], name: str, grid: np.ndarray, step: int, folder: Path) -> None:
    """A picture ``[H, W, 3] uint8`` as a png in ``folder``, and to each logger that takes pictures."""
    from posegen.runner.images import write_png

    write_png(folder / f"{name}-{step:07d}.png", grid)
    for logger in loggers:
        if hasattr(logger, "log_image"):
            logger.log_image(key=name, images=[grid], step=step)
        elif hasattr(logger.experiment, "add_image"):
            logger.experiment.add_image(name, grid, step, dataformats="HWC")
