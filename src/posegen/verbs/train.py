"""Train a method: one cell, or with -m a sweep of cells."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from omegaconf import DictConfig

from posegen.errors import UserError
from posegen.report.wandb import tell_offline_runs
from posegen.runner.cell import Cell
from posegen.runner.components import Components
from posegen.runner.stage import complete
from posegen.train.launch import Processes
from posegen.train.live import objective
from posegen.train.loop import Training, fit, set_threads


def main(cfg: DictConfig) -> float | None:
    """Trains the configured cell or continues it; returns its objective for sweepers, None where that is null."""
    if tried := cfg.trainer.get("fast_dev_run"):  # of Lightning: a few batches through everything
        with TemporaryDirectory() as folder:
            fit(Components(cfg), Path(folder))
        print(f"trainer.fast_dev_run={tried}: everything ran, nothing is kept")
        return None
    if cfg.checkpoint is not None and not Path(cfg.checkpoint).exists():
        raise UserError(f"checkpoint={cfg.checkpoint} does not exist; give weights to start from, or leave it out")
    components = Components(cfg)
    cell = Cell.of(cfg, components.content("train"))
    cell.check()
    training = Training(components, cell.folder)
    if cell.finished() and not training.fault():
        print(f"{cell.folder} is finished; nothing to do")
    elif not Processes.of(cfg).first:  # its share of the training; the first does everything else
        if training.todo():
            fit(components, cell.folder)
        return None
    else:
        complete(cell, [training])
        print(f"{cell.folder} finished")
        tell_offline_runs(cfg)
    if cfg.objective is None:
        return None
    set_threads(cfg)
    return objective(cfg, cell.folder)
