"""How far a cell is (a bar, and ``progress.json`` for a benchmark's overview), and what it cost."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Literal

import torch

from posegen.errors import UserError
from posegen.io.atomic import write_json
from posegen.runner.received.state_files import read_costs

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

Mode = Literal["bar", "file", "none"]
COSTS_FILE = "costs.json"  # of a cell


class Progress:
    """One stage of a cell (training, sampling, judging), whose folder gets ``progress.json`` about once a second.

    Args:
        done: units of ``total`` that an earlier run finished; the rate counts only what this run does.
        mode: ``bar`` draws a tqdm bar as well, ``file`` only writes the file, ``none`` does neither.
    """

    def __init__(
        self, folder: Path, stage: str, total: int, done: int = 0, unit: str = "img", mode: Mode = "bar"
    ) -> None:
        self.folder, self.stage, self.total, self.done, self.unit, self.mode = folder, stage, total, done, unit, mode
        self.start, self.first, self.written = time.monotonic(), done, 0.0
        self.bar = None
        if mode == "bar":
            from tqdm import tqdm

            self.bar = tqdm(total=total, initial=done, unit=unit, desc=stage, dynamic_ncols=True)

    def update(self, count: int = 1, **facts: float) -> None:
        """``count`` more units are done; ``facts`` (a loss, say) are shown."""
        self.done += count
        if self.bar is not None:
            self.bar.update(count)
            if facts:
                self.bar.set_postfix({k: f"{v:.4g}" for k, v in facts.items()}, refresh=False)
        now = time.monotonic()
        if self.mode != "none" and (now - self.written > 1.0 or self.done >= self.total):
            self.written = now
            report = {name: getattr(self, name) for name in ("stage", "done", "total", "unit", "rate")}
            write_json(self.folder / "progress.json", {**report, **facts}, durable=False)

    @property
    def rate(self) -> float:
        """Units per second of this run."""
        return (self.done - self.first) / max(1e-9, time.monotonic() - self.start)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def note_costs(folder: Path, **costs: float) -> None:
    """Adds to ``costs.json`` of a cell; a damaged one holds nothing that a table cannot go without, and is replaced."""
    try:
        known = read_costs(folder)
    except UserError:
        print(f"{folder / 'costs.json'} is damaged; it is written again, without the earlier costs", flush=True)
        known = {}
    write_json(folder / "costs.json", {**known, **costs})


def peak_memory_mb() -> float:
    """Largest memory of the process so far: on the GPU where one is used, else resident."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    if torch.backends.mps.is_available():
        return round(metal_memory_mb(), 1)
    return round(resident_peak_mb(), 1)


def metal_memory_mb() -> float:
    """What torch holds of a Mac's GPU memory; it keeps what it has once taken, and counts no peak."""
    return torch.mps.driver_allocated_memory() / 2**20


def resident_peak_mb() -> float:
    """Largest resident memory of the process so far, in MiB."""
    if resource is None:
        from psutil import Process

        return Process().memory_info().peak_wset / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
