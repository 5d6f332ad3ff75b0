"""Where curves and pictures go; each function is a ``logger`` option, ``(parts, cell folder, ...) -> Lightning logger``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from posegen.errors import UserError
from posegen.runner.cell import digest
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


def wandb(
    parts: Parts | None,
    folder: Path,
    project: str = "posegen",
    mode: str = "offline",
    entity: str | None = None,
    tags: Iterable[str] = (),
    rows: int = 16,
    checkpoints: bool = False,
    save_dir: str = "",
    **about: Any,
) -> Any:
    """A W&B run per cell, whose id is a function of the cell, so that a resumed cell continues its run.

    Args:
        rows, checkpoints, save_dir: for `posegen.report.wandb`.
        about: the facts of a run that is not a cell's.
    """
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    if parts is not None:
        cfg = parts.cfg
        about = {
            "id": digest([str(folder), cfg.seed]),
            "name": f"{cfg.method}-seed{cfg.seed}",
            "group": f"{cfg.study}/{cfg.method}",
            "job_type": str(cfg.study),
            "tags": [*tags, f"method:{cfg.method}", f"data:{cfg.dataset}", f"seed:{cfg.seed}"],
            "config": OmegaConf.to_container(cfg, resolve=True),
        }
    folder.mkdir(parents=True, exist_ok=True)
    place: dict[str, Any] = {"project": project, "entity": entity, "mode": mode, "dir": str(folder)}
    run = wandb.init(**place, resume="allow" if mode == "online" else None, reinit="finish_previous", **about)
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step")
    for column in parts.protocol.columns if parts is not None else ():
        if column.better:
            best: Any = "max" if column.better == "higher" else "min"
            run.define_metric(f"live/{column}", step_metric="trainer/global_step", summary=best)
    return WandbLogger(experiment=run)


def log_pictures(loggers: Iterable[Any], name: str, grid: np.ndarray, step: int, folder: Path) -> None:
    """A picture ``[H, W, 3] uint8`` as a png in ``folder``, and to each logger that takes pictures."""
    from posegen.runner.images import write_png

    write_png(folder / f"{name}-{step:07d}.png", grid)
    for logger in loggers:
        if hasattr(logger, "log_image"):
            logger.log_image(key=name, images=[grid], step=step)
        elif hasattr(logger.experiment, "add_image"):
            logger.experiment.add_image(name, grid, step, dataformats="HWC")
