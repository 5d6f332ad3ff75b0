"""Words of a prompt whose embeddings train, beside a text tower that stays as it is (Gal et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from posegen.backbones.text import Text


class LearnedWords(nn.Module):
    """``embeddings [W, D]`` of new words; each starts as the last token of a text that stands for it.

    Neither the backbone's tokenizer nor its text tower changes: the words are known within a call alone.

    Args:
        backbone: with ``tokenizer``, ``text_encoder`` and ``encode_text``; no sub-module of this one.
        words: new word, for instance ``<left-wrist>``, -> the text that it starts from."""

    def __init__(self, backbone: Any, words: Mapping[str, str]) -> None:
        super().__init__()
        self.__dict__["backbone"], plain = backbone, backbone.tokenizer
        self.words, self.tokenizer = tuple(words), deepcopy(plain)
        if self.tokenizer.add_tokens(list(words)) != len(words):
            raise ValueError(f"some of the words {', '.join(words)} are tokens of the text tower already")
        self.first = self.tokenizer.convert_tokens_to_ids(self.words[0])
        table = backbone.text_encoder.get_input_embeddings().weight
        starts = [plain(text).input_ids[-2] for text in words.values()]  # before the mark of the end
        self.embeddings = nn.Parameter(table[starts].detach().clone())

    def forward(self, prompts: Sequence[str], length: int | None = None) -> tuple[Text, Tensor]:
        """The encoded prompts, and ``[B, L]`` the index of the word that each token is, -1 for the others.

        ``length`` is that of the text states, for prompts that are encoded in several chunks."""
        backbone, unique, seen = self.__dict__["backbone"], list(dict.fromkeys(prompts)), []

        def known(_table: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
            seen.append(inputs[0] - self.first)
            return (inputs[0].clamp(max=self.first - 1),)

        def spelled(_table: nn.Module, _inputs: Any, states: Tensor) -> Tensor:
            words = seen[-1].to(states.device)  # offloaded weights bring their inputs along
            return torch.where(words[..., None] < 0, states, self.embeddings.to(states)[words.clamp(min=0)])

        table, plain = backbone.text_encoder.get_input_embeddings(), backbone.tokenizer
        hooks = table.register_forward_pre_hook(known), table.register_forward_hook(spelled)
        backbone.tokenizer = self.tokenizer
        try:
            text = backbone.encode_text(unique, chunks=1 if length is None else length // backbone.max_length)
        finally:
            backbone.tokenizer = plain
            for hook in hooks:
                hook.remove()
        rows = [unique.index(prompt) for prompt in prompts]
        places = seen[0].to(text.tokens.device).reshape(len(unique), -1).clamp(min=-1)
        return text[rows], places[rows]
