"""Optimiser settings: the shared ones from ``optim``, the method's own from its ``recipes``; and all that loggers show
of the settings of a training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf

from posegen.errors import UserError
from posegen.runner.cell import provenance
from posegen.runner.components import Components
from posegen.runner.received.state_files import read_status


@dataclass(frozen=True)
class Recipe:
    """How weights are updated."""

    lr: float  # the peak
    drop_text: float  # share of images whose text is dropped in training
    steps: int  # of the optimiser, in all
    warmup: int = 0  # steps of linear warm-up
    decay: float = 0.0  # share of the steps, at the end, over which the rate falls to zero as a cosine; 0: constant
    betas: tuple[float, float] = (0.9, 0.999)  # moment decays of AdamW
    weight_decay: float = 0.01  # decoupled
    optimizer: Literal["adamw", "muon", "adamw8bit"] = "adamw"
    fused: bool = False  # AdamW in one pass over memory
    lr_of: Mapping[str, float] | None = None  # peaks by patterns of names of weights
    in_backward: bool = False  # every gradient is used and freed as soon as it is there

    def factor(self, step: int) -> float:
        """Learning rate at ``step`` as a share of the peak."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        start = self.steps * (1 - self.decay)
        if step < start or self.decay == 0:
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - start) / max(1.0, self.steps - start))))

    @classmethod
    def of(cls, optim: Mapping[str, Any], steps: int, recipes: Mapping[str, Mapping[str, Any]], name: str) -> Recipe:
        """The settings of ``optim``, with what is null there from ``recipes[name]``; a UserError where neither says a
        value, or a recipe holds a key that it must not."""
        own = dict(recipes.get(name, {}))
        if unknown := set(own) - {"lr", "drop_text"}:
            shared = "only lr and drop_text are a method's own, everything else is shared: use optim"
            raise UserError(f"adapter.recipes.{name} holds {sorted(unknown)}; {shared}")
        values = own | {f.name: optim[f.name] for f in fields(cls) if optim.get(f.name) is not None} | {"steps": steps}
        if missing := {"lr", "drop_text"} - set(values):
            key = f"optim.{min(missing)}"
            raise UserError(f"{key} is null and adapter.recipes has no {name!r} recipe with it; set {key}=VALUE")
        return cls(**{**values, "betas": tuple(values.get("betas", cls.betas))})


def recipe_of(components: Components, steps: int) -> Recipe:
    """Optimiser settings of a cell; what the shared ones leave open is in the adapter's recipe for this backbone."""
    recipes: Any = components.cfg.adapter.get("recipes") or {}
    optim = components.cfg.optim
    complete = optim.lr is not None and optim.drop_text is not None
    return Recipe.of(optim, steps, recipes, "" if complete else components.backbone.recipe)


def hyperparameters(task: Any) -> dict[str, Any]:
    """All settings of a `Task` that is about to train, as plain nested values: the configuration, with the values that
    were used in place of those that it leaves open, and what trains, on which data, with which versions."""
    trainer, cfg = task.trainer, task.components.cfg
    values: Any = OmegaConf.to_container(cfg, resolve=True)
    rates = [group["initial_lr"] for group in trainer.optimizers[0].param_groups]
    steps, accumulate = task.recipe.steps, trainer.accumulate_grad_batches
    values["optim"] |= asdict(task.recipe) | {"betas": list(task.recipe.betas)}
    values["optim"] |= {"group_lrs": rates} if len({*rates}) > 1 else {}
    values["optim"]["batch_per_device"] = task.batch_size // accumulate // trainer.world_size
    values["optim"]["epochs"] = round(steps * accumulate / trainer.num_training_batches, 3)
    strategy = type(trainer.strategy)
    values["trainer"] |= {"accelerator": trainer.strategy.root_device.type, "strategy": strategy.__name__}
    values["trainer"] |= {"precision": str(trainer.precision), "devices": trainer.num_devices}
    parameters = sum(p.numel() for p in task.parameters())
    values["model"] = {"parameters": parameters, "trained_parameters": task.count_trained()}
    if weights := getattr(getattr(task, "backbone", None), "weights", None):  # an autoencoder trains without one
        values["model"] |= {"backbone": weights.id, "backbone_sha256": weights.sha256}
    values["train_images"] = len(task.components.data("train"))
    identity = read_status(Path(trainer.default_root_dir)).get("hash")
    return values | provenance() | {"cell_hash": identity}
