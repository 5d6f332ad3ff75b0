"""Additions to the transformers of a U-Net: blocks before them, and keys and values of another pass.

`Junctions` opens a U-Net. The additions of a pass travel with the call, through diffusers' ``cross_attention_kwargs``,
and are kept on no module: a pass without additions is the plain U-Net, and gradient checkpointing repeats a pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from posegen.backbones.base import Injection

ADDITIONS = "additions"  # among the cross_attention_kwargs of a whole U-Net
MEMORY = "memory"  # among those of one transformer
INSERTED = "inserted."  # before the name of a transformer: the block in front of it
Record = list[tuple[Tensor, Tensor]]
PassRecords = dict[str, Record]
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Memory(NamedTuple):
    """Keys ``[R, M, C]`` and values for the images ``rows [R]`` (None: all), not for ``others [B - R]``; see `Bank`."""

    keys: Tensor
    values: Tensor
    rows: Tensor | None
    others: Tensor | None
    strength: float


class ReadingProcessor:
    """A self-attention that can read a `Memory`, or record its keys and values; otherwise the processor it replaces."""

    def __init__(self, plain: Any) -> None:
        self.plain = plain

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        memory: Memory | Record | None = None,
    ) -> Tensor:
        if memory is None:
            return self.plain(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        query, keys, values = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        if isinstance(memory, Memory):
            made = attend_with_memory(query, keys, values, attn.heads, memory)
        else:
            memory.append((keys, values))
            made = attended(query, keys, values, attn.heads)
        for layer in attn.to_out:
            made = layer(made)
        return made


def attended(query: Tensor, keys: Tensor, values: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """Fused attention of ``[B, N, C]`` tokens that are not yet divided into heads."""
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, keys, values))
    return F.scaled_dot_product_attention(q, k, v, bias).transpose(1, 2).flatten(2).to(query.dtype)


def attend_with_memory(query: Tensor, keys: Tensor, values: Tensor, heads: int, memory: Memory) -> Tensor:
    """Attention to ``[K; K'], [V; V']`` in the rows of the memory and to ``K, V`` in the others, in two fused calls."""
    if memory.rows is None:
        k = torch.cat([keys, memory.keys.to(keys.dtype)], dim=1)
        v = torch.cat([values, memory.values.to(values.dtype)], dim=1)
        bias = None  # for a strength of 1, because a bias is slower
        if memory.strength != 1:  # log(strength) in the logits of the memory's keys
            bias = query.new_zeros(k.shape[1])
            bias[keys.shape[1] :] = math.log(memory.strength)
            bias = bias.expand(query.shape[1], -1)
        return attended(query, k, v, heads, bias)
    q, k, v = (part.index_select(0, memory.rows) for part in (query, keys, values))
    reading = attend_with_memory(q, k, v, heads, memory._replace(rows=None))
    made = query.new_empty(query.shape).index_copy(0, memory.rows, reading)
    q, k, v = (part.index_select(0, memory.others) for part in (query, keys, values))
    return made.index_copy(0, memory.others, attended(q, k, v, heads))


@dataclass(frozen=True, eq=False)
class Additions:
    """The additions of one pass; ``others`` are not among its ``rows``, ``record`` takes the keys and values."""

    injection: Injection
    others: Tensor | None = None
    record: PassRecords | None = None

    def memory(self, layer: str) -> Memory | Record | None:
        """The memory of the self-attention of this name."""
        if self.record is not None:
            return self.record.setdefault(layer, [])
        bank = self.injection.attention
        if bank is None or layer not in bank.layers:
            return None
        return Memory(*bank.layers[layer], self.injection.rows, self.others, bank.strength)

    def through(self, block: nn.Module, x: Tensor, tokens: Tensor, layer: str) -> Tensor:
        """``x [B, C, h, w]`` after an inserted block; the images that have no features pass it by."""
        memory, rows = self.memory(layer), self.injection.rows
        if rows is None:
            return block(x, tokens, memory)
        memory = memory._replace(rows=None) if isinstance(memory, Memory) else memory
        return x.index_copy(0, rows, block(x.index_select(0, rows), tokens, memory).to(x.dtype))


def additions(unet: nn.Module, injection: Injection, batch: int, record: PassRecords | None = None) -> dict | None:
    """``cross_attention_kwargs`` of a pass over ``batch`` images; None where nothing is added or written down."""
    if injection.attention is None and injection.features is None and record is None:
        return None
    if not is_open(unet):
        needed = "Injection.attention and Injection.features need a U-Net that Adapter.attach opened"
        raise TypeError(f"{needed}: Junctions(backbone.unet, blocks)")
    return {ADDITIONS: Additions(injection, None if injection.rows is None else others(injection.rows, batch), record)}


def others(rows: Tensor, batch: int) -> Tensor:
    """``[B - R]`` the numbers below ``batch`` that are not among ``rows [R]``, without waiting for the device."""
    absent = torch.ones(batch, dtype=torch.uint8, device=rows.device).index_fill(0, rows, 0)
    return absent.argsort(descending=True, stable=True)[: batch - len(rows)]


def transformers(unet: nn.Module) -> dict[str, Transformer2DModel]:
    """The transformers of a U-Net by name, in the order in which they run."""
    found = {}
    for part in ("down_blocks", "mid_block", "up_blocks"):
        modules = unet.get_submodule(part).named_modules(prefix=part)
        found |= {name: m for name, m in modules if isinstance(m, Transformer2DModel)}
    return found


def level_of(transformer: str, levels: int) -> int:
    """The level of a U-Net on whose grid a transformer works, from its name."""
    part, number = transformer.split(".")[:2]
    if part == "mid_block":
        return levels - 1
    return int(number) if part == "down_blocks" else levels - 1 - int(number)


def is_open(unet: nn.Module) -> bool:
    return any(isinstance(getattr(m, "processor", None), ReadingProcessor) for m in unet.modules())


class Junctions:
    """Opens a U-Net for banks and for blocks before its transformers, until `remove`.

    The blocks stay their owner's: neither the names nor the number of the U-Net's weights change.

    ``blocks`` are modules ``(x [R, C, h, w], tokens [R, N, S], memory) -> [R, C, h, w]``, one for each transformer in
    the order of `transformers`, or none; a ValueError for another number, or where the U-Net is open already, and a
    TypeError where a transformer has several layers, which no Stable Diffusion 1 or 2 has."""

    def __init__(self, unet: nn.Module, blocks: Sequence[nn.Module] = ()) -> None:
        places = transformers(unet)
        if is_open(unet):
            raise ValueError("this U-Net is open already; a backbone takes one method at a time")
        if len(blocks) not in (0, len(places)):
            raise ValueError(f"{len(blocks)} blocks for {len(places)} transformers; expected one for each")
        self._hooks: list[RemovableHandle] = []
        self._attentions: list[Attention] = []
        for index, (name, transformer) in enumerate(places.items()):
            if (layers := len(transformer.transformer_blocks)) != 1:
                raise TypeError(f"{name} has {layers} layers; expected one, as in Stable Diffusion 1 and 2")
            (layer,) = transformer.transformer_blocks
            layer.attn1.set_processor(ReadingProcessor(layer.attn1.processor))
            self._attentions.append(layer.attn1)
            before = Junction(name, index, blocks[index] if blocks else None)
            for module, hook in ((transformer, before), (layer.attn2, _without_memory)):
                self._hooks.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def remove(self) -> None:
        """The plain U-Net again."""
        for hook in self._hooks:
            hook.remove()
        for attention in self._attentions:
            attention.set_processor(attention.processor.plain)
        self._hooks, self._attentions = [], []


@dataclass(frozen=True, eq=False)
class Junction:
    """Runs before one transformer: applies the inserted block to its input and hands its self-attention the memory."""

    name: str
    index: int
    block: nn.Module | None

    def __call__(self, _transformer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Arguments | None:
        added: Additions | None = (named.get("cross_attention_kwargs") or {}).get(ADDITIONS)
        if added is None:
            return None
        x, *rest = inputs
        if self.block is not None and added.injection.features is not None:
            x = added.through(self.block, x, added.injection.features[self.index], INSERTED + self.name)
        memory = added.memory(self.name)
        others = {name: value for name, value in named["cross_attention_kwargs"].items() if name != ADDITIONS}
        return (x, *rest), {**named, "cross_attention_kwargs": others | ({} if memory is None else {MEMORY: memory})}


def _without_memory(_attention: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Arguments:
    """Cross-attention gets the self-attention's arguments and warns about unknown ones."""
    return inputs, {name: value for name, value in named.items() if name != MEMORY}
