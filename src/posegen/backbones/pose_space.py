"""A diffusion model of poses: Stable Diffusion's U-Net and text tower on 17 joint maps (GUNet, arXiv:2409.11689)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModel

from posegen.backbones.blocks.pose_maps import ENCODINGS
from posegen.backbones.loading.diffusers_folder import read_model, read_tokenizer
from posegen.backbones.loading.layout import SCHEDULER_CONFIG, read_config
from posegen.backbones.loading.model_parts import ModelParts
from posegen.backbones.loading.source import resolve, source_name
from posegen.backbones.stable_diffusion import StableDiffusion
from posegen.io.hashes import sha256_of
from posegen.io.weights import WeightsError, weight_files
from posegen.ranges import Positive, Width

JOINTS = 17


class PoseSpace(StableDiffusion):
    """Denoises joint maps ``[B, 17, grid, grid]``; there is no image and no autoencoder.

    A sample is a pose ``[17, 3]``: x and y from -1 (left, top edge) to 1 (right, bottom edge) of the person's own
    square, and a confidence in [0, 1], where 0 is an absent joint. Place and size of the square are not part of it. The
    U-Net has the size of the folder's and starts from random weights, as published; a method folder has trained ones.

    Args:
        path: a folder in diffusers' layout; ``unet/config.json``, text tower, tokenizer and noise process are read.
        encoding: ``reference``, the released weights' maps, or ``corrected``, scaled Gaussians of ``sigma`` cells.

    Raises a WeightsError where nothing at ``path`` is usable; it names the expected files.
    """

    sample: Literal["image", "pose"] = "pose"
    trains_on: Literal["latents", "poses"] = "poses"

    def __init__(
        self,
        path: str | Path,
        encoding: Literal["reference", "corrected"] = "corrected",
        grid: Width = 32,
        sigma: Positive = 1.5,
        recipe: str = "published",
        id: str | None = None,
    ) -> None:
        torch.nn.Module.__init__(self)
        self._encode_as(encoding, grid, sigma)
        folder, hub = resolve(path, self.layout, ("unet/config.json", "text_encoder/", "tokenizer/", "scheduler/"))
        if not folder.is_dir():
            layout = "a folder in diffusers' layout (unet/ text_encoder/ tokenizer/ scheduler/)"
            raise WeightsError(f"{folder}: a file; backbone.path of a pose backbone is {layout}")
        config, text = read_config(folder / "unet"), folder / "text_encoder"
        scheduler = read_config(folder / "scheduler", SCHEDULER_CONFIG)
        sizes = {key: value for key, value in config.items() if not key.startswith("_")}
        facts = {"unet": sizes, "scheduler": scheduler, "text": sha256_of(weight_files(text)), **self._form()}
        origin = json.dumps(facts, sort_keys=True)  # without the U-Net's weights: they are random
        unet, tower, words = (
            pose_unet(config, grid),
            read_model(CLIPTextModel, text),
            read_tokenizer(folder / "tokenizer"),
        )
        parts = ModelParts.of_one_tower(unet, None, tower, words, scheduler, origin=origin)
        self._source = folder, None
        self._assemble(parts, recipe, id or source_name(folder, hub), {"path": hub})

    @classmethod
    def of(cls, parts: ModelParts, encoding: str, grid: int, sigma: float = 1.5) -> PoseSpace:
        """A backbone of parts that are in memory, for tests and comparisons."""
        self = cls.__new__(cls)
        torch.nn.Module.__init__(self)
        self._encode_as(encoding, grid, sigma)
        self._assemble(parts, "published", "untrained")
        return self

    def _encode_as(self, encoding: str, grid: int, sigma: float) -> None:
        if encoding not in ENCODINGS:
            raise ValueError(f"backbone.encoding is {encoding!r}; expected one of {', '.join(ENCODINGS)}")
        self.encoding, self.grid, self.sigma = encoding, grid, sigma

    def _form(self) -> dict[str, Any]:
        return {"encoding": self.encoding, "grid": self.grid, "sigma": self.sigma}

    @property
    def latent_form(self) -> tuple[int, int]:
        return JOINTS, 1

    def save_source(self, folder: Path) -> dict[str, Any]:
        if self._source is None:
            return super().save_source(folder)
        place = self._source[0]
        for part in ("text_encoder", "tokenizer", "scheduler"):
            shutil.copytree(place / part, folder / part)
        (folder / "unet").mkdir()
        shutil.copyfile(place / "unet" / "config.json", folder / "unet" / "config.json")
        return {"path": ".", **self._form(), "recipe": self.recipe, "id": self.weights.id}

    def encoding_key(self, of: Literal["latents", "text"]) -> str:
        return f"{self.encoding}-{self.grid}-{self.sigma}" if of == "latents" else super().encoding_key(of)

    def to_latents(self, images: Tensor, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        """Poses ``[B, 17, 3]`` to joint maps; stored maps ``[B, 17, H, W]`` are only brought to the grid."""
        if images.ndim == 4:
            if self.encoding != "reference":
                stored = "the data set stores joint maps in the released encoding"
                raise ValueError(f"{stored}, backbone.encoding is {self.encoding}; set backbone.encoding=reference")
            return F.interpolate(images, (self.grid, self.grid), mode="bilinear", align_corners=False)
        return ENCODINGS[self.encoding].encode(images, self.grid, self.sigma)

    def from_latents(self, latents: Tensor) -> Tensor:
        """Joint maps to poses ``[B, 17, 3]``; not differentiable."""
        return ENCODINGS[self.encoding].decode(latents, self.sigma)

    def latent_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """(17, grid, grid), whatever the canvas."""
        return JOINTS, self.grid, self.grid


def pose_unet(config: Mapping[str, Any], grid: int) -> UNet2DConditionModel:
    """A U-Net on joint maps with new weights, of the size that ``config`` has."""
    own = {key: value for key, value in config.items() if not key.startswith("_")}
    return UNet2DConditionModel.from_config({**own, "in_channels": JOINTS, "out_channels": JOINTS, "sample_size": grid})
