"""CLIP tokenizers made of a list of merges."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

from transformers import CLIPTokenizer

from posegen.io.weights import WeightsError

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
CONTEXT = 77
CLIP_MERGES = 48894  # of the file, the number that CLIP was trained with

Merge = tuple[str, str]


def tokenizer_of(merges: Sequence[Merge], max_length: int) -> CLIPTokenizer:
    """The tokenizer of all bytes, all bytes that end a word, ``merges``, and the marks; a ValueError for no bytes."""
    # Printable characters of the 256 bytes, in the order of their token ids in GPT-2 and CLIP.
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    symbols = [chr(byte) for byte in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    tokens = [*symbols, *(s + WORD_END for s in symbols), *("".join(pair) for pair in merges), START, END]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if strange := [pair for pair in merges if not set(pair) <= vocabulary.keys()]:
        raise ValueError(f"no merge of bytes: {strange[0]}")
    return CLIPTokenizer(vocab=vocabulary, merges=list(merges), model_max_length=max_length)


def clip_tokenizer(pad: str = END) -> CLIPTokenizer:
    """The tokenizer of CLIP and OpenCLIP, from open_clip's vocabulary; SD1 pads with the end mark, SD2 with ``!``."""
    package = find_spec("open_clip")  # does not import it
    if package is None or package.origin is None:
        fix = "install the package that has CLIP's vocabulary: pip install open_clip_torch"
        raise WeightsError(f"an original single file brings no tokenizer; {fix}")
    vocabulary = Path(package.origin).parent / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(vocabulary.read_bytes()).decode().split("\n")
    merges = [(first, second) for first, second in (line.split() for line in lines[1 : CLIP_MERGES + 1])]
    tokenizer = tokenizer_of(merges, CONTEXT)
    tokenizer.pad_token = pad  # only now: as an argument it would be cut out of the prompts before they are read
    return tokenizer


def merges_of(words: Iterable[str]) -> list[Merge]:
    """Merges with which each of ``words`` becomes one token.

    A word's first two pieces under the merges so far are joined until one is left; later merges change no earlier word.
    """
    ranks: dict[Merge, int] = {}
    for word in words:
        letters = [*word[:-1], word[-1] + WORD_END]
        while len(pieces := _read(letters, ranks)) > 1:
            ranks[pieces[0], pieces[1]] = len(ranks)
    return list(ranks)


def _read(pieces: list[str], ranks: dict[Merge, int]) -> list[str]:
    """Byte-pair encoding: joins the pair of the lowest rank until none is known."""
    while known := [(ranks[pair], i) for i, pair in enumerate(pairwise(pieces)) if pair in ranks]:
        _, i = min(known)
        pieces = [*pieces[:i], pieces[i] + pieces[i + 1], *pieces[i + 2 :]]
    return pieces
