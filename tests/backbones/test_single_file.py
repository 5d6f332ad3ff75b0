"""Original checkpoints of Stable Diffusion 1 and 2, tiny ones made by renaming backwards, and the names of the full-size ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from posegen.backbones import ldm_keys as ldm
from posegen.backbones import tokens
from posegen.backbones.base import Geometry, Injection
from posegen.backbones.encoder_copy import EncoderCopy
from posegen.backbones.files import WeightsError
from posegen.backbones.folder import Parts
from posegen.backbones.single_file import unet_geometry, unet_of, vae_of
from posegen.backbones.stable_diffusion import StableDiffusion
from tests.backbones.tiny import SD1, SD2, clip_text, original, tiny_parts

MANIFESTS = Path(__file__).resolve().parents[2].parent / "shared" / "parity"
FULL = {
    "controlnet": Geometry(4, 8, (320, 640, 1280, 1280), (True, True, True, False), 2, (8,) * 4, 768),
    "humansd": Geometry(4, 8, (320, 640, 1280, 1280), (True, True, True, False), 2, (5, 10, 20, 20), 1024, linear_projection=True),
}


class Callback:
    """Lies beside the weights of a checkpoint that a trainer saved."""


@pytest.fixture(scope="module", params=["sd1", "sd2"])
def pair(request: pytest.FixtureRequest) -> tuple[bool, Parts, dict[str, Tensor]]:
    """(whether it is Stable Diffusion 1, parts, what the original program would have saved of them)."""
    pytest.importorskip("open_clip")
    old = request.param == "sd1"
    parts = replace(tiny_parts(SD1 if old else SD2), text_encoder=clip_text(old))
    return old, parts, original(parts, SD1 if old else SD2, old)


def saved(state: dict[str, Tensor], file: Path) -> Path:
    if file.suffix == ".safetensors":
        save_file({key: value.clone().contiguous() for key, value in state.items()}, file)
    else:
        torch.save({"state_dict": state, "callbacks": [Callback()], "global_step": 3}, file)
    return file


def test_a_single_file_is_the_same_model(pair: tuple[bool, Parts, dict[str, Tensor]], tmp_path: Path) -> None:
    old, parts, state = pair
    sd = StableDiffusion(saved(state, tmp_path / f"model.{'ckpt' if old else 'safetensors'}"))
    assert sd.geometry == (SD1 if old else SD2) and sd.weights.id == "model"
    for own, wanted in ((sd.unet, parts.unet), (sd.autoencoder, parts.autoencoder), (sd.text_encoder, parts.text_encoder)):
        assert all(torch.equal(value, wanted.state_dict()[key]) for key, value in own.state_dict().items())
    x, t, text = torch.randn(1, 4, 4, 4), torch.tensor([7]), sd.encode_text(["a person in the park"])
    assert text.shape == (1, 77, 32)
    assert torch.equal(sd.predict(x, t, text, Injection()), parts.unet(x, t, text).sample)
    tokenized = sd.tokenizer(["a person"], padding="max_length", max_length=77).input_ids
    assert torch.equal(sd.encode_text(["a person"]), parts.text_encoder(torch.tensor(tokenized)).last_hidden_state)


def test_a_single_file_may_be_told_its_prediction_type_and_autoencoder(pair: tuple[bool, Parts, dict[str, Tensor]], tmp_path: Path) -> None:
    _, parts, state = pair
    file = saved({key: value for key, value in state.items() if not key.startswith(ldm.VAE)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"model\.safetensors: no autoencoder"):
        StableDiffusion(file)
    parts.autoencoder.save_pretrained(tmp_path / "vae")
    sd = StableDiffusion(file, autoencoder=tmp_path, prediction_type="v_prediction")
    assert sd.geometry.prediction_type == sd.scheduler_config["prediction_type"] == "v_prediction"
    assert StableDiffusion(file, autoencoder=tmp_path, initialise="random").geometry.channels == sd.geometry.channels


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s | {f"{ldm.UNET}lora.up": torch.ones(1)}, r"the U-Net .*1 unknown, for instance lora\.up"),
        (lambda s: {k: v for k, v in s.items() if k != f"{ldm.UNET}out.0.weight"}, r"the U-Net .*1 missing, for instance conv_norm_out\.weight"),
        (lambda s: {k: v for k, v in s.items() if k != f"{ldm.UNET}out.2.weight"}, r"out\.2\.weight is missing"),
        (lambda s: s | {f"{ldm.VAE}encoder.conv_in.weight": torch.ones(1)}, r"the autoencoder .*1 mis-shaped"),
        (lambda s: {k: v for k, v in s.items() if "cond_stage" not in k}, r"no text tower"),
        (lambda s: {k: v for k, v in s.items() if "input_blocks" not in k}, r"is missing; the file is incomplete"),
        (lambda s: {k: v for k, v in s.items() if not k.endswith(("final_layer_norm.bias", "ln_final.bias"))}, r"the text tower .*1 missing"),
    ],
)
def test_incomplete_files_are_one_clear_error(pair: tuple[bool, Parts, dict[str, Tensor]], tmp_path: Path, change: object, said: str) -> None:
    if pair[0]:
        pytest.skip("one kind of file is enough")
    file = saved(change(pair[2]), tmp_path / "model.safetensors")  # type: ignore[operator]
    with pytest.raises(WeightsError, match=said):
        StableDiffusion(file)


def test_without_open_clip_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match="pip install open_clip_torch"):
        tokens.clip_tokenizer()


def test_the_tokenizer_of_single_files_is_clips() -> None:
    open_clip = pytest.importorskip("open_clip")
    prompts = ["a photo of two people dancing, best quality", "İstanbul 42 naïve_text?!", ""]
    wanted = open_clip.get_tokenizer("ViT-H-14")(prompts)
    for pad, row in (("<|endoftext|>", 49407), ("!", 0)):
        own = torch.tensor(tokens.clip_tokenizer(pad)(prompts, padding="max_length").input_ids)
        ends = wanted.argmax(1)
        for text, mine, end in zip(wanted, own, ends, strict=True):
            assert torch.equal(mine[: end + 1], text[: end + 1]) and set(mine[end + 1 :].tolist()) == {row}


# Names, at full size and without memory.


@pytest.mark.parametrize("name", FULL)
def test_every_official_key_has_its_place_and_shape(name: str) -> None:
    if not (file := MANIFESTS / f"{name}_keys.json").is_file():
        pytest.skip(f"{file} is not here")
    official = {key: torch.empty(shape, device="meta") for key, shape in json.loads(file.read_text())["keys"].items()}
    geometry, extra = FULL[name], 4 * (name == "humansd")
    with torch.device("meta"):
        networks = {
            ldm.UNET: (unet_of(geometry, 4 + extra), ldm.unet_table(geometry)),
            ldm.VAE: (vae_of((128, 256, 512, 512), 2), ldm.vae_table(4, 2)),
        }
        if name == "controlnet":
            networks[ldm.CONTROL] = EncoderCopy(unet_of(geometry), 8).network, ldm.control_table(geometry)
    left = set(official) - ldm.SCHEDULE
    assert unet_geometry(ldm.below(official, ldm.UNET), old=name == "controlnet") == geometry
    for prefix, (network, table) in networks.items():
        keys = ldm.below(official, prefix)
        result = ldm.vae_tensors(keys, table) if prefix == ldm.VAE else ldm.renamed(keys, table)
        assert not result.unknown
        assert {k: v.shape for k, v in result.tensors.items()} == {k: v.shape for k, v in network.state_dict().items()}
        left -= {prefix + key for key in keys}
    assert all(key.startswith("cond_stage_model.") for key in left)


def test_renaming_is_undone_by_the_inverse_table() -> None:
    for g in (*FULL.values(), SD1, SD2, replace(SD1, channels=(32, 32, 64), attention=(False, True, True), heads=(8,) * 3, latent_factor=4)):
        for table in (ldm.unet_table(g), ldm.control_table(g), ldm.vae_table(4, 2)):
            assert len(ldm.inverse(table)) == len(table)


def test_a_key_of_no_known_module_is_not_renamed() -> None:
    table = ldm.unet_table(SD1)
    assert ldm.rename("input_blocks.1.0.in_layers.0.weight", table) == "down_blocks.0.resnets.0.norm1.weight"
    assert ldm.rename("input_blocks.10.0.in_layers.0.weight", table) is None
    assert ldm.rename("elsewhere.weight", table) is None
