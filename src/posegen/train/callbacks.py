"""The callbacks of ``conf/callbacks`` that keep a training's place and show how far it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar

from posegen.ranges import AtLeastOne
from posegen.runner.progress import Mode, Progress, note_costs, peak_memory_mb

CHECKPOINT = "last.ckpt"


class LastCheckpoint(Checkpoint):
    """Replaces ``last.ckpt`` in the cell, which a resumed training continues, after ``every`` so many optimiser steps.

    Lightning's ``ModelCheckpoint`` would also save at the end, where the method is exported instead, and would not save
    when the scheduler wants the machine back.
    """

    def __init__(self, every: AtLeastOne = 100) -> None:
        self.every, self.saved = every, 0

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        due = trainer.global_step % self.every == 0 or trainer.received_sigterm
        if trainer.global_step <= self.saved or not due or trainer.fast_dev_run:
            return
        self.saved = trainer.global_step
        trainer.save_checkpoint(Path(trainer.default_root_dir) / CHECKPOINT)


class TrainingProgress(ProgressBar):
    """A bar with rate and remaining time, ``progress.json`` for a benchmark's overview (alone with ``mode="file"``),
    and the rate as a cost."""

    progress: Progress | None = None

    def __init__(self, mode: Mode = "bar") -> None:
        super().__init__()
        self.mode = mode

    def disable(self) -> None:
        """Lightning calls this on every process but the first."""
        self.mode = "none"

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        batch = module.batch_size  # type: ignore[attr-defined]
        self.step, folder = trainer.global_step, Path(trainer.default_root_dir)
        total = int(trainer.estimated_stepping_batches) * batch
        self.progress = Progress(folder, "train", total, self.step * batch, "img", self.mode)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:  # type: ignore[override]
        if self.progress is not None and trainer.global_step > self.step:
            images = (trainer.global_step - self.step) * module.batch_size  # type: ignore[attr-defined]
            self.step = trainer.global_step
            self.progress.update(images, loss=float(trainer.callback_metrics["train/loss"]))

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self.progress is not None and trainer.is_global_zero:
            self.progress.close()
            rate, folder = round(self.progress.rate, 2), self.progress.folder
            note_costs(folder, train_images_per_s=rate, peak_memory_mb=peak_memory_mb())
