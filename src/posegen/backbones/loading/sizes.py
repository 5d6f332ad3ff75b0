"""Stable Diffusion at its published sizes without any file, for measuring its cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from posegen.backbones.base import Geometry
from posegen.backbones.loading.model_parts import ModelParts
from posegen.backbones.loading.single_file import SCHEDULER, XL_VAE_SCALE, unet_of, vae_of
from posegen.backbones.loading.tokenizer import CONTEXT, END, clip_tokenizer

NO_QUANT = {"use_quant_conv": False, "use_post_quant_conv": False}  # of autoencoders with 16 channels
CHANNELS, ATTENTION = (320, 640, 1280, 1280), (True, True, True, False)


@dataclass(frozen=True)
class PublishedSize:
    """A published Stable Diffusion: its U-Net, CLIP tower, padding of prompts, and the autoencoder's widths."""

    unet: Geometry
    text: Mapping[str, Any]
    pad: str
    vae: tuple[int, ...] = (128, 256, 512, 512)


SIZES = {
    "sd15": PublishedSize(
        Geometry(4, 8, CHANNELS, ATTENTION, 2, (8, 8, 8, 8), 768),
        {"intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "hidden_act": "quick_gelu"},
        END,
    ),
    "sd21": PublishedSize(
        Geometry(4, 8, CHANNELS, ATTENTION, 2, (5, 10, 20, 20), 1024, linear_projection=True),
        {"intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16, "hidden_act": "gelu"},
        "!",
    ),
}


SDXL = PublishedSize(
    Geometry(
        4, 8, (320, 640, 1280), (False, True, True), 2, (5, 10, 20), 2048, linear_projection=True,
        transformer_layers=(1, 2, 10),
    ),
    {**SIZES["sd15"].text, "hidden_size": 768, "projection_dim": 768},
    END,
)  # fmt: skip
SDXL_SECOND: dict[str, Any] = {
    "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20, "hidden_act": "gelu",
    "hidden_size": 1280, "projection_dim": 1280,
}  # fmt: skip


def sdxl_without_weights() -> ModelParts:
    """As `parts_without_weights`, of Stable Diffusion XL with its two text towers: 14 GB."""
    words = {"text_encoder": clip_tokenizer(SDXL.pad), "text_encoder_2": clip_tokenizer("!")}
    sizes = {"vocab_size": len(words["text_encoder"]), "max_position_embeddings": CONTEXT}
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        texts = {
            "text_encoder": CLIPTextModel(CLIPTextConfig(**sizes, **SDXL.text)),
            "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**sizes, **SDXL_SECOND)),
        }
        unet = unet_of(SDXL.unet, pooled=SDXL_SECOND["projection_dim"])
        vae = vae_of(SDXL.vae, 2, scale=XL_VAE_SCALE)
    return ModelParts(unet, vae, texts, words, dict(SCHEDULER), origin="random weights of sdxl")


def parts_without_weights(name: str) -> ModelParts:
    """U-Net, autoencoder and text tower of a size in `SIZES`; the weights are random and the same every time.

    The noise process is that of every Stable Diffusion 1 and 2. At full size this takes a few seconds and 4 to 5 GB."""
    size = SIZES[name]
    tokenizer = clip_tokenizer(size.pad)
    widths = {"hidden_size": size.unet.text_dim, "projection_dim": size.unet.text_dim}
    text = CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=CONTEXT, **widths, **size.text)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        models = unet_of(size.unet), vae_of(size.vae, 2), CLIPTextModel(text)
    return ModelParts.of_one_tower(*models, tokenizer, dict(SCHEDULER), origin=f"random weights of {name}")
