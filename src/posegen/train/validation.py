"""Is it learning the poses? A pose-accuracy curve and a picture grid while training, on a fixed part of the validation split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig

from posegen.errors import UserError
from posegen.io.text import read_json, write_json
from posegen.runner.batches import fixed_batches
from posegen.runner.components import Parts
from posegen.runner.devices import device_of
from posegen.runner.generate import batch_of
from posegen.runner.judge import judging_device
from posegen.runner.method_folder import load_into
from posegen.train.ema import EMA
from posegen.train.loggers import log_pictures

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
        with self.ema.applied(module):
            values, grid = look(self.parts, self.images)
        module.train(was_training)
        for logger in trainer.loggers:
            logger.log_metrics(
                {f"live/{name}": value for name, value in values.items() if not np.isnan(value)}, step=step
            )
        log_pictures(trainer.loggers, "live", grid, step, self.folder / "live")


@torch.inference_mode()
def look(parts: Parts, images: int) -> tuple[dict[str, float], np.ndarray]:
    """(values of the protocol, grid of target, sample and re-detected pose) of the first validation images."""
    judged, rows_of_pictures = [], []
    device = judging_device(parts)
    data = parts.data("validation")
    for rows in fixed_batches(min(images, len(data)), parts.sampler.batch):
        batch = batch_of(parts, parts.adapter, rows, "validation")
        generated = parts.adapter.generate(batch, parts.sampler)
        samples = [data.seen(i) for i in rows] if parts.protocol.compares else batch.samples
        found = parts.protocol.judge(parts.estimator, generated.to(device), samples)
        judged += found
        for image, judgement in zip(parts.kind.pictures(generated, batch.size), found, strict=True):
            if len(rows_of_pictures) < GRID:
                rows_of_pictures.append(parts.kind.shown(image, judgement))
    records = parts.protocol.records(judged)
    return {k: v for metric in parts.protocol.metrics for k, v in metric.compute(records).items()}, np.concatenate(
        rows_of_pictures
    )


def objective(cfg: DictConfig, folder: Path) -> float:
    """What a sweeper maximises: the column ``objective`` of validation images that a finished cell's method makes, negated where less is better.

    It is kept in ``objective.json``, so that a finished cell answers at once.

    Raises:
        UserError: the protocol has no such column, or these images leave it empty.
    """
    parts, path = Parts(cfg), folder / "objective.json"
    column = objective_column(cfg, parts)
    asked = {
        "column": column,
        "images": cfg.trainer.validate_images,
        "protocol": [parts.protocol.name, parts.protocol.version],
    }
    known = read_json(path) if path.is_file() else {}
    if asked.items() <= known.items():
        return known["objective"]
    parts.data("validation").prepare()
    if parts.bare_adapter.trainable:
        load_into(parts.adapter, parts.backbone, folder / "method")
    device = device_of(cfg.trainer.accelerator)
    parts.backbone.to(device)
    parts.adapter.eval().to(device)
    value = look(parts, cfg.trainer.validate_images)[0].get(column, float("nan"))
    if np.isnan(value):
        raise UserError(
            f"objective={column} has no value on {cfg.trainer.validate_images} validation images; choose another column or more trainer.validate_images"
        )
    found = -value if column in parts.protocol.lower_is_better else value
    write_json(path, {**asked, "value": float(value), "objective": float(found)})
    return float(found)


def objective_column(cfg: DictConfig, parts: Parts) -> str:
    """The column that ``objective`` names.

    Raises:
        UserError: there is none of that name, or what trains makes nothing to judge.
    """
    if not str(cfg.task._target_).endswith(".AdapterTask") or parts.backbone.sample != parts.protocol.sample:
        raise UserError(
            f"objective={cfg.objective} needs a method whose samples protocol={parts.protocol.name} can judge; set objective=null"
        )
    return parts.protocol.headline(None if cfg.objective == "headline" else [cfg.objective])[0]
