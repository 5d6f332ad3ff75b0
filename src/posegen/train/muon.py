"""Muon: momentum whose update is orthogonalised, for weight matrices; AdamW for everything else.

Jordan et al. 2024 ("Muon: an optimizer for hidden layers"); the update is scaled to AdamW's typical size as in Liu et
al. 2025 (arXiv:2502.16982, equation 4), so one learning rate and one weight decay serve both kinds of parameters.
Convolutions count as matrices ``[out, in * kh * kw]``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Muon(torch.optim.Optimizer):
    """Orthogonalises the updates of parameters with two or more dimensions, none of them 1 as a matrix.

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
