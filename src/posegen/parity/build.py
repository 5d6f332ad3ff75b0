"""Backbones at the size of a case, methods with the case's weights, and what passes through their modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from posegen.adapters.base import Adapter
from posegen.backbones.base import Backbone, Geometry
from posegen.backbones.loading import ldm_keys as ldm
from posegen.backbones.loading.model_parts import ModelParts
from posegen.backbones.loading.single_file import SCHEDULER, unet_of, vae_of
from posegen.backbones.mannequin import build_text, build_tokenizer
from posegen.backbones.stable_diffusion import StableDiffusion
from posegen.data.base import PoseBatch
from posegen.errors import UserError
from posegen.runner.official_weights import accounted, put_converted

Method = TypeVar("Method", bound=Adapter)
Outputs = Iterator[tuple[str, Tensor]]


class Inexpressible(UserError):
    """The case has a size or a setting that posegen's method does not have."""


class UnknownPart(UserError):
    """The case is of a part of the method, or of a kind of metric, that posegen does not have."""


def geometry_of(config: Mapping[str, Any], **settings: Any) -> Geometry:
    """The U-Net of an original latent-diffusion configuration; `Inexpressible` where none here has its sizes."""
    try:
        return Geometry.from_ldm(config, **settings)
    except ValueError as error:
        raise Inexpressible(str(error)) from error


def stable_diffusion(
    geometry: Geometry, weights: Mapping[str, Tensor] | None = None, vae: AutoencoderKL | None = None
) -> StableDiffusion:
    """Stable Diffusion of this size, with the U-Net of the original file ``weights``; what is not given is random."""
    tokenizer = build_tokenizer(["person"])
    unet = unet_of(geometry)
    if weights is not None and ldm.has_prefix(weights, ldm.UNET):
        unet.load_state_dict(translated(weights, ldm.UNET, ldm.unet_table(geometry), "the U-Net"))
    text = build_text(tokenizer, geometry.text_dim, layers=1, heads=1)
    return StableDiffusion.from_parts(
        ModelParts.of_one_tower(unet, vae or vae_of((32,) * 4, 1), text, tokenizer, dict(SCHEDULER))
    )


def diffusers_backbone(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> StableDiffusion:
    """A backbone with a U-Net of diffusers; the rest is random."""
    tokenizer, unet = build_tokenizer(["person"]), UNet2DConditionModel(**config)
    unet.load_state_dict(weights)
    text = build_text(tokenizer, config["cross_attention_dim"], layers=1, heads=1)
    parts = ModelParts.of_one_tower(unet, vae_of((32,) * 4, 1), text, tokenizer, dict(SCHEDULER))
    return StableDiffusion.from_parts(parts)


def kl_autoencoder(config: Mapping[str, Any], embed_dim: int, weights: Mapping[str, Tensor]) -> AutoencoderKL:
    """The autoencoder of an original file, sized by its ``ddconfig``."""
    channels = tuple(config["ch"] * m for m in config["ch_mult"])
    vae = vae_of(channels, config["num_res_blocks"], embed_dim)
    found = ldm.vae_tensors(ldm.below(weights, ldm.VAE), ldm.vae_table(len(channels), config["num_res_blocks"]))
    if found.unknown:
        raise UserError(f"keys of the autoencoder that have no place: {', '.join(found.unknown)}")
    vae.load_state_dict(found.tensors)
    return vae


def translated(weights: Mapping[str, Tensor], prefix: str, table: Mapping[str, str], of: str) -> dict[str, Tensor]:
    """The tensors below ``prefix`` under posegen's names; a `UserError` where one has none in the table."""
    found = ldm.renamed(ldm.below(weights, prefix), table)
    if found.unknown:
        raise UserError(f"keys of {of} that have no place: {', '.join(found.unknown)}")
    return found.tensors


def converted(method: Method, backbone: Backbone, weights: Mapping[str, Tensor]) -> Method:
    """``method`` on ``backbone`` with official weights, by what ``posegen convert`` does, every key accounted for."""
    method.faithful = True  # before it is built: quirks may shape modules
    method.attach(backbone)
    return with_weights(method, backbone, weights)


def with_weights(method: Method, backbone: Backbone, weights: Mapping[str, Tensor]) -> Method:
    """The attached ``method`` with official weights, every key accounted for."""
    placed, account = accounted(method, backbone, weights)
    if account.wrong:
        raise UserError(account.summary())
    put_converted(method, backbone, placed)
    return method.eval()


def batch_of_size(count: int, size: Sequence[int], batch: type[PoseBatch] = PoseBatch, **fields: Any) -> PoseBatch:
    """``count`` images of ``size`` (height, width) without captions and people."""
    nobody = [np.zeros((0, 17, 3), np.float32)] * count
    return batch([str(i) for i in range(count)], [""] * count, nobody, (size[0], size[1]), **fields)


@contextmanager
def recorded(**modules: nn.Module) -> Iterator[tuple[dict[str, Tensor], dict[str, Any]]]:
    """(first input, output) of each module, by the given names, as of its latest call within the context."""
    given: dict[str, Tensor] = {}
    returned: dict[str, Any] = {}

    def hook(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        for name in (name for name, other in modules.items() if other is module):
            given[name], returned[name] = (*inputs, *named.values())[0], output

    hooks = [module.register_forward_hook(hook, with_kwargs=True) for module in set(modules.values())]
    try:
        yield given, returned
    finally:
        for handle in hooks:
            handle.remove()
