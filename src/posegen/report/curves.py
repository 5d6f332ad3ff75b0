"""The curves that training left in the cells, whichever run wrote which part of them."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

SMOOTHED = 10  # points of a loss whose mean is drawn: single batches tell little
Curve = list[tuple[float, float]]


def curves_of(cell: Path) -> dict[str, Curve]:
    """Name -> points ``(step, value)`` in the order of steps, of ``curves/metrics*.csv``; empty for cells that did not train, or with ``logger=null``."""
    found: dict[str, dict[float, float]] = {}
    for file in sorted(
        (cell / "curves").glob("metrics*.csv"), key=lambda f: (f.name == "metrics.csv", f.name)
    ):  # the newest last: it has the last word
        with file.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                if not (row.get("step") or "").strip():
                    continue
                for name, text in row.items():
                    if name and name not in ("step", "epoch") and (value := number(text)) is not None:
                        found.setdefault(name, {})[float(row["step"])] = value
    return {name: sorted(points.items()) for name, points in found.items()}


def number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def smoothed(curve: Sequence[tuple[float, float]], width: int = SMOOTHED) -> Curve:
    """Means of ``width`` points in a row, at the last of their steps."""
    return [
        (curve[i + width - 1][0], sum(y for _, y in curve[i : i + width]) / width)
        for i in range(0, len(curve) - width + 1, width)
    ] or list(curve)
