"""The untrained parts of the mannequin backbone: the Stable Diffusion design at a size that trains on a laptop.

The pretraining tasks (``task=autoencoder``, ``task=text_to_image``) start from here; trained weights ship with posegen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from diffusers import AutoencoderDC, SD3Transformer2DModel, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from posegen.backbones.loading.diffusers_folder import read_model
from posegen.backbones.loading.model_parts import ModelParts
from posegen.backbones.loading.tokenizer import merges_of, tokenizer_of
from posegen.backbones.stable_diffusion import StableDiffusion
from posegen.backbones.stable_diffusion_3 import StableDiffusion3
from posegen.ranges import Width

#: The noise process: cosine (Nichol & Dhariwal 2021, eq. 17) with v-prediction (Salimans & Ho 2022), which can and
#: should start from pure noise, hence the spacing.
COSINE_SCHEDULER: dict[str, Any] = {
    "_class_name": "DDIMScheduler", "num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction", "timestep_spacing": "trailing", "clip_sample": False, "set_alpha_to_one": True,
}  # fmt: skip

#: Flow matching without a shift: latents of 16 x 16 cells are far below the resolutions for which one helps.
FLOW_SCHEDULER: dict[str, Any] = {
    "_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0,
}  # fmt: skip


def build_unet(
    channels: Sequence[Width] = (32, 64, 128),
    layers: Width = 1,
    text_dim: Width = 64,
    heads: Width = 4,
    latent_channels: int = 8,
    size: int = 16,
) -> UNet2DConditionModel:
    """A U-Net on ``[B, latent_channels, size, size]`` with cross-attention below the finest level; 4.1 M parameters."""
    crossed = len(channels) - 1
    stages: dict[str, Any] = {"down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * crossed)}
    stages |= {"up_block_types": (*("CrossAttnUpBlock2D",) * crossed, "UpBlock2D"), "layers_per_block": layers}
    sizes = {
        "in_channels": latent_channels,
        "out_channels": latent_channels,
        "sample_size": size,
        "norm_num_groups": 16,
    }
    sizes |= {"cross_attention_dim": text_dim, "attention_head_dim": heads}  # diffusers' name for the number of heads
    return UNet2DConditionModel(block_out_channels=tuple(channels), **stages, **sizes)


def build_autoencoder(
    width: Width = 64, stem: Width = 16, layers: Width = 3, latent_channels: Width = 8, halvings: Width = 2
) -> AutoencoderDC:
    """A deterministic autoencoder, ``[B, 3, H, W]`` to ``[B, latent_channels, H / f, W / f]`` with f = 2^halvings.

    Pixel-unshuffling stages with averaging shortcuts do nearly all work at latent resolution, which makes it fast on a
    CPU (Chen et al. 2025, Deep Compression Autoencoder, section 3.1). With 4 channels the mannequins' outlines blur.

    Both sides have ``width`` channels and ``layers`` blocks at latent resolution, ``stem`` and one at half the image's,
    and twice as many and one at each stage between. Factor 4 has 0.5 M parameters."""
    between = [stem << stage for stage in range(halvings - 1)]
    widths = (stem, *between, width)  # the first stage has no block of its own, its width is never used
    depths, plain = (0, *(1 for _ in between), layers), ((),) * (halvings + 1)
    stages = {"block_out_channels": widths, "layers_per_block": depths, "qkv_multiscales": plain}
    sides: dict[str, Any] = {
        f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in stages.items()
    }
    return AutoencoderDC(latent_channels=latent_channels, **sides)


def build_transformer(
    width: Width = 128,
    layers: Width = 8,
    heads: Width = 4,
    text_dim: Width = 96,
    patch: Width = 2,
    latent_channels: int = 8,
    size: int = 16,
) -> SD3Transformer2DModel:
    """A transformer of Stable Diffusion 3.5's design on ``[B, latent_channels, size, size]``; 4.7 M parameters."""
    sizes = {"num_layers": layers, "num_attention_heads": heads, "attention_head_dim": width // heads}
    sizes |= {"patch_size": patch, "sample_size": size, "pos_embed_max_size": size // patch}
    sizes |= {"in_channels": latent_channels, "out_channels": latent_channels}
    texts = {"joint_attention_dim": text_dim, "pooled_projection_dim": text_dim, "caption_projection_dim": width}
    return SD3Transformer2DModel(**sizes, **texts, qk_norm="rms_norm")


def text_config(tokenizer: CLIPTokenizer, width: int, layers: int, heads: int) -> CLIPTextConfig:
    """The configuration of a CLIP text tower for the tokens of ``tokenizer``."""
    words = {"vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length}
    words |= {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    widths = {"hidden_size": width, "intermediate_size": 4 * width, "projection_dim": width}
    return CLIPTextConfig(num_hidden_layers=layers, num_attention_heads=heads, **widths, **words)


def build_text(tokenizer: CLIPTokenizer, width: int = 64, layers: int = 2, heads: int = 4) -> CLIPTextModel:
    """A CLIP text tower for the tokens of ``tokenizer``."""
    return CLIPTextModel(text_config(tokenizer, width, layers, heads))


def build_tokenizer(words: Iterable[str], max_length: int = 48) -> CLIPTokenizer:
    """A CLIP tokenizer that reads each of ``words`` as one token and spells everything else in bytes.

    Raises a ValueError for words that CLIP always splits: at spaces, digits, punctuation, or letters of two bytes."""
    words = list(dict.fromkeys(word.lower() for word in words))
    broken = [word for word in words if not word.isascii() or any(c.isspace() for c in word)]
    tokenizer = tokenizer_of(merges_of(word for word in words if word not in broken), max_length)
    broken += [word for word in words if word not in broken and len(tokenizer(word).input_ids) != 3]
    if broken:
        fix = "write them in ASCII letters, without spaces, digits and mixed punctuation"
        raise ValueError(f"not a single word for a CLIP tokenizer: {broken}; {fix}")
    return tokenizer


def untrained(
    autoencoder: str,
    words: Sequence[str],
    channels: Sequence[Width] = (32, 64, 128),
    layers: Width = 1,
    text_dim: Width = 64,
    heads: Width = 4,
    flow: bool = False,
) -> StableDiffusion:
    """A backbone with an untrained U-Net and text tower on a trained autoencoder (``experiment=mannequin_backbone``).

    ``autoencoder`` is its folder, ``words`` are one token each, ``flow`` chooses flow matching with logit-normal
    timesteps; the rest as in `build_unet` and `build_text`."""
    tokenizer, vae = build_tokenizer(words), read_model(AutoencoderDC, Path(autoencoder))
    unet = build_unet(channels, layers, text_dim, heads, vae.config.latent_channels)
    scheduler = dict(FLOW_SCHEDULER if flow else COSINE_SCHEDULER)
    parts = ModelParts.of_one_tower(unet, vae, build_text(tokenizer, text_dim), tokenizer, scheduler)
    density = {"density": "logit_normal"} if flow else {}
    return StableDiffusion.from_parts(parts, recipe="mannequin", id="mannequin-untrained", **density)


def untrained_transformer(
    autoencoder: str,
    words: Sequence[str],
    width: Width = 128,
    layers: Width = 8,
    heads: Width = 4,
    text_dim: Width = 96,
    patch: Width = 2,
) -> StableDiffusion3:
    """As `untrained`, with a transformer and flow matching (``experiment=mannequin_dit``); `build_transformer`."""
    tokenizer, vae = build_tokenizer(words), read_model(AutoencoderDC, Path(autoencoder))
    transformer = build_transformer(width, layers, heads, text_dim, patch, vae.config.latent_channels)
    text = CLIPTextModelWithProjection(text_config(tokenizer, text_dim, layers=3, heads=4))
    parts = ModelParts.of_one_tower(transformer, vae, text, tokenizer, dict(FLOW_SCHEDULER))
    return StableDiffusion3.from_parts(parts, recipe="mannequin_dit", id="mannequin-dit-untrained")
