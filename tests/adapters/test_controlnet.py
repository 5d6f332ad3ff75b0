"""ControlNet's names and settings; what it computes is compared in `tests.parity`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from posegen.adapters.base import State
from posegen.adapters.controlnet import ControlNet
from posegen.backbones.base import Geometry
from posegen.backbones.blocks.encoder_copy import EncoderCopy
from posegen.backbones.loading import ldm_keys as ldm
from posegen.backbones.loading.single_file import unet_of
from posegen.backbones.text import Text
from posegen.io.weights import UnknownKeys
from tests.adapters.cases import SD1, backbone_of, full_size, original, scrambled

PLACE = "adapter.branch.network."


@pytest.fixture(scope="module")
def own() -> ControlNet:
    torch.manual_seed(0)
    adapter = ControlNet()
    adapter.attach(backbone_of(SD1))
    scrambled(adapter)
    return adapter


def official(adapter: ControlNet, prefix: str = ldm.CONTROL) -> dict[str, Tensor]:
    return original(adapter.branch.network.state_dict(), ldm.control_table(SD1), prefix)


@pytest.mark.parametrize("prefix", [ldm.CONTROL, ""], ids=["control_model", "bare"])
def test_original_names_come_back(own: ControlNet, prefix: str) -> None:
    converted = own.convert(official(own, prefix))
    assert converted.keys() == {f"adapter.{key}" for key in own.state_dict()}
    assert all(torch.equal(converted[f"adapter.{key}"], value) for key, value in own.state_dict().items())


def test_names_of_the_hint_block_and_the_zero_convolutions(own: ControlNet) -> None:
    names = official(own)
    hints = [f"control_model.input_hint_block.{i}.weight" for i in range(0, 16, 2)]
    zeros = [f"control_model.zero_convs.{i}.0.weight" for i in range(len(SD1.residual_channels))]
    assert [name for name in names if "hint" in name and name.endswith("weight")] == hints
    assert {name for name in names if "zero" in name and name.endswith("weight")} == {*zeros}
    assert "control_model.middle_block_out.0.weight" in names


def test_diffusers_names_are_taken(own: ControlNet) -> None:
    plain = own.branch.network.state_dict()
    assert {key: id(value) for key, value in own.convert(plain).items()} == {
        PLACE + key: id(value) for key, value in plain.items()
    }
    with pytest.raises(UnknownKeys, match="controlnet_up_blocks"):
        own.convert({**plain, "controlnet_up_blocks.0.weight": torch.zeros(1)})


def test_the_rest_of_a_whole_model_is_left_out_by_rule(own: ControlNet) -> None:
    rest = [
        "model.diffusion_model.out.2.bias",
        "first_stage_model.quant_conv.bias",
        "cond_stage_model.transformer.text_model.x",
        "betas",
        "logvar",
    ]
    assert own.convert({**official(own), **dict.fromkeys(rest, torch.zeros(1))}).keys() == {
        f"adapter.{key}" for key in own.state_dict()
    }


def test_keys_without_a_place_are_named(own: ControlNet) -> None:
    with pytest.raises(
        UnknownKeys, match="2 keys that ControlNet has no place for: control_model.extra.weight, optimizer; "
    ) as caught:
        own.convert({**official(own), "control_model.extra.weight": torch.zeros(1), "optimizer": torch.zeros(1)})
    assert isinstance(caught.value, ValueError) and caught.value.keys == ("control_model.extra.weight", "optimizer")


def test_guess_mode_decays_from_the_middle_and_hides_the_pose_from_the_branch_without_text(own: ControlNet) -> None:
    adapter = ControlNet(guess_mode=True, strength=2.0)
    assert adapter.factors(13) == [2.0 * 0.825 ** (12 - i) for i in range(13)]
    state = State(Text(torch.ones(1, 2, 4)), Text(torch.zeros(1, 2, 4))).having(on=torch.ones(1, 1, 1, 1))
    (_, with_text), (_, without) = adapter.branches(state, 3.0)
    assert with_text["on"] == 1 and without["on"] == 0 and not without.text.tokens.any()


def test_full_size_keys() -> None:
    facts, keys = full_size("controlnet_keys.json")
    sd15 = Geometry(4, 8, (320, 640, 1280, 1280), (True, True, True, False), 2, (8,) * 4, 768)
    with torch.device("meta"):
        unet = unet_of(sd15)
        branch = EncoderCopy(unet, sd15)
    adapter = ControlNet()
    adapter.branch = branch
    converted, whole = adapter.convert(keys), ldm.renamed(ldm.below(keys, ldm.UNET), ldm.unet_table(sd15))
    assert {key: value.shape for key, value in converted.items()} == {
        f"adapter.{key}": value.shape for key, value in adapter.state_dict().items()
    }
    assert {key: value.shape for key, value in whole.tensors.items()} == {
        key: value.shape for key, value in unet.state_dict().items()
    }
    assert not whole.unknown
    assert (
        sum(p.numel() for p in adapter.parameters())
        == facts["parameters"]["control_model (trainable with sd_locked)"]
        == 361_279_120
    )
    assert sum(p.numel() for p in unet.parameters()) == facts["parameters"]["unet"]
    fresh = {f"{ldm.CONTROL}{key}" for key in facts["new_in_control_model"]}
    named = ldm.renamed(
        ldm.below({key: value for key, value in keys.items() if key not in fresh}, ldm.CONTROL),
        ldm.encoder_table(sd15),
    )
    assert not named.unknown, "what is not new in the control model has the U-Net encoder's names"
