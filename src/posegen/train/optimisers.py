"""The optimiser of a task, and updates inside the backward pass, which free every gradient at once."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from posegen.errors import UserError
from posegen.train.muon import Muon
from posegen.train.recipe import Recipe


def build_optimizer(recipe: Recipe, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimiser that a recipe names, of parameter groups as torch takes them."""
    build: Any = {"adamw": torch.optim.AdamW, "muon": Muon, "adamw8bit": _adamw8bit}[recipe.optimizer]
    return build(groups, lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay)


def _adamw8bit(groups: list[dict[str, Any]], **settings: Any) -> torch.optim.Optimizer:
    """AdamW whose moments take one byte each (Dettmers et al. 2022, arXiv:2110.02861); those of small tensors, four."""
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        install = "install it with pip install 'posegen[8bit]', or use optim.optimizer=adamw"
        raise UserError(f"optim.optimizer=adamw8bit needs bitsandbytes ({error}); {install}") from error
    return AdamW8bit(groups, **settings)


class UpdatesInBackward:
    """Updates every parameter as soon as its gradient is complete, so that never all gradients exist together.

    Works with optimisers that treat parameters one by one; the weights are those of an ordinary step, bit for bit. The
    norm by which gradients are clipped is known after all of them: with ``clip`` a first backward pass computes it and
    keeps no gradient, and a second one updates.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, clip: float | None = None) -> None:
        self.optimizer, self.clip = optimizer, clip
        self.measures, self.updates = False, True  # what happens to a gradient
        self.factor: Tensor | None = None
        self.norms: dict[Tensor, Tensor] = {}  # of this step's gradients
        for i, group in enumerate(optimizer.param_groups):  # their dictionaries are replaced when a state is loaded
            for parameter in group["params"]:
                parameter.register_post_accumulate_grad_hook(partial(self._use, i))

    def backward(self, loss: Tensor, measure: bool = False) -> None:
        """The backward pass of a step with its updates; ``measure`` keeps the norms for `norm` in any case."""
        self.norms, self.factor = {}, None
        if self.clip:
            self.measures, self.updates = True, False
            loss.backward(retain_graph=True)
            self.factor = (self.clip / (self.norm() + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_
        self.measures, self.updates = measure and not self.clip, True
        loss.backward()

    def norm(self) -> Tensor:
        """That of all gradients before clipping, summed in the order of `torch.nn.utils.get_total_norm`."""
        ordered = [self.norms[p] for group in self.optimizer.param_groups for p in group["params"] if p in self.norms]
        return torch.linalg.vector_norm(torch.stack(ordered)) if ordered else torch.tensor(0.0)

    def _use(self, index: int, parameter: Tensor) -> None:
        gradient = parameter.grad
        assert gradient is not None
        if self.measures:
            (self.norms[parameter],) = torch._foreach_norm([gradient])
        if self.updates:
            if self.factor is not None:
                gradient.mul_(self.factor)
            groups = self.optimizer.param_groups
            self.optimizer.param_groups = [{**groups[index], "params": [parameter]}]
            try:
                self.optimizer.step()
            finally:
                self.optimizer.param_groups = groups
        parameter.grad = None
