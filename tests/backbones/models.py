"""The smallest Stable Diffusion 1 and 2, and their weights under the names of the original program."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from posegen.backbones.base import Geometry
from posegen.backbones.loading import ldm_keys as ldm
from posegen.backbones.loading.model_parts import ModelParts
from posegen.backbones.loading.single_file import SCHEDULER, unet_of, vae_of
from posegen.backbones.loading.tokenizer import CONTEXT, END, clip_tokenizer

WIDTH, LAYERS = 64, 2  # of the text tower; heads are 64 wide in the originals
VAE_CHANNELS = (32, 32, 32, 64)
SD1 = Geometry(4, 8, (32, 64), (True, False), 1, (8, 8), WIDTH)
SD2 = Geometry(4, 8, (64, 128), (True, True), 1, (1, 2), WIDTH, linear_projection=True)


@cache
def parts_of(geometry: Geometry) -> ModelParts:
    """Random parts of this size, with the text tower and tokenizer of its generation."""
    torch.manual_seed(geometry.channels[0])
    old = not geometry.linear_projection
    tokenizer = clip_tokenizer(END if old else "!")
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=1,
            max_position_embeddings=CONTEXT,
            hidden_act="quick_gelu" if old else "gelu",
        )
    )
    return ModelParts.of_one_tower(unet_of(geometry), vae_of(VAE_CHANNELS, 1), text, tokenizer, dict(SCHEDULER))


def original_of(parts: ModelParts, geometry: Geometry) -> dict[str, Tensor]:
    """The state dict of the original program, with what its files hold besides the weights."""
    old = not geometry.linear_projection
    unet = named(parts.network.state_dict(), ldm.unet_table(geometry), ldm.UNET)
    vae = named(parts.autoencoder.state_dict(), ldm.vae_table(len(VAE_CHANNELS), 1), ldm.VAE)
    attention = {key: value[:, :, None, None] for key, value in vae.items() if ".attn_1." in key and value.ndim == 2}
    text = parts.text_encoders["text_encoder"].state_dict()
    tower = {ldm.CLIP + key: value for key, value in text.items()} if old else _open_clip(text)
    extra = (
        {"alphas_cumprod": torch.zeros(1000), f"{ldm.CLIP}embeddings.position_ids": torch.arange(CONTEXT)[None]}
        if old
        else {"betas": torch.zeros(1000)}
    )
    return {key: value.clone().contiguous() for key, value in {**unet, **vae, **attention, **tower, **extra}.items()}


def named(tensors: Mapping[str, Tensor], table: Mapping[str, str], prefix: str) -> dict[str, Tensor]:
    result = ldm.renamed(tensors, ldm.inverse(table))
    assert not result.unknown
    return {prefix + key: value for key, value in result.tensors.items()}


def _open_clip(text: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP's names, with one more layer, which Stable Diffusion 2 does not run."""
    whole = {
        **text,
        **{
            key.replace(f"layers.{LAYERS - 1}.", f"layers.{LAYERS}."): value + 1
            for key, value in text.items()
            if f"layers.{LAYERS - 1}." in key
        },
    }
    tensors = {
        "token_embedding.weight": whole["embeddings.token_embedding.weight"],
        "positional_embedding": whole["embeddings.position_embedding.weight"],
        "ln_final.weight": whole["final_layer_norm.weight"],
        "ln_final.bias": whole["final_layer_norm.bias"],
        "text_projection": torch.zeros(WIDTH, WIDTH),
        "logit_scale": torch.zeros(()),
    }
    for layer in range(LAYERS + 1):
        theirs, ours = f"transformer.resblocks.{layer}", f"encoder.layers.{layer}"
        for kind in ("weight", "bias"):
            tensors[f"{theirs}.attn.in_proj_{kind}"] = torch.cat(
                [whole[f"{ours}.self_attn.{p}_proj.{kind}"] for p in "qkv"]
            )
            tensors |= {
                f"{theirs}.{old}.{kind}": whole[f"{ours}.{new}.{kind}"] for old, new in ldm.OPEN_CLIP_LAYER.items()
            }
    return {ldm.OPEN_CLIP + key: value for key, value in tensors.items()}


def write_safetensors(file: Path, tensors: Mapping[str, Tensor]) -> Path:
    save_file(dict(tensors), file)
    return file
