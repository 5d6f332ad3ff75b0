"""The smallest Stable Diffusion XL, and its weights under the names of the original program."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from posegen.backbones.base import Geometry
from posegen.backbones.loading import ldm_keys as ldm
from posegen.backbones.loading.model_parts import ModelParts
from posegen.backbones.loading.single_file import SCHEDULER, XL_VAE_SCALE, unet_of, vae_of
from posegen.backbones.loading.tokenizer import CONTEXT, END, clip_tokenizer, merges_of, tokenizer_of
from tests.backbones.models import named

WIDTHS, POOLED, VAE_WIDTHS = (64, 128), 96, (32, 32, 32, 32)  # of the text towers, which have heads of 64
XL = Geometry(
    4, 8, (32, 64, 64), (False, True, True), 2, (1, 1, 1), sum(WIDTHS), True, transformer_layers=(1, 2, 3)
)  # fmt: skip


def short_tokenizer(pad: str) -> CLIPTokenizer:
    """A tokenizer of few words, which reads 16 of them."""
    words = tokenizer_of(merges_of(["person", "dancing", "beach"]), 16)
    words.pad_token = pad
    return words


@cache
def sdxl_parts(whole: bool = False) -> ModelParts:
    """Random parts; the autoencoder's posterior has no spread, so that its mode is its sample. The tokenizers are small
    unless ``whole``."""
    torch.manual_seed(4)
    tokenizer = clip_tokenizer if whole else short_tokenizer
    words = {"text_encoder": tokenizer(END), "text_encoder_2": tokenizer("!")}
    end, length = words["text_encoder"].eos_token_id, words["text_encoder"].model_max_length
    sizes = {"vocab_size": len(words["text_encoder"]), "max_position_embeddings": length, "num_hidden_layers": 3}
    sizes |= {"eos_token_id": end, "bos_token_id": end - 1}
    first, second = (
        {**sizes, "hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": width // 64}
        for width in WIDTHS
    )
    texts = {
        "text_encoder": CLIPTextModel(CLIPTextConfig(**first, projection_dim=WIDTHS[0], hidden_act="quick_gelu")),
        "text_encoder_2": CLIPTextModelWithProjection(
            CLIPTextConfig(**second, projection_dim=POOLED, hidden_act="gelu")
        ),
    }
    unet, vae = unet_of(XL, pooled=POOLED), vae_of(VAE_WIDTHS, 1, scale=XL_VAE_SCALE)
    with torch.no_grad():
        vae.encoder.conv_out.weight[4:] = 0
        vae.quant_conv.weight[4:], vae.quant_conv.bias[4:] = 0, -60
    return ModelParts(unet.eval(), vae.eval(), texts, words, dict(SCHEDULER))


def original_sdxl() -> dict[str, Tensor]:
    """The state dict of an original file, with what such files hold besides the weights."""
    parts = sdxl_parts(whole=True)
    unet = named(parts.network.state_dict(), ldm.unet_table(XL), ldm.UNET)
    vae = named(parts.autoencoder.state_dict(), ldm.vae_table(len(VAE_WIDTHS), 1), ldm.VAE)
    vae |= {key: value[:, :, None, None] for key, value in vae.items() if ".attn_1." in key and value.ndim == 2}
    first = {ldm.XL_CLIP + key: value for key, value in parts.text_encoders["text_encoder"].state_dict().items()}
    first[f"{ldm.XL_CLIP}embeddings.position_ids"] = torch.arange(CONTEXT)[None]
    second = open_clip(ldm.below(parts.text_encoders["text_encoder_2"].state_dict(), "text_model."))
    second["text_projection"] = parts.text_encoders["text_encoder_2"].text_projection.weight.T
    second["logit_scale"] = torch.zeros(())
    text = {**first, **{ldm.XL_OPEN_CLIP + key: value for key, value in second.items()}}
    return {key: value.detach().clone().contiguous() for key, value in {**unet, **vae, **text}.items()}


def open_clip(tower: dict[str, Tensor]) -> dict[str, Tensor]:
    """A text tower of transformers under OpenCLIP's names."""
    tensors = {
        "token_embedding.weight": tower["embeddings.token_embedding.weight"],
        "positional_embedding": tower["embeddings.position_embedding.weight"],
        "ln_final.weight": tower["final_layer_norm.weight"],
        "ln_final.bias": tower["final_layer_norm.bias"],
    }
    for layer in range(3):
        theirs, own = f"transformer.resblocks.{layer}", f"encoder.layers.{layer}"
        for kind in ("weight", "bias"):
            joined = torch.cat([tower[f"{own}.self_attn.{part}_proj.{kind}"] for part in "qkv"])
            tensors[f"{theirs}.attn.in_proj_{kind}"] = joined
            tensors |= {
                f"{theirs}.{old}.{kind}": tower[f"{own}.{new}.{kind}"] for old, new in ldm.OPEN_CLIP_LAYER.items()
            }
    return tensors
