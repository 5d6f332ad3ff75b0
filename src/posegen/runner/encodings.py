"""Encodings of a whole split, computed once and kept: latents and text states."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from posegen.backbones.base import Backbone
from posegen.backbones.text import Text
from posegen.data.base import PoseData
from posegen.io.atomic import replacing
from posegen.io.hashes import value_hash
from posegen.io.locks import locked
from posegen.runner.progress import Mode, Progress

SHARD = 1000


class Encoded:
    """Arrays of one split in files of `SHARD` rows, read through memory maps.

    The name of ``folder`` holds a hash of everything they depend on; ``part`` names an array beside the main one.
    """

    def __init__(self, folder: Path, count: int, part: str = "") -> None:
        self.folder, self.count, self.part = folder, count, part
        self._shards: dict[int, np.ndarray] = {}

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
        """Computes the missing shards; ``encode`` gives the arrays of rows by part, the main one's name is empty."""
        self.folder.mkdir(parents=True, exist_ok=True)
        shards = [range(s, min(s + SHARD, self.count)) for s in range(0, self.count, SHARD)]
        if all(map(self._whole, shards)):
            return self
        with locked(self.folder / ".lock"):
            missing = [rows for rows in shards if not self._whole(rows)]
            with Progress(self.folder, stage, sum(map(len, missing)), mode=mode) as progress:
                for rows in missing:
                    for part, values in sorted(encode(rows).items(), reverse=True):  # the main array last: it counts
                        with replacing(self.path(rows.start // SHARD, part)) as temporary, temporary.open("wb") as file:
                            np.save(file, values)
                    progress.update(len(rows))
        return self

    def _whole(self, rows: range) -> bool:
        try:
            return len(np.load(self.path(rows.start // SHARD), mmap_mode="r", allow_pickle=False)) >= len(rows)
        except (OSError, ValueError, EOFError):  # missing or cut off
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


def tell_cut_prompts(backbone: Backbone, prompts: Sequence[str]) -> None:
    """Prints one line where prompts are longer than the text tower reads."""
    if note := backbone.cut_note(prompts):
        print(f"posegen: {note}", file=sys.stderr, flush=True)


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
    pooled, mask = tokens.beside("pooled"), tokens.beside("mask")

    def rows(encoded: Encoded, indices: Sequence[int]) -> Tensor:
        return torch.from_numpy(np.stack([encoded[place[prompts[i]]] for i in indices]))

    return lambda indices: Text(
        rows(tokens, indices).float(),
        None if pooled is None else rows(pooled, indices).float(),
        None if mask is None else rows(mask, indices),
    )
