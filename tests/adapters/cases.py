"""What the tests of methods share: backbones at small sizes, official names, and the reference cases where they are at hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from posegen.backbones.base import Geometry
from posegen.backbones.loading import ldm_keys as ldm
from posegen.backbones.stable_diffusion import StableDiffusion
from posegen.parity.build import stable_diffusion

ROOT = Path(__file__).parents[2]
FOLDER = next((f for f in (ROOT / "shared/parity", ROOT.parent / "shared/parity") if f.is_dir()), None)
ABSENT = "the reference cases (shared/parity) are not beside this checkout"


def reference(name: str) -> Path:
    """A file or folder of the reference cases; skips the test where they are not at hand."""
    if FOLDER is None:
        pytest.skip(ABSENT)
    return FOLDER / name


def full_size(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A full-size manifest, and its state dict without memory."""
    facts = json.loads(reference(name).read_text())
    return facts, {key: torch.empty(shape, device="meta") for key, shape in facts["keys"].items()}


def backbone_of(
    geometry: Geometry, vae: AutoencoderKL | None = None, weights: Mapping[str, Tensor] | None = None
) -> StableDiffusion:
    """A backbone of this size with Stable Diffusion's noise process, random but for the U-Net's official ``weights``."""
    return stable_diffusion(geometry, weights, vae)


def sized(geometry: Geometry, unet: Any = None) -> StableDiffusion:
    """A backbone that has a geometry and a U-Net, and nothing that computes."""
    backbone = StableDiffusion.__new__(StableDiffusion)
    torch.nn.Module.__init__(backbone)
    backbone.geometry, backbone.unet = geometry, unet
    return backbone


def original(tensors: Mapping[str, Tensor], table: Mapping[str, str], prefix: str) -> dict[str, Tensor]:
    """Tensors with diffusers' names under their original ones."""
    result = ldm.renamed(tensors, ldm.inverse(table))
    assert not result.unknown
    return {prefix + key: value for key, value in result.tensors.items()}


def scrambled(module: torch.nn.Module, seed: int = 0) -> None:
    """Gives every weight a value of its own, the zero convolutions too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


#: The smallest Stable Diffusion 1 and 2 whose heads follow from their widths, as in the originals.
SD1 = Geometry(4, 8, (32, 64), (True, False), 1, (8, 8), 64)
SD2 = Geometry(4, 8, (64, 128), (True, True), 1, (1, 2), 64, linear_projection=True)
