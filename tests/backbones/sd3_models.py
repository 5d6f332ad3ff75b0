"""The smallest Stable Diffusion 3, with two CLIP towers and T5."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from posegen.backbones.loading.model_parts import ModelParts
from posegen.backbones.loading.tokenizer import CONTEXT, merges_of, tokenizer_of

WIDTHS = (16, 24)  # of the CLIP towers
JOINT = 48  # width of T5's states
WORDS = ("<pad>", "</s>", "<unk>", "a", "person", "dancing", "on", "the", "beach")


@cache
def sd3_parts() -> ModelParts:
    """Random parts; the autoencoder's posterior has no spread, so that its mode is its sample."""
    torch.manual_seed(3)
    tokenizers: dict[str, Any] = {
        name: tokenizer_of(merges_of(WORDS[3:]), CONTEXT) for name in ("text_encoder", "text_encoder_2")
    }
    tokenizers["text_encoder_2"].pad_token = "!"
    towers = {}
    for name, width in zip(tokenizers, WIDTHS, strict=True):
        words = tokenizers[name]
        config = CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=width,
            num_hidden_layers=3,
            num_attention_heads=2,
            eos_token_id=words.eos_token_id,
        )
        towers[name] = CLIPTextModelWithProjection(config)
    spelling = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    spelling.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizers["text_encoder_3"] = PreTrainedTokenizerFast(
        tokenizer_object=spelling, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    sizes = {"d_model": JOINT, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    towers["text_encoder_3"] = T5EncoderModel(T5Config(vocab_size=len(WORDS), **sizes))
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=4,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=JOINT,
        caption_projection_dim=32,
        pooled_projection_dim=sum(WIDTHS),
        pos_embed_max_size=16,
        qk_norm="rms_norm",
        dual_attention_layers=(0, 1),
    )
    autoencoder = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=16,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.5,
        shift_factor=0.06,
    )
    with torch.no_grad():
        autoencoder.encoder.conv_out.weight[16:] = 0
        autoencoder.encoder.conv_out.bias[16:] = -60
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
    return ModelParts(transformer.eval(), autoencoder.eval(), towers, tokenizers, scheduler)


def fresh_parts() -> ModelParts:
    """The same parts, to change; the tokenizers are shared."""
    parts = sd3_parts()
    towers = {name: deepcopy(tower) for name, tower in parts.text_encoders.items()}
    return replace(
        parts, network=deepcopy(parts.network), autoencoder=deepcopy(parts.autoencoder), text_encoders=towers
    )
