"""Stable Diffusion from a folder, from an original file, and what it does with what adapters inject."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from posegen.backbones.base import Geometry, Injection
from posegen.backbones.loading.single_file import unet_of
from posegen.backbones.stable_diffusion import StableDiffusion
from posegen.backbones.text import Text
from posegen.io.weights import WeightsError
from tests.backbones.models import SD1, SD2, original_of, parts_of, write_safetensors

GENERATIONS = {"SD1": SD1, "SD2": SD2}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``SD1/`` and ``SD2/`` in diffusers' layout; nothing here is changed by a test."""
    place = tmp_path_factory.mktemp("backbones")
    for name, geometry in GENERATIONS.items():
        parts_of(geometry).save(place / name)
    return place


@pytest.fixture
def folder(places: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(places / "SD1", tmp_path / "SD1"))


@pytest.fixture(scope="module")
def small() -> StableDiffusion:
    return StableDiffusion.from_parts(parts_of(SD1))


def inputs(geometry: Geometry) -> tuple[Tensor, Tensor, Text]:
    draw = torch.Generator().manual_seed(1)
    return (
        torch.randn(2, 4, 8, 16, generator=draw),
        torch.tensor([10, 900]),
        Text(torch.randn(2, 5, geometry.text_dim, generator=draw)),
    )


# Reading.


@pytest.mark.parametrize("name", GENERATIONS)
@pytest.mark.parametrize("kind", ["folder", "safetensors", "ckpt"])
@torch.no_grad()
def test_all_forms_are_the_same_model(places: Path, tmp_path: Path, name: str, kind: str) -> None:
    geometry, place = GENERATIONS[name], places / name
    if kind != "folder":
        place, tensors = tmp_path / f"model.{kind}", original_of(parts_of(geometry), geometry)
        write_safetensors(place, tensors) if kind == "safetensors" else torch.save(
            {"state_dict": tensors, "global_step": 7}, place
        )
    read, made = StableDiffusion(place), StableDiffusion.from_parts(parts_of(geometry))
    assert read.geometry == geometry
    given, images, prompts = inputs(geometry), torch.rand(2, 3, 64, 128) * 2 - 1, ["a person runs", "Zwei Füße!"]
    assert torch.equal(read.predict(*given, Injection()), made.predict(*given, Injection()))
    assert torch.equal(read.encode_text(prompts).tokens, made.encode_text(prompts).tokens)
    latents = read.to_latents(images)
    assert torch.equal(latents, made.to_latents(images)) and latents.shape == (2, *read.latent_shape((64, 128)))
    assert torch.equal(read.from_latents(latents), made.from_latents(latents))
    assert torch.equal(read.process.alphas_cumprod, made.process.alphas_cumprod)


def test_the_hash_is_of_the_weights_alone(places: Path, folder: Path) -> None:
    original = StableDiffusion(places / "SD1").weights.sha256
    assert StableDiffusion(folder, id="elsewhere").weights.sha256 == original
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "conv_in.bias": tensors["conv_in.bias"] + 1}, file, {"format": "pt"})
    assert StableDiffusion(folder).weights.sha256 != original


def test_random_weights_keep_the_shapes_and_the_autoencoder(places: Path) -> None:
    torch.manual_seed(0)
    fresh, read = StableDiffusion(places / "SD1", initialise="random"), StableDiffusion(places / "SD1")
    assert fresh.geometry == read.geometry and fresh.encoding_key("latents") == read.encoding_key("latents")
    assert (
        not torch.equal(fresh.unet.conv_in.weight, read.unet.conv_in.weight)
        and fresh.weights.sha256 != read.weights.sha256
    )


def test_the_autoencoder_may_live_elsewhere(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / "vae", tmp_path / "other")
    assert StableDiffusion(folder, autoencoder=tmp_path / "other").geometry == SD1
    with pytest.raises(WeightsError, match="SD1: no vae/.*set backbone.autoencoder"):
        StableDiffusion(folder)


# What cannot be read.


def test_no_path_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(
        WeightsError,
        match="backbone.path is not set. .*folder in diffusers' layout .*nothing is downloaded unless you say so",
    ):
        StableDiffusion(None)
    with pytest.raises(WeightsError, match="nothing: no such file or folder. backbone.path expects"):
        StableDiffusion(tmp_path / "nothing")


@pytest.mark.parametrize("part", ["unet", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_folder_is_named(folder: Path, part: str) -> None:
    shutil.rmtree(folder / part)
    with pytest.raises(WeightsError, match=f"SD1: no {part}/; expected a Stable Diffusion 1 or 2 in diffusers' layout"):
        StableDiffusion(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_truncated_weights_are_named(folder: Path, part: str) -> None:
    [file] = (folder / part).glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(WeightsError, match=f"{part}: cannot read {file.name} as .*; the file is damaged"):
        StableDiffusion(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("conv_in.bias"), "1 missing_keys, for instance .'conv_in.bias'"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), "1 unexpected_keys, for instance .'extra'"),
        (lambda tensors: tensors.update({"conv_out.bias": torch.zeros(5)}), "conv_out.bias"),
    ],
    ids=["missing", "unexpected", "shape"],
)
def test_weights_that_do_not_fit_are_named(folder: Path, change: object, message: str) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    change(tensors)  # type: ignore[operator]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(WeightsError, match=f"unet.*{message}"):
        StableDiffusion(folder)


def test_a_bad_configuration_is_named(folder: Path) -> None:
    config = folder / "unet" / "config.json"
    config.write_text("{")
    with pytest.raises(WeightsError, match="unet/config.json: not json"):
        StableDiffusion(folder)
    config.unlink()
    with pytest.raises(WeightsError, match="unet/config.json: missing"):
        StableDiffusion(folder)


def test_an_unknown_autoencoder_and_a_foreign_text_tower_are_refused(folder: Path, places: Path) -> None:
    config = folder / "vae" / "config.json"
    config.write_text(json.dumps({"_class_name": "os.system"}))
    with pytest.raises(
        WeightsError, match="os.system is not an autoencoder that posegen knows; expected one of AutoencoderKL"
    ):
        StableDiffusion(folder)
    parts = parts_of(SD1)
    wide = Geometry(4, 8, (32, 64), (True, False), 1, (8, 8), 48)
    with pytest.raises(WeightsError, match="attends to text states of width 48, the text tower makes 64"):
        StableDiffusion.from_parts(replace(parts, network=unet_of(wide)))


# What adapters inject.


def test_residuals_reach_the_decoder_and_leave_no_graph_in_the_frozen_encoder(small: StableDiffusion) -> None:
    small.requires_grad_(False)
    latents, timesteps, text = inputs(SD1)
    down = [torch.zeros(2, c, 1, 1, requires_grad=True) for c in SD1.residual_channels]
    mid = torch.zeros(2, SD1.channels[-1], 1, 1, requires_grad=True)
    tracked: dict[str, bool] = {}

    def watch(name: str, module: torch.nn.Module) -> object:
        return module.register_forward_hook(
            lambda _m, _i, made: tracked.update({name: (made[0] if isinstance(made, tuple) else made).requires_grad})
        )

    modules = {"conv_in": small.unet.conv_in, "mid": small.unet.mid_block, "up": small.unet.up_blocks[0]}
    modules |= {f"down{i}": block for i, block in enumerate(small.unet.down_blocks)}
    hooks = [watch(name, module) for name, module in modules.items()]
    prediction = small.predict(latents, timesteps, text, Injection(tuple(down), mid))
    for hook in hooks:
        hook.remove()  # type: ignore[attr-defined]
    assert tracked == {"conv_in": False, "down0": False, "down1": False, "mid": False, "up": True}
    prediction.sum().backward()
    assert all(r.grad is not None and r.grad.any() for r in [*down, mid]), "every residual reaches the prediction"


@torch.no_grad()
def test_zero_residuals_change_nothing_and_their_number_is_checked(small: StableDiffusion) -> None:
    given = inputs(SD1)
    nothing = tuple(torch.zeros(2, c, 1, 1) for c in SD1.residual_channels)
    alone = small.predict(*given, Injection())
    for injection in (
        Injection(down=nothing),
        Injection(mid=torch.zeros(2, 64, 1, 1)),
        Injection(down=nothing, mid=torch.zeros(2, 64, 1, 1)),
    ):
        assert torch.equal(small.predict(*given, injection), alone)
    assert not torch.equal(small.predict(*given, Injection(mid=torch.ones(2, 64, 1, 1))), alone)
    with pytest.raises(ValueError, match=f"has 1 residuals, this backbone has {len(nothing)} skip connections"):
        small.predict(*given, Injection(down=nothing[:1]))


@torch.no_grad()
def test_encoder_features_enter_before_the_last_skip_of_their_level(small: StableDiffusion) -> None:
    latents, timesteps, text = inputs(SD1)
    features = (torch.randn(2, 32, 8, 16), torch.randn(2, 64, 4, 8))
    made: dict[int, tuple[Tensor, ...]] = {}
    alone: dict[int, tuple[Tensor, ...]] = {}

    def skips(into: dict[int, tuple[Tensor, ...]], injection: Injection) -> Tensor:
        hooks = [
            block.register_forward_hook(lambda _m, _i, out, i=i: into.update({i: out[1]}))
            for i, block in enumerate(small.unet.down_blocks)
        ]
        prediction = small.predict(latents, timesteps, text, injection)
        for hook in hooks:
            hook.remove()
        return prediction

    without, influenced = skips(alone, Injection()), skips(made, Injection(encoder=features))
    assert not torch.allclose(without, influenced)
    assert torch.allclose(made[0][0], alone[0][0] + features[0], atol=1e-6), "the skip of the finest level's layer"
    assert torch.allclose(made[0][1], small.unet.down_blocks[0].downsamplers[0](made[0][0]), atol=1e-6), (
        "and what goes on to the next level"
    )
    only = skips(made, Injection(encoder=(torch.zeros(1), features[1])))
    assert (
        torch.equal(made[0][1], alone[0][1])
        and torch.allclose(made[1][0], alone[1][0] + features[1], atol=1e-6)
        and not torch.allclose(only, influenced)
    )
    assert torch.equal(small.predict(latents, timesteps, text, Injection()), without), "no hook stays"
    with pytest.raises(ValueError, match="has 1 feature maps, this backbone has 2 levels"):
        small.predict(latents, timesteps, text, Injection(encoder=features[:1]))


# Encodings.


@torch.no_grad()
def test_the_posterior_is_sampled_per_image(small: StableDiffusion) -> None:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    together = small.to_latents(images, [torch.Generator().manual_seed(s) for s in (5, 6)])
    alone = small.to_latents(images[1:], [torch.Generator().manual_seed(6)])
    assert torch.allclose(together[1:], alone, atol=1e-6)
    posterior = small.autoencoder.encode(images).latent_dist
    noise = torch.randn(posterior.mean[0].shape, generator=torch.Generator().manual_seed(5))
    assert torch.allclose(together[0], 0.18215 * (posterior.mean[0] + posterior.std[0] * noise), atol=1e-6)
    assert torch.equal(small.to_latents(images), 0.18215 * posterior.mean)


@torch.no_grad()
def test_prompts_are_encoded_once_each_and_in_order(small: StableDiffusion) -> None:
    states = small.encode_text(["a dog", "", "a dog"]).tokens
    assert states.shape == (3, 77, 64) and torch.equal(states[0], states[2]) and not torch.equal(states[0], states[1])
    assert torch.allclose(states[1], small.encode_text([""]).tokens[0], atol=1e-6)


@torch.no_grad()
def test_long_prompts_are_encoded_in_chunks(small: StableDiffusion) -> None:
    words = [f"w{i}" for i in range(60)]
    tokens = small.tokenizer(" ".join(words), truncation=False, verbose=False).input_ids[1:-1]
    assert small.chunks(["a dog"]) == small.chunks([""]) == 1
    chunks = small.chunks(["a dog", " ".join(words)])
    assert chunks == -(-len(tokens) // (small.max_length - 2)) > 1
    states = small.encode_text([" ".join(words), "a dog", ""], chunks).tokens
    assert states.shape == (3, chunks * small.max_length, small.geometry.text_dim)
    pieces = [*states.unflatten(1, (chunks, -1))[0]]
    assert torch.allclose(pieces[0], small.encode_text([" ".join(words)]).tokens[0], atol=1e-5), (
        "as far as it is not cut"
    )
    last = small.tokenizer.decode(tokens[(chunks - 1) * (small.max_length - 2) :])
    assert torch.allclose(pieces[-1], small.encode_text([last]).tokens[0], atol=1e-5)
    dog, nothing = (small.encode_text([text]).tokens[0] for text in ("a dog", ""))
    assert torch.allclose(states[1], torch.cat([dog, *[nothing] * (chunks - 1)]), atol=1e-5)
    assert torch.allclose(states[2], torch.cat([nothing] * chunks), atol=1e-5)


def test_sizes_must_be_multiples_of_the_latent_factor(small: StableDiffusion) -> None:
    assert small.latent_shape((64, 128)) == (4, 8, 16)
    with pytest.raises(
        ValueError, match=r"\(60, 64\) is not a multiple of the backbone's latent factor 8; choose \[56, 64\]"
    ):
        small.latent_shape((60, 64))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_right_prediction_gives_the_clean_latents(kind: str) -> None:
    parts = parts_of(SD1)
    scheduler = {**parts.scheduler, "prediction_type": kind}
    backbone = StableDiffusion.from_parts(replace(parts, scheduler=scheduler))
    process = backbone.process
    assert process.prediction_type == kind
    clean, noise, timesteps = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([0, 400, 990])
    noisy, target = process.add_noise(clean, noise, timesteps), process.target(clean, noise, timesteps)
    assert torch.allclose(process.clean(noisy, target, timesteps), clean, atol=2e-4)
    assert torch.equal(target, noise) == (kind == "epsilon")
