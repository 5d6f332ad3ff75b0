"""Single files: sizes, settings, and errors for incomplete ones; `test_stable_diffusion` compares the models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor

from posegen.backbones.base import Geometry
from posegen.backbones.loading import ldm_keys as ldm
from posegen.backbones.loading import tokenizer as tokens
from posegen.backbones.loading.single_file import unet_geometry, vae_of
from posegen.backbones.loading.sizes import SIZES, PublishedSize, parts_without_weights
from posegen.backbones.stable_diffusion import StableDiffusion
from posegen.io.weights import WeightsError
from tests.backbones.models import SD1, SD2, original_of, parts_of, write_safetensors
from tests.tiny import configured

State = dict[str, Tensor]
MANIFESTS = Path(__file__).parents[3] / "shared/parity"


def without(state: State, *ends: str) -> State:
    return {key: value for key, value in state.items() if not key.endswith(ends)}


def test_it_may_be_told_its_prediction_type_and_another_autoencoder(tmp_path: Path) -> None:
    state = {key: value for key, value in original_of(parts_of(SD1), SD1).items() if not key.startswith(ldm.VAE)}
    file = write_safetensors(tmp_path / "model.safetensors", state)
    with pytest.raises(WeightsError, match=r"model\.safetensors: no autoencoder"):
        StableDiffusion(file)
    parts_of(SD1).autoencoder.save_pretrained(tmp_path / "vae")
    sd = StableDiffusion(file, autoencoder=tmp_path, prediction_type="v_prediction", initialise="random")
    assert sd.process.prediction_type == sd.process.config["prediction_type"] == "v_prediction"
    assert (sd.geometry.channels, sd.geometry.heads, sd.weights.id) == (SD1.channels, SD1.heads, "model")


def test_objects_of_the_trainer_beside_the_weights_do_no_harm(tmp_path: Path) -> None:
    callbacks = [type("ModelCheckpoint", (), {"__module__": __name__})]
    globals()["ModelCheckpoint"] = callbacks[0]  # so that it can be pickled
    torch.save({"state_dict": original_of(parts_of(SD2), SD2), "callbacks": callbacks}, tmp_path / "official.ckpt")
    assert StableDiffusion(tmp_path / "official.ckpt", initialise="random").geometry == SD2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: {**s, f"{ldm.UNET}lora.up": torch.ones(1)}, r"the U-Net .*1 unknown, for instance lora\.up"),
        (
            lambda s: without(s, f"{ldm.UNET}out.0.weight"),
            r"the U-Net .*1 missing, for instance conv_norm_out\.weight",
        ),
        (lambda s: without(s, f"{ldm.UNET}out.2.weight"), r"out\.2\.weight is missing; the file is incomplete"),
        (lambda s: {k: v for k, v in s.items() if "input_blocks" not in k}, r"is missing; the file is incomplete"),
        (lambda s: {**s, f"{ldm.VAE}encoder.conv_in.weight": torch.ones(1)}, r"the autoencoder .*1 mis-shaped"),
        (lambda s: {k: v for k, v in s.items() if "cond_stage" not in k}, r"no text tower"),
        (lambda s: without(s, "ln_final.bias"), r"the text tower .*1 missing"),
        (
            lambda s: {**s, f"{ldm.OPEN_CLIP}visual.proj": torch.ones(1)},
            r"the text tower .*1 unknown, for instance visual\.proj",
        ),
    ],
)
def test_incomplete_files_are_one_clear_error(tmp_path: Path, change: Callable[[State], State], said: str) -> None:
    file = write_safetensors(tmp_path / "model.safetensors", change(original_of(parts_of(SD2), SD2)))
    with pytest.raises(WeightsError, match=rf"model\.safetensors.*{said}"):
        StableDiffusion(file)


def test_without_open_clip_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match="pip install open_clip_torch"):
        tokens.clip_tokenizer()


def test_the_tokenizer_is_clips() -> None:
    tokenizer = pytest.importorskip("open_clip.tokenizer")
    prompts = ["a photo of two people dancing, best quality!", "İstanbul 42 naïve_text?!", ""]
    wanted = tokenizer.SimpleTokenizer()(prompts)
    for pad, row in (("<|endoftext|>", 49407), ("!", 0)):
        own = torch.tensor(tokens.clip_tokenizer(pad)(prompts, padding="max_length").input_ids)
        for theirs, ours in zip(wanted, own, strict=True):
            end = int(theirs.argmax()) + 1
            assert torch.equal(ours[:end], theirs[:end]) and set(ours[end:].tolist()) == {row}


@pytest.mark.parametrize("name", ["controlnet", "humansd"])
def test_the_size_of_the_official_files_is_read_from_their_shapes(name: str) -> None:
    if not (file := MANIFESTS / f"{name}_keys.json").is_file():
        pytest.skip(f"{file} is not here")
    keys = {key: torch.empty(shape, device="meta") for key, shape in json.loads(file.read_text())["keys"].items()}
    channels, attention = (320, 640, 1280, 1280), (True, True, True, False)
    sd15, sd21 = (
        Geometry(4, 8, channels, attention, 2, (8,) * 4, 768),
        Geometry(4, 8, channels, attention, 2, (5, 10, 20, 20), 1024, linear_projection=True),
    )
    assert unet_geometry(ldm.below(keys, ldm.UNET), old=name == "controlnet") == (
        sd15 if name == "controlnet" else sd21
    )
    with torch.device("meta"):
        vae = vae_of((128, 256, 512, 512), 2)
    named = ldm.vae_tensors(ldm.below(keys, ldm.VAE), ldm.vae_table(4, 2))
    assert not named.unknown and {k: v.shape for k, v in named.tensors.items()} == {
        k: v.shape for k, v in vae.state_dict().items()
    }


# Without any file.


@pytest.mark.parametrize(
    ("name", "manifest", "parameters"), [("sd15", "controlnet", 859_520_964), ("sd21", "humansd", 865_910_724)]
)
def test_published_sizes_are_those_of_the_official_files(name: str, manifest: str, parameters: int) -> None:
    with torch.device("meta"):
        parts = parts_without_weights(name)
    assert sum(p.numel() for p in parts.network.parameters()) == parameters
    if not (file := MANIFESTS / f"{manifest}_keys.json").is_file():
        pytest.skip(f"{file} is not here")
    keys = {key: torch.empty(shape, device="meta") for key, shape in json.loads(file.read_text())["keys"].items()}
    unet = ldm.renamed(ldm.below(keys, ldm.UNET), ldm.unet_table(SIZES[name].unet)).tensors
    vae = ldm.vae_tensors(ldm.below(keys, ldm.VAE), ldm.vae_table(4, 2)).tensors
    layers = SIZES[name].text["num_hidden_layers"]
    text = (
        ldm.clip_tensors(ldm.below(keys, ldm.CLIP))
        if name == "sd15"
        else ldm.open_clip_tensors(ldm.below(keys, ldm.OPEN_CLIP), layers)
    ).tensors
    for own, official in ((parts.network, unet), (parts.autoencoder, vae), (parts.text_encoders["text_encoder"], text)):
        shapes = {key: list(value.shape) for key, value in own.state_dict().items()}
        assert {
            key: list(value.shape) for key, value in official.items() if key in shapes and key != "conv_in.weight"
        }.items() <= shapes.items()
        assert shapes.keys() == official.keys()


@pytest.mark.parametrize("name", SIZES)
def test_a_backbone_of_a_published_size_needs_no_file(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small = SD1 if name == "sd15" else SD2
    text = {**SIZES[name].text, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    monkeypatch.setitem(SIZES, name, PublishedSize(small, text, SIZES[name].pad, vae=(32, 32, 32, 32)))
    with configured(
        "train",
        f"backbone={name}",
        "backbone.path=null",
        "backbone.initialise=random",
        "++backbone.prediction_type=v_prediction",
    ) as cfg:
        one, two = (instantiate(cfg.backbone) for _ in range(2))
    assert (
        one.geometry == small
        and one.process.prediction_type == "v_prediction"
        and one.weights == two.weights
        and one.weights.id == name
    )
    assert torch.equal(one.unet.conv_in.weight, two.unet.conv_in.weight) and one.unet.conv_in.weight.std() > 0
    assert one.encode_text(["a dancer"]).tokens.shape == (1, 77, small.text_dim)
    with pytest.raises(
        WeightsError,
        match=r"backbone\.path is not set.* backbone\.path=null needs backbone\.initialise=random and a published",
    ):
        StableDiffusion(None, initialise="random")
    with pytest.raises(ValueError, match=r"backbone\.size is 'sdxl'; expected one of sd15, sd21"):
        StableDiffusion(None, initialise="random", size="sdxl")  # type: ignore[arg-type]


# Copies.


@pytest.mark.parametrize("kind", ["folder", "folder and autoencoder", "file", "file and autoencoder"])
def test_a_copy_of_what_was_read_is_the_same_backbone(kind: str, tmp_path: Path) -> None:
    parts, vae = parts_of(SD1), None
    if "file" in kind:
        place = write_safetensors(tmp_path / "model.safetensors", original_of(parts, SD1))
    else:
        parts.save(place := tmp_path / "sd")
    if "autoencoder" in kind:
        parts.autoencoder.save_pretrained(vae := tmp_path / "vae", variant="fp16")
    read = StableDiffusion(place, autoencoder=vae, prediction_type="v_prediction", id="mine")
    with torch.no_grad():
        read.unet.conv_in.weight.zero_()  # whatever an adapter did to it
    arguments = read.save_source(tmp_path / "copy")
    paths = {
        name: tmp_path / "copy" / arguments[name] for name in ("path", "autoencoder") if arguments[name] is not None
    }
    again = StableDiffusion(**{**arguments, **paths})
    assert again.weights == read.weights and again.geometry == read.geometry and again.unet.conv_in.weight.any()
    with pytest.raises(TypeError, match="backbone untrained was not read from files"):
        StableDiffusion.from_parts(parts).save_source(tmp_path / "other")


def test_a_key_of_no_known_module_is_not_renamed() -> None:
    table = ldm.unet_table(SD1)
    assert len(ldm.inverse(table)) == len(table)
    assert ldm.rename("input_blocks.1.0.in_layers.0.weight", table) == "down_blocks.0.resnets.0.norm1.weight"
    assert ldm.rename("input_blocks.10.0.in_layers.0.weight", table) is None
    assert ldm.rename("elsewhere.weight", table) is None
