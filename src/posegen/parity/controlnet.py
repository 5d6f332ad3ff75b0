"""ControlNet: residuals and predictions, with all its ways to scale them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from posegen.adapters.base import State
from posegen.adapters.controlnet import ControlNet
from posegen.backbones.base import Geometry, Injection
from posegen.backbones.text import Text
from posegen.parity.build import converted, stable_diffusion
from posegen.parity.case import Case

#: Output -> settings of the method.
SETTINGS: dict[str, dict[str, Any]] = {
    "eps": {},
    "eps_strength": {"strength": 0.7},
    "eps_guess_scales": {"guess_mode": True},
    "eps_mid_only": {"only_mid": True},
}


@torch.no_grad()
def compute(case: Case) -> dict[str, Tensor]:
    """Every output of a whole forward pass."""
    return dict(outputs(case))


def outputs(case: Case) -> Iterator[tuple[str, Tensor]]:
    backbone = stable_diffusion(Geometry.from_ldm(case.config), case.weights)
    noisy, timesteps, text = case.inputs["x"], case.inputs["timesteps"].long(), Text(case.inputs["context"])

    def predicted(injection: Injection) -> Tensor:
        return backbone.predict(noisy, timesteps, text, injection)

    for name, settings in SETTINGS.items():
        method = converted(ControlNet(**settings), backbone, case.weights)
        injection = injected(method, case)
        yield name, predicted(injection)
        if name == "eps":
            yield "guided_hint", method.branch.hint_features(case.inputs["hint"])
            yield from ((f"res_{i:02}", residual) for i, residual in enumerate(injection.residuals))
    yield "eps_nocontrol", predicted(Injection())


def injected(method: ControlNet, case: Case) -> Injection:
    """What the method puts into the pass of the case."""
    features = method.branch.hint_features(case.inputs["hint"])
    text = Text(case.inputs["context"])
    state = State(text, text).having(hint=features, on=features.new_ones(len(features), 1, 1, 1))
    return method.inject(state, case.inputs["x"], case.inputs["timesteps"].long())
