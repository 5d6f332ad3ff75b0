"""Stable Diffusion XL against diffusers' own pipelines, on the same random weights."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    ControlNetUnionModel,
    DDIMScheduler,
    StableDiffusionXLAdapterPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLControlNetUnionPipeline,
    StableDiffusionXLPipeline,
)
from diffusers import (
    T2IAdapter as DiffusersT2IAdapter,
)
from torch import Tensor

from posegen.adapters.base import Adapter
from posegen.adapters.controlnet import ControlNet
from posegen.adapters.controlnet_union import ControlNetUnion
from posegen.adapters.none import NoAdapter
from posegen.adapters.t2i_adapter import T2IAdapter
from posegen.backbones.stable_diffusion_xl import StableDiffusionXL
from posegen.data.base import PoseBatch
from posegen.runner.method_folder import load_method, save_method
from posegen.runner.sampler import Sampler
from tests.backbones.sdxl_models import sdxl_parts

SIZE, STEPS, GUIDANCE, PROMPTS = (64, 96), 4, 5.0, ["a person dancing", "a person on the beach"]


def backbone() -> StableDiffusionXL:
    return StableDiffusionXL.from_parts(copy.deepcopy(sdxl_parts()))


def batch(hint: Tensor | None = None, rows: slice = slice(2), sizes: Tensor | None = None) -> PoseBatch:
    ids, nobody = ["a", "b"][rows], [np.zeros((0, 17, 3))] * 2
    return PoseBatch(ids, PROMPTS[rows], nobody[rows], SIZE, hint=None if hint is None else hint[rows], sizes=sizes)


def drawing() -> Tensor:
    """Two drawings, in [0, 1]."""
    return torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(7))


def theirs(cls: type, body: StableDiffusionXL, rows: slice = slice(2), **more: object) -> Tensor:
    """Final latents of a diffusers pipeline on the same parts and the same noise."""
    parts: dict[str, object] = {name: getattr(body, place) for name, place in body.components.items()}
    parts |= {name: more.pop(name) for name in ("controlnet", "adapter") if name in more}
    scheduler = DDIMScheduler.from_config(body.process.config)
    pipe = cls(scheduler=scheduler, force_zeros_for_empty_prompt=body.zeros, **parts)
    pipe.set_progress_bar_config(disable=True)
    noise = batch(rows=rows).randn("latents", body.latent_shape(SIZE))
    usual = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "height": SIZE[0], "width": SIZE[1]}
    return pipe(PROMPTS[rows], latents=noise, output_type="latent", **usual, **more).images


@torch.inference_mode()
def ours(method: Adapter, given: PoseBatch) -> Tensor:
    return Sampler(steps=STEPS, guidance=GUIDANCE).latents(method, method.backbone, given)


def awake(method: Adapter, body: StableDiffusionXL) -> Adapter:
    """The attached method with weights that matter: zero layers hide mistakes."""
    method.attach(body)
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return method


@pytest.mark.parametrize("zeros", [True, False])
def test_text_to_image_equals_diffusers(zeros: bool) -> None:
    body = StableDiffusionXL.from_parts(copy.deepcopy(sdxl_parts()), zeros=zeros)
    method = NoAdapter()
    method.attach(body)
    expected = theirs(StableDiffusionXLPipeline, body)
    torch.testing.assert_close(ours(method, batch()), expected, atol=1e-4, rtol=0)
    other = {"original_size": (200, 300), "crops_coords_top_left": (10, 20), "target_size": SIZE}
    sizes = torch.tensor([[200.0, 300.0, 10.0, 20.0, *SIZE]] * 2)
    expected_too = theirs(StableDiffusionXLPipeline, body, **other)
    torch.testing.assert_close(ours(method, batch(sizes=sizes)), expected_too, atol=1e-4, rtol=0)
    assert (expected - expected_too).abs().max() > 1e-3


def test_controlnet_equals_diffusers_and_loads_there(tmp_path: Path) -> None:
    body = backbone()
    method = awake(ControlNet(), body)
    save_method(tmp_path / "method", method, body)
    controlnet, hint = ControlNetModel.from_pretrained(tmp_path / "method" / "controlnet"), drawing()
    expected = theirs(StableDiffusionXLControlNetPipeline, body, controlnet=controlnet, image=hint)
    torch.testing.assert_close(ours(method, batch(hint)), expected, atol=1e-4, rtol=0)
    assert (expected - theirs(StableDiffusionXLPipeline, body)).abs().max() > 1e-2


def test_union_equals_diffusers_and_loads_there(tmp_path: Path) -> None:
    """diffusers lets the images of a batch influence one another, so one at a time."""
    body = backbone()
    method = awake(ControlNetUnion(kinds=8, mode=3), body)
    save_method(tmp_path / "method", method, body)
    again = load_method(tmp_path / "method", backbone())
    controlnet, hint = ControlNetUnionModel.from_pretrained(tmp_path / "method" / "controlnet"), drawing()
    found = ours(again, batch(hint))
    for i in range(2):
        row = slice(i, i + 1)
        drawn = {"controlnet": controlnet, "control_image": [hint[row]], "control_mode": [3]}
        expected = theirs(StableDiffusionXLControlNetUnionPipeline, body, row, **drawn)
        torch.testing.assert_close(found[row], expected, atol=1e-4, rtol=0)
        assert (expected - theirs(StableDiffusionXLPipeline, body, row)).abs().max() > 1e-2


def test_t2i_adapter_equals_diffusers_and_loads_there(tmp_path: Path) -> None:
    body = backbone()
    method = awake(T2IAdapter(strength=0.7), body)
    save_method(tmp_path / "method", method, body)
    adapter, hint = DiffusersT2IAdapter.from_pretrained(tmp_path / "method" / "t2i_adapter"), drawing()
    assert adapter.config.adapter_type == "full_adapter_xl" and adapter.config.downscale_factor == 16
    drawn = {"adapter": adapter, "image": hint, "adapter_conditioning_scale": 0.7}
    expected = theirs(StableDiffusionXLAdapterPipeline, body, **drawn)
    torch.testing.assert_close(ours(method, batch(hint)), expected, atol=1e-4, rtol=0)
    assert (expected - theirs(StableDiffusionXLPipeline, body)).abs().max() > 1e-2
