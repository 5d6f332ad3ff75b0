"""Stable Diffusion 3: diffusers' joint-attention transformer, autoencoder and text towers as a `Backbone`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextModelWithProjection, T5EncoderModel

from posegen.backbones.autoencoder import encoded
from posegen.backbones.base import BlockPlace, Geometry, Injection, lacks, widened
from posegen.backbones.blocks.joint_tokens import TokenBranch, token_arguments
from posegen.backbones.blocks.transformer_copy import TransformerCopy, control_width
from posegen.backbones.latent_diffusion import LatentDiffusion
from posegen.backbones.loading.layout import Layout, tokenizer_folder
from posegen.backbones.loading.model_parts import ModelParts
from posegen.backbones.loading.sd3_sizes import SD3_SIZES, sd3_without_weights
from posegen.backbones.loading.source import resolve
from posegen.backbones.process import Density, NoiseProcess, noise_process
from posegen.backbones.text import Text
from posegen.errors import UserError
from posegen.ranges import AtLeastOne

#: Names of the text towers: one or two CLIP towers, and T5, which may be left out.
CLIP_TOWERS, T5_TOWER = ("text_encoder", "text_encoder_2"), "text_encoder_3"
CLIP, T5 = CLIPTextModelWithProjection, T5EncoderModel
SD3_LAYOUT = Layout(
    "a Stable Diffusion 3",
    SD3Transformer2DModel,
    {**dict.fromkeys(CLIP_TOWERS, CLIP), T5_TOWER: T5},
    network_folder="transformer",
    optional=frozenset({CLIP_TOWERS[1], T5_TOWER}),
)


class StableDiffusion3(LatentDiffusion):
    """A latent flow-matching model with joint attention over image and text (Esser et al. 2024), at any size.

    Args:
        path: a folder in diffusers' layout, or ``hub:owner/name``, the only form that may download. None for random
            weights of a published ``size``.
        autoencoder: folder of another autoencoder than the one in ``path``, or ``hub:owner/name``.
        recipe: which of an adapter's ``recipes`` fits this backbone.
        initialise: ``pretrained``, or ``random`` for new weights of transformer and text towers.
        id: name of the weights in tables and records; the folder's name where it is None.
        density: of the timesteps in training, see `FlowMatching`.
        t5: read prompts with T5, too, where the folder has it; left out, zeros stand in its place, as in diffusers.
        t5_length: tokens that T5 reads.
        size: the published size, ``sd3_medium``, ``sd35_medium`` or ``sd35_large``, of random weights where ``path`` is
            None.
        dtype: in which the transformer and the text towers are held; what trains is held in float32.
    """

    network_name = "transformer"
    flow, packs = True, 2
    layout = SD3_LAYOUT
    random_sizes = SD3_SIZES
    places: ClassVar[frozenset[str]] = frozenset({"latents", "blocks", "control_copy", "tokens"})
    transformer: SD3Transformer2DModel
    density: Density = "logit_normal"
    t5_length: int = 256

    def __init__(
        self,
        path: str | Path | None,
        autoencoder: str | Path | None = None,
        recipe: str = "published",
        initialise: Literal["pretrained", "random"] = "pretrained",
        id: str | None = None,
        density: Density = "logit_normal",
        t5: bool = True,
        t5_length: AtLeastOne = 256,
        size: Literal["sd3_medium", "sd35_medium", "sd35_large"] | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        super().__init__()
        self.density, self.t5_length, self.left_out = density, t5_length, () if t5 else (T5_TOWER,)
        self.dtype = dtype
        self._load(path, autoencoder, recipe, initialise, id, size)

    def _random_parts(self, size: str) -> ModelParts:
        return sd3_without_weights(size, self.left_out)

    def _noise_process(self, scheduler: Mapping[str, Any]) -> NoiseProcess:
        return noise_process(scheduler, self.density)

    def read_geometry(self) -> Geometry:
        config, (channels, factor) = self.transformer.config, self.latent_form
        width, heads = config.num_attention_heads * config.attention_head_dim, (config.num_attention_heads,)
        sizes = (width,), (True,), config.num_layers, heads, config.joint_attention_dim
        return Geometry(channels, factor, *sizes, patch=config.patch_size)

    @property
    def pooled_dim(self) -> int:
        return self.transformer.config.pooled_projection_dim

    def _facts(self) -> dict[str, Any]:
        return {"density": self.density, "towers": sorted(self.tower_names), "t5_length": self.t5_length}

    def _arguments(self) -> dict[str, Any]:
        held = {"dtype": self.dtype} if self.dtype != "float32" else {}
        return {"density": self.density, "t5": T5_TOWER not in self.left_out, "t5_length": self.t5_length, **held}

    @property
    def counting_tower(self) -> str:
        return T5_TOWER if T5_TOWER in self.tower_names else CLIP_TOWERS[0]

    @property
    def max_length(self) -> int:
        return self.t5_length if T5_TOWER in self.tower_names else super().max_length

    @classmethod
    def text_reader(cls, path: str | Path, **settings: Any) -> tuple[Any, int]:
        towers = CLIP_TOWERS[0], *((T5_TOWER,) if settings.get("t5", True) else ())
        wanted = [part for name in towers for part in (f"{tokenizer_folder(name)}/", f"{name}/config.json")]
        place, _ = resolve(path, cls.layout, wanted)
        if len(towers) == 1 or not (place / T5_TOWER).is_dir():
            return super().text_reader(place)
        return cls._read_tokenizer(place, T5_TOWER)[0], settings.get("t5_length", cls.t5_length)

    @classmethod
    def width_in(cls, official: Mapping[str, Tensor]) -> int | None:
        return control_width(official)

    @property
    def lengthening(self) -> str:
        return "raise backbone.t5_length" if T5_TOWER in self.tower_names else ""

    def encoding_key(self, of: Literal["latents", "text"]) -> str:
        key = super().encoding_key(of)
        return f"{key}-{self.t5_length}" if of == "text" else key

    def encode_text(self, prompts: Sequence[str], chunks: int = 1, clip_skip: int = 0) -> Text:
        """As for every backbone: the CLIP towers' states before their last layers, side by side, then those of T5.

        ``pooled`` are the CLIP towers' projected states of the end. With two CLIP towers zeros stand for a missing T5,
        which Stable Diffusion 3 has learned to read; with one there is no room for it. CLIP reads 77 tokens, T5
        ``t5_length``: as in diffusers, each cuts the rest; a ValueError for more ``chunks``."""
        self.require_whole(chunks)
        unique = list(dict.fromkeys(prompts))
        clip = [name for name in CLIP_TOWERS if name in self.tower_names]
        read = [self._states(name, unique, output_hidden_states=True) for name in clip]
        tokens = torch.cat([tower.hidden_states[-2 - clip_skip] for tower in read], dim=-1)
        pooled = torch.cat([tower.text_embeds for tower in read], dim=-1)
        if len(clip) > 1:
            width = self.transformer.config.joint_attention_dim
            if T5_TOWER in self.tower_names:
                long = self._states(T5_TOWER, unique).last_hidden_state.to(tokens)
            else:
                long = tokens.new_zeros(len(unique), self.t5_length, width)
            tokens = torch.cat([F.pad(tokens, (0, width - tokens.shape[-1])), long], dim=1)
        place = {prompt: i for i, prompt in enumerate(unique)}
        rows = [place[prompt] for prompt in prompts]
        return Text(tokens[rows], pooled[rows])

    def _states(self, name: str, prompts: Sequence[str], **outputs: bool) -> Any:
        """What a text tower returns for the prompts, cut to what it reads."""
        tower, words = self.get_submodule(name), self.tokenizers[name]
        length = self.t5_length if name == T5_TOWER else words.model_max_length
        form = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
        ids, device = words(list(prompts), **form).input_ids, next(tower.parameters()).device
        return tower(ids if device.type == "meta" else ids.to(device), **outputs)  # offloaded ones bring it along

    def control_copy(
        self, replaced: Mapping[BlockPlace, nn.Module] | None = None, layers: int | None = None
    ) -> TransformerCopy:
        """A copy of the first ``layers`` blocks, by default half of them, as in InstantX's for Stable Diffusion 3."""
        if replaced:
            raise lacks(self, "encoder_block")
        most = self.transformer.config.num_layers
        if layers is not None and layers > most:
            raise UserError(f"adapter.layers={layers}: the transformer has {most} blocks; choose at most as many")
        return TransformerCopy(self.transformer, layers or max(1, most // 2), partial(encoded, self.autoencoder))

    def token_branch(self, targets: Sequence[str], rank: int, alpha: float) -> TokenBranch:
        def embed(network: Any, latents: Tensor, text: Text) -> tuple[Tensor, dict[str, Any]]:
            latents, text = self.in_held(latents), text.to(self.in_held(text.tokens).dtype)
            time = latents.new_zeros(len(latents))
            return network.pos_embed(latents), {"temb": network.time_text_embed(time, text.pooled)}

        return TokenBranch(self.transformer, embed, targets, rank, alpha)

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
        text = text.to(self.in_held(text.tokens).dtype)
        inputs = {"encoder_hidden_states": text.tokens, "pooled_projections": text.pooled, "timestep": timesteps}
        inputs["block_controlnet_hidden_states"] = injection.blocks and tuple(map(self.in_held, injection.blocks))
        # On a CPU the backward pass of the fused attention takes longer than that of its plain form. Checkpointing runs
        # blocks again outside of this context.
        again = self.transformer.gradient_checkpointing
        plain = latents.device.type == "cpu" and torch.is_grad_enabled() and not again
        with sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
            latents, tokens = self.in_held(latents), token_arguments(injection.tokens)
            return self.transformer(latents, **inputs, **tokens, return_dict=False)[0]

    def _misfit(self) -> str:
        config, latent = self.transformer.config, self.latent_form[0]
        towers = [self.get_submodule(name).config for name in CLIP_TOWERS if name in self.tower_names]
        text, pooled = sum(c.hidden_size for c in towers), sum(c.projection_dim for c in towers)
        t5 = self.get_submodule(T5_TOWER).config.d_model if T5_TOWER in self.tower_names else None
        pools, width = config.pooled_projection_dim, config.joint_attention_dim
        problems = [
            (config.in_channels != latent, f"takes {config.in_channels} channels, the autoencoder makes {latent}"),
            (pools != pooled, f"reads {pools} pooled values of text, the CLIP towers make {pooled}"),
            (text > width, f"reads text states of width {width}, the CLIP towers make {text}"),
            (t5 not in (None, width), f"reads text states of width {width}, T5 makes {t5}"),
        ]
        found = [f"the transformer {text}; they belong to different models" for wrong, text in problems if wrong]
        return found[0] if found else ""
