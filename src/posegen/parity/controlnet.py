"""ControlNet: residuals and predictions, with all its ways to scale them."""

from __future__ import annotations

from typing import Any

from posegen.adapters.base import State
from posegen.adapters.controlnet import ControlNet
from posegen.backbones.base import Injection
from posegen.backbones.text import Text
from posegen.parity.build import Outputs, converted, geometry_of, stable_diffusion
from posegen.parity.case import Case

#: Output -> settings of the method.
CONTROL_SETTINGS: dict[str, dict[str, Any]] = {
    "eps": {}, "eps_strength": {"strength": 0.7},
    "eps_guess_scales": {"guess_mode": True}, "eps_mid_only": {"only_mid": True},
}  # fmt: skip


def controlnet_outputs(case: Case) -> Outputs:
    backbone = stable_diffusion(geometry_of(case.config), case.weights)
    noisy, timesteps, text = case.inputs["x"], case.inputs["timesteps"].long(), Text(case.inputs["context"])
    for name, settings in CONTROL_SETTINGS.items():
        method = converted(ControlNet(**settings), backbone, case.weights)
        hint = method.branch.hint_features(case.inputs["hint"])
        state = State(text, text).having(hint=hint, on=hint.new_ones(len(hint), 1, 1, 1))
        injection = method.inject(state, noisy, timesteps)
        yield name, backbone.predict(noisy, timesteps, text, injection)
        if name == "eps":
            yield "guided_hint", hint
            yield from ((f"res_{i:02}", residual) for i, residual in enumerate(injection.residuals))
    yield "eps_nocontrol", backbone.predict(noisy, timesteps, text, Injection())
