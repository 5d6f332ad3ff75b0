"""FLUX's latents as tokens, and the trainable copy of its transformer's first blocks in diffusers' class."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

import torch
from diffusers import FluxControlNetModel, FluxTransformer2DModel
from einops import rearrange
from torch import Tensor, nn

from posegen.backbones.base import BlockPlace, ControlBranch, Injection
from posegen.backbones.text import Text
from posegen.errors import UserError
from posegen.io.weights import UnknownKeys

PATCH = 2  # latent cells along the side of a token
POSE_MODE = 4  # the number of poses in the union ControlNets of InstantX and Shakker Labs
COPIED = ("time_text_embed", "context_embedder", "x_embedder", "transformer_blocks", "single_transformer_blocks")


def as_tokens(latents: Tensor) -> Tensor:
    """``[B, c, h, w]`` to ``[B, h w / 4, 4 c]``: each token is a square of two by two cells."""
    return rearrange(latents, "b c (h p) (w q) -> b (h w) (c p q)", p=PATCH, q=PATCH)


def as_latents(tokens: Tensor, height: int) -> Tensor:
    """The inverse of `as_tokens`, for latents of ``height`` cells."""
    return rearrange(tokens, "b (h w) (c p q) -> b c (h p) (w q)", h=height // PATCH, p=PATCH, q=PATCH)


@lru_cache(maxsize=8)
def token_positions(height: int, width: int, words: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """``[N, 3]`` coordinates of the tokens of ``height`` by ``width`` cells, and those of the words, which are zero."""
    with torch.inference_mode(False):  # training may use them, too
        sides = (torch.arange(side // PATCH, dtype=torch.float32, device=device) for side in (height, width))
        zero = torch.zeros(1, device=device)
        return torch.cartesian_prod(zero, *sides), zero.expand(words, 3)


def flux_inputs(network: Any, latents: Tensor, timesteps: Tensor, text: Text, guidance: float) -> dict[str, Any]:
    """What FLUX's transformer and its ControlNets read; ``guidance`` enters those that were distilled from it."""
    image, words = token_positions(*latents.shape[-2:], text.tokens.shape[1], latents.device)
    distilled = torch.full((len(latents),), guidance, device=latents.device) if network.config.guidance_embeds else None
    return {
        "hidden_states": as_tokens(latents),
        "timestep": timesteps / 1000,
        "guidance": distilled,
        "pooled_projections": text.pooled,
        "encoder_hidden_states": text.tokens,
        "img_ids": image,
        "txt_ids": words,
        "return_dict": False,
    }


def controlnet_of(config: Mapping[str, Any], **size: Any) -> FluxControlNetModel:
    """diffusers' ControlNet for a transformer of this configuration, with another ``size``."""
    known = inspect.signature(FluxControlNetModel.__init__).parameters
    return FluxControlNetModel(**{key: value for key, value in {**config, **size}.items() if key in known})


def width_of(weights: Mapping[str, Tensor]) -> int | None:
    """The width of a ``FluxControlNetModel``; None of weights of another class."""
    embedder = weights.get("controlnet_x_embedder.weight")
    return None if embedder is None else len(embedder)


def other_width(there: int, here: int) -> str:
    """What is wrong with a ControlNet of width ``there`` on a transformer of width ``here``; empty if nothing is."""
    fix = "choose the backbone= (with its backbone.path=) that it was trained on"
    return "" if there == here else f"is {there} wide, and the backbone's transformer {here}; {fix}"


def released_form(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the weights of a ``FluxControlNetModel`` tell of its configuration."""
    zero = {"num_layers": "controlnet_blocks.", "num_single_layers": "controlnet_single_blocks."}
    blocks = {n: sum(key.startswith(z) and key.endswith(".weight") for key in weights) for n, z in zero.items()}
    guided = any(key.startswith("time_text_embed.guidance_embedder.") for key in weights)
    modes = weights.get("controlnet_mode_embedder.weight")
    return {**blocks, "guidance_embeds": guided, "num_mode": None if modes is None else len(modes)}


class FluxCopy(ControlBranch):
    """The first ``blocks`` of two streams and of one, and a zero layer behind each; the pose enters as latents beside
    the noisy ones.

    ``encode`` turns images in [-1, 1] into latents; it is the frozen autoencoder's and no part of the copy.
    ``guidance`` is that of the transformer. Union ControlNets, which read several kinds of hints, are told that this is
    a pose."""

    def __init__(
        self,
        transformer: FluxTransformer2DModel,
        blocks: tuple[int, int],
        encode: Callable[[Tensor], Tensor],
        guidance: float,
    ) -> None:
        super().__init__()
        size = dict(zip(("num_layers", "num_single_layers"), blocks, strict=True))
        self.network = controlnet_of(transformer.config, **size)
        for name in COPIED:
            getattr(self.network, name).load_state_dict(getattr(transformer, name).state_dict(), strict=False)
        self._encode, self._guidance = encode, guidance
        self.network.requires_grad_(True)
        self.network.train()

    @torch.no_grad()
    def hint_features(self, hint: Tensor) -> Tensor:
        """``[B, 3, H, W]`` in [0, 1] to latents ``[B, c, h, w]``."""
        return self._encode(2 * hint - 1)

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text: Text,
        hint: Tensor | None = None,
        conditions: Mapping[BlockPlace, Any] | None = None,
    ) -> Injection:
        assert hint is not None
        dtype = next(self.network.parameters()).dtype
        inputs = flux_inputs(self.network, latents.to(dtype), timesteps, text.to(dtype), self._guidance)
        mode = torch.full((len(latents), 1), POSE_MODE, device=latents.device) if self.network.union else None
        double, single = self.network(controlnet_cond=as_tokens(hint.to(dtype)), controlnet_mode=mode, **inputs)
        return Injection(blocks=double and tuple(double), single_blocks=single and tuple(single))

    def fit(self, weights: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> None:
        if (width := width_of(weights)) is None:
            return  # of another class, which `placed` tells
        old, found = self.network, released_form(weights)
        if problem := other_width(width, old.inner_dim):
            raise UserError(f"the ControlNet {problem}")
        if all(old.config[name] == value for name, value in found.items()):
            return
        weight = next(old.parameters())
        with torch.device("meta"):  # random weights would take minutes
            self.network = controlnet_of(old.config, **found)
        self.network.to_empty(device=weight.device)
        nn.Module.to(self.network, weight.dtype).requires_grad_(weight.requires_grad).train(old.training)
        if old.is_gradient_checkpointing:
            self.network.enable_gradient_checkpointing()

    def placed(self, official: Mapping[str, Tensor], beside: Iterable[str], method: str) -> dict[str, Tensor]:
        if unknown := official.keys() - self.network.state_dict().keys():
            raise UnknownKeys(unknown, method)
        return {f"network.{key}": value for key, value in official.items()}
