"""HumanSD's names; what it computes is compared in `tests.parity`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from posegen.adapters.humansd import HumanSD
from posegen.backbones.base import Geometry
from posegen.backbones.loading import ldm_keys as ldm
from posegen.backbones.loading.single_file import unet_of
from posegen.backbones.stable_diffusion import StableDiffusion
from posegen.io.weights import UnknownKeys
from tests.adapters.cases import SD2, backbone_of, full_size, original, scrambled, sized


def backbone(method: HumanSD) -> StableDiffusion:
    return method.backbone  # type: ignore[return-value]


@pytest.fixture(scope="module")
def own() -> HumanSD:
    torch.manual_seed(0)
    adapter = HumanSD()
    adapter.attach(backbone_of(SD2))
    scrambled(backbone(adapter).unet)
    return adapter


def official(adapter: HumanSD) -> dict[str, Tensor]:
    return original(backbone(adapter).unet.state_dict(), ldm.unet_table(SD2), ldm.UNET)


def test_original_names_come_back(own: HumanSD) -> None:
    converted, unet = own.convert(official(own)), backbone(own).unet.state_dict()
    assert converted.keys() == {f"backbone.unet.{key}" for key in unet}
    assert all(torch.equal(converted[f"backbone.unet.{key}"], value) for key, value in unet.items())
    assert converted["backbone.unet.conv_in.weight"].shape[1] == 2 * SD2.latent_channels


def test_the_rest_is_left_out_by_rule_and_other_keys_are_named(own: HumanSD) -> None:
    rest = [
        "first_stage_model.quant_conv.bias",
        "cond_stage_model.model.logit_scale",
        "mmpose_model.backbone.conv1.weight",
        "betas",
        "posterior_variance",
    ]
    whole = {**official(own), **dict.fromkeys(rest, torch.zeros(1))}
    assert len(own.convert(whole)) == len(official(own))
    with pytest.raises(UnknownKeys, match="1 keys that HumanSD has no place for: control_model.x"):
        own.convert({**whole, "control_model.x": torch.zeros(1)})


def test_full_size_keys() -> None:
    facts, keys = full_size("humansd_keys.json")
    sd21 = Geometry(
        4, 8, (320, 640, 1280, 1280), (True, True, True, False), 2, (5, 10, 20, 20), 1024, linear_projection=True
    )
    with torch.device("meta"):
        unet = unet_of(sd21, in_channels=8)
    adapter = HumanSD()
    adapter.__dict__["_backbone"] = sized(sd21, unet)
    converted = adapter.convert({**keys, "mmpose_model.backbone.conv1.weight": torch.empty(0)})
    assert {key: value.shape for key, value in converted.items()} == {
        f"backbone.unet.{key}": value.shape for key, value in unet.state_dict().items()
    }
    assert sum(p.numel() for p in unet.parameters()) == facts["trainable_parameters"] == 865_922_244
