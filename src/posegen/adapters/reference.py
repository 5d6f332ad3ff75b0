"""Reference rows: images that no method generated. They bound the methods and are never trained or ranked."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from posegen.adapters.base import Adapter, Paper, State
from posegen.backbones.base import Injection
from posegen.data.base import PoseBatch


class Reference(Adapter):
    """A row that generates without a denoising pass."""

    trainable = ranked = False
    paper = Paper("Reference row", "")

    def encode(self, batch: PoseBatch) -> State:
        return self.text_state(batch)

    def inject(self, state: State, latents: Tensor, timesteps: Tensor) -> Injection:
        return Injection()


class Real(Reference):
    """The real images themselves: the ceiling that the judge sets."""

    needs = frozenset({"images"})

    def generate(self, batch: PoseBatch, sampler: Callable[[Adapter, PoseBatch], Tensor]) -> Tensor:
        return batch.images  # type: ignore[return-value]


class Reconstruction(Reference):
    """The real images through the autoencoder: the ceiling of every method that works on its latents."""

    needs = frozenset({"images"})

    @torch.inference_mode()
    def generate(self, batch: PoseBatch, sampler: Callable[[Adapter, PoseBatch], Tensor]) -> Tensor:
        assert batch.images is not None
        return self.backbone.from_latents(self.backbone.to_latents(batch.images)).clamp(-1, 1)


class SameCaption(Reference):
    """Other real images of the same captions: the floor, the level of a perfect text-only generator."""

    needs = frozenset({"twins"})

    def generate(self, batch: PoseBatch, sampler: Callable[[Adapter, PoseBatch], Tensor]) -> Tensor:
        return batch.twins  # type: ignore[return-value]


class CopySource(Reference):
    """The source images themselves, for data with pairs: all of the appearance and none of the pose."""

    needs = frozenset({"source"})

    def generate(self, batch: PoseBatch, sampler: Callable[[Adapter, PoseBatch], Tensor]) -> Tensor:
        return batch.source  # type: ignore[return-value]
