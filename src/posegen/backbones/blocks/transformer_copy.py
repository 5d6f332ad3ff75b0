"""The trainable copy of a joint-attention transformer's first blocks, in diffusers' class."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import isqrt
from typing import Any

import torch
from diffusers import SD3ControlNetModel, SD3Transformer2DModel
from torch import Tensor, nn

from posegen.backbones.base import BlockPlace, ControlBranch, Injection
from posegen.backbones.blocks.flux_copy import other_width
from posegen.backbones.text import Text
from posegen.errors import UserError
from posegen.io.weights import UnknownKeys


class TransformerCopy(ControlBranch):
    """The first ``layers`` blocks and a zero layer behind each; the pose enters as latents beside the noisy ones.

    ``encode(images, shift=)`` turns images in [-1, 1] into latents; it is the frozen autoencoder's and no part of the
    copy. Released ones differ, see `fit`: those whose configuration has ``force_zeros_for_pooled_projection``, as
    InstantX's, read no pooled text and latents without a shift; those of Stable Diffusion 3.5 large read no text, and
    the transformer's tokens instead of latents."""

    def __init__(self, transformer: SD3Transformer2DModel, layers: int, encode: Callable[..., Tensor]) -> None:
        super().__init__()
        size = {"num_layers": layers, "extra_conditioning_channels": 0, "force_zeros_for_pooled_projection": False}
        # Not from_transformer, which writes the number of layers into the transformer's own configuration.
        self.network = network_of({**transformer.config, **size})
        for name in ("pos_embed", "time_text_embed", "context_embedder", "transformer_blocks"):
            getattr(self.network, name).load_state_dict(getattr(transformer, name).state_dict(), strict=False)
        self._encode, self._tokens = encode, lambda latents: transformer.pos_embed(latents)
        self.network.requires_grad_(True)
        self.network.train()

    def fit(self, weights: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> None:
        if (width := control_width(weights)) is None:
            return  # of another class, which `placed` tells
        own, found = self.network.config, form_of(weights, self.network.config)
        if problem := other_width(width, self.network.inner_dim):
            raise UserError(f"the ControlNet {problem}")
        if extra := found["extra_conditioning_channels"]:
            inputs = f"reads {extra} channels beside the drawing, as those for inpainting do"
            raise UserError(f"the ControlNet {inputs}; expected one that reads a picture alone")
        if shapes(weights) != shapes(self.network.state_dict()):
            before, self.network = self.network, network_of({**own, **found})
            if before.gradient_checkpointing:
                self.network.enable_gradient_checkpointing()
            weight = next(before.parameters())
            nn.Module.to(self.network, weight).requires_grad_(weight.requires_grad)
        # No weight tells how it reads pooled text and the drawing; diffusers' default is that of InstantX.
        said = config if config and config.get("_class_name") == type(self.network).__name__ else {}
        instantx = said.get("force_zeros_for_pooled_projection", found["joint_attention_dim"] is not None)
        self.network.register_to_config(force_zeros_for_pooled_projection=instantx)

    @torch.no_grad()
    def hint_features(self, hint: Tensor) -> Tensor:
        """``[B, 3, H, W]`` in [0, 1] to latents ``[B, c, h, w]``."""
        return self._encode(2 * hint - 1, shift=not self.network.config.force_zeros_for_pooled_projection)

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text: Text,
        hint: Tensor | None = None,
        conditions: Mapping[BlockPlace, Any] | None = None,
    ) -> Injection:
        config, dtype = self.network.config, next(self.network.parameters()).dtype
        text = text.to(dtype)
        pooled = text.pooled
        if config.force_zeros_for_pooled_projection and pooled is not None:
            pooled = torch.zeros_like(pooled)
        tokens = None if config.joint_attention_dim is None else text.tokens
        read = latents if config.use_pos_embed else self._tokens(latents)
        inputs = {"encoder_hidden_states": tokens, "pooled_projections": pooled, "timestep": timesteps}
        residuals = self.network(read.to(dtype), hint, **inputs, return_dict=False)[0]
        return Injection(blocks=tuple(residuals))

    def placed(self, official: Mapping[str, Tensor], beside: Iterable[str], method: str) -> dict[str, Tensor]:
        if unknown := official.keys() - self.network.state_dict().keys():
            raise UnknownKeys(unknown, method)
        return {f"network.{key}": value for key, value in official.items()}


def control_width(weights: Mapping[str, Tensor]) -> int | None:
    """The width of a ``SD3ControlNetModel``; None of weights of another class."""
    embedder = weights.get("pos_embed_input.proj.weight")
    return None if embedder is None else len(embedder)


def network_of(config: Mapping[str, Any]) -> SD3ControlNetModel:
    plain = {key: value for key, value in config.items() if not key.startswith("_")}  # _use_default_values undoes some
    return SD3ControlNetModel.from_config(plain)


def shapes(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in weights.items()}


def form_of(weights: Mapping[str, Tensor], like: Mapping[str, Any]) -> dict[str, Any]:
    """What the weights of a ``SD3ControlNetModel`` tell of its configuration; ``like`` is one of the same size."""
    layers = sum(key.startswith("controlnet_blocks.") and key.endswith(".weight") for key in weights)
    words, positions = weights.get("context_embedder.weight"), weights.get("pos_embed.pos_embed")
    patches, dual = weights.get("pos_embed_input.proj.weight"), "transformer_blocks.{}.attn2.to_q.weight"
    return {
        "num_layers": layers,
        "joint_attention_dim": None if words is None else words.shape[1],
        "use_pos_embed": "pos_embed.proj.weight" in weights,
        "pos_embed_type": None if positions is None else "sincos",
        "pos_embed_max_size": like["pos_embed_max_size"] if positions is None else isqrt(positions.shape[1]),
        "extra_conditioning_channels": 0 if patches is None else patches.shape[1] - like["in_channels"],
        "dual_attention_layers": tuple(i for i in range(layers) if dual.format(i) in weights),
        "qk_norm": "rms_norm" if "transformer_blocks.0.attn.norm_q.weight" in weights else None,
    }
