"""The optimiser of a task, and updates inside the backward pass, which free every gradient at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from posegen.errors import UserError
from posegen.train.recipe import Recipe


def with_own_rates(
    groups: list[dict[str, Any]], rates: Mapping[str, float], named: Iterable[tuple[str, nn.Parameter]]
) -> list[dict[str, Any]]:
    """The parameter groups, of which the weights that a pattern fits are groups of their own, named after it.

    A pattern is one of `fnmatch` for the name of a weight, with or without what comes before its first dot; the first
    that fits counts. A UserError names one that fits nothing that trains."""
    names = {id(p): name for name, p in named if p.requires_grad}
    pattern_of, used = {}, set[str]()
    for key, name in names.items():
        fitting = [each for each in rates if fnmatchcase(name, each) or fnmatchcase(name.partition(".")[2], each)]
        used |= set(fitting)
        pattern_of[key] = fitting[0] if fitting else None
    if unused := [pattern for pattern in rates if pattern not in used]:
        known = [*names.values(), *(name.partition(".")[2] for name in names.values())]
        nearest = get_close_matches(unused[0], known, 3, 0.0)
        fits = "fits the name of no weight that trains; the nearest are"
        raise UserError(f"optim.lr_of: {unused[0]!r} {fits} {', '.join(nearest)}")
    found = []
    for group in groups:
        own = {pattern: [p for p in group["params"] if pattern_of.get(id(p)) == pattern] for pattern in (None, *rates)}
        found += [
            {**group, "params": params, **({} if pattern is None else {"lr": rates[pattern], "name": pattern})}
            for pattern, params in own.items()
            if params
        ]
    return found


def build_optimizer(recipe: Recipe, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimiser that a recipe names, of parameter groups as torch takes them."""
    build: Any = {"adamw": torch.optim.AdamW, "muon": Muon, "adamw8bit": _adamw8bit}[recipe.optimizer]
    fused = {"fused": True} if recipe.fused else {}  # torch chooses where it is not said
    return build(groups, lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay, **fused)


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


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised, for parameters with two or more dimensions, none of them 1 as a matrix;
    AdamW for everything else.

    Jordan et al. 2024 ("Muon: an optimizer for hidden layers"); the update is scaled to AdamW's typical size as in Liu
    et al. 2025 (arXiv:2502.16982, equation 4), so one learning rate and one weight decay serve both kinds of
    parameters. Convolutions count as matrices ``[out, in * kh * kw]``.

    ``lr`` and the decoupled ``weight_decay`` are those of both kinds of parameters, ``momentum`` (Nesterov) is that of
    the orthogonalised update, ``betas`` and ``eps`` are AdamW's.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        shared = {"lr": lr, "weight_decay": weight_decay}
        super().__init__(parameters, {**shared, "momentum": momentum, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    is_matrix = p.ndim >= 2 and min(p.shape[0], p[0].numel()) > 1
                    update = self._matrix_update(p, group) if is_matrix else self._adam_update(p, group)
                    p.add_(update, alpha=-group["lr"])
        return loss

    def _matrix_update(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        state["momentum"].lerp_(p.grad, 1 - group["momentum"])
        matrix = p.grad.lerp(state["momentum"], group["momentum"]).flatten(1)
        return (orthogonalise(matrix) * 0.2 * max(matrix.shape) ** 0.5).view_as(p)

    def _adam_update(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        state = self.state[p]
        if not state:
            state.update(step=torch.zeros(()), mean=torch.zeros_like(p), square=torch.zeros_like(p))
        state["step"] += 1
        first, second = group["betas"]
        state["mean"].lerp_(p.grad, 1 - first)
        state["square"].lerp_(p.grad.square(), 1 - second)
        n = state["step"].item()
        return (state["mean"] / (1 - first**n)) / ((state["square"] / (1 - second**n)).sqrt() + group["eps"])


def orthogonalise(matrix: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrix, approximately: all singular values end between about 0.7 and 1.2."""
    a, b, c = 3.4445, -4.7750, 2.0315  # push singular values towards 1 fastest, from the same source
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.mT if tall else matrix) / (matrix.norm() + 1e-7)
    for _ in range(5):  # Newton-Schulz iterations
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
