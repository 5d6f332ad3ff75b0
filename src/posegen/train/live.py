"""Is it learning the poses? Pose accuracy and a picture grid while training, on a fixed part of the validation
split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import get_class
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from omegaconf import DictConfig

from posegen.errors import UserError
from posegen.io.atomic import read_json_or_empty, write_json
from posegen.ranges import AtLeastOne, AtLeastZero
from posegen.runner.batches import fixed_batches
from posegen.runner.components import Components
from posegen.runner.generate import batch_of, ready
from posegen.runner.judge import judging_device
from posegen.train.ema import EMA
from posegen.train.finite import require_finite_weights
from posegen.train.loggers import log_pictures
from posegen.train.tasks import AdapterTask

GRID = 8  # rows of the picture grid


class LivePoseAccuracy(Callback):
    """Samples validation images with the averaged weights, judges them, and logs the protocol's columns and a grid.

    It looks ``every`` so many optimiser steps (0: never) at the first ``images`` of the validation split. Noise comes
    from the images' own generators, so sampling disturbs neither the training nor its resume.
    """

    def __init__(self, every: AtLeastZero = 250, images: AtLeastOne = 64) -> None:
        self.every, self.images, self.last = every, images, 0

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        if not self.every or not isinstance(module, AdapterTask):  # only methods are judged
            self.every = 0
        elif reason := cannot_judge(trainer, module.components):
            self.every = 0
            if trainer.is_global_zero:
                print(f"no live curve: {reason}", flush=True)
        else:
            accuracy = module.components.protocol.axes("accuracy")[:1]
            for logger in (each for each in trainer.loggers if isinstance(each, WandbLogger)):
                for column in accuracy:  # a run's summary has the best value, not the last
                    shown = {"step_metric": "trainer/global_step", "summary": "max"}  # the WandbLogger's step
                    logger.experiment.define_metric(f"live/{column}", **shown)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if not self.every or step == self.last or step % self.every or not trainer.is_global_zero:
            return
        assert isinstance(module, AdapterTask)
        require_finite_weights(trainer, module)
        self.last, was_training = step, module.training
        module.eval()
        average = next((callback for callback in trainer.callbacks if isinstance(callback, EMA)), EMA(0.0))
        with average.applied(module):
            values, grid = judge_validation(module.components, self.images)
        module.train(was_training)
        known = {f"live/{name}": value for name, value in values.items() if not np.isnan(value)}
        for logger in trainer.loggers:
            logger.log_metrics(known, step=step)
        log_pictures(trainer.loggers, "live", grid, step, Path(trainer.default_root_dir) / "live")


def cannot_judge(trainer: Trainer, components: Components) -> str:
    """Why the protocol cannot judge what is generated while it trains; empty where it can."""
    if isinstance(trainer.strategy, ModelParallelStrategy):
        return "with trainer=fsdp no process holds the whole method"
    generated, protocol = components.backbone.sample, components.protocol
    if generated == protocol.sample:
        return ""
    return f"the backbone generates {generated}s and protocol={protocol.name} judges {protocol.sample}s"


@torch.inference_mode()
def judge_validation(components: Components, images: int) -> tuple[dict[str, float], np.ndarray]:
    """(values of the protocol, grid of target, sample and re-detected pose) of the first validation images."""
    judged, grid = [], []
    device, data, protocol = judging_device(components), components.data("validation"), components.protocol
    for rows in fixed_batches(min(images, len(data)), components.sampler.batch):
        batch = batch_of(components, components.adapter, rows, "validation")
        generated = components.adapter.generate(batch, components.sampler)
        samples = [data.seen(i) for i in rows] if protocol.compares else batch.samples
        found = protocol.judge(components.estimator, generated.to(device), samples)
        judged += found
        pairs = list(zip(components.kind.pictures(generated, batch.size), found, strict=True))
        grid += [components.kind.shown(*pair) for pair in pairs[: GRID - len(grid)]]
    records = protocol.records(judged)
    values = {name: value for metric in protocol.metrics for name, value in metric.compute(records).items()}
    return values, np.concatenate(grid)


def objective(cfg: DictConfig, folder: Path) -> float:
    """What a sweeper maximises: the column ``objective`` on validation images that a finished cell's method generates,
    negated where less is better; a UserError where these images leave it empty.

    It is kept in ``objective.json``, so that a finished cell answers at once.
    """
    components, path, images = Components(cfg), folder / "objective.json", cfg.validation.images
    column = objective_column(cfg, components)
    asked = {"column": column, "images": images, "protocol": [components.protocol.name, components.protocol.version]}
    known = read_json_or_empty(path)
    if all(known.get(key) == value for key, value in asked.items()) and isinstance(known.get("objective"), float):
        return known["objective"]
    components.data("validation").prepare()
    ready(components, folder / "method" if components.bare_adapter.trainable else None)
    value = judge_validation(components, images)[0].get(column, float("nan"))
    if np.isnan(value):
        fix = "choose another column or more validation.images"
        raise UserError(f"objective={column} has no value on {images} validation images; {fix}")
    found = -value if column in components.protocol.lower_is_better else value
    write_json(path, {**asked, "value": float(value), "objective": float(found)})
    return float(found)


def objective_column(cfg: DictConfig, components: Components) -> str:
    """The column that ``objective`` names; a UserError where there is none, or what trains generates none to judge."""
    protocol, trains_method = components.protocol, issubclass(get_class(cfg.task._target_), AdapterTask)
    if not trains_method or components.backbone.sample != protocol.sample:
        needs = f"needs a method whose samples protocol={protocol.name} can judge"
        raise UserError(f"objective={cfg.objective} {needs}; set objective=null")
    return str(protocol.headline(None if cfg.objective == "headline" else [cfg.objective])[0])
