"""T2I-Adapter: the features of a hint and the predictions that they lead to."""

from __future__ import annotations

from math import isqrt

from posegen.adapters.t2i_adapter import T2IAdapter
from posegen.backbones.base import Injection
from posegen.backbones.loading import ldm_keys as ldm
from posegen.backbones.text import Text
from posegen.parity.build import Inexpressible, Outputs, batch_of_size, converted, geometry_of, stable_diffusion
from posegen.parity.case import FACTS, Case

#: Settings of the official class that all released weights share.
RELEASED_SETTINGS = {"ksize": 1, "sk": True, "use_conv": False}


def t2i_adapter_outputs(case: Case) -> Outputs:
    config, hint = case.config["adapter"], case.inputs["hint"]
    if other := {key: config[key] for key, value in RELEASED_SETTINGS.items() if config.get(key, value) != value}:
        ours = f"posegen has the architecture of the released openpose and keypose weights, {RELEASED_SETTINGS}"
        raise Inexpressible(f"{case.place / FACTS} has {other}; {ours}")
    geometry = geometry_of(case.config["unet"], latent_factor=isqrt(config["cin"] // hint.shape[1]))
    backbone = stable_diffusion(geometry, case.weights)
    for name, strength in (("eps", 1.0), ("eps_weight", 0.6)):
        method = converted(T2IAdapter(strength=strength, blocks=config["nums_rb"]), backbone, case.weights)
        if name == "eps":
            yield from ((f"feat_{i}", feature) for i, feature in enumerate(method.features(hint)))
        if not ldm.has_prefix(case.weights, ldm.UNET):
            return
        noisy, timesteps, text = case.inputs["x"], case.inputs["timesteps"].long(), Text(case.inputs["context"])
        batch = batch_of_size(len(hint), hint.shape[2:], hint=hint, text=text, negative_text=text[:1])
        yield name, backbone.predict(noisy, timesteps, text, method.inject(method.encode(batch), noisy, timesteps))
    yield "eps_nocontrol", backbone.predict(noisy, timesteps, text, Injection())
