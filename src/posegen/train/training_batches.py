"""Which images a training step sees: a function of (seed, epoch, position) alone.

That is why an interrupted run continues bit for bit: nothing has to be remembered but the place in the epoch, which
Lightning's checkpoints hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from posegen.data.base import PoseBatch, PoseData, generator
from posegen.errors import UserError
from posegen.runner.batches import Needs, collate
from posegen.train.notice import outlive

Place = tuple[int, tuple[int, ...]]  # (epoch, indices of the samples of a batch)
Seen = tuple[int, int]  # (epoch, batches of it that were seen)


@dataclass(frozen=True)
class Share:
    """Which part of every batch a process sees: the ``rank``-th of ``count`` equal ones."""

    rank: int = 0
    count: int = 1


class EpochBatches(Sampler[Place]):
    """The batches of an epoch, which is a new permutation of the split; Lightning calls `set_epoch`.

    Args:
        samples: size of the split.
        size: images per batch, over all processes; what an epoch leaves over is not seen in it.
        multiple: batches of one optimiser step, of which an epoch has a whole number.
        start: the place of a resumed run.
    """

    def __init__(
        self, samples: int, size: int, seed: int, multiple: int = 1, start: Seen = (0, 0), share: Share = Share()
    ) -> None:
        self.samples, self.size, self.seed, self.start = samples, size, seed, start
        self.per_step = size * multiple
        self.count = samples // size // multiple * multiple
        self.epoch = start[0]
        part = size // share.count
        self.own = slice(share.rank * part, (share.rank + 1) * part)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Place]:
        order = torch.randperm(self.samples, generator=generator(self.seed, "order", self.epoch)).tolist()
        seen = self.start[1] if self.epoch == self.start[0] else 0
        for position in range(seen, self.count):
            batch = order[position * self.size : (position + 1) * self.size]
            yield self.epoch, tuple(batch[self.own])


class Batches(Dataset[PoseBatch]):
    """Whole batches of a split by their place."""

    def __init__(self, data: PoseData, needs: Needs, seed: int) -> None:
        self.data, self.needs, self.seed = data, needs, seed

    def __getitem__(self, place: Place) -> PoseBatch:
        epoch, indices = place
        try:
            return collate(self.data, indices, self.needs, self.seed, epoch)
        except StopIteration as error:  # torch takes it for the end of the epoch
            raise RuntimeError(f"the data set {self.data.name} raised StopIteration for images {indices}") from error


def training_loader(data: PoseData, needs: Needs, batches: EpochBatches, workers: int = 0) -> DataLoader:
    """A loader of whole batches, in the same order for any ``workers``; a UserError where the split fills no step."""
    if not len(batches):
        larger = f"optim.batch={batches.per_step} is larger than data.count={len(data)} of {data.name}"
        raise UserError(f"{larger}; lower optim.batch or raise data.count")
    dataset = Batches(data, needs, batches.seed)
    processes: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0, "worker_init_fn": outlive}
    return DataLoader(dataset, batch_size=None, sampler=batches, **processes)
