"""Is it learning the poses? Pose accuracy, a picture grid and the loss while training, on a fixed part of the
validation split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
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
from posegen.runner.progress import Progress
from posegen.train.ema import EMA
from posegen.train.finite import require_finite_weights
from posegen.train.loggers import log_pictures, log_values
from posegen.train.tasks import AdapterTask

GRID = 8  # rows of the picture grid
Pictured = tuple[str, str, np.ndarray]  # id, prompt, and a picture of target, sample and re-detected pose


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
            values, pictures = judge_validation(module.components, self.images)
        module.train(was_training)
        log_values(trainer, {f"live/{name}": value for name, value in values.items() if not np.isnan(value)})
        about = f"{module.components.cfg.method}, step {step}"
        captions = [f"{prompt} ({id}; {about})" for id, prompt, _ in pictures]
        rows, folder = [row for *_, row in pictures], Path(trainer.default_root_dir) / "live"
        log_pictures(trainer.loggers, "live", rows, captions, step, folder)


class ValidationLoss(Callback):
    """Logs ``val/loss_t<T>``, the squared error of the prediction at timestep T, and their mean ``val/loss``.

    It looks ``every`` so many optimiser steps (0: never) at the first ``images`` of the validation split, with the
    averaged weights. Nothing is dropped or weighted, whatever the method's loss does.
    """

    def __init__(
        self, every: AtLeastZero = 250, images: AtLeastOne = 64, timesteps: Sequence[int] = (125, 375, 625, 875)
    ) -> None:
        self.every, self.images, self.timesteps, self.last = every, images, timesteps, 0

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        whole = not isinstance(trainer.strategy, ModelParallelStrategy)  # with trainer=fsdp no process holds the method
        if not whole or not isinstance(module, AdapterTask) or "validation" not in module.components.cfg.data:
            self.every = 0
        elif bad := [t for t in self.timesteps if not 0 <= t < module.backbone.process.length]:
            last = module.backbone.process.length - 1
            raise UserError(f"validation.timesteps holds {bad[0]}; expected whole numbers from 0 to {last}")

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if not self.every or step == self.last or step % self.every or not trainer.is_global_zero:
            return
        assert isinstance(module, AdapterTask)
        self.last, modes = step, {part: part.training for part in module.modules()}
        average = next((callback for callback in trainer.callbacks if isinstance(callback, EMA)), EMA(0.0))
        module.eval()
        with average.applied(module), trainer.precision_plugin.val_step_context():
            values = validation_losses(module, self.images, self.timesteps)
        for part, mode in modes.items():
            part.training = mode
        log_values(trainer, values)


@torch.no_grad()
def validation_losses(task: AdapterTask, images: int, timesteps: Sequence[int]) -> dict[str, float]:
    """The losses by their names in loggers."""
    components, adapter = task.components, task.adapter
    data = components.data("validation")
    fields = frozenset({"images" if task.backbone.trains_on == "latents" else task.backbone.trains_on})
    sums = dict.fromkeys(timesteps, 0.0)
    count = min(images, len(data))
    for rows in fixed_batches(count, components.sampler.batch):
        batch = replace(batch_of(components, adapter, rows, "validation", fields=fields), seed=0)  # of any run
        state = adapter.encode(batch)
        for t in sums:
            step = task.step(batch, state.text, lambda noisy, times: adapter.inject(state, noisy, times), t)  # noqa: B023
            error = (step.prediction.float() - step.target.float()).square().mean()
            sums[t] += float(error) * len(rows)
    losses = {f"val/loss_t{t}": total / count for t, total in sums.items()}
    return {"val/loss": sum(losses.values()) / len(losses), **losses}


def cannot_judge(trainer: Trainer, components: Components) -> str:
    """Why the protocol cannot judge what is generated while it trains; empty where it can."""
    if isinstance(trainer.strategy, ModelParallelStrategy):
        return "with trainer=fsdp no process holds the whole method"
    generated, protocol = components.backbone.sample, components.protocol
    if generated == protocol.sample:
        return ""
    return f"the backbone generates {generated}s and protocol={protocol.name} judges {protocol.sample}s"


@torch.inference_mode()
def judge_validation(
    components: Components, images: int, seen: Callable[[int], None] = lambda count: None
) -> tuple[dict[str, float], list[Pictured]]:
    """(values of the protocol, pictures of some) of the first validation images; ``seen`` hears of each batch."""
    judged: list[Any] = []
    shown: list[Pictured] = []
    device, data, protocol = judging_device(components), components.data("validation"), components.protocol
    for rows in fixed_batches(min(images, len(data)), components.sampler.batch):
        batch = batch_of(components, components.adapter, rows, "validation")
        generated = components.adapter.generate(batch, components.sampler)
        samples = [data.seen(i) for i in rows] if protocol.compares else batch.samples
        found = protocol.judge(components.estimator, generated.to(device), samples)
        judged += found
        drawn = zip(batch.ids, batch.prompts, components.kind.pictures(generated, batch.size), found, strict=True)
        for name, prompt, image, judged_image in islice(drawn, GRID - len(shown)):
            shown.append((name, prompt, components.kind.shown(image, judged_image)))
        seen(len(rows))
    records = protocol.records(judged)
    values = {name: value for metric in protocol.metrics for name, value in metric.compute(records).items()}
    return values, shown


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
    total = min(images, len(components.data("validation")))
    with Progress(folder, "objective", total, mode=cfg.progress) as bar:
        value = judge_validation(components, images, bar.update)[0].get(column, float("nan"))
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
