"""Opening a U-Net: what passes through the junctions, what the plain U-Net keeps, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from posegen.backbones.base import Bank, Geometry, Injection
from posegen.backbones.blocks.self_attention import (
    Junctions,
    Memory,
    attend_with_memory,
    level_of,
    others,
    transformers,
)
from posegen.backbones.stable_diffusion import StableDiffusion
from tests.backbones.test_injection import MANNEQUIN, USUAL, inputs, parts_of


class Shift(nn.Module):
    """An inserted block that adds the first token's numbers to every cell and counts its images."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(self, x: Tensor, tokens: Tensor, memory: object = None) -> Tensor:
        self.seen.append(len(x))
        return x + tokens[:, 0, :1, None, None]


@pytest.fixture(params=[MANNEQUIN, USUAL], ids=["mannequin", "usual"])
def geometry(request: pytest.FixtureRequest) -> Geometry:
    return request.param


@pytest.fixture
def backbone(geometry: Geometry) -> StableDiffusion:
    return StableDiffusion.from_parts(parts_of(geometry)).requires_grad_(False)


def predict(backbone: StableDiffusion, injection: Injection | None = None) -> Tensor:
    return backbone.predict(*inputs(), injection or Injection())


def test_acceptance_1_an_open_unet_is_the_plain_one_and_a_closed_one_too(backbone: StableDiffusion) -> None:
    plain, names, processors = predict(backbone), list(backbone.unet.state_dict()), dict(backbone.unet.attn_processors)
    blocks = [Shift() for _ in transformers(backbone.unet)]
    junctions = Junctions(backbone.unet, blocks)
    assert (
        torch.equal(predict(backbone), plain)
        and list(backbone.unet.state_dict()) == names
        and len(backbone.unet.attn_processors) == len(processors)
    )
    tokens = tuple(torch.ones(2, 1, 1) for _ in blocks)
    assert not torch.allclose(predict(backbone, Injection(features=tokens)), plain) and all(
        block.seen == [2] for block in blocks
    )
    junctions.remove()
    assert backbone.unet.attn_processors == processors and torch.equal(predict(backbone), plain)
    assert not any(module._forward_pre_hooks for module in backbone.unet.modules())


def test_blocks_see_their_own_features_of_their_own_rows(backbone: StableDiffusion) -> None:
    blocks = [Shift() for _ in transformers(backbone.unet)]
    Junctions(backbone.unet, blocks)
    plain, tokens = predict(backbone), tuple(torch.full((1, 1, 1), float(i)) for i in range(len(blocks)))
    seen: list[float] = []
    for block in transformers(backbone.unet).values():
        block.register_forward_pre_hook(
            lambda _m, inputs: seen.append(float(inputs[0].detach().double().mean())), prepend=True
        )
    made = predict(backbone, Injection(features=tokens, rows=torch.tensor([1])))
    assert (
        torch.equal(made[0], plain[0])
        and not torch.allclose(made[1], plain[1])
        and all(block.seen == [1] for block in blocks)
    )
    assert len(seen) == len(blocks)


def test_the_bank_is_what_the_layers_compute(backbone: StableDiffusion, geometry: Geometry) -> None:
    Junctions(backbone.unet)
    kept: dict[str, Tensor] = {}
    for name, transformer in transformers(backbone.unet).items():
        to_k = transformer.transformer_blocks[0].attn1.to_k
        to_k.register_forward_hook(lambda _m, _i, out, name=name: kept.setdefault(name, out))
    bank = backbone.keys_and_values(*inputs(), Injection())
    assert list(bank.layers) == list(transformers(backbone.unet)) == list(kept)
    assert all(torch.equal(bank.layers[name][0], keys) for name, keys in kept.items())
    cells = [(8 * 12) >> 2 * level_of(name, geometry.levels) for name in bank.layers]
    assert [keys.shape[1] for keys, _ in bank.layers.values()] == cells


def test_reading_is_attention_to_both_with_weights(backbone: StableDiffusion) -> None:
    draw = torch.Generator().manual_seed(0)
    query, keys, values = torch.randn(3, 4, 5, 8, generator=draw)
    more_keys, more_values = torch.randn(2, 2, 4, 8, generator=draw)
    rows = torch.tensor([2, 0])
    made = attend_with_memory(query, keys, values, 2, Memory(more_keys, more_values, rows, others(rows, 4), 0.25))
    for row in range(4):
        own = [k.unflatten(-1, (2, 4)).transpose(0, 1) for k in (query[row], keys[row], values[row])]
        weight = (own[0] @ own[1].mT / 2).exp()
        total, mixed = weight.sum(-1, keepdim=True), weight @ own[2]
        if row in rows:
            at = rows.tolist().index(row)
            k, v = (m[at].unflatten(-1, (2, 4)).transpose(0, 1) for m in (more_keys, more_values))
            extra = 0.25 * (own[0] @ k.mT / 2).exp()
            total, mixed = total + extra.sum(-1, keepdim=True), mixed + extra @ v
        assert torch.allclose(made[row], (mixed / total).transpose(0, 1).flatten(1), atol=1e-5)


def test_others_are_the_rest_in_order() -> None:
    assert others(torch.tensor([4, 1]), 6).tolist() == [0, 2, 3, 5] and others(torch.tensor([0]), 1).tolist() == []


def test_what_cannot_be_opened_is_refused(backbone: StableDiffusion) -> None:
    bank = Bank({name: (torch.zeros(2, 1, 32),) * 2 for name in transformers(backbone.unet)})
    for injection in (Injection(attention=bank), Injection(features=(torch.zeros(2, 1, 1),))):
        with pytest.raises(TypeError, match="need a U-Net that Adapter.attach opened"):
            predict(backbone, injection)
    with pytest.raises(ValueError, match="1 blocks for . transformers"):
        Junctions(backbone.unet, [Shift()])
    junctions = Junctions(backbone.unet)
    with pytest.raises(ValueError, match="open already"):
        Junctions(backbone.unet)
    junctions.remove()
    Junctions(backbone.unet)
