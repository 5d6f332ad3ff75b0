"""The charts of the results page: curves of the training, quality beside pose accuracy, and pose accuracy beside what it costs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from posegen.report import charts
from posegen.report.charts import Figure
from posegen.report.curves import SMOOTHED, Curve, curves_of, smoothed

if TYPE_CHECKING:
    from posegen.metrics.base import Column
    from posegen.report.rows import Row
    from posegen.report.table import Table

COSTS = {
    "train_images_per_s": ("training rate", "training, images per second"),
    "sample_images_per_s": ("sampling rate", "sampling, images per second"),
    "trained_parameters": ("size", "trained parameters, millions"),
}
LEAST = 8  # points of a curve of the loss, where there are so many
LIVE = 3  # most columns whose curves are drawn


def figures(table: Table) -> dict[str, Figure]:
    """File name -> every chart of the page."""
    return learning(table) | compared(table)


def numbered(table: Table) -> dict[str, int]:
    """Row -> number of its colour, the same in all charts."""
    return {row["method"]: i for i, row in enumerate(row for row in table.rows if row["state"] != "reported")}


def accuracy_of(table: Table) -> Column:
    """The column of pose accuracy that charts show: the preferred one of those that are not empty."""
    return next((column for column in table.axes["accuracy"] if not empty(table, column)), table.headline[0])


def quality_of(table: Table) -> Column | None:
    """The column of quality that charts show beside it; None where there is none."""
    filled = [c for c in table.axes["quality"] if c != accuracy_of(table) and not empty(table, c)]
    return min(filled, key=lambda c: (c.axis, c not in table.headline), default=None)


def learning(table: Table) -> dict[str, Figure]:
    """File name -> figure of the training's curves: the loss, and the columns that were looked at while training."""
    found: dict[str, list[dict[str, Curve]]] = {}
    for cell in table.cells:
        found.setdefault(cell.get("row", cell["method"]), []).append(curves_of(table.folder / cell["folder"]))
    first = accuracy_of(table)
    columns = [first, *(column for column in table.headline if column != first)]
    shown = [
        f"live/{column}"
        for column in columns
        if any(f"live/{column}" in curve for runs in found.values() for curve in runs)
    ][:LIVE]
    made, numbers = {}, numbered(table)
    for name in ("train/loss", *shown):
        loss = name == "train/loss"
        drawn = [
            charts.Line(
                row,
                [
                    smoothed(c[name], min(SMOOTHED, len(c[name]) // LEAST or 1)) if loss else c[name]
                    for c in runs
                    if name in c
                ],
                numbers.get(row),
            )
            for row, runs in found.items()
        ]
        title = "Loss of the training" if loss else f"{name.removeprefix('live/')} on validation images"
        made[name.replace("/", "_")] = charts.lines(
            title, [line for line in drawn if line.runs], ("step", name.partition("/")[2])
        )
    return {name: figure for name, figure in made.items() if figure}


def compared(table: Table) -> dict[str, Figure]:
    """File name -> figure of quality beside pose accuracy, and of pose accuracy beside what it costs."""
    accuracy, quality, numbers = accuracy_of(table), quality_of(table), numbered(table)
    done = [row for row in table.rows if row["state"] == "finished"]

    def mark(row: Row, x: str, y: str, scale: float = 1.0) -> charts.Mark:
        across, up = ((row[f"{n}_lo"], row[f"{n}_hi"]) if f"{n}_lo" in row else None for n in (x, y))
        return charts.Mark(
            row["method"],
            scale * row.get(x, math.nan),
            row.get(y, math.nan),
            across,
            up,
            not row["ranked"],
            numbers[row["method"]],
        )

    made: dict[str, Figure | None] = {}
    if quality:
        lower = " (lower is better)" if quality.better == "lower" else ""
        made["quality"] = charts.marks(
            "Quality beside pose accuracy", [mark(r, accuracy, quality) for r in done], (accuracy, quality + lower)
        )
    for name, (kind, label) in COSTS.items():
        ranked = [
            mark(r, f"cost_{name}", accuracy, 1e-6 if name == "trained_parameters" else 1.0)
            for r in done
            if r["ranked"]
        ]
        made[name] = charts.marks(f"Pose accuracy beside {kind}", ranked, (label, accuracy))
    return {name: figure for name, figure in made.items() if figure}


def empty(table: Table, column: str) -> bool:
    return all(math.isnan(row.get(column, math.nan)) for row in table.rows)
