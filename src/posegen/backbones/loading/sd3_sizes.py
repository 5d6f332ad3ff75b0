"""Stable Diffusion 3 and 3.5 at their published sizes without any file, for counting and measuring their cost."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from transformers import ByT5Tokenizer, CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from posegen.backbones.loading.model_parts import ModelParts
from posegen.backbones.loading.single_file import vae_of
from posegen.backbones.loading.sizes import NO_QUANT
from posegen.backbones.loading.tokenizer import CONTEXT, END, clip_tokenizer

#: What differs from the transformer of Stable Diffusion 3 medium.
TRANSFORMERS: Mapping[str, Mapping[str, Any]] = {
    "sd3_medium": {},
    "sd35_medium": {"qk_norm": "rms_norm", "dual_attention_layers": tuple(range(13)), "pos_embed_max_size": 384},
    "sd35_large": {"qk_norm": "rms_norm", "num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432},
}
MEDIUM = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 24,
    "attention_head_dim": 64, "num_attention_heads": 24, "caption_projection_dim": 1536, "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048, "pos_embed_max_size": 192,
}  # fmt: skip
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
BIG_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
T5_XXL = {"d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_layers": 24, "num_heads": 64}
SHIFT = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}


def sd3_without_weights(name: str, leave_out: Collection[str] = ()) -> ModelParts:
    """The parts of a size in `TRANSFORMERS` without the text towers of ``leave_out``; the weights are random and the
    same every time.

    T5 reads bytes: posegen has no vocabulary for it. T5 alone takes 19 GB, on the meta device nothing."""
    words = {"text_encoder": clip_tokenizer(END), "text_encoder_2": clip_tokenizer("!")}
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        transformer = SD3Transformer2DModel(**{**MEDIUM, **TRANSFORMERS[name]})
        vae = vae_of((128, 256, 512, 512), 2, 16, 1.5305, shift_factor=0.0609, **NO_QUANT)
        towers: dict[str, Any] = {
            "text_encoder": clip(words["text_encoder"], CLIP_L, "quick_gelu"),
            "text_encoder_2": clip(words["text_encoder_2"], BIG_G, "gelu"),
        }
        if "text_encoder_3" not in leave_out:
            towers["text_encoder_3"] = T5EncoderModel(T5Config(feed_forward_proj="gated-gelu", **T5_XXL))
    tokenizers = {**words, "text_encoder_3": ByT5Tokenizer()}
    kept = {name: tokenizers[name] for name in towers}
    return ModelParts(transformer, vae, towers, kept, dict(SHIFT), origin=f"random weights of {name} {sorted(towers)}")


def clip(words: Any, sizes: Mapping[str, int], activation: str) -> CLIPTextModelWithProjection:
    marks = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    widths = {"vocab_size": len(words), "max_position_embeddings": CONTEXT, "projection_dim": sizes["hidden_size"]}
    return CLIPTextModelWithProjection(CLIPTextConfig(hidden_act=activation, **sizes, **widths, **marks))


SD3_SIZES = {name: partial(sd3_without_weights, name) for name in TRANSFORMERS}
