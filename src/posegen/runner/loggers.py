"""Where curves and pictures go; each function is a ``logger`` option, ``(parts, cell folder, ...) -> Lightning logger``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from omegaconf import OmegaConf

from posegen.runner.errors import UserError
from posegen.runner.parts import Parts


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
    parts: Parts,
    folder: Path,
    project: str = "posegen",
    mode: Literal["offline", "online", "disabled"] = "offline",
    entity: str | None = None,
    tags: Sequence[str] = (),
) -> Any:
    """A W&B run per cell: named after method and seed, grouped by study and method, so that a sweep opens as a comparison.

    The run's id is a function of the cell, so a resumed cell continues its run.
    """
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    from posegen.runner.cells import digest

    cfg = parts.cfg
    config = OmegaConf.to_container(cfg, resolve=True)
    folder.mkdir(parents=True, exist_ok=True)
    run = wandb.init(
        project=project,
        entity=entity,
        mode=mode,
        dir=str(folder),
        id=digest([str(folder), cfg.seed]),
        resume="allow" if mode == "online" else None,
        name=f"{cfg.method}-seed{cfg.seed}",
        group=f"{cfg.study}/{cfg.method}",
        job_type=str(cfg.study),
        tags=[*tags, f"method:{cfg.method}", f"data:{cfg.dataset}", f"seed:{cfg.seed}"],
        config=config,  # type: ignore[arg-type]
        reinit="finish_previous",
    )
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step")
    run.define_metric("live/PCK@0.1", step_metric="trainer/global_step", summary="max")
    return WandbLogger(experiment=run)


def log_pictures(logger: Any, name: str, grid: np.ndarray, step: int, folder: Path) -> None:
    """A picture ``[H, W, 3] uint8`` to the logger where it takes pictures, and always as a png in ``folder``."""
    from posegen.runner.pictures import write_png

    write_png(folder / f"{name}-{step:07d}.png", grid)
    experiment = getattr(logger, "experiment", None)
    if hasattr(logger, "log_image"):
        logger.log_image(key=name, images=[grid], step=step)
    elif experiment is not None and hasattr(experiment, "add_image"):
        experiment.add_image(name, grid, step, dataformats="HWC")
