"""The transformer block that a method inserts before each of a U-Net's own, to read tokens of another image."""

from __future__ import annotations

from typing import Literal

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from posegen.backbones.blocks.self_attention import Memory, ReadingProcessor, Record

BlockKind = Literal["full", "cross_ff", "cross"]


def zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class InsertedBlock(nn.Module):
    """x + P_out(T(P_in(GN(x)), tokens)), where T is a transformer layer and P are 1x1 convolutions.

    The feature maps have ``width`` channels, the tokens that the cross-attention reads ``tokens``. T is self-attention,
    cross-attention and feed-forward (``full``), the last two (``cross_ff``), or cross-attention alone (``cross``);
    ``zero`` starts as the identity."""

    _supports_gradient_checkpointing = True  # as diffusers' blocks say it

    def __init__(
        self, width: int, tokens: int, kind: BlockKind = "full", heads: int = 8, groups: int = 32, zero: bool = True
    ) -> None:
        super().__init__()
        self.checkpointing = False
        self.norm, self.enter = nn.GroupNorm(groups, width, eps=1e-6), nn.Conv2d(width, width, 1)
        self.own, self.feed = kind == "full", kind != "cross"
        size = {"heads": heads, "dim_head": width // heads}
        if self.own:
            self.self_norm = nn.LayerNorm(width)
            self.self_attention = Attention(width, **size, processor=ReadingProcessor(AttnProcessor2_0()))
        self.cross_norm, self.cross_attention = nn.LayerNorm(width), Attention(width, tokens, **size)
        if self.feed:
            self.feed_norm, self.feed_forward = nn.LayerNorm(width), FeedForward(width, activation_fn="geglu")
        leave = nn.Conv2d(width, width, 1)
        self.leave = zeroed(leave) if zero else leave

    def enable_gradient_checkpointing(self) -> None:
        self.checkpointing = True

    def forward(self, x: Tensor, tokens: Tensor, memory: Memory | Record | None = None) -> Tensor:
        """``x [B, C, h, w]`` and ``tokens [B, N, S]`` to ``[B, C, h, w]``; the self-attention gets the ``memory``."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(self._forward, x, tokens, memory, use_reentrant=False)
        return self._forward(x, tokens, memory)

    def _forward(self, x: Tensor, tokens: Tensor, memory: Memory | Record | None) -> Tensor:
        h = self.enter(self.norm(x)).flatten(2).mT
        if self.own:
            h = h + self.self_attention(self.self_norm(h), **{} if memory is None else {"memory": memory})
        h = h + self.cross_attention(self.cross_norm(h), tokens.to(h.dtype))
        if self.feed:
            h = h + self.feed_forward(self.feed_norm(h))
        return x + self.leave(h.mT.unflatten(2, x.shape[-2:]))
