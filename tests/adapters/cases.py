"""What the tests of converted weights share: reference cases, and backbones at their sizes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor

from posegen.backbones import ldm_keys as ldm
from posegen.backbones.base import Geometry
from posegen.backbones.folder import Parts
from posegen.backbones.mannequin import build_text, build_tokenizer
from posegen.backbones.single_file import SCHEDULER, unet_of, vae_of
from posegen.backbones.stable_diffusion import StableDiffusion

ROOT = Path(__file__).parents[2]
FOLDER = next((f for f in (ROOT / "shared/parity", ROOT.parent / "shared/parity") if f.is_dir()), None)


@dataclass(frozen=True)
class Case:
    """A reference case: facts, official weights in single precision, and tensors ``in.*``, ``mid.*``, ``out.*``."""

    facts: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    io: Mapping[str, Tensor]

    @classmethod
    def read(cls, name: str) -> Case:
        """The case ``name``; skips the test where the cases are not at hand."""
        folder = reference(name)
        weights = {key: value.float() for key, value in load_file(folder / "weights.safetensors").items()}
        return cls(json.loads((folder / "case.json").read_text()), weights, load_file(folder / "io.safetensors"))

    def check(self, name: str, tensor: Tensor) -> None:
        """Compares with ``out.<name>`` or ``mid.<name>`` at the case's tolerance."""
        expected = self.io.get(f"out.{name}", self.io.get(f"mid.{name}"))
        tolerance = self.facts.get("tolerances", {}).get(name, self.facts)
        torch.testing.assert_close(tensor.reshape(expected.shape), expected, rtol=tolerance["rtol"], atol=tolerance["atol"], msg=lambda text: f"{name}: {text}")


def reference(name: str) -> Path:
    """A file or folder of the reference cases; skips the test where they are not at hand."""
    if FOLDER is None:
        pytest.skip("the reference cases (shared/parity) are not beside this checkout")
    return FOLDER / name


def full_size(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A full-size manifest, and its state dict without memory."""
    facts = json.loads(reference(name).read_text())
    return facts, {key: torch.empty(shape, device="meta") for key, shape in facts["keys"].items()}


def backbone_of(geometry: Geometry, vae: AutoencoderKL | None = None, weights: Mapping[str, Tensor] | None = None) -> StableDiffusion:
    """A backbone of this size with Stable Diffusion's noise process, random but for the U-Net's official ``weights``."""
    tokenizer = build_tokenizer(["person"])
    unet = unet_of(geometry)
    if weights is not None:
        unet.load_state_dict(ldm.renamed(ldm.below(weights, ldm.UNET), ldm.unet_table(geometry)).tensors)
    text = build_text(tokenizer, geometry.text_dim, layers=1, heads=1)
    return StableDiffusion.from_parts(Parts(unet, vae or vae_of((32,) * 4, 1), text, tokenizer, dict(SCHEDULER)))


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
