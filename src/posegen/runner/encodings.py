"""Encodings of a whole split, computed once and kept: latents and text states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from posegen.backbones.base import Backbone
from posegen.data.base import PoseData
from posegen.io.atomic import replacing
from posegen.io.hashes import value_hash
from posegen.io.locks import locked
from posegen.runner.progress import Mode, Progress

SHARD = 1000


class Encoded:
    """Arrays of one split in files of `SHARD` rows, read through memory maps.

    Args:
        folder: where the shards lie; its name says what they depend on.
        count: rows in all.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count
        self._shards: dict[int, np.ndarray] = {}

    def __getitem__(self, index: int) -> np.ndarray:
        shard, row = divmod(index, SHARD)
        if shard not in self._shards:
            self._shards[shard] = np.load(self.path(shard), mmap_mode="r", allow_pickle=False)
        return self._shards[shard][row]

    def path(self, shard: int) -> Path:
        return self.folder / f"{shard:05d}.npy"

    def fill(self, encode: Callable[[range], np.ndarray], stage: str, mode: Mode) -> Encoded:
        """Computes the missing shards; an interruption loses at most one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        shards = [range(s, min(s + SHARD, self.count)) for s in range(0, self.count, SHARD)]
        missing = [s for s in shards if self._rows(s.start // SHARD) < len(s)]
        if not missing:
            return self
        with locked(self.folder / ".lock"):
            missing = [s for s in missing if self._rows(s.start // SHARD) < len(s)]
            with Progress(self.folder, stage, sum(map(len, missing)), mode=mode) as progress:
                for rows in missing:
                    values = encode(rows)
                    with replacing(self.path(rows.start // SHARD)) as temporary, temporary.open("wb") as file:
                        np.save(file, values)
                    progress.update(len(rows))
        return self

    def _rows(self, shard: int) -> int:
        """Rows of a whole shard file; 0 for one that is missing or cut off."""
        try:
            return len(np.load(self.path(shard), mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError, EOFError):
            return 0


def cached_latents(
    data: PoseData, backbone: Backbone, cache: Path, mode: Mode, of: Literal["latents", "source latents"] = "latents"
) -> Encoded:
    """``[N, c, h, w] float16`` latents of every image of a split, or of the image that the appearance of each is taken from."""
    key = value_hash([of, {**data.identity, "count": None}, backbone.encoding_key("latents")])
    image = data.__getitem__ if of == "latents" else data.source_of
    device = next(backbone.parameters()).device

    @torch.inference_mode()
    def encode(rows: range) -> np.ndarray:
        parts = []
        for start in range(rows.start, rows.stop, 50):
            images = torch.stack([image(i).tensor for i in range(start, min(start + 50, rows.stop))])
            parts.append(backbone.to_latents(images.to(device)).half().cpu().numpy())
        return np.concatenate(parts)

    return Encoded(cache / "latents" / f"{data.name}-{data.split}-{key}", len(data)).fill(
        encode, f"{of} of {data.split}", mode
    )


def cached_text(
    data: PoseData, prompts: Sequence[str], backbone: Backbone, cache: Path, mode: Mode
) -> Callable[[Sequence[int]], Tensor]:
    """A function from sample indices to their text states ``[B, L, D]``; each different prompt is encoded and kept once."""
    different = sorted(set(prompts))
    place = {prompt: i for i, prompt in enumerate(different)}
    key = value_hash(["text", different, backbone.encoding_key("text")])

    @torch.inference_mode()
    def encode(rows: range) -> np.ndarray:
        chunks = [different[s : min(s + 100, rows.stop)] for s in range(rows.start, rows.stop, 100)]
        return np.concatenate([backbone.encode_text(chunk).half().cpu().numpy() for chunk in chunks])

    states = Encoded(cache / "text" / f"{data.name}-{data.split}-{key}", len(different)).fill(
        encode, f"text of {data.split}", mode
    )
    return lambda indices: torch.from_numpy(np.stack([states[place[prompts[i]]] for i in indices])).float()
