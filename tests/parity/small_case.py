"""A reference case computed on the spot: a tiny ControlNet by diffusers, under the original program's names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from posegen.backbones.base import Geometry
from posegen.backbones.loading import ldm_keys as ldm
from tests.adapters.cases import original, scrambled

CONFIG = {
    "in_channels": 4, "out_channels": 4, "model_channels": 32, "channel_mult": [1, 2], "num_res_blocks": 1,
    "attention_resolutions": [1], "num_heads": 4, "context_dim": 16,
}  # fmt: skip


def make(folder: Path) -> Path:
    """Writes ``case.json``, ``io.safetensors`` and ``weights.safetensors`` to ``folder``."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
    )
    control = ControlNetModel.from_unet(unet)
    for seed, module in enumerate((unet, control)):
        scrambled(module, seed)
        module.half().float()  # the values that half precision can hold
    geometry = Geometry(4, 8, (32, 64), (True, False), 1, (4, 4), 16)
    weights = original(unet.state_dict(), ldm.unet_table(geometry), ldm.UNET) | original(
        control.state_dict(), ldm.control_table(geometry), ldm.CONTROL
    )
    draw = torch.Generator().manual_seed(7)
    given = {
        "x": torch.randn(2, 4, 8, 16, generator=draw),
        "timesteps": torch.tensor([37.0, 641.0]),
        "context": torch.randn(2, 5, 16, generator=draw),
        "hint": torch.rand(2, 3, 64, 128, generator=draw),
    }
    facts = {"method": "controlnet", "module": "whole forward", "config": CONFIG, "rtol": 1e-3, "atol": 1e-4}
    folder.mkdir(parents=True)
    save_file({key: value.half().contiguous() for key, value in weights.items()}, folder / "weights.safetensors")
    tensors = {f"in.{key}": value for key, value in given.items()} | {
        f"out.{key}": value for key, value in expected(unet, control, **given).items()
    }
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "io.safetensors")
    (folder / "case.json").write_text(json.dumps(facts))
    return folder


@torch.no_grad()
def expected(unet: Any, control: Any, x: Tensor, timesteps: Tensor, context: Tensor, hint: Tensor) -> dict[str, Tensor]:
    """What diffusers' own classes return; guess mode decays by 0.825, not by diffusers' nearly equal factor."""
    timesteps = timesteps.long()

    def predicted(down: list[Tensor] | None, mid: Tensor | None) -> Tensor:
        return unet(
            x, timesteps, context, down_block_additional_residuals=down, mid_block_additional_residual=mid
        ).sample

    def residuals(strength: float = 1.0) -> tuple[list[Tensor], Tensor]:
        return control(x, timesteps, context, controlnet_cond=hint, conditioning_scale=strength, return_dict=False)

    down, mid = residuals()
    made = {
        "guided_hint": control.controlnet_cond_embedding(hint),
        "eps": predicted(down, mid),
        "eps_nocontrol": predicted(None, None),
    }
    made |= {
        "eps_strength": predicted(*residuals(0.7)),
        "eps_mid_only": predicted([torch.zeros_like(r) for r in down], mid),
    }
    made["eps_guess_scales"] = predicted([r * 0.825 ** (len(down) - i) for i, r in enumerate(down)], mid)
    return made | {f"res_{i:02}": residual for i, residual in enumerate([*down, mid])}


def alter(folder: Path, **changes: Tensor | None) -> None:
    """Replaces, adds or (None) removes tensors ``out.*`` of a case."""
    tensors = load_file(folder / "io.safetensors") | {
        f"out.{name}": value for name, value in changes.items() if value is not None
    }
    save_file(
        {key: value for key, value in tensors.items() if changes.get(key.removeprefix("out."), value) is not None},
        folder / "io.safetensors",
    )
