"""FLUX.1 against diffusers' own pipelines, on the same random weights."""

from __future__ import annotations

import copy
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxControlPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
)
from torch import Tensor

from posegen.adapters.base import Adapter
from posegen.adapters.controlnet import ControlNet
from posegen.adapters.humansd import HumanSD
from posegen.adapters.none import NoAdapter
from posegen.adapters.stable_pose import StablePose
from posegen.adapters.t2i_adapter import T2IAdapter
from posegen.backbones.base import Injection, Step
from posegen.backbones.blocks.flux_copy import as_latents, as_tokens
from posegen.backbones.flux import Flux
from posegen.cli import main
from posegen.data.base import PoseBatch
from posegen.errors import UserError
from posegen.io.weights import WeightsError
from posegen.pipeline import PoseGuidedPipeline
from posegen.runner.method_folder import load_method, save_method, trains
from posegen.runner.sampler import Sampler
from tests.backbones.flux_models import flux_parts

SIZE, STEPS, PROMPTS = (64, 96), 4, ["a person dancing", "a person on the beach"]
LENGTH, DISTILLED = 12, 2.5


def backbone(dev: bool = True) -> Flux:
    parts = flux_parts(dev)
    own = replace(parts, network=copy.deepcopy(parts.network), autoencoder=copy.deepcopy(parts.autoencoder))
    return Flux.from_parts(own, t5_length=LENGTH, guidance=DISTILLED)


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


@pytest.mark.parametrize(
    ("dev", "true_guidance", "size"),
    [(True, 1.0, SIZE), (True, 4.0, (256, 384)), (False, 1.0, (256, 384)), (False, 4.0, SIZE)],
)
def test_text_to_image_equals_diffusers(dev: bool, true_guidance: float, size: tuple[int, int]) -> None:
    """With distilled guidance or none, with true guidance or none; the shift depends on the size."""
    body = backbone(dev)
    true = {"true_cfg_scale": true_guidance, "negative_prompt": ["the beach"] * 2}
    found = ours(attached(NoAdapter(), body), size=size, guidance=true_guidance)
    torch.testing.assert_close(found, theirs(FluxPipeline, body, size, **true), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dev", [True, False])
def test_controlnet_equals_diffusers_and_loads_there(tmp_path: Path, dev: bool) -> None:
    body = backbone(dev)
    method = attached(ControlNet(), body)
    awake(method)
    save_method(tmp_path / "method", method, body)
    controlnet = FluxControlNetModel.from_pretrained(tmp_path / "method" / "controlnet")
    hint = drawing()
    expected = theirs(FluxControlNetPipeline, body, controlnet=controlnet, control_image=2 * hint - 1)
    found = ours(method, hint)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert (found - ours(attached(NoAdapter(), body))).abs().max() > 1e-2


@pytest.mark.parametrize(("double", "single", "modes"), [(2, 3, 7), (3, 0, None), (1, 5, None)])
def test_official_controlnets_convert_and_load_back(
    tmp_path: Path, double: int, single: int, modes: int | None
) -> None:
    """Of any number of blocks; union ControlNets are told that the hint is a pose, as diffusers is by control_mode=4."""
    flux_parts().save(tmp_path / "flux")
    sizes = {"num_layers": double, "num_single_layers": single, "num_mode": modes}
    torch.manual_seed(double)
    official = FluxControlNetModel.from_config({**flux_parts().network.config, **sizes})
    awake(official)
    official.save_pretrained(tmp_path / "official")
    words = ["convert", "adapter=controlnet", "backbone=flux1", f"backbone.path={tmp_path / 'flux'}"]
    words += [f"backbone.t5_length={LENGTH}", f"backbone.guidance={DISTILLED}"]
    assert main([*words, f"source={tmp_path / 'official'}", f"target={tmp_path / 'method'}"]) == 0
    body = Flux(tmp_path / "flux", t5_length=LENGTH, guidance=DISTILLED)
    method, hint = load_method(tmp_path / "method", body), drawing()
    again = FluxControlNetModel.from_pretrained(tmp_path / "method" / "controlnet")
    assert all(again.config[name] == value for name, value in sizes.items())
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in official.state_dict().items())
    more = {"control_image": 2 * hint - 1, "control_mode": None if modes is None else 4}
    expected = theirs(FluxControlNetPipeline, body, controlnet=official, **more)
    torch.testing.assert_close(ours(method, hint), expected, atol=1e-4, rtol=0)
    with torch.no_grad():
        state = method.encode(batch(hint))
        added = method.inject(state, torch.randn(2, 16, 8, 12), torch.tensor([250.0, 900.0]))
    assert (len(added.blocks or ()), len(added.single_blocks or ())) == (double, single)
    assert trains(method) and method.branch.network.training


def test_controlnets_of_another_width_or_model_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flux_parts().save(tmp_path / "flux")
    config = flux_parts().network.config
    FluxControlNetModel.from_config({**config, "num_attention_heads": 2}).save_pretrained(tmp_path / "narrow")
    ControlNetModel(
        block_out_channels=(4, 8), down_block_types=("DownBlock2D",) * 2, norm_num_groups=2
    ).save_pretrained(tmp_path / "unet")
    words = ["convert", "adapter=controlnet", "backbone=flux1", f"backbone.path={tmp_path / 'flux'}"]
    for name, sentence in {
        "narrow": "narrow is 16 wide, and the backbone's transformer 32; choose the backbone= (with its backbone.path=)",
        "unet": "holds no weights of ControlNet",
    }.items():
        assert main([*words, f"source={tmp_path / name}", f"target={tmp_path / 'method'}"]) == 1
        said = capsys.readouterr().err
        assert sentence in said and "Traceback" not in said and not (tmp_path / "method").exists()
        assert name != "narrow" or "Nothing was loaded or written" in said


def test_concatenation_equals_the_control_pipeline(tmp_path: Path) -> None:
    """HumanSD's idea is FLUX's control variant: at first without influence, then as diffusers with the same weights."""
    body, hint = backbone(), drawing()
    method = attached(HumanSD(style="openpose"), body)
    plain = ours(attached(NoAdapter(), backbone()))
    torch.testing.assert_close(ours(method, 2 * hint - 1), plain)
    with torch.no_grad():
        weight = body.transformer.x_embedder.weight
        weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    save_method(tmp_path / "method", method, body)
    transformer = FluxTransformer2DModel.from_pretrained(tmp_path / "method" / "backbone" / "transformer")
    assert transformer.config.in_channels == 2 * transformer.config.out_channels == 128
    found = ours(method, 2 * hint - 1)
    body.transformer = transformer
    expected = theirs(FluxControlPipeline, body, control_image=2 * hint - 1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert (found - plain).abs().max() > 1e-3
    loaded = load_method(tmp_path / "method", backbone())
    torch.testing.assert_close(ours(loaded, 2 * hint - 1), found)
    with pytest.raises(ValueError, match="takes 32 channels, not the 16 of the latents"):
        body.widen(16)


@pytest.mark.parametrize("method", [ControlNet(), HumanSD(style="openpose")])
def test_a_training_step_moves_what_trains_and_nothing_else(method: Adapter) -> None:
    body = backbone()
    attached(method, body)
    process, clean, noise = body.process, torch.randn(2, 16, 8, 12), torch.randn(2, 16, 8, 12)
    times = process.sample_times(torch.tensor([0.3, 0.8]), body.tokens(SIZE))
    noisy, target = process.add_noise(clean, noise, times), process.target(clean, noise, times)
    state = method.encode(batch(drawing()))
    step = Step(
        body.predict(noisy, times, state.text, method.inject(state, noisy, times)), target, noisy, clean, noise, times
    )
    method.loss(step, state, batch())["loss"].backward()
    if isinstance(method, ControlNet):
        net = method.branch.network
        moved = [net.controlnet_blocks, net.controlnet_single_blocks]
        assert all(p.grad is None for p in body.parameters())
    else:
        moved = [body.transformer.x_embedder]
        assert body.transformer.x_embedder.weight.grad[:, 64:].abs().max() > 0
        assert all(p.grad is None for part in body.encoders for p in part.parameters())
    assert all(p.grad is not None and p.grad.abs().max() > 0 for part in moved for p in part.parameters())


def test_residuals_of_both_kinds_are_weighed_and_added() -> None:
    first, second = (attached(ControlNet(), backbone()) for _ in range(2))
    inputs = torch.randn(2, 16, 8, 12), torch.tensor([250.0, 900.0])
    with torch.no_grad():
        for method in (first, second):
            awake(method)
        one, two = (method.inject(method.encode(batch(drawing())), *inputs) for method in (first, second))
    both = one + two.scaled(2.0)
    assert (len(both.blocks or ()), len(both.single_blocks or ())) == (3, 5) and len(both.residuals) == 8
    for name in ("blocks", "single_blocks"):
        parts = zip(*(getattr(each, name) for each in (both, one, two)), strict=True)
        assert all(torch.allclose(total, a + 2 * b) for total, a, b in parts)
    last = one.weighted([0.0] * 7 + [1.0])
    assert not any(r.any() for r in last.residuals[:-1]) and torch.equal(last.residuals[-1], one.single_blocks[-1])
    with pytest.raises(ValueError, match="single_blocks has 5 and 4 maps; both methods need the same backbone"):
        one + replace(two, single_blocks=two.single_blocks[1:])


def test_the_number_of_copied_blocks_is_a_setting() -> None:
    net = attached(ControlNet(layers=2), backbone()).branch.network
    assert (len(net.transformer_blocks), len(net.single_transformer_blocks)) == (2, 0)
    first = backbone().transformer.transformer_blocks[1].state_dict()
    assert all(torch.equal(value, first[key]) for key, value in net.transformer_blocks[1].state_dict().items())
    with pytest.raises(
        UserError, match="adapter.layers=4: the transformer has 3 blocks of two streams; choose at most"
    ):
        ControlNet(layers=4).attach(backbone())


def test_frozen_parts_in_bfloat16_stay_near_and_what_trains_is_float32(tmp_path: Path) -> None:
    flux_parts().save(tmp_path / "flux")
    settings = {"t5_length": LENGTH, "guidance": DISTILLED}
    whole, half = (Flux(tmp_path / "flux", dtype=dtype, **settings) for dtype in ("float32", "bfloat16"))
    assert half.transformer.dtype == half.text_encoder_2.dtype == torch.bfloat16 != half.autoencoder.dtype
    assert half.weights.sha256 == whole.weights.sha256 and half.weights.facts != whole.weights.facts
    methods = [attached(ControlNet(), body) for body in (whole, half)]
    for method in methods:
        awake(method.branch.network.controlnet_blocks)
    assert all(p.dtype == torch.float32 for p in methods[1].parameters())
    made = [ours(method, drawing()) for method in methods]
    assert 0 < (made[0] - made[1]).abs().max() < 0.3 and made[0].std() > 0.5


def test_guess_mode_drops_the_pose_without_text() -> None:
    """The residuals of transformers have no height and width."""
    method = attached(ControlNet(guess_mode=True), backbone())
    awake(method)
    state = method.encode(batch(drawing()))
    (_, with_pose), (_, without) = method.branches(state, 2.0)
    inputs = torch.randn(2, 16, 8, 12), torch.tensor([250.0, 900.0])
    with torch.no_grad():
        added, nothing = (method.inject(each, *inputs).residuals for each in (with_pose, without))
    assert all(r.shape == n.shape and r.abs().max() > 0 and not n.any() for r, n in zip(added, nothing, strict=True))


def test_a_saved_pipeline_gives_the_same_image(tmp_path: Path) -> None:
    flux_parts().save(tmp_path / "flux")
    method = attached(ControlNet(), Flux(tmp_path / "flux", t5_length=LENGTH, guidance=DISTILLED, id="tiny"))
    awake(method)
    pipe = PoseGuidedPipeline(method, {"steps": 2, "guidance": 1.0, "scheduler": None})
    pipe.save_pretrained(tmp_path / "saved")
    again = PoseGuidedPipeline.from_pretrained(tmp_path / "saved")
    assert again.backbone.weights.sha256 == method.backbone.weights.sha256 and again.backbone.guidance == DISTILLED
    made = []
    for each in (pipe, again):
        each.set_progress_bar_config(disable=True)
        seeded, person = torch.Generator().manual_seed(1), np.full((1, 17, 3), 40, np.float32)
        made.append(each("a person", person, height=64, width=96, generator=seeded, output_type="np").images)
    pipe.enable_model_cpu_offload(device="cpu")  # as on a GPU: text towers leave it before the transformer runs
    assert all(hasattr(getattr(pipe, name), "_hf_hook") for name in ("text_encoder", "text_encoder_2", "transformer"))
    seeded = torch.Generator().manual_seed(1)
    made.append(pipe("a person", person, height=64, width=96, generator=seeded, output_type="np").images)
    assert np.array_equal(*made[:2]) and np.array_equal(*made[1:]) and made[0].shape == (1, 64, 96, 3)
    assert PoseGuidedPipeline(method).sampler.guidance == 1
    with pytest.raises(UserError, match="this backbone makes sides that are multiples of 16; nearest"):
        pipe("a person", height=72, width=96)
    with pytest.raises(UserError, match="FLUX reads no inner layer of its CLIP tower; leave clip_skip out"):
        pipe("a person", height=64, width=96, clip_skip=1)


# What is read and refused.


def test_folder_round_trip(tmp_path: Path) -> None:
    flux_parts().save(tmp_path / "flux")
    one, two = (Flux(tmp_path / "flux", guidance=guidance) for guidance in (3.5, 3.0))
    assert one.weights.sha256 == two.weights.sha256 and one.weights.facts != two.weights.facts
    body = backbone()
    with torch.inference_mode():
        text, noisy, times = body.encode_text(PROMPTS), torch.randn(2, 16, 8, 12), torch.tensor([250.0, 900.0])
        expected = body.predict(noisy, times, text, Injection())
        again = Flux(tmp_path / "flux", guidance=DISTILLED)
        torch.testing.assert_close(again.predict(noisy, times, text, Injection()), expected)
        assert (two.predict(noisy, times, text, Injection()) - expected).abs().max() > 1e-4


@pytest.mark.parametrize(("dev", "length"), [(True, 512), (False, 256)])
def test_prompts_are_read_as_long_as_the_model_reads_them(tmp_path: Path, dev: bool, length: int) -> None:
    flux_parts(dev).save(tmp_path / "flux")
    tokenizer, limit = Flux.text_reader(tmp_path / "flux")
    body = Flux(tmp_path / "flux")
    assert limit == body.max_length == length == body.encode_text(["a"]).tokens.shape[1]
    assert type(tokenizer) is type(body.tokenizer_2) and Flux.text_reader(tmp_path / "flux", t5_length=7)[1] == 7
    assert "longer than the" in body.cut_note(["a person " * 300]) and not body.cut_note(["a person " * 120])
    assert body.encoding_key("text") != Flux(tmp_path / "flux", t5_length=7).encoding_key("text")


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("transformer", {"_class_name": "SD3Transformer2DModel"}, "holds the transformer of a Stable Diffusion 3; this backbone is a FLUX.1. Use backbone=sd3 "),
        ("transformer", {"in_channels": 384}, "takes 96 channels of latents, the autoencoder makes 16; expected a text-to-image"),
        ("vae", {"latent_channels": 4}, "takes 16 channels of latents, the autoencoder makes 4"),
        ("text_encoder", {"hidden_size": 16}, "reads 20 pooled values of text, the CLIP tower makes 16; they belong to different"),
        ("text_encoder_2", {"d_model": 32}, "reads text states of width 48, T5 makes 32; they belong to different models"),
        ("scheduler", None, "no scheduler/; expected a FLUX.1 in diffusers' layout"),
    ],
)  # fmt: skip
def test_folders_of_other_models_are_refused(
    tmp_path: Path, part: str, changes: dict[str, Any] | None, message: str
) -> None:
    """In one sentence, before any weight is read: there is none in the folder."""
    flux_parts().save(tmp_path / "flux")
    for file in tmp_path.glob("flux/*/*.safetensors"):
        file.unlink()
    if changes is None:
        shutil.rmtree(tmp_path / "flux" / part)
    else:
        file = tmp_path / "flux" / part / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(WeightsError, match=re.escape(message)) as caught:
        Flux(tmp_path / "flux")
    assert str(tmp_path) in str(caught.value)


def test_wrong_sizes_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before any weight is read, where the autoencoder's configuration is at hand, and when latents are needed."""
    flux_parts().save(tmp_path / "flux")
    assert main(["check", "backbone=flux1", f"backbone.path={tmp_path / 'flux'}", "data.test.size=200"]) == 1
    sentence = "data.test.size=200: expected a multiple of the backbone's latent factor 8 times its patches of 2 cells"
    assert sentence in capsys.readouterr().err
    with pytest.raises(
        ValueError, match=r"data.size \(72, 64\) is not a multiple of .* 8 times its patches of 2 cells"
    ):
        backbone().latent_shape((72, 64))


def test_methods_without_their_place_are_refused() -> None:
    for method in (T2IAdapter(), StablePose()):
        with pytest.raises((TypeError, ValueError)):
            method.attach(backbone())
    with pytest.raises(ValueError, match="no middle block"):
        ControlNet(only_mid=True).attach(backbone())


# The published sizes, on the meta device.


@pytest.mark.parametrize("size", ["flux1_dev", "flux1_schnell"])
def test_published_sizes_are_those_of_the_releases(size: str) -> None:
    """The number of parameters, as on the model cards' files: 11.9 B; T5-XXL's encoder has 4.76 B."""
    with torch.device("meta"):
        body = Flux(None, initialise="random", size=size)
        count = {name: sum(p.numel() for p in part.parameters()) for name, part in body.named_children()}
    assert count["text_encoder"] == 123_060_480 and count["text_encoder_2"] == 4_762_310_656
    assert count["transformer"] == {"flux1_dev": 11_901_408_320, "flux1_schnell": 11_891_178_560}[size]
    assert body.latent_shape((1024, 768)) == (16, 128, 96) and body.usual_size == (1024, 1024)
    assert body.max_length == {"flux1_dev": 512, "flux1_schnell": 256}[size]


@pytest.mark.parametrize(("double", "single", "modes"), [(5, 10, 10), (6, 0, None)])
def test_released_controlnets_have_their_keys(double: int, single: int, modes: int | None) -> None:
    """InstantX's and Shakker Labs' union ControlNets, and the latter's second, as diffusers builds them."""
    with torch.device("meta"):
        body = Flux(None, initialise="random", size="flux1_dev")
        sizes = {"num_layers": double, "num_single_layers": single, "num_mode": modes, "guidance_embeds": True}
        released = FluxControlNetModel(**sizes).state_dict()
        method = attached(ControlNet(), body)
        method.branch.fit(released)
        placed = method.convert(released)
    own = {f"adapter.{key}": value.shape for key, value in method.state_dict().items()}
    assert own == {key: value.shape for key, value in placed.items()} and len(placed) == len(released)
