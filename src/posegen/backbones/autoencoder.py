"""Images to latents and back, for every autoencoder of diffusers that a backbone may have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor


def latent_form(config: Mapping[str, Any]) -> tuple[int, int]:
    """(channels, pixels per cell) of the latents of an autoencoder with this configuration."""
    widths = config.get("encoder_block_out_channels") or config["block_out_channels"]
    return config["latent_channels"], 2 ** (len(widths) - 1)  # every stage but the first halves the size


def encoded(
    autoencoder: Any, images: Tensor, generators: Sequence[torch.Generator] | None = None, shift: bool = True
) -> Tensor:
    """Images ``[B, 3, H, W]`` in [-1, 1] to scaled latents ``[B, c, h, w]``, shifted where the autoencoder says so.

    A posterior is sampled with one generator per image, or its mode taken without them."""
    config = autoencoder.config
    code = autoencoder.encode(images, return_dict=False)[0]
    if isinstance(autoencoder, AutoencoderKL):
        code, mean, std = code.mean, code.mean, code.std
        if generators is not None:
            code = mean + std * torch.stack([torch.randn(mean.shape[1:], generator=g) for g in generators]).to(mean)
    return (code - ((shift and config.get("shift_factor")) or 0.0)) * config.scaling_factor


def decoded(autoencoder: Any, latents: Tensor) -> Tensor:
    """Scaled latents ``[B, c, h, w]`` to images ``[B, 3, H, W]``, differentiable."""
    config = autoencoder.config
    shifted = latents / config.scaling_factor + (config.get("shift_factor") or 0.0)
    return autoencoder.decode(shifted, return_dict=False)[0]
