"""The parts of a cell's work: train, generate, judge, ... Each knows what is left to do, does it, and finishes it.

Several processes can share a cell, each with whole batches: jobs of a sweep (``shards=3 'shard=range(3)'``), tasks of a
Slurm array, or commands one after the other. They share nothing but the cell's folder. Batches are functions of the
image index, and noise belongs to the image, so the records have the same bytes whatever the sharding.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig

from posegen.errors import UserError
from posegen.io.atomic import read_json_or_empty, write_json
from posegen.io.locks import locked
from posegen.runner.cell import Cell
from posegen.runner.progress import COSTS_FILE

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Shard:
    """One of ``count`` shares of the batches."""

    index: int = 0
    count: int = 1

    @classmethod
    def of(cls, cfg: DictConfig) -> Shard:
        """The share that ``shard`` and ``shards`` name."""
        index, count = cfg.get("shard", 0), cfg.get("shards", 1)
        if not isinstance(count, int) or not isinstance(index, int) or not 0 <= index < count:
            rule = "shard counts from 0 and is less than shards"
            raise UserError(f"shard={index} of shards={count} does not exist; {rule}")
        return cls(index, count)

    def select(self, batches: Sequence[Batch]) -> Sequence[Batch]:
        """Every ``count``-th batch, so that shares differ by one batch at most."""
        return batches[self.index :: self.count]

    def label(self, stage: str) -> str:
        """The name of a stage in progress reports."""
        return stage if self.count == 1 else f"{stage}, shard {self.index} of {self.count}"


WHOLE = Shard()
#: Exit codes of a process that a signal stopped; -1 is submitit's, which has queued the job again.
STOPPED = (-1, *(128 + number for number in signal.Signals))
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

    def lost(self) -> Sequence[Path]:
        """Results of a finished cell that are gone, for instance a damaged file that its user deleted.

        A folder of pictures or weights that is gone as a whole was deleted to save space, and is not missed.
        """
        return ()

    def done(self) -> bool:
        """Whether nothing is left for any process."""
        return not self.todo()

    def mend(self) -> None:
        """Sets aside what an unfinished cell holds of this stage and cannot be used, so that it is done again."""

    def fault(self) -> str:
        """What a finished cell holds of this stage and cannot be used, and the fix; empty: nothing."""
        return ""

    def kept(self) -> str:
        """What of this stage is kept when the process is stopped, as part of a sentence; empty: nothing to say."""
        return ""

    def finish(self) -> None:
        """Puts together what all processes left; called once, when all stages are done."""


def makers_of_lost(cell: Cell, stages: Sequence[Stage]) -> Sequence[Stage]:
    """The stages that make what a finished cell has lost, and what that is computed from; none where nothing is."""
    cell.check()
    lost = [(i, files) for i, stage in enumerate(stages) if (files := stage.lost())]
    if not lost:
        return ()
    first, files = lost[0]
    while first and stages[first - 1].todo():  # what it is computed from is gone, too
        first -= 1
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    print(f"{files[0]}{more} of a finished cell is gone: it is computed again", flush=True)
    return stages[first:]


def repeated(cell: Cell, stages: Sequence[Stage], shard: Shard) -> bool:
    """Makes a finished cell unfinished and completes it again; its costs stay those of the first time."""
    with locked(cell.folder / ".lock"):
        wall, costs = cell.status.get("wall_s", 0.0), read_json_or_empty(cell.folder / COSTS_FILE)
        cell.write(state="running", wall_s=wall)
    finished = complete(cell, stages, shard)
    if finished:
        cell.write(state="finished", wall_s=wall)
        if costs:
            write_json(cell.folder / COSTS_FILE, costs)
    return finished


def complete(cell: Cell, stages: Sequence[Stage], shard: Shard = WHOLE) -> bool:
    """Does this process's share of a cell, finishes it when nothing is left, and says whether it is finished."""
    if cell.finished() and (lost := makers_of_lost(cell, stages)):
        return repeated(cell, lost, shard)
    alone = shard.count == 1
    try:
        with cell.working(sharing=not alone), only_signals_stop():
            if cell.finished() and (faults := [fault for stage in stages if (fault := stage.fault())]):
                raise UserError(faults[0])
            for stage in () if cell.finished() else stages:
                stage.mend()
                if stage.todo():
                    stage.run()
            for stage in stages if alone and not cell.finished() else ():
                stage.finish()
        if not alone and not cell.finished() and all(stage.done() for stage in stages):
            with cell.working(), only_signals_stop():
                for stage in () if cell.finished() else stages:
                    stage.finish()
    except (KeyboardInterrupt, SystemExit):
        kept = ", ".join(filter(None, (stage.kept() for stage in stages))) or "what is done so far"
        print(f"\nstopped: {cell.folder} keeps {kept}; the same command again continues it", flush=True)
        raise
    return cell.finished()


@contextmanager
def only_signals_stop() -> Iterator[None]:
    """Inside the block Ctrl-C and the signals of schedulers stop the process; a method, data set or callback that
    exits, or raises KeyboardInterrupt, fails with a RuntimeError."""
    before, came = signal.getsignal(signal.SIGINT), []
    here = threading.current_thread() is threading.main_thread() and before is not None
    deaf = before is signal.SIG_IGN  # then no Ctrl-C can come

    def note(number: int, frame: Any) -> None:
        came.append(number)
        (before if callable(before) else signal.default_int_handler)(number, frame)

    if here and not deaf:
        signal.signal(signal.SIGINT, note)
    try:
        yield
    except KeyboardInterrupt as stop:
        if here and not came:
            raise RuntimeError(
                "a method, data set or callback raised KeyboardInterrupt; nobody pressed Ctrl-C"
            ) from stop
        raise
    except SystemExit as stop:
        if stop.code not in STOPPED:
            raise RuntimeError(f"a method, data set or callback called sys.exit({stop.code!r})") from stop
        raise
    finally:
        if here:
            signal.signal(signal.SIGINT, before)
