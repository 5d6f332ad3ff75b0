"""Is it learning the poses? A pose-accuracy curve and a picture grid while training, on a fixed part of the validation split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from posegen.runner.batches import fixed_batches
from posegen.runner.ema import EMA
from posegen.runner.evaluate import judging_device
from posegen.runner.loggers import log_pictures
from posegen.runner.parts import Parts
from posegen.runner.sample import batch_of

GRID = 8  # rows of the picture grid


class LivePoseAccuracy(Callback):
    """Every ``every`` steps: samples ``images`` validation images with the averaged weights, judges them, logs the protocol's headline and a grid.

    Noise comes from the images' own generators, so sampling disturbs neither the training nor its resume.
    """

    def __init__(self, parts: Parts, ema: EMA, folder: Path, every: int, images: int) -> None:
        self.parts, self.ema, self.folder, self.every, self.images, self.last = parts, ema, folder, every, images, 0

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if step == self.last or step % self.every or not trainer.is_global_zero:
            return
        self.last = step
        was_training = module.training
        module.eval()
        with self.ema.applied(module), torch.inference_mode():
            values, grid = self.look()
        module.train(was_training)
        for logger in trainer.loggers:
            logger.log_metrics({f"live/{name}": value for name, value in values.items() if not np.isnan(value)}, step=step)
            log_pictures(logger, "live", grid, step, self.folder / "live")

    def look(self) -> tuple[dict[str, float], np.ndarray]:
        """(values of the protocol, grid of target, sample and re-detected pose)."""
        parts, judged, rows_of_pictures = self.parts, [], []
        device = judging_device(parts)
        data = parts.data("validation")
        for rows in fixed_batches(min(self.images, len(data)), parts.sampler.batch):
            batch = batch_of(parts, parts.adapter, rows, "validation")
            generated = parts.adapter.generate(batch, parts.sampler)
            samples = [data.seen(i) for i in rows] if parts.protocol.compares else batch.samples
            found = parts.protocol.judge(parts.estimator, generated.to(device), samples)
            judged += found
            for image, judgement in zip(parts.kind.pictures(generated, batch.size), found, strict=True):
                if len(rows_of_pictures) < GRID:
                    rows_of_pictures.append(parts.kind.shown(image, judgement))
        records = parts.protocol.records(judged)
        return {k: v for metric in parts.protocol.metrics for k, v in metric.compute(records).items()}, np.concatenate(rows_of_pictures)
