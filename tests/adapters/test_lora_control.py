"""Low-rank control: what trains, where it starts, and its file in plain diffusers."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxControlPipeline
from safetensors.torch import load_file

from posegen.adapters.composite import Composite
from posegen.adapters.controlnet import ControlNet
from posegen.adapters.lora_control import LoraControl
from posegen.backbones.base import Backbone, Injection, Step
from posegen.backbones.stable_diffusion_3 import StableDiffusion3
from posegen.backbones.stable_diffusion_xl import StableDiffusionXL
from posegen.cli import main
from posegen.errors import UserError
from posegen.io.weights import UnknownKeys
from posegen.runner.method_folder import load_method, save_method, trains
from tests.backbones.sd3_models import fresh_parts
from tests.backbones.sdxl_models import sdxl_parts
from tests.backbones.test_flux import backbone as flux
from tests.backbones.test_flux import batch, drawing, ours, theirs


def sd3() -> StableDiffusion3:
    return StableDiffusion3.from_parts(fresh_parts(), t5_length=12)


def sdxl() -> StableDiffusionXL:
    return StableDiffusionXL.from_parts(copy.deepcopy(sdxl_parts()))


def attached(body: Backbone, **settings: Any) -> LoraControl:
    torch.manual_seed(0)
    method = LoraControl(**settings)
    method.attach(body)
    return method


def awake(method: LoraControl) -> LoraControl:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return method


def loss_of(method: Any, body: Backbone) -> torch.Tensor:
    """The loss of a training step that is always the same."""
    generator = torch.Generator().manual_seed(3)
    shape = 2, *body.latent_shape((64, 96))
    clean, noise = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    times = body.process.sample_times(torch.tensor([0.3, 0.8]), body.tokens((64, 96)))
    noisy, target = body.process.add_noise(clean, noise, times), body.process.target(clean, noise, times)
    state = method.encode(batch(2 * drawing() - 1))
    prediction = body.predict(noisy, times, state.text, method.inject(state, noisy, times))
    return method.loss(Step(prediction, target, noisy, clean, noise, times), state, batch())["loss"]


@pytest.mark.parametrize("build", [flux, sd3, sdxl])
def test_it_starts_from_the_backbone_and_trains_low_rank_weights_alone(build: Callable[[], Any]) -> None:
    body, generator = build(), torch.Generator().manual_seed(0)
    before = {key: value.clone() for key, value in body.network.state_dict().items()}
    latents, times = torch.randn(2, *body.latent_shape((64, 96)), generator=generator), torch.tensor([100, 900])
    with torch.no_grad():
        text = body.encode_text(["a person", "the beach"])
        alone = body.predict(latents, times, text, Injection())
        method = attached(body, pose_latent="mode")
        state = method.encode(batch(2 * drawing() - 1))
        torch.testing.assert_close(body.predict(latents, times, text, method.inject(state, latents, times)), alone)
        awake(method)
        assert not torch.allclose(body.predict(latents, times, text, method.inject(state, latents, times)), alone)
    loss_of(method, body).backward()
    assert all(p.grad is not None for p in method.parameters())  # some of nothing: a last block reads no text
    assert sum(bool(p.grad.any()) for p in method.parameters()) >= len(list(method.parameters())) - 2
    assert not trains(body) and all(p.grad is None for p in body.parameters())
    after = body.network.state_dict()
    assert after.keys() == before.keys()  # no layer got another name
    (wider,) = (key for key in before if after[key].shape != before[key].shape)
    assert torch.equal(after[wider][:, : before[wider].shape[1]], before[wider])
    assert not after[wider][:, before[wider].shape[1] :].any()


@pytest.mark.parametrize("alpha", [None, 2.0])
def test_diffusers_own_loader_reads_the_method_folder(tmp_path: Path, alpha: float | None) -> None:
    body = flux()
    method = awake(attached(body, rank=4, alpha=alpha, pose_latent="mode"))
    save_method(tmp_path / "method", method, body)
    shapes = {key: value.shape for key, value in load_file(tmp_path / "method" / "adapter.safetensors").items()}
    assert shapes["transformer.x_embedder.lora_A.weight"] == (64, 128)  # as many as there are new columns
    assert shapes["transformer.single_transformer_blocks.4.attn.to_q.lora_B.weight"] == (32, 4)

    def loaded(**parts: Any) -> FluxControlPipeline:
        pipe = FluxControlPipeline(**parts)
        pipe.load_lora_weights(tmp_path / "method", weight_name="adapter.safetensors", adapter_name="ours")
        pipe.set_adapters("ours", (alpha or 4) / 4)
        return pipe

    hint = 2 * drawing() - 1
    found, expected = ours(method, hint), theirs(loaded, flux(), control_image=hint)  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert (found - ours(attached(flux(), pose_latent="mode"), hint)).abs().max() > 1e-2
    again = load_method(tmp_path / "method", flux())
    assert torch.equal(ours(again, hint), found)


def test_a_lora_file_of_diffusers_is_converted_and_others_are_named() -> None:
    method = attached(flux(), rank=4)
    file = {key: torch.full_like(value, 0.5) for key, value in method.state_dict().items()}
    assert method.convert(file).keys() == {f"adapter.{key}" for key in method.state_dict()}
    with pytest.raises(UnknownKeys, match="1 keys that LoraControl has no place for: transformer.x.lora_A.weight"):
        method.convert({**file, "transformer.x.lora_A.weight": torch.zeros(1)})


def test_full_size_names_are_those_of_the_published_form() -> None:
    """FLUX.1 Depth and Canny as LoRA widen the input of 64 to 128; 64 is the rank of the example that trains such."""
    from posegen.backbones.flux import Flux

    with torch.device("meta"):
        body = Flux(None, initialise="random", size="flux1_dev")
        method = attached(body)
    shapes = {key: tuple(value.shape) for key, value in method.state_dict().items()}
    assert shapes["transformer.x_embedder.lora_A.weight"] == (64, 128)
    assert shapes["transformer.x_embedder.lora_B.weight"] == (3072, 64)
    double = 12  # layers of a block of two streams, and three of one
    assert len(shapes) == 2 * (1 + 19 * double + 38 * 3)


@pytest.mark.parametrize("build", [flux, sd3])
def test_a_few_steps_reduce_the_loss(build: Callable[[], Any]) -> None:
    body = build()
    method = attached(body)
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        losses.append(loss_of(method, body))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.97 * losses[0]


def test_a_copy_beside_it_is_that_of_the_backbone() -> None:
    """The network keeps the names of its weights, so that a ControlNet in the same run copies all of them."""
    alone = ControlNet()
    alone.attach(sdxl())
    both = Composite({"a": LoraControl(), "b": ControlNet()})
    both.attach(sdxl())
    own, copied = alone.branch.network.down_blocks, both.methods["b"].branch.network.down_blocks
    assert all(torch.equal(value, copied.state_dict()[key]) for key, value in own.state_dict().items())


def test_layers_that_are_not_there_and_a_missing_package_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"adapter.targets=\['to_x'\] fits no layer"):
        attached(flux(), targets=["to_x"])
    monkeypatch.setitem(sys.modules, "peft", None)
    for method in ("lora_control",):
        assert main(["check", "train", f"adapter={method}", "backbone=mannequin_dit"]) == 1
        assert f"adapter={method} needs the package peft; pip install 'posegen[lora]'" in capsys.readouterr().err
