"""The trainable copy of a joint-attention transformer's first blocks, in diffusers' class."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from diffusers import SD3ControlNetModel, SD3Transformer2DModel
from torch import Tensor

from posegen.backbones.base import BlockPlace, ControlBranch, Injection
from posegen.backbones.text import Text
from posegen.io.weights import UnknownKeys


class TransformerCopy(ControlBranch):
    """The first ``layers`` blocks and a zero layer behind each; the pose enters as latents beside the noisy ones.

    ``encode(images, shift=)`` turns images in [-1, 1] into latents; it is the frozen autoencoder's and no part of the
    copy. Those whose configuration has ``force_zeros_for_pooled_projection``, as those of InstantX, read no pooled text
    and latents without a shift."""

    def __init__(self, transformer: SD3Transformer2DModel, layers: int, encode: Callable[..., Tensor]) -> None:
        super().__init__()
        size = {"num_layers": layers, "extra_conditioning_channels": 0, "force_zeros_for_pooled_projection": False}
        # Not from_transformer, which writes the number of layers into the transformer's own configuration.
        self.network = SD3ControlNetModel.from_config({**transformer.config, **size})
        for name in ("pos_embed", "time_text_embed", "context_embedder", "transformer_blocks"):
            getattr(self.network, name).load_state_dict(getattr(transformer, name).state_dict(), strict=False)
        self._encode = encode
        self.network.requires_grad_(True)
        self.network.train()

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
        config, pooled = self.network.config, text.pooled
        if config.force_zeros_for_pooled_projection and pooled is not None:
            pooled = torch.zeros_like(pooled)
        tokens = None if config.joint_attention_dim is None else text.tokens
        inputs = {"encoder_hidden_states": tokens, "pooled_projections": pooled, "timestep": timesteps}
        residuals = self.network(latents, hint, **inputs, return_dict=False)[0]
        return Injection(blocks=tuple(residuals))

    def placed(self, official: Mapping[str, Tensor], beside: Iterable[str], method: str) -> dict[str, Tensor]:
        if unknown := official.keys() - self.network.state_dict().keys():
            raise UnknownKeys(unknown, method)
        return {f"network.{key}": value for key, value in official.items()}
