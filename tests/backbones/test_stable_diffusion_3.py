"""Stable Diffusion 3 against diffusers' own pipelines, on the same random weights."""

from __future__ import annotations

import copy
import shutil
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
from safetensors.torch import load_file
from torch import Tensor

from posegen.adapters.base import Adapter
from posegen.adapters.controlnet import ControlNet
from posegen.adapters.humansd import HumanSD
from posegen.adapters.none import NoAdapter
from posegen.adapters.t2i_adapter import T2IAdapter
from posegen.backbones.base import Injection
from posegen.backbones.process import FlowMatching
from posegen.backbones.stable_diffusion_3 import StableDiffusion3
from posegen.data.base import PoseBatch
from posegen.io.weights import WeightsError
from posegen.runner.method_folder import load_method, save_method
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


def test_folder_round_trip(tmp_path: Path) -> None:
    """What is written is read with the same hash and gives the same prediction; T5 can be left out."""
    sd3_parts().save(tmp_path / "sd3")
    body, again = backbone(), StableDiffusion3(tmp_path / "sd3", id="sd3")
    again_too, without = StableDiffusion3(tmp_path / "sd3", id="sd3"), StableDiffusion3(tmp_path / "sd3", t5=False)
    assert again.weights == again_too.weights and without.weights.sha256 != again.weights.sha256
    assert again.encoding_key("text") != without.encoding_key("text")
    with torch.inference_mode():
        text, noisy, times = again.encode_text(PROMPTS), torch.randn(2, 16, 8, 12), torch.tensor([250.0, 900.0])
        torch.testing.assert_close(text.tokens, body.encode_text(PROMPTS).tokens)
        expected = body.predict(noisy, times, body.encode_text(PROMPTS), Injection())
        torch.testing.assert_close(again.predict(noisy, times, text, Injection()), expected)
        silent = without.encode_text(PROMPTS).tokens
    assert silent.shape == text.tokens.shape and not silent[:, 77:].any() and text.tokens[:, 77:].any()


def test_concatenation_starts_without_influence_and_is_saved(tmp_path: Path) -> None:
    method, plain = HumanSD(style="openpose"), NoAdapter()
    method.attach(backbone())
    plain.attach(backbone())
    torch.testing.assert_close(ours(method, drawing()), ours(plain))
    with torch.no_grad():
        weight = method.backbone.transformer.pos_embed.proj.weight
        weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    save_method(tmp_path / "method", method, method.backbone)
    assert load_file(tmp_path / "method/backbone/transformer/diffusion_pytorch_model.safetensors")
    loaded = load_method(tmp_path / "method", backbone())
    torch.testing.assert_close(ours(loaded, drawing()), ours(method, drawing()))
    assert (ours(method, drawing()) - ours(plain)).abs().max() > 1e-3


def test_the_copy_reads_gradients_and_leaves_the_transformer_alone() -> None:
    body = backbone()
    before = dict(body.transformer.config)
    method = ControlNet()
    method.attach(body)
    assert dict(body.transformer.config) == before
    state = method.encode(batch(drawing()))
    noisy, times = torch.randn(2, 16, 8, 12), torch.tensor([250.0, 900.0])
    body.predict(noisy, times, state.text, method.inject(state, noisy, times)).square().sum().backward()
    zero = [p.grad for p in method.branch.network.controlnet_blocks.parameters()]
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in zero)
    assert all(p.grad is None for p in body.parameters())


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("unet", "unet/ holds the U-Net of a Stable Diffusion 1 or 2; this backbone is a Stable Diffusion 3. Use "),
        ("text_encoder_2", "reads 40 pooled values of text, the CLIP towers make 16"),
        ("transformer", "no transformer/"),
    ],
)
def test_folders_of_other_models_are_refused(tmp_path: Path, broken: str, message: str) -> None:
    sd3_parts().save(tmp_path / "sd3")
    if broken == "unet":
        (tmp_path / "sd3" / "transformer").rename(tmp_path / "sd3" / "unet")
        (tmp_path / "sd3" / "unet" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    else:
        shutil.rmtree(tmp_path / "sd3" / broken)
    with pytest.raises(WeightsError, match=message):
        StableDiffusion3(tmp_path / "sd3")


def test_methods_without_their_place_are_refused() -> None:
    with pytest.raises((TypeError, ValueError)):
        T2IAdapter().attach(backbone())
    with pytest.raises(ValueError, match="no middle block"):
        ControlNet(only_mid=True).attach(backbone())


def test_logit_normal_times_are_in_the_middle() -> None:
    process = backbone().process
    times = process.sample_times(torch.linspace(0, 1, 2001)[:-1])
    assert times.min() >= 0 and times.max() <= 1000 and times.isfinite().all()
    uniform = FlowMatching(process.config).sample_times(torch.linspace(0, 1, 2001)[:-1])
    shifted = uniform / 1000
    assert (times / 1000 - shifted).abs().max() > 0.05 and times.std() < uniform.std()
