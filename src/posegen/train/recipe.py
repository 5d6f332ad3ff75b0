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
    """How weights are updated."""

    lr: float  # the peak
    drop_text: float  # share of images whose text is dropped in training
    steps: int  # of the optimiser, in all
    warmup: int = 0  # steps of linear warm-up
    decay: float = 0.0  # share of the steps, at the end, over which the rate falls to zero as a cosine; 0: constant
    betas: tuple[float, float] = (0.9, 0.999)  # moment decays of AdamW
    weight_decay: float = 0.01  # decoupled
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
