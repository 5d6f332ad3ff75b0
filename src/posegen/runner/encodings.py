"""Encodings of a whole split, computed once and kept: latents and text states."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from posegen.backbones.base import Backbone
from posegen.backbones.text import Text
from posegen.data.base import PoseData
from posegen.errors import UserError
from posegen.io.atomic import replacing, write_text
from posegen.io.hashes import sha256_of, value_hash
from posegen.io.locks import locked
from posegen.runner.progress import Mode, Progress

SHARD = 1000


class Encoded:
    """Arrays of one split in files of `SHARD` rows, read through memory maps.

    The name of ``folder`` holds a hash of everything they depend on; ``part`` names an array beside the main one. Each
    shard has a file with the hash of its arrays, which are read for it once and whenever they have changed.
    """

    def __init__(self, folder: Path, count: int, part: str = "") -> None:
        self.folder, self.count, self.part = folder, count, part
        self._shards: dict[int, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_shards": {}}  # another process maps the files anew

    def __getitem__(self, index: int) -> np.ndarray:
        shard, row = divmod(index, SHARD)
        if shard not in self._shards:
            self._shards[shard] = np.load(self.path(shard), mmap_mode="r", allow_pickle=False)
        return self._shards[shard][row]

    def path(self, shard: int, part: str = "") -> Path:
        return self.folder / ".".join([f"{shard:05d}", *filter(None, [part or self.part]), "npy"])

    def beside(self, part: str) -> Encoded | None:
        """The array of this name, None where the split has none."""
        return Encoded(self.folder, self.count, part) if self.path(0, part).is_file() else None

    def fill(self, encode: Callable[[range], Mapping[str, np.ndarray]], stage: str, mode: Mode) -> Encoded:
        """Computes the missing shards; ``encode`` gives the arrays of rows by part, the main one's name is empty.

        Processes that need the same shards at the same time share the work."""
        missing = [range(s, min(s + SHARD, self.count)) for s in range(0, self.count, SHARD)]
        missing = [rows for rows in missing if not self._whole(rows)]
        with Progress(self.folder, stage, sum(map(len, missing)), mode=mode if missing else "none") as progress:
            for wait in (False, True):  # first the shards that nobody works on
                for rows in tuple(missing):
                    with locked(self.folder / f".{rows.start // SHARD:05d}.lock", wait=wait) as free:
                        if free:
                            missing.remove(rows)
                            if not self._whole(rows):
                                self._compute(rows, encode)
                            progress.update(len(rows))
        return self

    def _compute(self, rows: range, encode: Callable[[range], Mapping[str, np.ndarray]]) -> None:
        number = rows.start // SHARD
        for old in self._files(number):
            print(f"{old} is damaged or too short: it is encoded again", flush=True)
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        for part, values in sorted(encode(rows).items(), reverse=True):  # the main array last: it counts
            with replacing(self.path(number, part)) as temporary, temporary.open("wb") as file:
                np.save(file, values)
        self._seal(number)

    def _files(self, number: int) -> list[Path]:
        """The arrays of a shard, the main one first."""
        return sorted(self.folder.glob(f"{number:05d}*.npy"), key=lambda file: len(file.name))

    def _seal(self, number: int) -> None:
        write_text(self.folder / f"{number:05d}.sha256", sha256_of(self._files(number)))

    def _whole(self, rows: range) -> bool:
        number = rows.start // SHARD
        files, seal, main = self._files(number), self.folder / f"{number:05d}.sha256", self.path(number)
        try:
            if seal.is_file() and seal.read_text() != sha256_of(files):
                return False
            arrays = [np.load(file, mmap_mode="r", allow_pickle=False) for file in files]
            if main not in files or any(len(array) < len(rows) for array in arrays):
                return False
            with suppress(OSError, UserError):  # it is of an earlier version, or its process was killed
                if not seal.is_file():
                    self._seal(number)
            return True
        except (OSError, ValueError, EOFError, TypeError):  # missing or cut off
            return False


def cached_latents(
    data: PoseData, backbone: Backbone, cache: Path, mode: Mode, of: Literal["latents", "source latents"] = "latents"
) -> Encoded:
    """``[N, c, h, w] float16`` latents of every image of a split, or of every image's source."""
    key = value_hash([of, {**data.identity, "count": None}, backbone.encoding_key("latents")])
    image = data.__getitem__ if of == "latents" else data.source_of
    device = next(backbone.parameters()).device

    @torch.inference_mode()
    def encode(rows: range) -> dict[str, np.ndarray]:
        parts = []
        for start in range(rows.start, rows.stop, 50):
            images = torch.stack([image(i).tensor for i in range(start, min(start + 50, rows.stop))])
            parts.append(backbone.to_latents(images.to(device)).half().cpu().numpy())
        return {"": np.concatenate(parts)}

    folder = cache / "latents" / f"{data.name}-{data.split}-{key}"
    return Encoded(folder, len(data)).fill(encode, f"{of} of {data.split}", mode)


def encode_prompts(
    backbone: Backbone, prompts: Sequence[str], negatives: Sequence[str], long_prompts: Literal["cut", "chunk"] = "cut"
) -> tuple[Text, Text]:
    """The encoded prompts and negative prompts of a batch, both of one length.

    ``cut`` leaves out what the text tower does not read (77 tokens with two marks, of CLIP). ``chunk`` encodes long
    prompts in as many pieces as the longest needs and puts their states one after another; shorter prompts get empty
    pieces, so an image depends on the longest prompt beside it.
    """
    chunks = backbone.chunks([*prompts, *negatives]) if long_prompts == "chunk" else 1
    if chunks == 1:
        return backbone.encode_text(prompts), backbone.encode_text(negatives)
    return backbone.encode_text(prompts, chunks), backbone.encode_text(negatives, chunks)


def tell_cut_prompts(backbone: Backbone, prompts: Sequence[str], fix: str = "") -> None:
    """Prints one line where prompts are longer than the text tower reads, with the way to have them read whole."""
    if note := backbone.cut_note(prompts):
        print(f"posegen: {note}{f'; {fix}' if fix else ''}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class CachedText:
    """The encoded prompts of a split; a loader's processes get a copy of their own."""

    places: Sequence[int]  # sample -> row of its prompt
    tokens: Encoded
    pooled: Encoded | None
    mask: Encoded | None

    def __call__(self, indices: Sequence[int]) -> Text:
        """The prompts of the samples at ``indices``."""
        pooled, mask = (None if part is None else self._rows(part, indices) for part in (self.pooled, self.mask))
        return Text(self._rows(self.tokens, indices).float(), None if pooled is None else pooled.float(), mask)

    def _rows(self, part: Encoded, indices: Sequence[int]) -> Tensor:
        return torch.from_numpy(np.stack([part[self.places[i]] for i in indices]))


def cached_text(
    data: PoseData, prompts: Sequence[str], backbone: Backbone, cache: Path, mode: Mode
) -> Callable[[Sequence[int]], Text]:
    """A function from sample indices to their encoded prompts; each prompt is kept once, in half precision."""
    different = sorted(set(prompts))
    place = {prompt: i for i, prompt in enumerate(different)}
    key = value_hash(["text", different, backbone.encoding_key("text")])

    @torch.inference_mode()
    def encode(rows: range) -> dict[str, np.ndarray]:
        chunks = [different[s : min(s + 100, rows.stop)] for s in range(rows.start, rows.stop, 100)]
        text = Text.cat([backbone.encode_text(chunk).to("cpu") for chunk in chunks])
        pooled = None if text.pooled is None else text.pooled.half()
        parts = {"": text.tokens.half(), "pooled": pooled, "mask": text.mask}
        return {name: part.numpy() for name, part in parts.items() if part is not None}

    folder = cache / "text" / f"{data.name}-{data.split}-{key}"
    tokens = Encoded(folder, len(different)).fill(encode, f"text of {data.split}", mode)
    return CachedText([place[prompt] for prompt in prompts], tokens, tokens.beside("pooled"), tokens.beside("mask"))
