"""Encoded prompts as one value: rows, null prompts, and parts that only some backbones have."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from posegen.backbones.text import Text


def text(start: float = 0.0) -> Text:
    tokens = torch.arange(12.0).view(2, 3, 2) + start
    return Text(tokens, tokens[:, 0], torch.tensor([[True, True, False], [True, False, False]]))


def test_every_part_follows_the_rows() -> None:
    both = Text.cat([text(), text(100)])
    assert len(both) == 4 and both.pooled is not None and both.mask is not None
    picked = both[torch.tensor([3, 0])]
    assert torch.equal(picked.tokens, both.tokens[[3, 0]]) and torch.equal(picked.pooled, both.pooled[[3, 0]])  # type: ignore[arg-type]
    assert torch.equal(text()[:1].expand(2).mask, text().mask[[0, 0]])  # type: ignore[arg-type, index]
    assert torch.equal(text().repeat(2).tokens, text().tokens[[0, 0, 1, 1]])


def test_the_null_prompt_replaces_every_part() -> None:
    kept = text().keep(torch.tensor([True, False]), text(100))
    assert torch.equal(kept.tokens, torch.stack([text().tokens[0], text(100).tokens[1]]))
    assert torch.equal(kept.pooled, torch.stack([text().pooled[0], text(100).pooled[1]]))  # type: ignore[index]


def test_the_mask_stays_boolean_in_another_precision() -> None:
    half = text().to(torch.float16)
    assert half.tokens.dtype == half.pooled.dtype == torch.float16 and half.mask.dtype == torch.bool  # type: ignore[union-attr]


def test_texts_of_different_towers_do_not_mix() -> None:
    with pytest.raises(ValueError, match="some of 2 texts have pooled and some do not"):
        Text.cat([text(), Text(text().tokens)])


def test_sizes_belong_to_the_image_and_are_by_default_those_of_a_whole_one() -> None:
    sizes = torch.tensor([[1023.0, 769.0, 3.0, 5.0, 512.0, 512.0], [64.0, 96.0, 0.0, 0.0, 64.0, 96.0]])
    sized, latents = replace(text(), sizes=sizes), torch.zeros(2, 4, 8, 12)
    for kept in (sized.keep(torch.tensor([True, False]), replace(text(100), sizes=sizes)), sized.to(torch.bfloat16)):
        assert torch.equal(kept.sizes_for(latents, 8), sizes)  # exact in any precision
    assert torch.equal(Text.cat([sized, sized[[1, 0]]]).sizes, sizes[[0, 1, 1, 0]])  # type: ignore[arg-type]
    assert torch.equal(sized[1:].repeat(2).sizes, sized[1:].expand(2).sizes)  # type: ignore[arg-type]
    assert text().sizes_for(latents, 8).tolist() == [[64, 96, 0, 0, 64, 96]] * 2
