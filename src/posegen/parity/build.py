"""Backbones at the size of a case, and methods with the case's weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from diffusers import AutoencoderKL
from torch import Tensor

from posegen.adapters.base import Adapter
from posegen.backbones.base import Backbone, Geometry
from posegen.backbones.loading import ldm_keys as ldm
from posegen.backbones.loading.diffusers_folder import ModelParts
from posegen.backbones.loading.single_file import SCHEDULER, unet_of, vae_of
from posegen.backbones.mannequin import build_text, build_tokenizer
from posegen.backbones.stable_diffusion import StableDiffusion
from posegen.errors import UserError
from posegen.runner.official_weights import accounted, load

Method = TypeVar("Method", bound=Adapter)


def stable_diffusion(
    geometry: Geometry, weights: Mapping[str, Tensor] | None = None, vae: AutoencoderKL | None = None
) -> StableDiffusion:
    """Stable Diffusion of this size with its noise process.

    Args:
        geometry: of the U-Net.
        weights: an original file whose U-Net is loaded; without them the U-Net is random.
        vae: the autoencoder; without one a small random one.

    Raises:
        UserError: the file has a key of a U-Net that has no place here.
    """
    tokenizer = build_tokenizer(["person"])
    unet = unet_of(geometry)
    if weights is not None:
        found = ldm.renamed(ldm.below(weights, ldm.UNET), ldm.unet_table(geometry))
        if found.unknown:
            raise UserError(f"keys of the U-Net that have no place: {', '.join(found.unknown)}")
        unet.load_state_dict(found.tensors)
    text = build_text(tokenizer, geometry.text_dim, layers=1, heads=1)
    return StableDiffusion.from_parts(ModelParts(unet, vae or vae_of((32,) * 4, 1), text, tokenizer, dict(SCHEDULER)))


def kl_autoencoder(config: Mapping[str, Any], embed_dim: int, weights: Mapping[str, Tensor]) -> AutoencoderKL:
    """The autoencoder of an original file, sized by its ``ddconfig``.

    Raises:
        UserError: the file has a key of an autoencoder that has no place here.
    """
    channels = tuple(config["ch"] * m for m in config["ch_mult"])
    vae = vae_of(channels, config["num_res_blocks"], embed_dim)
    found = ldm.vae_tensors(ldm.below(weights, ldm.VAE), ldm.vae_table(len(channels), config["num_res_blocks"]))
    if found.unknown:
        raise UserError(f"keys of the autoencoder that have no place: {', '.join(found.unknown)}")
    vae.load_state_dict(found.tensors)
    return vae


def converted(method: Method, backbone: Backbone, weights: Mapping[str, Tensor]) -> Method:
    """``method`` on ``backbone`` with official weights, through what ``posegen convert`` does, every key accounted for.

    Raises:
        UserError: a key is missing, unexpected or of another shape.
    """
    method.faithful = True  # before it is built: quirks may shape modules
    method.attach(backbone)
    placed, account = accounted(method, backbone, weights)
    if account.wrong:
        raise UserError(account.summary())
    load(method, backbone, placed)
    return method.eval()
