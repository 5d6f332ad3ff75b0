"""Several processes on one cell: each samples and judges whole batches of its own.

Batches are functions of the image index, and noise belongs to the image, so the records have the same bytes whatever
the sharding. The processes share nothing but the cell's folder: they may be jobs of a sweep (``shards=3
'shard=range(3)'``), tasks of a Slurm array, or started by hand one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from omegaconf import DictConfig

from posegen.errors import UserError

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Shard:
    """One of ``count`` shares of the batches."""

    index: int = 0
    count: int = 1

    @classmethod
    def of(cls, cfg: DictConfig) -> Shard:
        """The share that ``shard`` and ``shards`` name.

        Raises:
            UserError: there is no such share.
        """
        index, count = cfg.get("shard", 0), cfg.get("shards", 1)
        if not isinstance(count, int) or not isinstance(index, int) or not 0 <= index < count:
            raise UserError(
                f"shard={index} of shards={count} does not exist; shard counts from 0 and is less than shards"
            )
        return cls(index, count)

    def select(self, batches: Sequence[Batch]) -> Sequence[Batch]:
        """Every ``count``-th batch, so that shares differ by one batch at most."""
        return batches[self.index :: self.count]

    def label(self, stage: str) -> str:
        """The name of a stage in progress reports."""
        return stage if self.count == 1 else f"{stage}, shard {self.index} of {self.count}"


WHOLE = Shard()
