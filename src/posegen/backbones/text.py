"""Encoded prompts as one value, whatever the number of text towers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Text:
    """Encoded prompts of B images."""

    tokens: Tensor  # ``[B, L, D]`` states for cross-attention or joint attention
    pooled: Tensor | None = None  # ``[B, P]`` one vector per prompt
    mask: Tensor | None = None  # ``[B, L] bool`` true for the tokens that count; None: all of them
    sizes: Tensor | None = None  # ``[B, 6]`` of the images, in pixels, see `sizes_for`; None: they are whole

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: Any) -> Text:
        """The prompts at ``rows``: a slice, a list or a tensor of indices."""
        return self._each(lambda values: values[rows])

    def expand(self, count: int) -> Text:
        """One prompt for ``count`` images."""
        return self._each(lambda values: values.expand(count, *values.shape[1:]))

    def repeat(self, times: int) -> Text:
        """Each prompt ``times`` times in a row."""
        return self._each(lambda values: values.repeat_interleave(times, 0))

    def keep(self, keep: Tensor, null: Text) -> Text:
        """These prompts where ``keep [B]`` is true, those of ``null`` elsewhere."""
        return self._pairwise(lambda a, b: torch.where(keep.view(-1, *[1] * (a.ndim - 1)), a, b), [self, null])

    def to(self, *args: Any, **kwargs: Any) -> Text:
        """As ``Tensor.to``; the mask stays boolean, and the sizes keep their precision."""
        moved = self._each(lambda values: values.to(*args, **kwargs))
        place = {"device": moved.tokens.device, "non_blocking": kwargs.get("non_blocking", False)}
        mask, sizes = (None if part is None else part.to(**place) for part in (self.mask, self.sizes))
        return Text(moved.tokens, moved.pooled, mask, sizes)

    def sizes_for(self, latents: Tensor, factor: int) -> Tensor:
        """``[B, 6]`` original height and width, top and left of the cut, target height and width of the images.

        By default those of images that are used whole at the size of ``latents [B, c, h, w]`` of ``factor`` pixels."""
        if self.sizes is not None:
            return self.sizes
        whole = torch.zeros(len(latents), 6, device=latents.device)
        whole[:, ::4], whole[:, 1::4] = factor * latents.shape[-2], factor * latents.shape[-1]
        return whole

    def beside(self, latents: Tensor, factor: int) -> dict[str, Tensor]:
        """What Stable Diffusion XL reads beside the tokens, by diffusers' names; see `sizes_for`."""
        assert self.pooled is not None
        return {"text_embeds": self.pooled, "time_ids": self.sizes_for(latents, factor)}

    @staticmethod
    def cat(texts: Sequence[Text]) -> Text:
        """All prompts, one text after another."""
        return Text._pairwise(lambda *values: torch.cat(values), texts)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Text:
        parts = (self.tokens, self.pooled, self.mask, self.sizes)
        return Text(*(None if part is None else change(part) for part in parts))  # type: ignore[arg-type]

    @staticmethod
    def _pairwise(combine: Callable[..., Tensor], texts: Sequence[Text]) -> Text:
        """Combines the same part of several texts, which all or none of them have."""
        columns = zip(*((text.tokens, text.pooled, text.mask, text.sizes) for text in texts), strict=True)
        combined = []
        for name, parts in zip(("tokens", "pooled", "mask", "sizes"), columns, strict=True):
            if len({part is None for part in parts}) > 1:
                mixed = f"some of {len(texts)} texts have {name} and some do not"
                raise ValueError(f"{mixed}; encode all with one backbone")
            combined.append(None if parts[0] is None else combine(*parts))
        return Text(*combined)  # type: ignore[arg-type]


def longer_prompts(tokenizer: Any, limit: int, prompts: Sequence[str]) -> dict[str, list[int]]:
    """The different prompts with more than the ``limit`` tokens that a text tower reads, and their tokens."""
    unique = [prompt for prompt in dict.fromkeys(prompts) if len(prompt.encode()) + 2 > limit]  # a token has a byte
    read = tokenizer(unique, truncation=False, verbose=False).input_ids if unique else []
    return {prompt: ids for prompt, ids in zip(unique, read, strict=True) if len(ids) > limit}


def count_chunks(tokenizer: Any, limit: int, prompts: Sequence[str]) -> int:
    """The number of chunks of ``limit`` tokens, with two marks each, that the longest prompt needs; at least 1."""
    longest = max(map(len, longer_prompts(tokenizer, limit, prompts).values()), default=limit)
    return -(-(longest - 2) // (limit - 2))


def text_chunks(tokenizer: Any, limit: int, prompts: Sequence[str], chunks: int) -> list[list[int]]:
    """The tokens of the prompts, ``chunks`` lists for each, in order: at most ``limit - 2`` between the two marks.

    What a prompt does not need is an empty chunk, as in the programs that brought long prompts to this text tower.
    """
    every, size = [], limit - 2
    for start, *ids, end in tokenizer(list(prompts), truncation=False, verbose=False).input_ids:
        every += [[start, *ids[i * size : (i + 1) * size], end] for i in range(chunks)]
    return every


def cut_note(tokenizer: Any, limit: int, prompts: Sequence[str]) -> str:
    """A sentence on the prompts that have more than the ``limit`` tokens that a text tower reads; empty without any."""
    cut = {prompt: ids[limit - 1 : -1] for prompt, ids in longer_prompts(tokenizer, limit, prompts).items()}
    if not cut:
        return ""
    prompt, unread = next(iter(cut.items()))
    count, end = sum(each in cut for each in prompts), tokenizer.decode(unread).strip()
    many = f"{count} of {len(prompts)} prompts are" if len(prompts) > 1 else "the prompt is"
    shown = f"{end[:80]!r}..." if len(end) > 80 else repr(end)
    first = f" of {prompt[:30]!r}..." if len(cut) > 1 else ""
    read = f"longer than the {limit} tokens that the text tower reads, with its two marks"
    return f"{many} {read}; the last {len(unread)} tokens{first} are cut: {shown}"
