"""The smallest FLUX.1, with distilled guidance as dev has it, or without as schnell."""

from __future__ import annotations

from functools import cache

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel

from posegen.backbones.loading.model_parts import ModelParts
from tests.backbones.sd3_models import JOINT, sd3_parts

CLIP_WIDTH = 20


@cache
def flux_parts(dev: bool = True) -> ModelParts:
    """Random parts; the autoencoder's posterior has no spread, so that its mode is its sample."""
    sd3 = sd3_parts()
    words = sd3.tokenizers["text_encoder"]
    torch.manual_seed(4)
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=CLIP_WIDTH,
        intermediate_size=2 * CLIP_WIDTH,
        projection_dim=CLIP_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        eos_token_id=words.eos_token_id,
    )
    transformer = FluxTransformer2DModel(
        num_layers=3,
        num_single_layers=5,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=JOINT,
        pooled_projection_dim=CLIP_WIDTH,
        guidance_embeds=dev,
        axes_dims_rope=(2, 2, 4),
    )
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0}
    if dev:
        scheduler |= {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
        scheduler |= {"base_image_seq_len": 256, "max_image_seq_len": 4096}
    assert isinstance(sd3.autoencoder, AutoencoderKL)
    towers = {"text_encoder": CLIPTextModel(config).eval(), "text_encoder_2": sd3.text_encoders["text_encoder_3"]}
    tokenizers = {"text_encoder": words, "text_encoder_2": sd3.tokenizers["text_encoder_3"]}
    return ModelParts(transformer.eval(), sd3.autoencoder, towers, tokenizers, scheduler)
