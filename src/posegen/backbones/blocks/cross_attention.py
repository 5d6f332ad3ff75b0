"""Tokens that the cross-attentions of a U-Net read beside the text, with keys and values of their own.

They travel with the call, through diffusers' ``cross_attention_kwargs``, and are kept on no module: a pass without them
is the plain U-Net, and gradient checkpointing repeats a pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from posegen.backbones.base import Context
from posegen.backbones.blocks.self_attention import attended

CONTEXT = "context"  # among the cross_attention_kwargs
SECOND = "attn2"  # diffusers' name of the cross-attention in a transformer block


class ContextProcessor:
    """A cross-attention that can read `Context`; without any it is the processor that it replaces.

    With query q, text keys and values K, V and those of a context K', V' of strength s, the output layer gets
    A(q, K, V) + s A(q, K', V'), the decoupled cross-attention of IP-Adapter (Ye et al. 2023, equation 5)."""

    def __init__(self, name: str, plain: Any) -> None:
        self.name, self.plain = name, plain

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        context: Sequence[Context] = (),
    ) -> Tensor:
        here = [each for each in context if self.name in each.layers and each.strength]
        if not here:
            return self.plain(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        assert encoder_hidden_states is not None
        query, (batch, length, _) = attn.to_q(hidden_states), encoder_hidden_states.shape
        if attention_mask is not None:
            mask = attn.prepare_attention_mask(attention_mask, length, batch)
            attention_mask = mask.unflatten(0, (batch, attn.heads))
        keys, values = attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
        made = attended(query, keys, values, attn.heads, attention_mask)
        for each in here:
            keys, values = (part.to(query.dtype) for part in each.layers[self.name])
            made = made + each.strength * attended(query, keys, values, attn.heads)
        for layer in attn.to_out:
            made = layer(made)
        return made


def cross_attentions(unet: nn.Module) -> dict[str, Attention]:
    """The cross-attentions of a U-Net by name, in the order of its modules, which diffusers' numbers count."""
    blocks = ((name, m) for name, m in unet.named_modules() if isinstance(m, BasicTransformerBlock))
    return {f"{name}.{SECOND}": block.attn2 for name, block in blocks if block.attn2 is not None}


def context_arguments(unet: nn.Module, context: Sequence[Context]) -> dict[str, Any]:
    """``cross_attention_kwargs`` of a pass with this context; opens the U-Net for it, once.

    A ValueError names a layer that the U-Net does not have."""
    for name in {name for each in context for name in each.layers}:
        block, _, part = name.rpartition(".")
        try:
            layer, owner = unet.get_submodule(name), unet.get_submodule(block)
        except AttributeError:
            raise ValueError(f"Injection.context is for {name}, which this backbone does not have") from None
        if part != SECOND or not isinstance(owner, BasicTransformerBlock):
            raise ValueError(f"Injection.context is for {name}, which is no cross-attention of this backbone")
        if not isinstance(layer.processor, ContextProcessor):
            layer.set_processor(ContextProcessor(name, layer.processor))
            owner.attn1.register_forward_pre_hook(without_context, with_kwargs=True)
    return {CONTEXT: tuple(context)} if context else {}


def without_context(_attention: nn.Module, inputs: Any, named: dict[str, Any]) -> Any:
    """The self-attention gets the cross-attention's arguments and warns about unknown ones."""
    return inputs, {name: value for name, value in named.items() if name != CONTEXT}
