"""The parts of the mannequin backbone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CLIPTokenizer

from posegen.backbones.base import Injection
from posegen.backbones.mannequin import build_autoencoder, build_text, build_tokenizer, build_unet, untrained
from posegen.data.mannequin.captions import VOCABULARY

PROMPT = "photo of one person in the park : one running in red shirt and blue trousers"


@pytest.mark.parametrize(
    "words", [VOCABULARY, tuple(reversed(VOCABULARY)), ("aaaa", "aa", "a", "baaab", "kicking", "kin", "king", "ing")]
)
def test_every_word_is_one_token_in_whatever_order_it_is_given(words: tuple[str, ...]) -> None:
    tokenizer = build_tokenizer(words)
    ids = [tokenizer(word).input_ids for word in words]
    assert all(len(row) == 3 for row in ids) and len({row[1] for row in ids}) == len(words)
    assert tokenizer.decode(tokenizer(" ".join(words)).input_ids, skip_special_tokens=True) == " ".join(words)


def test_unknown_words_are_spelt(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(VOCABULARY)
    row = tokenizer("Zebra é 7").input_ids
    assert tokenizer.unk_token_id not in row[1:-1] and tokenizer.decode(row, skip_special_tokens=True) == "zebra é 7"


def test_a_saved_tokenizer_reads_the_same(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(VOCABULARY)
    tokenizer.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    assert again.model_max_length == 48
    assert again(PROMPT, padding="max_length").input_ids == tokenizer(PROMPT, padding="max_length").input_ids


def test_what_can_never_be_one_token_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not a single word.*'two words'"):
        build_tokenizer(("person", "two words"))


def test_the_longest_caption_fits() -> None:
    longest = "cartoon of three people in the street : " + " , ".join(
        ["one running in orange shirt and purple trousers"] * 3
    )
    assert len(build_tokenizer(VOCABULARY)(longest).input_ids) <= 48


def test_the_sizes_are_those_of_the_documentation() -> None:
    def count(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    assert count(build_unet()) == pytest.approx(4.1e6, rel=0.02)
    assert count(build_autoencoder()) == pytest.approx(0.5e6, rel=0.02)
    assert count(build_text(build_tokenizer(VOCABULARY))) < 0.2e6


def test_an_untrained_backbone_runs_on_a_trained_autoencoder(tmp_path: Path) -> None:
    build_autoencoder(width=16, stem=8, layers=1).save_pretrained(tmp_path)
    sd = untrained(str(tmp_path), VOCABULARY, channels=(16, 32), text_dim=16, heads=2)
    assert sd.recipe == "mannequin" and sd.process.prediction_type == "v_prediction" and sd.geometry.latent_factor == 4
    latents = sd.to_latents(torch.zeros(1, 3, 64, 64))
    text = sd.encode_text([PROMPT])
    assert text.tokens.shape == (1, 48, 16)
    assert sd.predict(latents, torch.tensor([5]), text, Injection()).shape == latents.shape
