"""Stable Diffusion 3 against diffusers' own pipelines, on the same random weights."""

from __future__ import annotations

import json
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
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import Tensor

from posegen.adapters.base import Adapter
from posegen.adapters.controlnet import ControlNet
from posegen.adapters.humansd import HumanSD
from posegen.adapters.none import NoAdapter
from posegen.adapters.t2i_adapter import T2IAdapter
from posegen.backbones.base import Injection
from posegen.backbones.blocks.transformer_copy import TransformerCopy
from posegen.backbones.loading.sd3_sizes import sd3_without_weights
from posegen.backbones.process import FlowMatching
from posegen.backbones.stable_diffusion_3 import StableDiffusion3
from posegen.data.base import PoseBatch
from posegen.errors import UserError
from posegen.io.weights import WeightsError
from posegen.runner.method_folder import load_method, save_method
from posegen.runner.official_weights import accounted, put_converted
from posegen.runner.sampler import Sampler
from posegen.runner.user_requests.conversion import convert
from tests.backbones.sd3_models import fresh_parts, sd3_parts

SIZE, STEPS, GUIDANCE, PROMPTS = (64, 96), 4, 5.0, ["a person dancing", "a person on the beach"]


def backbone() -> StableDiffusion3:
    return StableDiffusion3.from_parts(fresh_parts())


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
    parts = fresh_parts()
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


def released(kind: str, body: StableDiffusion3) -> SD3ControlNetModel:
    """A ControlNet of the tiny transformer in the form of a released one, with weights that matter."""
    size = {k: v for k, v in body.transformer.config.items() if k not in ("dual_attention_layers", "qk_norm")}
    forms: dict[str, dict[str, object]] = {
        "InstantX, 3 layers": {"num_layers": 3},
        "of the transformer's kind": {"num_layers": 1, "qk_norm": "rms_norm", "dual_attention_layers": (0,)},
        "3.5 large": {"num_layers": 4, "joint_attention_dim": None, "use_pos_embed": False, "pos_embed_type": None},
    }
    more = {"force_zeros_for_pooled_projection": kind != "3.5 large", "extra_conditioning_channels": 0}
    torch.manual_seed(1)
    network = SD3ControlNetModel.from_config({**size, **more, **forms[kind]})
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return network.eval()


@pytest.mark.parametrize("kind", ["InstantX, 3 layers", "of the transformer's kind", "3.5 large"])
def test_official_controlnets_convert_and_load_back_in_diffusers(tmp_path: Path, kind: str) -> None:
    """The images are those of diffusers' pipeline with the official network, and with the one that is written."""
    body, hint, method = backbone(), drawing(), ControlNet()
    official = released(kind, body)
    method.attach(body)
    method.branch.fit(official.state_dict())
    placed, account = accounted(method, body, official.state_dict())
    assert not account.wrong
    put_converted(method, body, placed)
    save_method(tmp_path / "method", method, body)
    again = SD3ControlNetModel.from_pretrained(tmp_path / "method" / "controlnet")
    assert again.config.force_zeros_for_pooled_projection == official.config.force_zeros_for_pooled_projection
    assert again.state_dict().keys() == official.state_dict().keys()
    assert all(torch.equal(value, official.state_dict()[key]) for key, value in again.state_dict().items())
    found = ours(load_method(tmp_path / "method", backbone()), hint)
    expected = theirs(StableDiffusion3ControlNetPipeline, body, controlnet=official, control_image=2 * hint - 1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert (found - theirs(StableDiffusion3Pipeline, body)).abs().max() > 1e-2


@pytest.mark.parametrize("bare", [False, True])
def test_the_converter_reads_the_form_beside_the_file_or_from_its_keys(tmp_path: Path, bare: bool) -> None:
    sd3_parts().save(tmp_path / "sd3")
    official = released("InstantX, 3 layers", backbone())
    official.register_to_config(force_zeros_for_pooled_projection=False)
    official.save_pretrained(tmp_path / "official")
    if bare:
        (tmp_path / "official" / "config.json").unlink()
    place = {"_target_": "posegen.backbones.stable_diffusion_3.StableDiffusion3", "path": str(tmp_path / "sd3")}
    adapter = {"_target_": "posegen.adapters.controlnet.ControlNet"}
    source, target = tmp_path / "official" / "diffusion_pytorch_model.safetensors", tmp_path / "method"
    convert(OmegaConf.create(adapter), OmegaConf.create(place), str(source), str(target))
    again = SD3ControlNetModel.from_pretrained(target / "controlnet")
    assert again.config.num_layers == 3 and again.config.force_zeros_for_pooled_projection is bare


def test_a_controlnet_of_another_width_is_refused_before_any_weight_of_the_backbone_is_read(tmp_path: Path) -> None:
    sd3_parts().network.save_config(tmp_path / "sd3" / "transformer")
    size = {**released("InstantX, 3 layers", backbone()).config, "num_attention_heads": 6}
    SD3ControlNetModel.from_config(size).save_pretrained(tmp_path / "official")
    place = {"_target_": "posegen.backbones.stable_diffusion_3.StableDiffusion3", "path": str(tmp_path / "sd3")}
    adapter = OmegaConf.create({"_target_": "posegen.adapters.controlnet.ControlNet"})
    source = str(tmp_path / "official" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(UserError, match=r"is 48 wide, and the backbone's transformer 32; choose .* Nothing was loaded"):
        convert(adapter, OmegaConf.create(place), source, str(tmp_path / "method"))


def test_controlnets_of_another_width_or_use_are_refused_in_a_sentence() -> None:
    method = ControlNet()
    method.attach(backbone())
    size = dict(method.branch.network.config)
    wider = SD3ControlNetModel.from_config({**size, "num_attention_heads": 6}).state_dict()
    with pytest.raises(
        UserError, match="the ControlNet is 48 wide, and the backbone's transformer 32; choose the back"
    ):
        method.branch.fit(wider)
    inpainting = SD3ControlNetModel.from_config({**size, "extra_conditioning_channels": 1}).state_dict()
    with pytest.raises(UserError, match="reads 1 channels beside the drawing, as those for inpainting do"):
        method.branch.fit(inpainting)


@pytest.mark.parametrize("layers", [1, 3])
def test_so_many_layers_train(tmp_path: Path, layers: int) -> None:
    method, body = ControlNet(layers=layers), backbone()
    method.attach(body)
    assert method.branch.network.config.num_layers == layers
    save_method(tmp_path / "method", awake(method), body)
    torch.testing.assert_close(ours(load_method(tmp_path / "method", body), drawing()), ours(method, drawing()))
    with pytest.raises(UserError, match="adapter.layers=5: the transformer has 4 blocks"):
        ControlNet(layers=5).attach(body)


#: Published configurations: transformer, what its ControlNets have beside it, and blocks.
MANIFESTS = {
    "InstantX/SD3-Controlnet-Pose": ("sd3_medium", {"num_layers": 6}),
    "InstantX/SD3-Controlnet-Canny": ("sd3_medium", {"num_layers": 12}),
    "stabilityai/stable-diffusion-3.5-large-controlnet-canny": (
        "sd35_large",
        {"num_layers": 19, "joint_attention_dim": None, "use_pos_embed": False, "pos_embed_type": None},
    ),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_full_size_controlnets_have_the_keys_of_the_released(name: str) -> None:
    size, form = MANIFESTS[name]
    with torch.device("meta"):
        parts = sd3_without_weights(size)
        body = {k: v for k, v in parts.network.config.items() if k not in ("qk_norm", "dual_attention_layers")}
        official = SD3ControlNetModel.from_config({**body, **form})
        branch = TransformerCopy(parts.network, 12, lambda images, shift: images)  # type: ignore[arg-type]
        branch.fit(official.state_dict())
    placed = branch.placed(official.state_dict(), (), "ControlNet")
    assert {k: v.shape for k, v in placed.items()} == {k: v.shape for k, v in branch.state_dict().items()}
    assert branch.network.config.force_zeros_for_pooled_projection == (size == "sd3_medium")


def test_bfloat16_halves_what_is_frozen_and_not_what_trains(tmp_path: Path) -> None:
    sd3_parts().save(tmp_path / "sd3")
    full, half = StableDiffusion3(tmp_path / "sd3"), StableDiffusion3(tmp_path / "sd3", dtype="bfloat16")
    assert {p.dtype for part in (half.transformer, *half.towers) for p in part.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in half.autoencoder.parameters()} == {torch.float32}
    assert half.weights.sha256 == full.weights.sha256 and half.weights.facts != full.weights.facts
    assert half.save_source(tmp_path / "copy")["dtype"] == "bfloat16"
    method, same = ControlNet(), ControlNet()
    method.attach(half)
    same.attach(full)
    assert {p.dtype for p in method.parameters()} == {torch.float32}
    found, expected = ours(awake(method), drawing()), ours(awake(same), drawing())
    assert found.isfinite().all() and 0 < (found - expected).abs().max() < 0.3 * expected.std()
    with pytest.raises(ValueError, match="backbone.dtype is 'float16'; expected one of float32, bfloat16"):
        StableDiffusion3(tmp_path / "sd3", dtype="float16")  # type: ignore[arg-type]


def test_a_quantised_t5_is_refused_in_a_sentence(tmp_path: Path) -> None:
    sd3_parts().save(tmp_path / "sd3")
    file = tmp_path / "sd3" / "text_encoder_3" / "config.json"
    file.write_text(
        json.dumps({**json.loads(file.read_text()), "quantization_config": {"quant_method": "bitsandbytes"}})
    )
    with pytest.raises(WeightsError, match=r"quantised weights \(bitsandbytes\) are not read; .* backbone.t5=false"):
        StableDiffusion3(tmp_path / "sd3")
    assert StableDiffusion3(tmp_path / "sd3", t5=False).tower_names == ("text_encoder", "text_encoder_2")


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


def test_a_folder_without_t5_tells_what_is_read_and_long_prompts_are_refused(tmp_path: Path) -> None:
    sd3_parts().save(tmp_path / "sd3")
    assert StableDiffusion3.text_reader(tmp_path / "sd3", t5_length=20)[1] == 20
    assert StableDiffusion3.text_reader(tmp_path / "sd3", t5=False)[1] == 77
    for folder in ("text_encoder_3", "tokenizer_3"):
        shutil.rmtree(tmp_path / "sd3" / folder)
    assert StableDiffusion3.text_reader(tmp_path / "sd3")[1] == 77
    body = StableDiffusion3(tmp_path / "sd3")
    with pytest.raises(
        UserError, match="reads no prompt in chunks, and the prompt is longer than the 77 tokens .*; set"
    ):
        body.chunks(["dancing " * 80])
    assert body.chunks(PROMPTS) == 1
    with pytest.raises(ValueError, match="StableDiffusion3 reads no prompt in chunks, and was asked for 2"):
        body.encode_text(PROMPTS, chunks=2)
    copied = body.save_source(tmp_path / "copy")
    assert StableDiffusion3(tmp_path / "copy" / copied.pop("path"), **copied).weights.sha256 == body.weights.sha256


def test_logit_normal_times_are_in_the_middle() -> None:
    process = backbone().process
    times = process.sample_times(torch.linspace(0, 1, 2001)[:-1])
    assert times.min() >= 0 and times.max() <= 1000 and times.isfinite().all()
    uniform = FlowMatching(process.config).sample_times(torch.linspace(0, 1, 2001)[:-1])
    shifted = uniform / 1000
    assert (times / 1000 - shifted).abs().max() > 0.05 and times.std() < uniform.std()
