"""Exponential moving average of what trains, and of nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from posegen.ranges import BelowOne
from posegen.train.fsdp import divided_like, whole


class EMA(Callback):
    """Keeps the average of the trained weights, which is sampled, judged and exported.

    Lightning's and diffusers' own hold a copy of the whole model; this one holds what trains. The decay is warmed up as
    min(decay, (1 + n) / (10 + n)), so that short runs are not dominated by their start; 0 switches the average off.
    Running statistics are averaged with the weights that they belong to; counters are copied. The average is part of
    Lightning's checkpoints.
    """

    def __init__(self, decay: BelowOne) -> None:
        self.decay, self.steps = decay, 0
        self.average: dict[str, Tensor] = {}
        self.live: dict[str, Tensor] = {}  # the module's tensors, not copies; listing them takes long for every step

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        values = module.state_dict()
        start = self.average or {name: v.float() if v.is_floating_point() else v for name, v in values.items()}
        self.live = {}
        self.average = {name: divided_like(value, values[name]).clone() for name, value in start.items()}

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if trainer.global_step <= self.steps:  # accumulating: no optimiser step was made
            return
        self.steps = trainer.global_step
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.live = self.live or module.state_dict(keep_vars=True)
        for name, value in self.live.items():
            average = self.average[name]
            if value.is_floating_point():
                average.lerp_(value.to(average.dtype), 1 - decay)
            else:
                average.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "average": whole(self.average)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps, self.average = state["steps"], state["average"]

    def averaged(self) -> dict[str, Tensor]:
        """The averaged weights, empty where nothing is averaged."""
        return self.average if self.decay else {}

    @contextmanager
    def applied(self, module: LightningModule) -> Iterator[None]:
        """Probability the block the module has the averaged weights."""
        own = {name: value.detach().clone() for name, value in module.state_dict().items()} if self.averaged() else {}
        module.load_state_dict(self.averaged(), strict=False)
        try:
            yield
        finally:
            module.load_state_dict(own, strict=False)
