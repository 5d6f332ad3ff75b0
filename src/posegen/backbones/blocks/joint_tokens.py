"""Tokens of a picture in the joint attention of a transformer, beside those of image and text (Tan et al. 2024).

They travel with the call, through diffusers' ``joint_attention_kwargs``, and are kept on no module: a pass without them
is the plain transformer, and gradient checkpointing repeats a pass.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from posegen.backbones.blocks.low_rank import LowRank
from posegen.backbones.text import Text

TOKENS = "tokens"  # among the joint_attention_kwargs
BLOCKS = "transformer_blocks", "single_transformer_blocks"  # in their order; not every transformer has the second
KeysValues = tuple[Tensor, Tensor]  # ``[B, H, N, D]`` each
#: (network, latents, text) -> the tokens ``[B, N, C]`` of clean latents, and what else the network's blocks read.
Embed = Callable[[Any, Tensor, Text], tuple[Tensor, dict[str, Any]]]


class TokenBranch(LowRank):
    """The low-rank weights of the tokens: they pass the transformer's layers with these, image and text without.

    Of the last block only keys and values are read, so the layers behind them have no low-rank weights.

    Args:
        transformer: as the network of `LowRank`; its attentions learn to read the tokens.
        embed: its embedding of clean latents and of the time 0.
    """

    def __init__(self, transformer: nn.Module, embed: Embed, targets: Sequence[str], rank: int, alpha: float) -> None:
        blocks = [f"{kind}.{i}" for kind in BLOCKS for i in range(len(getattr(transformer, kind, ())))]
        behind, ends = rf"{re.escape(blocks[-1])}\.(?!norm|attn\.to_[kv]$).*", tuple(targets)
        super().__init__(transformer, targets, rank, alpha, left_out=f"{behind}|proj_out")
        self.unread = [n for n, _ in transformer.named_modules() if re.fullmatch(behind, n) and n.endswith(ends)]
        self.embed, self.blocks = embed, blocks
        for index, block in enumerate(map(transformer.get_submodule, blocks)):
            for attention, at in ((block.attn, index), (getattr(block, "attn2", None), None)):
                if attention is not None and not isinstance(attention.processor, JoiningProcessor):
                    attention.set_processor(JoiningProcessor(at, attention.processor))

    def start(self, latents: Tensor, text: Text, independent: bool) -> TokenPass:
        """The tokens of clean ``latents [B, c, h, w]`` at the positions of the image, before the first block."""
        return TokenPass(self, latents, text, independent)


class TokenPass:
    """The tokens of one picture for each image, on their way through the blocks beside a pass of the transformer.

    ``independent`` tokens see themselves alone. Then, where nothing trains, further passes read the same keys and
    values again; others belong to one pass."""

    def __init__(self, branch: TokenBranch, latents: Tensor, text: Text, independent: bool) -> None:
        network = branch.inner
        tokens, self.form = branch.embed(network, latents, text)
        self.blocks, self.independent = [network.get_submodule(name) for name in branch.blocks], independent
        self.no_text, self.states = tokens[:, :0], {0: tokens}
        self.kept: dict[int, KeysValues] = {}

    def beside(self, index: int, keys: Tensor, values: Tensor) -> KeysValues:
        """The tokens' keys and values in a block, given those of text and image; takes the tokens to the next block."""
        if index in self.kept:
            return self.kept[index]
        own: list[KeysValues] = []

        def seen(k: Tensor, v: Tensor) -> KeysValues:
            own.append((k, v))
            if self.independent or len(own) > 1:  # a second attention of the block is among one picture's tokens
                return k, v
            return torch.cat([k, keys], 2), torch.cat([v, values], 2)

        trains, states = torch.is_grad_enabled(), self.states
        with ChangedAttention(seen):
            _, states[index + 1] = self.blocks[index](states[index], self.no_text, **self.form)
        if not trains:  # else a checkpointed block asks again
            del states[index]
            if self.independent:
                self.kept[index] = own[0]
        return own[0]


class JoiningProcessor:
    """A joint attention that can read the tokens of `TokenPass`; without any it is the processor that it replaces.

    The ``index`` is that of the block, None for attentions that do not read them."""

    def __init__(self, index: int | None, plain: Any) -> None:
        self.index, self.plain = index, plain

    def __call__(self, attn: nn.Module, *inputs: Any, tokens: Sequence[TokenPass] = (), **named: Any) -> Any:
        index = self.index
        if not tokens or index is None:
            return self.plain(attn, *inputs, **named)

        def joined(keys: Tensor, values: Tensor) -> KeysValues:
            others = [each.beside(index, keys, values) for each in tokens]  # which do not see one another
            return torch.cat([keys, *(k for k, _ in others)], 2), torch.cat([values, *(v for _, v in others)], 2)

        with ChangedAttention(joined):
            return self.plain(attn, *inputs, **named)


class ChangedAttention(TorchFunctionMode):
    """Within the context, torch's attention reads what ``change`` makes of its keys and values."""

    def __init__(self, change: Callable[[Tensor, Tensor], KeysValues]) -> None:
        super().__init__()
        self.change = change

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        named = {**dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)), **(kwargs or {})}
        named["key"], named["value"] = self.change(named["key"], named["value"])
        return func(**named)


def token_arguments(tokens: Sequence[Any]) -> dict[str, Any]:
    """Arguments of a transformer of diffusers for a pass that reads these tokens."""
    return {"joint_attention_kwargs": {TOKENS: tuple(tokens)}} if tokens else {}
