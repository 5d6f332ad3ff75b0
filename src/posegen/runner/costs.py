"""What a cell cost: numbers that may differ between identical runs."""

from __future__ import annotations

import resource
from pathlib import Path

import torch

from posegen.io.atomic import read_json, write_json


def note_costs(folder: Path, **costs: float) -> None:
    """Adds to ``costs.json`` of a cell."""
    path = folder / "costs.json"
    write_json(path, {**(read_json(path) if path.is_file() else {}), **costs})


def peak_memory_mb() -> float:
    """Largest memory of the process so far: on the GPU where one is used, else resident."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, 1)
