"""The copy of the encoder computes what diffusers' ControlNet computes, with the hint looked at once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import ControlNetModel
from torch import nn

from posegen.backbones.base import Geometry, Injection
from posegen.backbones.blocks.encoder_copy import EncoderCopy
from posegen.backbones.loading.single_file import unet_of
from posegen.backbones.text import Text
from tests.backbones.models import SD1, SD2

MANNEQUIN = Geometry(8, 4, (32, 32, 64), (False, True, True), 1, (4, 4, 4), 32, norm_groups=16)
GEOMETRIES = [SD1, SD2, MANNEQUIN, replace(SD1, latent_factor=2)]


def shaken(module: nn.Module) -> nn.Module:
    """``module`` with all weights random, also those that start at zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return module


def copy_of(g: Geometry) -> EncoderCopy:
    torch.manual_seed(0)
    return EncoderCopy(shaken(unet_of(g)), g)  # type: ignore[arg-type]


def inputs(g: Geometry) -> tuple[torch.Tensor, torch.Tensor, Text, torch.Tensor]:
    torch.manual_seed(1)
    hint = torch.rand(2, 3, 8 * g.latent_factor, 4 * g.latent_factor)
    return torch.randn(2, g.latent_channels, 8, 4), torch.tensor([3, 800]), Text(torch.randn(2, 5, g.text_dim)), hint


@pytest.mark.parametrize("g", GEOMETRIES, ids=["sd1", "sd2", "mannequin", "factor 2"])
def test_it_computes_what_diffusers_computes(g: Geometry) -> None:
    branch = copy_of(g)
    x, t, text, hint = inputs(g)
    added = branch(x, t, text, branch.hint_features(hint))
    assert tuple(d.shape[1] for d in added.down) == g.residual_channels
    assert not any(r.any() for r in added.residuals)  # zero convolutions
    shaken(branch)
    added = branch(x, t, text, branch.hint_features(hint))
    wanted = branch.network(x, t, text.tokens, hint, return_dict=False)
    assert all(torch.equal(a, b) for a, b in zip(added.residuals, (*wanted[0], wanted[1]), strict=True))


def test_the_copy_starts_as_the_encoder_and_leaves_it_alone() -> None:
    unet = shaken(unet_of(SD1)).requires_grad_(False)
    branch = EncoderCopy(unet, SD1)  # type: ignore[arg-type]
    own = unet.state_dict()
    copied = {k: v for k, v in branch.network.state_dict().items() if not k.startswith("controlnet_")}
    assert copied and all(torch.equal(v, own[k]) and v.data_ptr() != own[k].data_ptr() for k, v in copied.items())
    assert all(p.requires_grad for p in branch.parameters()) and not any(p.requires_grad for p in unet.parameters())


def test_it_saves_as_a_plain_diffusers_controlnet(tmp_path: object) -> None:
    branch = shaken(copy_of(MANNEQUIN))
    branch.network.save_pretrained(tmp_path)
    again = ControlNetModel.from_pretrained(tmp_path)
    x, t, text, hint = inputs(MANNEQUIN)
    added = branch(x, t, text, branch.hint_features(hint))
    assert torch.equal(again(x, t, text.tokens, hint).mid_block_res_sample, added.mid)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    branch = shaken(copy_of(SD1))
    x, t, text, hint = inputs(SD1)

    def gradients() -> list[torch.Tensor]:
        branch.zero_grad()
        added = branch(x, t, text, branch.hint_features(hint))
        sum(residual.square().mean() for residual in added.residuals).backward()
        return [p.grad.clone() for p in branch.parameters()]

    plain = gradients()
    branch.network.enable_gradient_checkpointing()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(gradients(), plain, strict=True))
    assert any(
        module.gradient_checkpointing for module in branch.modules() if hasattr(module, "gradient_checkpointing")
    )


def test_a_latent_factor_that_no_hint_network_fits_is_said(unet: nn.Module = nn.Module()) -> None:  # noqa: B008  (never looked at)
    for factor in (1, 3, 16):
        with pytest.raises(ValueError, match=f"latent factor of {factor}; it is 2, 4, 8"):
            EncoderCopy(unet, replace(SD1, latent_factor=factor))  # type: ignore[arg-type]


def test_scales_are_one_per_residual() -> None:
    added = Injection(down=(torch.ones(1), torch.ones(1)), mid=torch.ones(1))
    assert [float(r) for r in added.weighted([1, 2, 3]).residuals] == [1, 2, 3]
    with pytest.raises(ValueError, match="2 factors for 3 residuals"):
        added.weighted([1, 2])
