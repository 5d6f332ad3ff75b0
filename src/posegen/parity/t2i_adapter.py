"""T2I-Adapter: the features of a hint and the predictions that they lead to."""

from __future__ import annotations

from collections.abc import Iterator
from math import isqrt

import numpy as np
import torch
from torch import Tensor

from posegen.adapters.t2i_adapter import T2IAdapter
from posegen.backbones.base import Geometry, Injection
from posegen.backbones.text import Text
from posegen.data.base import PoseBatch
from posegen.errors import UserError
from posegen.parity.build import converted, stable_diffusion
from posegen.parity.case import Case

#: Output -> factor of the features.
STRENGTHS = {"eps": 1.0, "eps_weight": 0.6}
#: Settings of the official class that all released weights share.
RELEASED = {"ksize": 1, "sk": True, "use_conv": False}


@torch.no_grad()
def compute(case: Case) -> dict[str, Tensor]:
    """Features and predictions."""
    return dict(outputs(case))


def outputs(case: Case) -> Iterator[tuple[str, Tensor]]:
    config = case.config["adapter"]
    if other := {key: config[key] for key, value in RELEASED.items() if config.get(key, value) != value}:
        raise UserError(
            f"{case.folder / 'case.json'} has {other}; posegen has the architecture of the released openpose and keypose weights, {RELEASED}"
        )
    geometry = Geometry.from_ldm(
        case.config["unet"], latent_factor=isqrt(config["cin"] // case.inputs["hint"].shape[1])
    )
    backbone = stable_diffusion(geometry, case.weights)
    noisy, timesteps, text = case.inputs["x"], case.inputs["timesteps"].long(), Text(case.inputs["context"])
    for name, strength in STRENGTHS.items():
        method = converted(T2IAdapter(strength=strength, blocks=config["nums_rb"]), backbone, case.weights)
        if name == "eps":
            yield from ((f"feat_{i}", feature) for i, feature in enumerate(method.features(case.inputs["hint"])))
        state = method.encode(batch(case))
        yield name, backbone.predict(noisy, timesteps, text, method.inject(state, noisy, timesteps))
    yield "eps_nocontrol", backbone.predict(noisy, timesteps, text, Injection())


def batch(case: Case) -> PoseBatch:
    """What the method sees of the case."""
    hint, text = case.inputs["hint"], Text(case.inputs["context"])
    ids = [str(i) for i in range(len(hint))]
    nobody = [np.zeros((0, 17, 3), np.float32)] * len(ids)
    return PoseBatch(
        ids, [""] * len(ids), nobody, (hint.shape[2], hint.shape[3]), hint=hint, text=text, negative_text=text[:1]
    )
