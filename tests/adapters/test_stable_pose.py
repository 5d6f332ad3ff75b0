"""Stable-Pose's masks, names, sizes and loss; what it computes is compared in `tests.parity`."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from posegen.adapters.base import State
from posegen.adapters.stable_pose import OFFICIAL, StablePose, grown, positions, table
from posegen.backbones.base import Geometry, Step
from posegen.backbones.loading import ldm_keys as ldm
from posegen.backbones.loading.single_file import unet_of
from posegen.backbones.text import Text
from posegen.io.weights import UnknownKeys
from posegen.poses.drawing import PoseDrawing
from tests.adapters import cases
from tests.adapters.cases import SD1, backbone_of, full_size, original, reference, scrambled

SD15 = Geometry(4, 8, (320, 640, 1280, 1280), (True, True, True, False), 2, (8,) * 4, 768)
MANNEQUIN = Geometry(8, 4, (32, 64, 128), (False, True, True), 1, (4,) * 3, 64, norm_groups=16)


@pytest.fixture(scope="module")
def own() -> StablePose:
    torch.manual_seed(0)
    method = StablePose()
    method.attach(backbone_of(SD1))
    scrambled(method)
    return method


def sized(geometry: Geometry, **settings: Any) -> StablePose:
    """The method on a U-Net of this geometry without memory."""
    method = StablePose(**settings)
    with torch.device("meta"):
        method.attach(cases.sized(geometry, unet_of(geometry)))
    return method


def drawn(size: tuple[int, int] = (64, 96), people: int = 1) -> Tensor:
    """``[1, 3, *size]``: people that stand upright in the left half."""
    person = np.array([[0.25 + 0.01 * (i % 3), 0.2 + 0.04 * i, 2] for i in range(17)]) * [size[1], size[0], 1]
    return torch.from_numpy(PoseDrawing(range=(-1.0, 1.0))(np.repeat(person[None], people, 0), size))[None]


def state_of(method: StablePose, hint: Tensor) -> State:
    text = torch.randn(len(hint), 3, SD1.text_dim, generator=torch.Generator().manual_seed(5))
    return method.conditioned(State(Text(text), Text(torch.zeros_like(text))), hint, method.masks(hint))


# Masks.


@pytest.mark.parametrize(
    "image", ["one_person", "three_people", "missing_joints", "off_canvas_dataset_rule", "tiny_crowd"]
)
def test_masks_of_the_evaluation_rule(own: StablePose, monkeypatch: pytest.MonkeyPatch, image: str) -> None:
    folder = reference("skeleton_render")
    facts, golden = (
        json.loads((folder / "inputs.json").read_text())["images"][image],
        load_file(folder / "masks.safetensors"),
    )
    hint = own.hint(np.array(facts["canvas_keypoints"]), tuple(facts["canvas_height_width"]))
    monkeypatch.setattr(own, "faithful", True)
    masks = own.masks(torch.from_numpy(hint)[None])
    for made, name in (
        (masks[0], "latent_mask"),
        (state_of(own, torch.from_numpy(hint)[None]).conditions["tokens"][0].view(2, 32, 32), "token_mask"),
    ):
        for i, kernel in enumerate(own.kernels):
            expected = golden[f"{image}.{name}.k{kernel}"].bool()
            assert expected.any() and (made[i] ^ expected).sum() <= 3


@pytest.mark.parametrize("faithful", [True, False])
@pytest.mark.parametrize("size", [(64, 96), (512, 512)], ids=str)
def test_masks_go_from_coarse_to_fine_and_follow_the_drawing(
    own: StablePose, monkeypatch: pytest.MonkeyPatch, faithful: bool, size: tuple[int, int]
) -> None:
    monkeypatch.setattr(own, "faithful", faithful)
    both = torch.cat([drawn(size), drawn(size, people=0)])
    with torch.autocast("cpu", torch.bfloat16):
        masks = own.masks(both)
    assert torch.equal(masks, own.masks(both)) and masks.shape == (2, 2, size[0] // 8, size[1] // 8)
    coarse, fine = masks[0]
    assert not (fine & ~coarse).any() and not masks[1].any()
    cells = torch.nn.functional.max_pool2d((drawn(size) > -1).any(1).float(), 8)[0].bool()
    assert fine[cells].all() and 0 < fine.sum() <= coarse.sum() < coarse.numel() * 0.7
    assert not masks[0, :, :, -1].any(), "nobody is at the right"


def test_a_mask_grows_by_a_disc() -> None:
    dot = torch.zeros(1, 9, 9, dtype=torch.bool)
    dot[0, 4, 4] = True
    assert [int(grown(dot, radius).sum()) for radius in (0, 0.9, 1, 1.5, 2, 3)] == [1, 1, 5, 9, 13, 29]
    assert grown(dot, 2)[0, 4, 6] and not grown(dot, 2)[0, 5, 6]


@pytest.mark.parametrize(("size", "cells"), [(64, [1, 1]), (512, [9, 6]), (1024, [21, 11])])
def test_radii_follow_the_canvas(own: StablePose, size: int, cells: list[int]) -> None:
    dot = torch.full((1, 3, size, size), -1.0)
    dot[..., size // 2 + 4, size // 2 + 4] = 1  # in the middle of a cell
    assert own.masks(dot).sum((0, 2, 3)).tolist() == cells


def test_a_blur_that_is_too_wide_is_said(own: StablePose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "faithful", True)
    with pytest.raises(ValueError, match=r"adapter.kernels has 23, too wide for images of \[8, 16\]"):
        own.masks(drawn((8, 16)))


# The branch.


@pytest.mark.parametrize("attention", ["compressed", "dense"])
@pytest.mark.parametrize("size", [(64, 64), (40, 72)], ids=["square", "odd rectangle"])
def test_latents_of_any_size(own: StablePose, attention: str, size: tuple[int, int]) -> None:
    method = StablePose(attention=attention)  # type: ignore[arg-type]
    method.attach(own.backbone)  # type: ignore[arg-type]
    method.load_state_dict(own.state_dict())
    state, h, w = state_of(method, drawn(size)), size[0] // 8, size[1] // 8
    x, t = torch.randn(1, 4, h, w, generator=torch.Generator().manual_seed(1)), torch.tensor([500])
    with torch.no_grad():
        made, wanted = method.inject(state, x, t), own.inject(state, x, t)
    assert [r.shape[1] for r in made.down] == list(SD1.residual_channels) and made.down[1].shape[-2:] == (h, w)
    for one, other in zip((*made.down, made.mid), (*wanted.down, wanted.mid), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("faithful", [True, False])
def test_masks_change_what_the_branch_computes_and_no_pose_breaks_nothing(
    own: StablePose, monkeypatch: pytest.MonkeyPatch, faithful: bool
) -> None:
    monkeypatch.setattr(own, "faithful", faithful)
    state = state_of(own, torch.cat([drawn(), drawn(people=0)]))
    x, t = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(1)), torch.tensor([500, 500])
    (_, masked), (_, free) = own.branches(state, 7.5)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        with_masks, without = (
            own.inject(masked, x, t).down[1],
            own.inject(replace(free, text=masked.text), x, t).down[1],
        )
    assert with_masks.isfinite().all() and not torch.allclose(with_masks[0], without[0], atol=1e-2)
    assert torch.allclose(with_masks[1], without[1], atol=1e-2) is not faithful


def test_only_the_branch_without_text_is_unmasked(own: StablePose) -> None:
    state = state_of(own, drawn())
    assert own.branches(state, 1.0) == [(1.0, state)]
    (weight, with_text), (rest, without) = own.branches(state, 7.5)
    assert (weight, rest) == (7.5, -6.5) and with_text is state
    tokens = without.conditions["tokens"]
    assert not without.text.tokens.any() and tokens.all() and not state.conditions["tokens"].all()
    assert (without.conditions["counts"] == tokens.shape[-1]).all() and torch.equal(
        without.conditions["pose"], state.conditions["pose"]
    )
    assert torch.equal(state.conditions["counts"], state.conditions["tokens"].sum(-1))


def test_without_masks_the_attention_is_that_of_the_branch_without_text_and_the_loss_keeps_its_mask(
    own: StablePose, monkeypatch: pytest.MonkeyPatch
) -> None:
    masked = state_of(own, drawn())
    monkeypatch.setattr(own, "masked", False)
    free = state_of(own, drawn())
    assert torch.equal(free.conditions["masks"], masked.conditions["masks"]) and not masked.conditions["tokens"].all()
    assert free.conditions["tokens"].all() and (free.conditions["counts"] == free.conditions["tokens"].shape[-1]).all()


def test_the_new_block_starts_with_the_backbones_convolutions() -> None:
    backbone = backbone_of(SD1)
    scrambled(backbone.unet)
    method = StablePose()
    method.attach(backbone)
    first = backbone.unet.down_blocks[0].resnets[0]
    for name in ("conv1", "time_emb_proj", "conv2"):
        own = getattr(method.block, name).weight
        assert (
            torch.equal(own, getattr(first, name).weight)
            and own.requires_grad
            and not getattr(first, name).weight.requires_grad
        )
    assert not method.pose_encoder(drawn()).any() and method.block.pose_conv.weight.any()


def test_positions_are_columns_then_rows() -> None:
    rows, columns, dim = 3, 5, 16
    made = positions(rows, columns, dim).view(rows, columns, dim)
    waves = [10000 ** (-i / (dim // 4 - 1)) for i in range(dim // 4)]
    x, y = 4, 2
    expected = [f(place * wave) for place in (x, y) for f in (math.sin, math.cos) for wave in waves]
    torch.testing.assert_close(made[y, x], torch.tensor(expected), rtol=1e-5, atol=1e-6)


# Sizes and settings.


@pytest.mark.parametrize(
    ("geometry", "reduced", "tokens", "head", "pose"),
    [(SD15, 128, 512, 40, 192), (MANNEQUIN, 16, 64, 4, 16)],
    ids=["stable diffusion", "mannequin"],
)
def test_sizes_follow_the_geometry(geometry: Geometry, reduced: int, tokens: int, head: int, pose: int) -> None:
    method = sized(geometry)
    transformer, encoder = method.block.transformer, method.pose_encoder
    assert (transformer.reduce.out_channels, transformer.dim, encoder.zero.out_channels) == (reduced, tokens, pose)
    assert (
        transformer.attentions[0].to_qkv.out_features == 3 * 8 * head and transformer.mlps[0][1].out_features == tokens
    )
    made = encoder.to_empty(device="cpu")(torch.zeros(1, 3, 8 * geometry.latent_factor, 4 * geometry.latent_factor))
    assert made.shape == (1, pose, 8, 4)


def test_a_layer_for_each_kernel() -> None:
    method = sized(
        SD1, kernels=[23, 17, 13], radii=[8, 7, 6], patch=1, reduced=12, mlp=20, heads=3, head_dim=5, pose_channels=10
    )
    transformer = method.block.transformer
    assert (len(transformer.attentions), len(transformer.mlps), transformer.dim) == (3, 3, 12)
    assert transformer.attentions[2].to_out.in_features == 15 and transformer.mlps[2][1].out_features == 20


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kernels": [23, 12]}, r"adapter.kernels is \[23, 12\]; a blur is an odd number"),
        ({"kernels": [23, 13, 5]}, "adapter.kernels has 3 values and adapter.radii 2; both need one per layer"),
        ({"radii": [8, -1]}, r"adapter.radii is \[8, -1\]"),
        ({"attention": "fast"}, "adapter.attention is 'fast'; expected compressed or dense"),
        ({"patch": 0, "mlp": -3}, "adapter.patch=0, adapter.mlp=-3: expected at least 1"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StablePose(**settings)


def test_sizes_that_cannot_be_are_named() -> None:
    with pytest.raises(ValueError, match="adapter.reduced=7 with adapter.patch=1 gives tokens of 7 channels"):
        sized(SD1, reduced=7, patch=1)
    with pytest.raises(ValueError, match="no pose encoder for a latent factor of 16"):
        sized(replace(SD1, latent_factor=16))


# The loss.


def test_the_loss_weighs_the_finest_mask(own: StablePose) -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.randn(2, 2, 4, 8, 12, generator=generator)
    x = torch.zeros_like(prediction)
    step, state = (
        Step(prediction, target, x, x, x, torch.zeros(2)),
        state_of(own, torch.cat([drawn(), drawn(people=0)])),
    )
    losses = own.loss(step, state, None)  # type: ignore[arg-type]
    mask, error = state.conditions["masks"][:, 1:2], (prediction - target).square()
    assert 0 < mask[0].sum() < mask[0].numel()
    assert losses["loss"] == pytest.approx((5 * mask * error + ~mask * error).mean().item(), rel=1e-6)
    assert losses["plain"] == pytest.approx(error.mean().item(), rel=1e-6)


def test_normalised_weights_do_not_grow_with_the_people(own: StablePose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "normalise_loss", True)
    one, nothing = torch.ones(1, 4, 8, 12), torch.zeros(1, 4, 8, 12)
    step = Step(one, nothing, nothing, nothing, nothing, torch.zeros(1))
    assert own.loss(step, state_of(own, drawn()), None)["loss"] == pytest.approx(1.0)  # type: ignore[arg-type]


# Names.


def official(method: StablePose, prefix: str = OFFICIAL) -> dict[str, Tensor]:
    return original(method.state_dict(), table(SD1, 2), prefix)


@pytest.mark.parametrize("prefix", [OFFICIAL, ""], ids=["stable_pose_adapter", "bare"])
def test_original_names_come_back(own: StablePose, prefix: str) -> None:
    converted = own.convert(official(own, prefix))
    assert converted.keys() == {f"adapter.{key}" for key in own.state_dict()}
    assert all(torch.equal(converted[f"adapter.{key}"], value) for key, value in own.state_dict().items())


def test_the_rest_of_a_whole_model_is_left_out_by_rule_and_other_keys_are_named(own: StablePose) -> None:
    rest = [
        "model.diffusion_model.out.2.bias",
        "first_stage_model.quant_conv.bias",
        "cond_stage_model.transformer.text_model.x",
        "betas",
    ]
    whole = {**official(own), **dict.fromkeys(rest, torch.zeros(1))}
    assert own.convert(whole).keys() == {f"adapter.{key}" for key in own.state_dict()}
    foreign = [f"{OFFICIAL}{key}" for key in ("input_blocks.1.0.in_layers.0.weight", "input_hint_block.0.weight", "x")]
    with pytest.raises(UnknownKeys, match="3 keys that StablePose has no place for") as caught:
        own.convert({**whole, **dict.fromkeys(foreign, torch.zeros(1))})
    assert set(caught.value.keys) == set(foreign)


def test_full_size_keys() -> None:
    facts, keys = full_size("stable_pose_keys.json")
    method = sized(SD15)
    converted = method.convert(keys)
    assert {key: value.shape for key, value in converted.items()} == {
        f"adapter.{key}": value.shape for key, value in method.state_dict().items()
    }
    assert len(converted) == 366
    assert (
        sum(p.numel() for p in method.parameters())
        == facts["parameters"]["adapter (trainable with sd_locked)"]
        == 364_943_616
    )
    copied = method.convert({f"{OFFICIAL}{key}": keys[f"{OFFICIAL}{key}"] for key in facts["copied_from_unet"]})
    encoder = ldm.renamed(ldm.below(keys, ldm.UNET), ldm.unet_table(SD15)).tensors
    assert len(copied) == 294 and {key.removeprefix("adapter.branch.network.") for key in copied} <= encoder.keys()
    zeros = {f"{OFFICIAL}{key}" for key in facts["new_in_adapter"]}
    assert method.convert({key: keys[key] for key in zeros}).keys() | copied.keys() == converted.keys()
