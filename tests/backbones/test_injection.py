"""The places where a backbone is influenced, compared with diffusers' arguments; two influences at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderTiny, DDIMScheduler
from torch import Tensor, nn

from posegen.backbones.base import Bank, Geometry, Injection
from posegen.backbones.loading.model_parts import ModelParts
from posegen.backbones.loading.single_file import unet_of, vae_of
from posegen.backbones.mannequin import COSINE_SCHEDULER as COSINE
from posegen.backbones.mannequin import build_text, build_tokenizer
from posegen.backbones.stable_diffusion import StableDiffusion
from posegen.backbones.text import Text
from posegen.errors import UserError

#: The mannequin's design: no attention at the finest level. Stable Diffusion's: none at the coarsest.
MANNEQUIN = Geometry(4, 4, (32, 32, 64), (False, True, True), 1, (2, 2, 2), 32)
USUAL = replace(MANNEQUIN, attention=(True, True, False))


def parts_of(geometry: Geometry) -> ModelParts:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(("person",), max_length=8)
    return ModelParts.of_one_tower(
        unet_of(geometry),
        vae_of((32,) * 3, 1),
        build_text(tokenizer, geometry.text_dim, 1, 2),
        tokenizer,
        dict(COSINE),
    )


@pytest.fixture(scope="module", params=[MANNEQUIN, USUAL], ids=["mannequin", "usual"])
def backbone(request: pytest.FixtureRequest) -> StableDiffusion:
    return StableDiffusion.from_parts(parts_of(request.param)).requires_grad_(False)


def inputs() -> tuple[Tensor, Tensor, Text]:
    draw = torch.Generator().manual_seed(1)
    return (
        torch.randn(2, 4, 8, 12, generator=draw),
        torch.tensor([20, 320]),
        Text(torch.randn(2, 5, 32, generator=draw)),
    )


def features(*sizes: tuple[int, int]) -> tuple[Tensor, ...]:
    sizes = sizes or ((8, 12), (4, 6), (2, 3))
    return tuple(torch.randn(2, width, *size) for width, size in zip(MANNEQUIN.channels, sizes, strict=True))


def test_the_geometry_is_the_networks_own(backbone: StableDiffusion) -> None:
    assert backbone.geometry in (MANNEQUIN, USUAL) and backbone.geometry.attention == tuple(
        hasattr(block, "attentions") for block in backbone.unet.down_blocks
    )


def test_residuals_are_those_of_diffusers_and_each_kind_works_alone(backbone: StableDiffusion) -> None:
    (*given, text), sizes = inputs(), [(8, 12)] * 2 + [(4, 6)] * 2 + [(2, 3)] * 2
    down = tuple(
        torch.randn(2, width, *size) for width, size in zip(backbone.geometry.residual_channels, sizes, strict=True)
    )
    mid = torch.randn(2, 64, 2, 3)
    for injection in (Injection(down=down, mid=mid), Injection(down=down), Injection(mid=mid)):
        wanted = backbone.unet(
            *given,
            text.tokens,
            down_block_additional_residuals=injection.down or tuple(torch.zeros_like(d) for d in down),
            mid_block_additional_residual=injection.mid if injection.mid is not None else torch.zeros_like(mid),
        ).sample
        assert torch.equal(backbone.predict(*given, text, injection), wanted)


def test_encoder_features_are_those_of_diffusers_where_it_can_add_them() -> None:
    usual, added = StableDiffusion.from_parts(parts_of(USUAL)), features()
    latents, timesteps, text = inputs()
    wanted = usual.unet(
        latents, timesteps, text.tokens, down_intrablock_additional_residuals=[f.clone() for f in added]
    ).sample
    assert torch.allclose(usual.predict(*inputs(), Injection(encoder=added)), wanted, atol=1e-6)


@pytest.mark.parametrize("level", range(3))
def test_encoder_features_reach_the_last_skip_of_every_level(backbone: StableDiffusion, level: int) -> None:
    alone = tuple(f if i == level else torch.zeros_like(f) for i, f in enumerate(features()))
    skips: list[Tensor] = []
    hook = backbone.unet.down_blocks[level].register_forward_hook(
        lambda _m, _i, out: skips.append(out[1][backbone.geometry.layers - 1])
    )
    plain, added = (backbone.predict(*inputs(), injection) for injection in (Injection(), Injection(encoder=alone)))
    hook.remove()
    assert torch.allclose(skips[1] - skips[0], alone[level], atol=1e-5) and not torch.allclose(plain, added)


def test_an_error_within_a_pass_leaves_no_features_behind(backbone: StableDiffusion) -> None:
    plain = backbone.predict(*inputs(), Injection())
    with pytest.raises(RuntimeError):
        backbone.predict(*inputs(), Injection(encoder=features((5, 5), (5, 5), (5, 5))))
    assert torch.equal(backbone.predict(*inputs(), Injection()), plain)


@pytest.mark.parametrize(("place", "part"), [("input", "conv_in"), ("level", "down_blocks.0"), ("middle", "mid_block")])
def test_a_hook_adds_to_the_hidden_state_that_it_is_given(backbone: StableDiffusion, place: str, part: str) -> None:
    hidden: list[Tensor] = []

    def twice(x: Tensor) -> Tensor:
        hidden.append(x)
        return x

    def double(_module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> object:
        return (2 * output[0], *output[1:]) if isinstance(output, tuple) else 2 * output

    plain = backbone.predict(*inputs(), Injection())
    hooked = backbone.predict(*inputs(), Injection(hooks={place: twice}))
    if place != "input":  # there the first skip connection has the sum as well
        handle = backbone.unet.get_submodule(part).register_forward_hook(double)
        assert torch.allclose(backbone.predict(*inputs(), Injection()), hooked, atol=1e-5)
        handle.remove()
    assert len(hidden) == 1 and not torch.allclose(plain, hooked, atol=1e-3)
    half = Injection(hooks={place: twice}).scaled(0.5)
    assert torch.allclose(backbone.predict(*inputs(), half + half), hooked, atol=1e-5)
    both = half + Injection(hooks={"middle" if place == "input" else "input": torch.zeros_like})
    assert torch.equal(backbone.predict(*inputs(), both), backbone.predict(*inputs(), half))
    assert torch.equal(backbone.predict(*inputs(), Injection(hooks={place: twice}).scaled(0)), plain)
    assert torch.equal(backbone.predict(*inputs(), Injection()), plain), "no hook is left"
    with pytest.raises(ValueError, match="Injection.hooks has 'end'; expected some of input, level, middle"):
        backbone.predict(*inputs(), Injection(hooks={place: twice, "end": twice}))
    assert torch.equal(backbone.predict(*inputs(), Injection()), plain), "nor after an error"


def test_latents_are_concatenated_after_the_noisy_ones(backbone: StableDiffusion) -> None:
    seen: list[Tensor] = []
    noisy, *rest = inputs()
    hook = backbone.unet.conv_in.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with pytest.raises(RuntimeError, match="channels"):  # this U-Net was not widened
        backbone.predict(noisy, *rest, Injection(latents=noisy + 1))
    hook.remove()
    assert torch.equal(seen[0], torch.cat([noisy, noisy + 1], 1))


def test_the_noise_process_is_that_of_the_scheduler(backbone: StableDiffusion) -> None:
    scheduler = DDIMScheduler.from_config(backbone.process.config)
    clean, noise, timesteps = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2), torch.tensor([0, 400, 990])
    assert torch.equal(backbone.process.alphas_cumprod, scheduler.alphas_cumprod)
    assert torch.allclose(
        backbone.process.add_noise(clean, noise, timesteps), scheduler.add_noise(clean, noise, timesteps), atol=1e-6
    )
    assert torch.allclose(
        backbone.process.target(clean, noise, timesteps), scheduler.get_velocity(clean, noise, timesteps), atol=1e-6
    )


def _dc() -> nn.Module:
    sizes = {"block_out_channels": (8, 8, 16), "layers_per_block": (0, 1, 1), "qkv_multiscales": ((),) * 3}
    both = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in sizes.items()}
    return AutoencoderDC(latent_channels=4, scaling_factor=0.5, **both)


def _tiny(stages: int) -> Callable[[], nn.Module]:
    blocks = dict.fromkeys(("num_encoder_blocks", "num_decoder_blocks"), (1,) * stages)
    return lambda: AutoencoderTiny(
        encoder_block_out_channels=(8,) * stages, decoder_block_out_channels=(8,) * stages, **blocks
    )


@pytest.mark.parametrize(("make", "factor"), [(_tiny(3), 4), (_tiny(4), 8), (_dc, 4)], ids=["tiny 4", "tiny 8", "dc 4"])
def test_deterministic_autoencoders_serve_too_and_decode_differentiably(
    make: Callable[[], nn.Module], factor: int
) -> None:
    vae = make().requires_grad_(False)
    sd = StableDiffusion.from_parts(replace(parts_of(USUAL), autoencoder=vae))  # type: ignore[arg-type]
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    latents = sd.to_latents(images, [torch.Generator(), torch.Generator()])
    assert sd.geometry.latent_factor == factor
    assert latents.shape == (2, *sd.latent_shape((32, 32)))
    assert torch.equal(latents, vae.encode(images, return_dict=False)[0] * vae.config.scaling_factor)
    sd.from_latents(latents.requires_grad_()).square().sum().backward()
    assert latents.grad is not None and latents.grad.any()


# Two influences at once.


def maps(seed: int, count: int = 2) -> tuple[Tensor, ...]:
    return tuple(torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed + i)) for i in range(count))


def test_influences_add() -> None:
    one = Injection(down=maps(0), mid=maps(9)[0], encoder=maps(20), latents=maps(30)[0])
    other = Injection(down=maps(40), mid=maps(50)[0], latents=maps(60)[0])
    both = one + other
    for added, a, b in zip(both.residuals, one.residuals, other.residuals, strict=True):
        assert torch.equal(added, a + b)
    assert both.encoder is one.encoder and torch.equal(both.latents, torch.cat([one.latents, other.latents], 1))  # type: ignore[arg-type, list-item]
    nothing = one + Injection()
    assert nothing.down is one.down and nothing.latents is one.latents and nothing.rows is None


def test_both_banks_are_read() -> None:
    rows = torch.tensor([1])

    def bank(value: float, strength: float = 1.0) -> Injection:
        pair = torch.full((1, 2, 3), value), torch.full((1, 2, 3), -value)
        return Injection(attention=Bank({"layer": pair, f"layer{value}": pair}, strength), rows=rows)

    joined = bank(1.0) + bank(2.0)
    assert joined.attention is not None and joined.rows is rows
    keys, values = joined.attention.layers["layer"]
    assert keys[0, :, 0].tolist() == [1, 1, 2, 2] and values[0, :, 0].tolist() == [-1, -1, -2, -2]
    assert joined.attention.layers.keys() == {"layer", "layer1.0", "layer2.0"}
    assert (Injection(mid=maps(0)[0]) + bank(1.0)).rows is rows
    with pytest.raises(ValueError, match="strengths 1.0 and 0.5 cannot be added"):
        bank(1.0) + bank(1.0, 0.5)
    with pytest.raises(ValueError, match="for other images of the batch"):
        bank(1.0) + replace(bank(1.0), rows=torch.tensor([0]))


def test_influences_that_cannot_be_added_are_refused() -> None:
    with pytest.raises(ValueError, match="insert blocks before the transformers"):
        Injection(features=maps(0)) + Injection(features=maps(0))
    with pytest.raises(ValueError, match="Injection.down has 2 and 3 maps"):
        Injection(down=maps(0)) + Injection(down=maps(0, 3))


def test_a_u_net_whose_first_level_is_wider_than_its_stem_is_refused() -> None:
    config = {"model_channels": 32, "channel_mult": [2, 4], "num_heads": 2}
    with pytest.raises(UserError, match="input convolution is 32 channels wide and the first level 64"):
        Geometry.from_ldm(config)
