"""ControlNeXt: its map, predictions and gradients, with either kind of U-Net file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from posegen.adapters.base import State
from posegen.adapters.controlnext import CONTROL_PART, INCREMENTS_PART, VALUES_PART, ControlNeXt
from posegen.backbones.base import Injection
from posegen.backbones.loading.ldm_keys import below
from posegen.backbones.stable_diffusion import StableDiffusion
from posegen.backbones.text import Text
from posegen.errors import UserError
from posegen.parity.build import Inexpressible, Outputs, converted, diffusers_backbone
from posegen.parity.case import FACTS, Case

VARIANTS = {"sd15": "level", "sd15_mid": "middle", "sdxl": "input"}
FILE_FACTOR = f"{CONTROL_PART}scale"


def controlnext_outputs(case: Case) -> Outputs:
    given, config, backbone = case.inputs, case.config, own_backbone(case)
    control = {key: value for key, value in case.weights.items() if key.startswith(CONTROL_PART)}
    changed = {key: value for key, value in case.weights.items() if key.startswith(INCREMENTS_PART)}
    noisy, timesteps, text = given["x"], given["timesteps"].long(), Text(given["context"])
    method = converted(controlnext_of(case, config["scale"]), backbone, control)

    def eps(by: ControlNeXt, text: Text = text, hint: Tensor = given["hint"], timesteps: Tensor = timesteps) -> Tensor:
        latents = noisy.repeat(len(text) // len(noisy), 1, 1, 1)
        state = State(text, text).having(hint=hint.repeat(len(text) // len(hint), 1, 1, 1))
        return backbone.predict(latents, timesteps, text, by.inject(state, latents, timesteps))

    yield "map", method.network(given["hint"], timesteps)
    yield "eps", eps(method)
    yield from loss_and_gradients(case, method, backbone, lambda: nn.functional.mse_loss(eps(method), given["noise"]))
    for name, scale in config["other_scales"].items():
        if FILE_FACTOR in control:  # the scale is in the file
            yield (
                name,
                eps(converted(controlnext_of(case, 1.0), backbone, {**control, FILE_FACTOR: torch.tensor(scale)})),
            )
        else:
            yield name, eps(converted(controlnext_of(case, scale), backbone, control))
    yield "eps_nocontrol", backbone.predict(noisy, timesteps, text, Injection())
    yield "eps_hint_other", eps(method, hint=given["hint_other"])
    both = Text.cat([Text(given["context_uncond"]), text])
    without, full = eps(method, both, timesteps=torch.full((len(both),), guided_timestep(case))).chunk(2)
    yield "eps_guided", without + config["guidance_scale"] * (full - without)
    yield "eps_increments", eps(converted(controlnext_of(case, config["scale"]), backbone, {**control, **changed}))


def loss_and_gradients(case: Case, method: ControlNeXt, backbone: StableDiffusion, loss_of: Any) -> Outputs:
    """The loss, and the gradients that the configuration names; everything that trains gets one, nothing else does."""
    parts: Mapping[str, nn.Module] = {"controlnext": method.network, "unet": backbone.unet}
    trained = {name for name, p in backbone.unet.named_parameters() if p.requires_grad}
    if expected := trained ^ set(case.config["trained_unet"]):
        raise UserError(f"other weights of the U-Net train than in {case.place / FACTS}: {', '.join(sorted(expected))}")
    with torch.enable_grad():
        loss = loss_of()
        yield "loss", loss.detach()
        loss.backward()
    for part, names in case.config["gradients"].items():
        for name in names:
            gradient = parts[part].get_parameter(name).grad
            assert gradient is not None
            yield f"grad.{part}.{name}", gradient
    for module in parts.values():
        module.zero_grad()


def controlnext_of(case: Case, scale: float) -> ControlNeXt:
    """The method at the case's size; the two programs with a stem pass its last width on."""
    config = case.config["controlnext"]
    stem, widths = tuple(config.get("stem", ())), tuple(config["out_channels"])
    if list(config["in_channels"]) != [*(stem[-1:] or (3,)), *widths[:-1]]:
        raise Inexpressible(f"{case.place / FACTS} has blocks whose widths do not follow one another")
    place = VARIANTS[case.config["variant"]]
    sizes: dict[str, Any] = {"stem": stem, "widths": widths, "time_dim": config["time_embed_dim"]}
    return ControlNeXt(place, strength=scale, **sizes)  # type: ignore[arg-type]


def own_backbone(case: Case) -> StableDiffusion:
    """A backbone with the case's U-Net, which for SDXL reads the case's pooled text and sizes in every pass."""
    given, backbone = case.inputs, diffusers_backbone(case.config["unet"], below(case.weights, VALUES_PART))
    if "text_embeds" in given:
        added = {name: given[name] for name in ("text_embeds", "time_ids")}

        def with_conditions(_unet: nn.Module, inputs: Any, named: dict[str, Any]) -> Any:
            repeated = {name: value.repeat(len(inputs[0]) // len(value), 1) for name, value in added.items()}
            return inputs, {**named, "added_cond_kwargs": repeated}

        backbone.unet.register_forward_pre_hook(with_conditions, with_kwargs=True)
    return backbone


def guided_timestep(case: Case) -> int:
    """The one timestep of the guided prediction, which the notes tell in words."""
    if (found := re.search(r"one timestep (\d+)", " ".join(case.facts["notes"]))) is None:
        raise UserError(f"the notes of {case.place / FACTS} do not say the 'one timestep' of eps_guided")
    return int(found[1])
