"""Tokens beside the text: strengths, sums, rows of a batch, gradients that are computed again, and what is refused."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from posegen.backbones.base import Bank, Context, Injection
from posegen.backbones.blocks.self_attention import Junctions
from posegen.backbones.stable_diffusion import StableDiffusion
from tests.backbones.test_injection import MANNEQUIN, inputs, parts_of


@pytest.fixture
def backbone() -> StableDiffusion:
    return StableDiffusion.from_parts(parts_of(MANNEQUIN)).requires_grad_(False)


def context(backbone: StableDiffusion, seed: int = 0, strength: float = 1.0) -> Context:
    draw, layers = torch.Generator().manual_seed(seed), backbone.cross_attentions()
    sizes = {name: (2, 3, layer.to_k.out_features) for name, layer in layers.items()}
    return Context(
        {n: (3 * torch.randn(s, generator=draw), torch.randn(s, generator=draw)) for n, s in sizes.items()}, strength
    )


def predict(backbone: StableDiffusion, *context: Context, **others: object) -> Tensor:
    return backbone.predict(*inputs(), Injection(context=context, **others))  # type: ignore[arg-type]


def test_strength_scales_sums_and_switches_off(backbone: StableDiffusion) -> None:
    plain, one, other = predict(backbone), context(backbone), context(backbone, 1)
    names = list(backbone.unet.state_dict())
    made = predict(backbone, one)
    assert (made - plain).abs().max() > 1e-3 and list(backbone.unet.state_dict()) == names
    assert torch.equal(predict(backbone), plain), "an open U-Net is the plain one"
    assert torch.equal(predict(backbone, Context(one.layers, 0.0)), plain)
    both = Injection(context=(one,)) + Injection(context=(other,))
    assert torch.equal(backbone.predict(*inputs(), both), predict(backbone, one, other))
    halved = Injection(context=(one,)).scaled(0.5)
    assert torch.equal(backbone.predict(*inputs(), halved), predict(backbone, Context(one.layers, 0.5)))
    twice = predict(backbone, Context(one.layers, 0.5), Context(one.layers, 0.5))
    assert torch.allclose(twice, made, atol=1e-5), "each context has an attention of its own"


def test_images_of_a_batch_read_their_own_tokens(backbone: StableDiffusion) -> None:
    given = context(backbone)
    other = {name: tuple(torch.cat([part[:1], part[1:] + 1]) for part in pair) for name, pair in given.layers.items()}
    made, changed = predict(backbone, given), predict(backbone, Context(other))  # type: ignore[arg-type]
    assert torch.equal(made[0], changed[0]) and (made[1] - changed[1]).abs().max() > 1e-4


def test_gradients_are_the_same_where_blocks_are_computed_again(backbone: StableDiffusion) -> None:
    def gradients() -> list[Tensor]:
        leaves = {n: tuple(p.requires_grad_() for p in pair) for n, pair in context(backbone).layers.items()}
        predict(backbone, Context(leaves)).square().mean().backward()  # type: ignore[arg-type]
        return [p.grad for pair in leaves.values() for p in pair if p.grad is not None]

    plain = gradients()
    backbone.unet.enable_gradient_checkpointing()
    backbone.unet.train()
    again = gradients()
    assert len(plain) == len(again) == 2 * len(backbone.cross_attentions())
    assert all(torch.allclose(a, b, atol=1e-7) and bool(a.any()) for a, b in zip(plain, again, strict=True))


def test_it_works_beside_another_passes_attention(backbone: StableDiffusion, caplog: pytest.LogCaptureFixture) -> None:
    Junctions(backbone.unet)
    latents, *others = inputs()
    bank: Bank = backbone.keys_and_values(1 - 2 * latents, *others, Injection())
    logging.getLogger("diffusers").propagate = True
    made = [
        predict(backbone, *given, attention=attention)
        for given in ((), (context(backbone),))
        for attention in (None, bank)
    ]
    assert all((a - b).abs().max() > 1e-4 for i, a in enumerate(made) for b in made[:i])
    assert "not expected by" not in caplog.text, "no layer gets what is another's"


@pytest.mark.parametrize(
    "name", ["down_blocks.9.attn2", "conv_in", "down_blocks.1.attentions.0.transformer_blocks.0.attn1"]
)
def test_a_layer_that_is_no_cross_attention_is_refused(backbone: StableDiffusion, name: str) -> None:
    with pytest.raises(ValueError, match=f"Injection.context is for {name}, which"):
        predict(backbone, Context({name: (torch.zeros(2, 1, 32), torch.zeros(2, 1, 32))}))
