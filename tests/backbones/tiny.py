"""Stable Diffusions of the smallest size with random weights, and original checkpoints of them."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from posegen.backbones import ldm_keys as ldm
from posegen.backbones.base import Geometry
from posegen.backbones.folder import Parts
from posegen.backbones.mannequin import build_text, build_tokenizer
from posegen.backbones.single_file import SCHEDULER, unet_of, vae_of
from posegen.backbones.stable_diffusion import StableDiffusion

WORDS = ("one", "person", "running", "in", "the", "park")

SD1 = Geometry(4, 8, (32, 64), (True, False), 1, (8, 8), 32)
SD2 = Geometry(4, 8, (64, 64), (True, False), 1, (1, 1), 32, linear_projection=True)


def shaken(module: nn.Module, seed: int = 0) -> nn.Module:
    """``module`` with all weights random, also those that start at zero or one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return module


def tiny_parts(geometry: Geometry = SD1, seed: int = 0, scheduler: dict[str, object] = SCHEDULER) -> Parts:
    """Parts around a U-Net of this geometry; its latent factor decides the levels of the autoencoder."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(WORDS, max_length=12)
    levels = geometry.latent_factor.bit_length()
    vae = vae_of((32,) * levels, layers=1, latent_channels=geometry.latent_channels)
    text = build_text(tokenizer, geometry.text_dim, layers=1, heads=2)
    unet = shaken(unet_of(geometry), seed)
    return Parts(unet, shaken(vae, seed), text, tokenizer, {**scheduler, "prediction_type": geometry.prediction_type})  # type: ignore[arg-type]


def tiny_backbone(geometry: Geometry = SD1, seed: int = 0) -> StableDiffusion:
    return StableDiffusion.from_parts(tiny_parts(geometry, seed), id="tiny")


def original(parts: Parts, geometry: Geometry, old: bool) -> dict[str, Tensor]:
    """What the original program would have saved of these parts: names of Stable Diffusion 1 (``old``) or 2, and what lies beside the weights there."""
    state = {ldm.UNET + key: value for key, value in ldm.renamed(parts.unet.state_dict(), ldm.inverse(ldm.unet_table(geometry))).tensors.items()}
    state |= {ldm.VAE + key: value for key, value in _original_vae(parts.autoencoder).items()}
    text = parts.text_encoder.state_dict()
    state |= {ldm.CLIP + key: value for key, value in text.items()} if old else {ldm.OPEN_CLIP + key: value for key, value in _open_clip(text).items()}
    if old:
        state[f"{ldm.CLIP}embeddings.position_ids"] = torch.arange(77)[None]
    return {**state, "betas": torch.zeros(1000), "alphas_cumprod": torch.zeros(1000)}


def _original_vae(vae: AutoencoderKL) -> dict[str, Tensor]:
    table = ldm.vae_table(len(vae.config.block_out_channels), vae.config.layers_per_block)
    renamed = ldm.renamed(vae.state_dict(), ldm.inverse(table)).tensors
    return {key: value[..., None, None] if ".attn_1." in key and value.ndim == 2 else value for key, value in renamed.items()}


def _open_clip(text: dict[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP's names, with the last layer that SD2 does not read."""
    names = {"embeddings.token_embedding.weight": "token_embedding.weight", "embeddings.position_embedding.weight": "positional_embedding"}
    names |= {"final_layer_norm.weight": "ln_final.weight", "final_layer_norm.bias": "ln_final.bias"}
    state = {names[key]: value for key, value in text.items() if key in names}
    layers = 1 + max(int(key.split(".")[2]) for key in text if key.startswith("encoder.layers."))
    for layer in range(layers + 1):
        own = {key.removeprefix(f"encoder.layers.{min(layer, layers - 1)}."): value for key, value in text.items() if key.startswith(f"encoder.layers.{min(layer, layers - 1)}.")}
        place = f"transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            state[f"{place}attn.in_proj_{kind}"] = torch.cat([own.pop(f"self_attn.{part}_proj.{kind}") for part in "qkv"])
        state |= {place + str(ldm.rename(key, ldm.inverse(ldm.OPEN_CLIP_LAYER))): value for key, value in own.items()}
    return {**state, "logit_scale": torch.zeros(()), "text_projection": torch.zeros(32, 32)}


def clip_text(old: bool) -> CLIPTextModel:
    """A tower of CLIP's vocabulary and context, as single files have them."""
    torch.manual_seed(1)
    act = "quick_gelu" if old else "gelu"
    config = CLIPTextConfig(hidden_size=32, intermediate_size=64, projection_dim=32, num_hidden_layers=2, num_attention_heads=1, hidden_act=act)
    return CLIPTextModel(config)
