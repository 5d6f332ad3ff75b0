"""Stable Diffusion 3: diffusers' joint-attention transformer, autoencoder and text towers as a `Backbone`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from posegen.backbones.autoencoder import decoded, encoded, latent_form
from posegen.backbones.base import Backbone, BlockPlace, Geometry, Injection, Weights, lacks, widened
from posegen.backbones.blocks.transformer_copy import TransformerCopy
from posegen.backbones.loading.diffusers_folder import (
    Autoencoder,
    autoencoder_folder,
    read_autoencoder,
    read_config,
    read_model,
    read_tokenizer,
    tensors_hash,
    write_scheduler,
)
from posegen.backbones.process import Density, noise_process
from posegen.backbones.text import Text
from posegen.io.hashes import sha256_of
from posegen.io.weights import weight_files


@dataclass
class TransformerParts:
    """The networks, tokenizer and scheduler of a Stable Diffusion 3."""

    transformer: SD3Transformer2DModel
    autoencoder: Autoencoder
    text_encoder: CLIPTextModelWithProjection
    tokenizer: CLIPTokenizer
    scheduler: dict[str, Any]  # the configuration of a diffusers scheduler, which fixes the noise process
    files: tuple[Path, ...] = ()  # where the weights came from; empty for parts that were never saved

    @property
    def sha256(self) -> str:
        """Hash of the weight files, or of the tensors where there are no files."""
        modules = self.transformer, self.text_encoder, self.autoencoder
        return sha256_of(self.files) if self.files else tensors_hash(*modules)


class StableDiffusion3(Backbone):
    """A latent flow-matching model with joint attention over image and text (Esser et al. 2024), at any size.

    Args:
        path: a folder in diffusers' layout.
        autoencoder: folder of another autoencoder than the one in ``path``.
        recipe: which of an adapter's ``recipes`` fits this backbone.
        id: name of the weights in tables and records.
        density: of the timesteps in training, see `FlowMatching`.
    """

    network_name = "transformer"
    sample: Literal["image", "pose"] = "image"
    places: ClassVar[frozenset[str]] = frozenset({"latents", "blocks", "control_copy"})

    def __init__(
        self,
        path: str | Path,
        autoencoder: str | Path | None = None,
        recipe: str = "published",
        id: str | None = None,
        density: Density = "logit_normal",
    ) -> None:
        super().__init__()
        folder = Path(path).expanduser()
        parts = read_parts(folder, Path(autoencoder).expanduser() if autoencoder is not None else None)
        self._assemble(parts, recipe, id or folder.name, density)

    @classmethod
    def from_parts(
        cls,
        parts: TransformerParts,
        recipe: str = "published",
        id: str = "untrained",
        density: Density = "logit_normal",
    ) -> StableDiffusion3:
        """A backbone of parts that are in memory, for pretraining and for tests."""
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        self._assemble(parts, recipe, id, density)
        return self

    def _assemble(self, parts: TransformerParts, recipe: str, id: str, density: Density) -> None:
        self.transformer, self.autoencoder = parts.transformer, parts.autoencoder
        self.text_encoder, self.tokenizer = parts.text_encoder, parts.tokenizer
        self.recipe, self.process = recipe, noise_process(parts.scheduler, density)
        config, (channels, factor) = self.transformer.config, latent_form(self.autoencoder.config)
        width, heads = config.num_attention_heads * config.attention_head_dim, (config.num_attention_heads,)
        self.geometry = Geometry(
            channels, factor, (width,), (True,), config.num_layers, heads, config.joint_attention_dim
        )
        facts = {"prediction_type": self.process.prediction_type, "recipe": recipe, "density": density}
        self.weights = Weights(id, parts.sha256, facts)
        self.eval()

    def save(self, folder: str | Path) -> None:
        """Writes everything but the autoencoder in diffusers' layout."""
        place = Path(folder)
        self.transformer.save_pretrained(place / "transformer")
        self.text_encoder.save_pretrained(place / "text_encoder")
        self.tokenizer.save_pretrained(place / "tokenizer")
        write_scheduler(place, dict(self.process.config))

    def encoding_key(self, of: Literal["latents", "text"]) -> str:
        if of == "latents":
            return f"{tensors_hash(self.autoencoder)}-{self.autoencoder.config.scaling_factor}"
        return f"{tensors_hash(self.text_encoder)}-{self.tokenizer.model_max_length}"

    def encode_text(self, prompts: Sequence[str], chunks: int = 1, clip_skip: int = 0) -> Text:
        """As for every backbone: the states ``[B, L, D]`` before the last layer, and the projected state of the end."""
        unique = list(dict.fromkeys(prompts))
        length = self.tokenizer.model_max_length
        tokens = self.tokenizer(
            unique, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids.to(self.text_encoder.device)
        read = self.text_encoder(tokens, output_hidden_states=True)
        states = read.hidden_states[-2 - clip_skip]
        place = {prompt: i for i, prompt in enumerate(unique)}
        rows = [place[prompt] for prompt in prompts]
        return Text(states[rows], read.text_embeds[rows])

    def control_copy(self, replaced: Mapping[BlockPlace, nn.Module] | None = None) -> TransformerCopy:
        """A copy of the first half of the blocks, as in the released ControlNets of Stable Diffusion 3."""
        if replaced:
            raise lacks(self, "encoder_block")
        layers = max(1, self.transformer.config.num_layers // 2)
        return TransformerCopy(self.transformer, layers, partial(encoded, self.autoencoder))

    def widen(self, channels: int) -> None:
        embedding, has = self.transformer.pos_embed, self.transformer.config.in_channels
        if has != self.geometry.latent_channels:
            taken = f"{has} channels, not the {self.geometry.latent_channels} of the latents"
            needed = "a method that concatenates latents needs a text-to-image backbone of its own"
            raise ValueError(f"the transformer takes {taken}; {needed}")
        embedding.proj = widened(embedding.proj, channels)
        self.transformer.register_to_config(in_channels=has + channels)

    def predict(self, latents: Tensor, timesteps: Tensor, text: Text, injection: Injection) -> Tensor:
        if injection.latents is not None:
            latents = torch.cat([latents, injection.latents.to(latents)], dim=1)
        inputs = {"encoder_hidden_states": text.tokens, "pooled_projections": text.pooled, "timestep": timesteps}
        inputs["block_controlnet_hidden_states"] = injection.blocks
        # On a CPU the backward pass of the fused attention takes longer than that of its plain form.
        plain = latents.device.type == "cpu" and torch.is_grad_enabled()
        with sdpa_kernel([SDPBackend.MATH] if plain else list(EVERY_KERNEL)):
            return self.transformer(latents, **inputs, return_dict=False)[0]

    def to_latents(self, images: Tensor, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        return encoded(self.autoencoder, images, generators)

    def from_latents(self, latents: Tensor) -> Tensor:
        return decoded(self.autoencoder, latents)

    @property
    def usual_size(self) -> tuple[int, int]:
        side = self.transformer.config.sample_size * self.geometry.latent_factor
        return side, side


EVERY_KERNEL = (
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.MATH,
)


def read_parts(folder: Path, autoencoder: Path | None = None) -> TransformerParts:
    """Reads the parts in ``folder``; a WeightsError where something is missing, damaged or of another shape."""
    vae = autoencoder_folder(autoencoder or folder)
    places = folder / "transformer", folder / "text_encoder", vae
    transformer = read_model(SD3Transformer2DModel, places[0])
    text = read_model(CLIPTextModelWithProjection, places[1])
    scheduler = read_config(folder / "scheduler", "scheduler_config.json")
    files = tuple(file for place in places for file in weight_files(place))
    return TransformerParts(
        transformer, read_autoencoder(vae), text, read_tokenizer(folder / "tokenizer"), scheduler, files
    )
