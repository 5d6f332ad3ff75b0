"""Words of a prompt whose embeddings train, beside text towers that stay as they are (Gal et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from posegen.backbones.loading.layout import tokenizer_folder
from posegen.backbones.text import Text


class LearnedWords(nn.Module):
    """``embeddings[tower] [W, D]`` of new words; each starts as the last token of a text that stands for it.

    Neither tokenizers nor text towers of the backbone change: the words are known within a call alone.

    Args:
        backbone: a `LatentDiffusion`; no sub-module of this one.
        words: new word, for instance ``<left-wrist>``, -> the text that it starts from."""

    def __init__(self, backbone: Any, words: Mapping[str, str]) -> None:
        super().__init__()
        self.__dict__["backbone"], self.words = backbone, tuple(words)
        self.tokenizers, self.embeddings = deepcopy(backbone.tokenizers), nn.ParameterDict()
        for name, tower in zip(backbone.tower_names, backbone.towers, strict=True):
            starts = [self.tokenizers[name](text).input_ids[-2] for text in words.values()]  # before the end's mark
            if self.tokenizers[name].add_tokens(list(words)) != len(words):
                raise ValueError(f"some of the words {', '.join(words)} are tokens of {name} already")
            self.embeddings[name] = nn.Parameter(tower.get_input_embeddings().weight[starts].detach().clone())

    def forward(self, prompts: Sequence[str], length: int | None = None) -> tuple[Text, Tensor]:
        """The encoded prompts, and ``[B, L]`` the index of the word that each token is, -1 for the others.

        ``length`` is that of the text states, for prompts that are encoded in several chunks."""
        backbone, unique, seen = self.__dict__["backbone"], list(dict.fromkeys(prompts)), list[Tensor]()
        with ExitStack() as towers:
            for name in backbone.tower_names:
                towers.enter_context(self.known(name, seen))
            text = backbone.encode_text(unique, chunks=1 if length is None else length // backbone.max_length)
        rows = [unique.index(prompt) for prompt in prompts]
        places = seen[0].to(text.tokens.device).reshape(len(unique), -1).clamp(min=-1)
        return text[rows], places[rows]

    @contextmanager
    def known(self, name: str, seen: list[Tensor]) -> Iterator[None]:
        """Within the context a tower reads the words; what it reads is appended to ``seen``, negative where no word."""
        backbone, place = self.__dict__["backbone"], tokenizer_folder(name)
        first = len(self.tokenizers[name]) - len(self.words)  # token of the first word
        table, plain = getattr(backbone, name).get_input_embeddings(), getattr(backbone, place)

        def find(_table: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
            seen.append(inputs[0] - first)
            return (inputs[0].clamp(max=first - 1),)

        def spell(_table: nn.Module, _inputs: Any, states: Tensor) -> Tensor:
            words = seen[-1].to(states.device)  # offloaded weights bring their inputs along
            spelled = self.embeddings[name].to(states)[words.clamp(min=0)]
            return torch.where(words[..., None] < 0, states, spelled)

        hooks = table.register_forward_pre_hook(find), table.register_forward_hook(spell)
        setattr(backbone, place, self.tokenizers[name])
        try:
            yield
        finally:
            setattr(backbone, place, plain)
            for hook in hooks:
                hook.remove()
