"""FLUX.1 at its published sizes without any file, for counting and measuring its cost."""

from __future__ import annotations

from functools import partial

import torch
from diffusers import FluxTransformer2DModel
from transformers import ByT5Tokenizer, CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from posegen.backbones.loading.model_parts import ModelParts
from posegen.backbones.loading.sd3_sizes import CLIP_L, T5_XXL
from posegen.backbones.loading.single_file import vae_of
from posegen.backbones.loading.sizes import NO_QUANT
from posegen.backbones.loading.tokenizer import clip_tokenizer

FLOW_SHIFT = {"shift": 3.0, "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096}


def flux_parts(distilled_guidance: bool) -> ModelParts:
    """The parts of FLUX.1 dev, or of schnell, with random weights that are the same every time.

    T5 reads bytes: posegen has no vocabulary for it. Single precision takes 67 GB, the meta device nothing."""
    words = clip_tokenizer()
    marks = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    clip = CLIPTextConfig(vocab_size=len(words), projection_dim=CLIP_L["hidden_size"], **CLIP_L, **marks)
    t5 = T5Config(feed_forward_proj="gated-gelu", **T5_XXL)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        transformer = FluxTransformer2DModel(guidance_embeds=distilled_guidance)
        towers = {"text_encoder": CLIPTextModel(clip), "text_encoder_2": T5EncoderModel(t5)}
        vae = vae_of((128, 256, 512, 512), 2, 16, 0.3611, shift_factor=0.1159, **NO_QUANT)
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
    scheduler |= {**FLOW_SHIFT, "use_dynamic_shifting": True} if distilled_guidance else {"shift": 1.0}
    tokenizers = {"text_encoder": words, "text_encoder_2": ByT5Tokenizer()}
    origin = f"random weights of FLUX.1 {'dev' if distilled_guidance else 'schnell'}"
    return ModelParts(transformer, vae, towers, tokenizers, scheduler, origin=origin)


FLUX_SIZES = {"flux1_dev": partial(flux_parts, True), "flux1_schnell": partial(flux_parts, False)}
