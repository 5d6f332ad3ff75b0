"""The callbacks of ``conf/callbacks`` that keep a training's place and show how far it is."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar

from posegen.ranges import AtLeastOne
from posegen.runner.progress import Mode, Progress, note_costs, peak_memory_mb
from posegen.train.loggers import log_values
from posegen.train.notice import Notice

CHECKPOINT = "last.ckpt"


class LastCheckpoint(Checkpoint):
    """Replaces ``last.ckpt`` in the cell, which a resumed training continues, after ``every`` so many optimiser steps,
    and at the end of the step in which the scheduler wants the machine back.

    Lightning's ``ModelCheckpoint`` would also save at the end, where the method is exported instead, and would not save
    on a scheduler's notice.
    """

    def __init__(self, every: AtLeastOne = 100) -> None:
        self.every, self.saved, self.step, self.notice = every, 0, 0, Notice()

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        self.step = trainer.global_step
        self.notice.listen()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step > self.step:  # not in the middle of optim.accumulate
            self.step = trainer.global_step
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        self.notice.restore()
        self.save(trainer)

    def on_exception(self, *_: Any) -> None:
        self.notice.restore()

    def save(self, trainer: Trainer) -> None:
        """Saves where it is time; all processes of a cell leave together."""
        leave = trainer.strategy.reduce_boolean_decision(bool(self.notice.came), all=False)
        due = leave or trainer.global_step % self.every == 0
        if due and trainer.global_step > self.saved and not trainer.fast_dev_run:
            self.saved = trainer.global_step
            trainer.save_checkpoint(Path(trainer.default_root_dir) / CHECKPOINT)
        if leave:
            self.notice.obey()


class TrainingProgress(ProgressBar):
    """A bar with rate and remaining time, ``progress.json`` for a benchmark's overview (alone with ``mode="file"``),
    curves of rate and memory, and the costs of the training.

    The curve of the rate leaves out what other callbacks do between two points, such as sampling.
    """

    progress: Progress | None = None
    earlier = 0.0  # seconds of interrupted runs
    begun: tuple[float, int] | None = None  # time and step of the last point of the curves

    def __init__(self, mode: Mode = "bar") -> None:
        super().__init__()
        self.mode = mode

    def disable(self) -> None:
        """Lightning calls this on every process but the first."""
        self.mode = "none"

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        batch = module.batch_size  # type: ignore[attr-defined]
        self.step, folder = trainer.global_step, Path(trainer.default_root_dir)
        self.start = time.monotonic()
        total = int(trainer.estimated_stepping_batches) * batch
        self.progress = Progress(folder, "train", total, self.step * batch, "img", self.mode)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.begun = self.begun or (time.monotonic(), trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:  # type: ignore[override]
        if self.progress is None or trainer.global_step == self.step:
            return
        batch, every = module.batch_size, trainer.log_every_n_steps  # type: ignore[attr-defined]
        images, self.step = (trainer.global_step - self.step) * batch, trainer.global_step
        self.progress.update(images, loss=float(trainer.callback_metrics["train/loss"]))
        if every and self.step % every == 0 and self.begun is not None:
            (since, step), self.begun = self.begun, None
            rate = (self.step - step) * batch / max(1e-9, time.monotonic() - since)
            self.log_dict({"train/images_per_s": rate, "train/peak_memory_mb": peak_memory_mb()})

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self.progress is not None and trainer.is_global_zero:
            self.progress.close()
            costs = {"train_images_per_s": round(self.progress.rate, 2), "train_s": round(self.seconds, 2)}
            costs |= {"peak_memory_mb": peak_memory_mb(), "trained_parameters": module.count_trained()}  # type: ignore[operator]
            note_costs(self.progress.folder, **costs)
            log_values(trainer, {f"cost/{name}": value for name, value in costs.items()})

    @property
    def seconds(self) -> float:
        """Time of this training, with its interrupted runs."""
        return self.earlier + (0.0 if self.progress is None else time.monotonic() - self.start)

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.earlier = state["seconds"]
