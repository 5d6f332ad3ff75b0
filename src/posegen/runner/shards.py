"""Several processes on one cell: each samples and judges its own whole batches, and the one that finds all of them done puts the records together.

Batches are functions of the image index, and noise belongs to the image, so the records have the same bytes whatever the sharding. Processes need nothing but
the cell's folder in common: they may be jobs of a sweep (``shards=3 shard=range(3)``), tasks of a Slurm array, or started by hand one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from omegaconf import DictConfig

from posegen.errors import UserError

if TYPE_CHECKING:
    from posegen.runner.cell import Cell

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """One of ``count`` shares of the batches."""

    index: int = 0
    count: int = 1

    @classmethod
    def of(cls, cfg: DictConfig) -> Shard:
        """What ``shard`` and ``shards`` say.

        Raises:
            UserError: there is no such share.
        """
        index, count = cfg.get("shard", 0), cfg.get("shards", 1)
        if not isinstance(count, int) or not isinstance(index, int) or not 0 <= index < count:
            raise UserError(
                f"shard={index} of shards={count} does not exist; shard counts from 0 and is less than shards"
            )
        return cls(index, count)

    def own(self, batches: Sequence[T]) -> Sequence[T]:
        """Every ``count``-th batch, so that shares differ by one batch at most."""
        return batches[self.index :: self.count]

    def named(self, stage: str) -> str:
        """A stage's name in progress reports."""
        return stage if self.count == 1 else f"{stage}, shard {self.index} of {self.count}"


WHOLE = Shard()


def share(
    cell: Cell,
    shard: Shard,
    work: Callable[[], Any],
    whole: Callable[[], bool],
    conclude: Callable[[], Any] = lambda: None,
) -> None:
    """Does a process's share of a cell, and finishes the cell where nothing is left.

    Args:
        work: this process's share; others may do theirs at the same time.
        whole: whether all shares are there.
        conclude: what follows then, done by one process alone.
    """
    if shard.count == 1:
        with cell.working():
            if not cell.finished():
                work()
                conclude()
        return
    with cell.working(sharing=True):
        if not cell.finished():
            work()
    if not cell.finished() and whole():
        with cell.working():
            if not cell.finished():
                conclude()
