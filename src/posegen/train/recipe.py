"""Optimiser settings: the shared ones from ``optim``, the method's own from its ``recipes``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from posegen.errors import UserError
from posegen.runner.components import Components


@dataclass(frozen=True)
class Recipe:
    """How weights are updated.

    Attributes:
        lr: peak learning rate.
        drop_text: share of images whose text is dropped in training.
        steps: optimiser steps in all.
        warmup: steps of linear warm-up.
        decay: share of the steps, at the end, over which the rate falls to zero as a cosine; 0 keeps it constant.
        betas: moment decays of AdamW.
        weight_decay: decoupled weight decay.
        optimizer: ``adamw`` or ``muon``.
    """

    lr: float
    drop_text: float
    steps: int
    warmup: int = 0
    decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    optimizer: Literal["adamw", "muon"] = "adamw"

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
        """The settings of ``optim``, with what is null there taken from ``recipes[name]``.

        Raises:
            UserError: neither says a value, or a recipe holds a key that it must not.
        """
        own = dict(recipes.get(name, {}))
        if unknown := set(own) - {"lr", "drop_text"}:
            raise UserError(
                f"adapter.recipes.{name} holds {sorted(unknown)}; only lr and drop_text are a method's own, everything "
                "else is shared: use optim"
            )
        values = {f.name: optim[f.name] for f in fields(cls) if optim.get(f.name) is not None}
        values = {**own, **values, "steps": steps}
        if missing := {"lr", "drop_text"} - set(values):
            raise UserError(
                f"optim.{min(missing)} is null and adapter.recipes has no {name!r} recipe with it; set "
                f"optim.{min(missing)}=VALUE"
            )
        values["betas"] = tuple(values.get("betas", (0.9, 0.999)))
        return cls(**values)


def recipe_of(components: Components, steps: int) -> Recipe:
    """Optimiser settings of a cell: the shared ones, with what they leave open from the adapter's recipe for this
    backbone."""
    recipes: Any = components.cfg.adapter.get("recipes") or {}
    optim = components.cfg.optim
    complete = optim.lr is not None and optim.drop_text is not None
    return Recipe.of(optim, steps, recipes, "" if complete else components.backbone.recipe)
