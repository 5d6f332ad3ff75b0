"""Stable Diffusion 3: diffusers' joint-attention transformer, autoencoder and text towers as a `Backbone`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from posegen.backbones.autoencoder import decoded, encoded, latent_form
from posegen.backbones.base import Backbone, BlockPlace, Geometry, Injection, Weights, lacks, widened
from posegen.backbones.blocks.transformer_copy import TransformerCopy
from posegen.backbones.loading.diffusers_folder import tensors_hash
from posegen.backbones.loading.sd3_folder import CLIP_TOWERS, T5_TOWER, SD3Parts, read_sd3_folder
from posegen.backbones.process import Density, noise_process
from posegen.backbones.text import Text, cut_note
from posegen.io.weights import WeightsError
from posegen.ranges import AtLeastOne


class StableDiffusion3(Backbone):
    """A latent flow-matching model with joint attention over image and text (Esser et al. 2024), at any size.

    Args:
        path: a folder in diffusers' layout.
        autoencoder: folder of another autoencoder than the one in ``path``.
        recipe: which of an adapter's ``recipes`` fits this backbone.
        id: name of the weights in tables and records.
        density: of the timesteps in training, see `FlowMatching`.
        t5: read prompts with T5, too, where the folder has it; left out, zeros stand in its place, as in diffusers.
        t5_length: tokens that T5 reads.
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
        t5: bool = True,
        t5_length: AtLeastOne = 256,
    ) -> None:
        super().__init__()
        folder = Path(path).expanduser()
        parts = read_sd3_folder(folder, Path(autoencoder).expanduser() if autoencoder is not None else None, t5)
        self._assemble(parts, recipe, id or folder.name, density, t5_length)

    @classmethod
    def from_parts(
        cls,
        parts: SD3Parts,
        recipe: str = "published",
        id: str = "untrained",
        density: Density = "logit_normal",
    ) -> StableDiffusion3:
        """A backbone of parts that are in memory, for pretraining and for tests."""
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        self._assemble(parts, recipe, id, density)
        return self

    def _assemble(self, parts: SD3Parts, recipe: str, id: str, density: Density, t5_length: int = 256) -> None:
        self.transformer, self.autoencoder = parts.transformer, parts.autoencoder
        self.tokenizers, self.t5_length = dict(parts.tokenizers), t5_length
        for name, tower in parts.text_encoders.items():
            self.add_module(name, tower)
        self.recipe, self.process = recipe, noise_process(parts.scheduler, density)
        config, (channels, factor) = self.transformer.config, latent_form(self.autoencoder.config)
        width, heads = config.num_attention_heads * config.attention_head_dim, (config.num_attention_heads,)
        self.geometry = Geometry(
            channels, factor, (width,), (True,), config.num_layers, heads, config.joint_attention_dim
        )
        self._check_fit(id)
        towers = sorted(self.tokenizers)
        facts = {"prediction_type": self.process.prediction_type, "recipe": recipe, "density": density}
        self.weights = Weights(id, parts.sha256, facts | {"towers": towers, "t5_length": t5_length})
        self.eval()

    @property
    def encoders(self) -> tuple[nn.Module, ...]:
        return (*map(self.get_submodule, self.tokenizers), self.autoencoder)

    def save(self, folder: str | Path) -> None:
        """Writes everything but the autoencoder in diffusers' layout."""
        towers = {name: self.get_submodule(name) for name in self.tokenizers}
        parts = SD3Parts(self.transformer, self.autoencoder, towers, self.tokenizers, dict(self.process.config))
        parts.save(Path(folder), autoencoder=False)

    def encoding_key(self, of: Literal["latents", "text"]) -> str:
        if of == "latents":
            return f"{tensors_hash(self.autoencoder)}-{self.autoencoder.config.scaling_factor}"
        return f"{tensors_hash(*map(self.get_submodule, self.tokenizers))}-{self.t5_length}"

    def encode_text(self, prompts: Sequence[str], chunks: int = 1, clip_skip: int = 0) -> Text:
        """As for every backbone: the CLIP towers' states before their last layers, side by side, then those of T5.

        ``pooled`` are the CLIP towers' projected states of the end. With two CLIP towers zeros stand for a missing T5,
        which Stable Diffusion 3 has learned to read; with one there is no room for it."""
        unique = list(dict.fromkeys(prompts))
        clip = [name for name in CLIP_TOWERS if name in self.tokenizers]
        read = [self._read(name, unique, output_hidden_states=True) for name in clip]
        tokens = torch.cat([tower.hidden_states[-2 - clip_skip] for tower in read], dim=-1)
        pooled = torch.cat([tower.text_embeds for tower in read], dim=-1)
        if len(clip) > 1:
            width = self.transformer.config.joint_attention_dim
            if T5_TOWER in self.tokenizers:
                long = self._read(T5_TOWER, unique).last_hidden_state.to(tokens)
            else:
                long = tokens.new_zeros(len(unique), self.t5_length, width)
            tokens = torch.cat([F.pad(tokens, (0, width - tokens.shape[-1])), long], dim=1)
        place = {prompt: i for i, prompt in enumerate(unique)}
        rows = [place[prompt] for prompt in prompts]
        return Text(tokens[rows], pooled[rows])

    def _read(self, name: str, prompts: Sequence[str], **outputs: bool) -> Any:
        """What a text tower returns for the prompts, cut to what it reads."""
        tower, words = self.get_submodule(name), self.tokenizers[name]
        length = self.t5_length if name == T5_TOWER else words.model_max_length
        form = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
        return tower(words(list(prompts), **form).input_ids.to(next(tower.parameters()).device), **outputs)

    def cut_note(self, prompts: Sequence[str]) -> str:
        name = T5_TOWER if T5_TOWER in self.tokenizers else CLIP_TOWERS[0]
        words = self.tokenizers[name]
        return cut_note(words, self.t5_length if name == T5_TOWER else words.model_max_length, prompts)

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
        with sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
            return self.transformer(latents, **inputs, return_dict=False)[0]

    def to_latents(self, images: Tensor, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        return encoded(self.autoencoder, images, generators)

    def from_latents(self, latents: Tensor) -> Tensor:
        return decoded(self.autoencoder, latents)

    def _check_fit(self, id: str) -> None:
        """Raises a WeightsError where the parts belong to different models."""
        config, latent = self.transformer.config, latent_form(self.autoencoder.config)[0]
        towers = [self.get_submodule(name).config for name in CLIP_TOWERS if name in self.tokenizers]
        text, pooled = sum(c.hidden_size for c in towers), sum(c.projection_dim for c in towers)
        t5 = self.get_submodule(T5_TOWER).config.d_model if T5_TOWER in self.tokenizers else None
        pools, width = config.pooled_projection_dim, config.joint_attention_dim
        problems = [
            (config.in_channels != latent, f"takes {config.in_channels} channels, the autoencoder makes {latent}"),
            (pools != pooled, f"reads {pools} pooled values of text, the CLIP towers make {pooled}"),
            (text > width, f"reads text states of width {width}, the CLIP towers make {text}"),
            (t5 not in (None, width), f"reads text states of width {width}, T5 makes {t5}"),
        ]
        if found := [text for wrong, text in problems if wrong]:
            raise WeightsError(f"backbone {id}: the transformer {found[0]}; they belong to different models")

    @property
    def usual_size(self) -> tuple[int, int]:
        side = self.transformer.config.sample_size * self.geometry.latent_factor
        return side, side
