"""FLUX.1 against diffusers' own pipelines, on the same random weights."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxControlPipeline,
    FluxPipeline,
)
from torch import Tensor

from posegen.adapters.base import Adapter
from posegen.adapters.controlnet import ControlNet
from posegen.adapters.humansd import HumanSD
from posegen.adapters.none import NoAdapter
from posegen.backbones.blocks.flux_copy import as_latents, as_tokens
from posegen.backbones.flux import Flux
from posegen.data.base import PoseBatch
from posegen.runner.method_folder import load_method, save_method
from posegen.runner.sampler import Sampler
from tests.backbones.flux_models import flux_parts

SIZE, STEPS, PROMPTS = (64, 96), 4, ["a person dancing", "a person on the beach"]
LENGTH, DISTILLED = 12, 2.5


def backbone(dev: bool = True) -> Flux:
    return Flux.from_parts(copy.deepcopy(flux_parts(dev)), t5_length=LENGTH, guidance=DISTILLED)


def batch(hint: Tensor | None = None, size: tuple[int, int] = SIZE) -> PoseBatch:
    nobody = [np.zeros((0, 17, 3))] * 2
    return PoseBatch(["a", "b"], PROMPTS, nobody, size, hint=hint)


def drawing() -> Tensor:
    """Two drawings, in [0, 1]."""
    return torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(7))


def theirs(cls: type, body: Flux, size: tuple[int, int] = SIZE, **more: Any) -> Tensor:
    """Final latents ``[B, c, h, w]`` of a diffusers pipeline on the same parts and the same noise."""
    parts = {name: getattr(body, place) for name, place in body.components.items()}
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(body.process.config)
    controlnet = {"controlnet": more.pop("controlnet")} if "controlnet" in more else {}
    pipe = cls(**parts, **controlnet, scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    noise = batch().randn("latents", body.latent_shape(size))
    usual = {"num_inference_steps": STEPS, "guidance_scale": DISTILLED, "max_sequence_length": LENGTH}
    sides = {"height": size[0], "width": size[1], "output_type": "latent"}
    made = pipe(PROMPTS, latents=pipe._pack_latents(noise, *noise.shape), **usual, **sides, **more).images
    return pipe._unpack_latents(made, *size, pipe.vae_scale_factor)


def ours(method: Adapter, hint: Tensor | None = None, size: tuple[int, int] = SIZE, guidance: float = 1.0) -> Tensor:
    sampler = Sampler(scheduler=None, steps=STEPS, guidance=guidance, negative_prompt="the beach")
    with torch.inference_mode():
        body = method.backbone
        text, negative = body.encode_text(PROMPTS), body.encode_text([sampler.negative_prompt])
        return sampler.latents(method, body, replace(batch(hint, size), text=text, negative_text=negative))


def attached(method: Adapter, body: Flux) -> Adapter:
    method.attach(body)
    return method


def awake(module: torch.nn.Module) -> None:
    """Gives the weights values that matter: zero layers hide mistakes."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))


def test_packing_is_diffusers_and_goes_back() -> None:
    latents = torch.randn(2, 16, 8, 12)
    assert torch.equal(as_tokens(latents), FluxPipeline._pack_latents(latents, 2, 16, 8, 12))
    assert torch.equal(as_latents(as_tokens(latents), 8), latents)


@pytest.mark.parametrize("dev", [True, False])
@pytest.mark.parametrize("true_guidance", [1.0, 4.0])
@pytest.mark.parametrize("size", [SIZE, (256, 384)])
def test_text_to_image_equals_diffusers(dev: bool, true_guidance: float, size: tuple[int, int]) -> None:
    """With distilled guidance or none, with true guidance or none; the shift depends on the size."""
    body = backbone(dev)
    true = {"true_cfg_scale": true_guidance, "negative_prompt": ["the beach"] * 2}
    found = ours(attached(NoAdapter(), body), size=size, guidance=true_guidance)
    torch.testing.assert_close(found, theirs(FluxPipeline, body, size, **true), atol=1e-4, rtol=0)
