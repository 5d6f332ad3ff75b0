"""The parts of a cell's work: train, generate, judge, ... Each knows what is left to do, does it, and finishes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from posegen.runner.cell import Cell
from posegen.runner.shard import WHOLE, Shard

UNFINISHED = ": this share is done, others are not; the process that does the last one finishes the cell"


class Stage:
    """One part of a cell's work, which several processes may share.

    Each process does its share of what is left (`todo`, `run`). When everything is `done`, one process calls `finish`.
    """

    def todo(self) -> Sequence[Any]:
        """The units of work that are left for this process; none by default, for what waits for the whole."""
        return ()

    def run(self) -> None:
        """Does what `todo` lists."""
        return

    def done(self) -> bool:
        """Whether nothing is left for any process."""
        return not self.todo()

    def finish(self) -> None:
        """Puts together what all processes left; called once, when all stages are done."""
        return


def complete(cell: Cell, stages: Sequence[Stage], shard: Shard = WHOLE) -> bool:
    """Does this process's share of a cell, and finishes the cell when nothing is left.

    Returns:
        Whether the cell is finished; False where other shares are missing.
    """
    alone = shard.count == 1
    with cell.working(sharing=not alone):
        if not cell.finished():
            for stage in stages:
                if stage.todo():
                    stage.run()
            if alone:
                finish(stages)
    if not alone and not cell.finished() and all(stage.done() for stage in stages):
        with cell.working():
            if not cell.finished():
                finish(stages)
    return cell.finished()


def finish(stages: Sequence[Stage]) -> None:
    for stage in stages:
        stage.finish()
