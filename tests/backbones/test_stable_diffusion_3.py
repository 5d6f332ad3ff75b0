"""Stable Diffusion 3 against diffusers' own pipelines, on the same random weights."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    SD3ControlNetModel,
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3Pipeline,
)
from torch import Tensor

from posegen.adapters.base import Adapter
from posegen.adapters.controlnet import ControlNet
from posegen.adapters.none import NoAdapter
from posegen.backbones.stable_diffusion_3 import StableDiffusion3
from posegen.data.base import PoseBatch
from posegen.runner.method_folder import save_method
from posegen.runner.sampler import Sampler
from tests.backbones.sd3_models import sd3_parts

SIZE, STEPS, GUIDANCE, PROMPTS = (64, 96), 4, 5.0, ["a person dancing", "a person on the beach"]


def backbone() -> StableDiffusion3:
    return StableDiffusion3.from_parts(copy.deepcopy(sd3_parts()))


def batch(hint: Tensor | None = None) -> PoseBatch:
    nobody = [np.zeros((0, 17, 3))] * 2
    return PoseBatch(["a", "b"], PROMPTS, nobody, SIZE, hint=hint)


def drawing() -> Tensor:
    """Two drawings, in [0, 1]."""
    return torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(7))


def theirs(cls: type, body: StableDiffusion3, **more: object) -> Tensor:
    """Final latents of a diffusers pipeline on the same parts and the same noise."""
    names = ("text_encoder", "text_encoder_2", "text_encoder_3")
    parts: dict[str, object] = {name: getattr(body, name, None) for name in names}
    parts |= {name.replace("text_encoder", "tokenizer"): body.tokenizers.get(name) for name in names}
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(body.process.config)
    controlnet = {"controlnet": more.pop("controlnet")} if "controlnet" in more else {}
    pipe = cls(transformer=body.transformer, vae=body.autoencoder, scheduler=scheduler, **parts, **controlnet)
    pipe.set_progress_bar_config(disable=True)
    noise = batch().randn("latents", body.latent_shape(SIZE))
    usual = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "height": SIZE[0], "width": SIZE[1]}
    return pipe(PROMPTS, latents=noise, output_type="latent", **usual, **more).images


def ours(method: Adapter, hint: Tensor | None = None) -> Tensor:
    sampler = Sampler(scheduler=None, steps=STEPS, guidance=GUIDANCE)
    with torch.inference_mode():
        return sampler.latents(method, method.backbone, batch(hint))


def awake(method: Adapter) -> Adapter:
    """The method with weights that matter: zero layers hide mistakes."""
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return method


@pytest.mark.parametrize("t5", [True, False])
def test_text_to_image_equals_diffusers(t5: bool) -> None:
    parts = copy.deepcopy(sd3_parts())
    if not t5:
        parts.text_encoders = {k: v for k, v in parts.text_encoders.items() if k != "text_encoder_3"}
        parts.tokenizers = {k: v for k, v in parts.tokenizers.items() if k != "text_encoder_3"}
    body = StableDiffusion3.from_parts(parts)
    method = NoAdapter()
    method.attach(body)
    expected = theirs(StableDiffusion3Pipeline, body)
    torch.testing.assert_close(ours(method), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("instantx", [False, True])
def test_controlnet_equals_diffusers_and_loads_there(tmp_path: Path, instantx: bool) -> None:
    body = backbone()
    method = ControlNet()
    method.attach(body)
    awake(method)
    method.branch.network.register_to_config(force_zeros_for_pooled_projection=instantx)
    save_method(tmp_path / "method", method, body)
    controlnet = SD3ControlNetModel.from_pretrained(tmp_path / "method" / "controlnet")
    hint = drawing()
    expected = theirs(StableDiffusion3ControlNetPipeline, body, controlnet=controlnet, control_image=2 * hint - 1)
    found = ours(method, hint)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert (found - theirs(StableDiffusion3Pipeline, body)).abs().max() > 1e-2
