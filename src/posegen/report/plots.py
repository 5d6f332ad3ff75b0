"""Plots of a table: curves of the training, quality beside pose accuracy, and pose accuracy beside its costs.

Each is an SVG whose text and rules take the colour of the page it stands in, light or dark, or a file on white.
"""

from __future__ import annotations

import csv
import html
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posegen.errors import UserError
from posegen.metrics.base import Column
from posegen.report.rows import Row
from posegen.report.table import Table

# Colours that people who see few of them can tell apart (Okabe and Ito 2008); dashes and shapes for further methods.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
DASHES, SHAPES = ("-", (0, (6, 3)), (0, (2, 3))), ("o", "s", "D")
INK = "#010203"  # stands in a plot for the colour of the text around it
SIZE = (5.6, 3.7)  # inches
#: Cost of a row -> its place in a title, label of its axis, and factor.
COST_AXES = {
    "train_images_per_s": ("training rate", "training, images per second", 1.0),
    "sample_images_per_s": ("sampling rate", "sampling, images per second", 1.0),
    "trained_parameters": ("size", "trained parameters, millions", 1e-6),
}
SMOOTHED, LEAST = 10, 8  # points of a loss whose mean is drawn, since single batches tell little; points that are left
LIVE = 3  # most columns whose curves are drawn
Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class Plot:
    title: str
    svg: str

    def inline(self) -> str:
        """For a page: no colours of its own for text, no addresses."""
        text = re.sub(r" xmlns(:xlink)?=\"[^\"]*\"", "", self.svg.replace(INK, "currentColor"))
        about = f"<svg class='plot' role='img' aria-label='{html.escape(self.title, quote=True)}'"
        return re.sub(r'<svg width="[^"]*" height="[^"]*"', about, text, count=1)

    def file(self) -> str:
        """A picture file: dark on white."""
        return self.svg.replace(INK, "#222222").replace(">", '><rect width="100%" height="100%" fill="#ffffff"/>', 1)


@dataclass(frozen=True)
class Mark:
    """One method's point, hollow for a bound, with intervals ``(low, high)`` where it has some."""

    name: str
    x: float
    y: float
    number: int
    bound: bool = False
    across: tuple[float, float] | None = None
    up: tuple[float, float] | None = None


def all_plots(table: Table) -> dict[str, Plot]:
    """File name -> every plot of the page."""
    return training_plots(table) | result_plots(table)


def training_plots(table: Table) -> dict[str, Plot]:
    """File name -> the loss, and the columns that were measured while training."""
    runs: dict[str, list[dict[str, Curve]]] = {}
    for cell in table.cells:
        runs.setdefault(cell.get("row", cell["method"]), []).append(curves_of(table.folder / cell["folder"]))
    logged = {name for curves in runs.values() for curve in curves for name in curve}
    live = [f"live/{column}" for column in dict.fromkeys([table.accuracy, *table.headline])]  # pose accuracy first
    plots: dict[str, Plot | None] = {}
    for name in ("train/loss", *[name for name in live if name in logged][:LIVE]):
        drawn = {row: [curve[name] for curve in curves if name in curve] for row, curves in runs.items()}
        title = f"{name.removeprefix('live/')} on validation images"
        if name == "train/loss":
            title = "Loss of the training"
            for row, curves in drawn.items():
                drawn[row] = [smoothed_curve(c, min(SMOOTHED, len(c) // LEAST or 1)) for c in curves]
        plots[name.replace("/", "_")] = plot_curves(title, drawn, numbered(table), ("step", name.partition("/")[2]))
    return {name: plot for name, plot in plots.items() if plot}


def result_plots(table: Table) -> dict[str, Plot]:
    """File name -> quality beside pose accuracy, and pose accuracy beside each cost."""
    accuracy, quality, numbers = table.accuracy, table.quality, numbered(table)
    done = [row for row in table.rows if row["state"] == "finished"]

    def mark(row: Row, x: str, y: str, scale: float = 1.0) -> Mark:
        across, up = ((row[f"{n}_lo"], row[f"{n}_hi"]) if f"{n}_lo" in row else None for n in (x, y))
        place = scale * row.get(x, math.nan), row.get(y, math.nan)
        return Mark(row["method"], *place, numbers[row["method"]], not row["ranked"], across, up)

    plots: dict[str, Plot | None] = {}
    if quality:
        marks, labels = [mark(row, accuracy, quality) for row in done], (axis_label(accuracy), axis_label(quality))
        plots["quality"] = plot_marks("Quality beside pose accuracy", marks, labels)
    for name, (kind, label, scale) in COST_AXES.items():
        marks = [mark(row, f"cost_{name}", accuracy, scale) for row in done if row["ranked"]]
        plots[name] = plot_marks(f"Pose accuracy beside {kind}", marks, (label, axis_label(accuracy)))
    return {name: plot for name, plot in plots.items() if plot}


def axis_label(column: Column) -> str:
    words = ", ".join(filter(None, (column.unit, "lower is better" if column.better == "lower" else "")))
    return f"{column} ({words})" if words else column


def numbered(table: Table) -> dict[str, int]:
    """Row -> number of its colour, the same in all plots."""
    return {row["method"]: i for i, row in enumerate(row for row in table.rows if row["state"] != "reported")}


def plot_curves(
    title: str, drawn: Mapping[str, Sequence[Curve]], numbers: dict[str, int], labels: tuple[str, str]
) -> Plot | None:
    """A curve per method (``drawn``: the points ``(x, y)`` of each seed): thin for a seed, thick for the mean of
    several; None without points. ``numbers`` are those of the methods' colours and dashes."""
    drawn = {name: runs for name, runs in drawn.items() if any(runs)}

    def draw(axes: Any) -> None:
        for i, (name, runs) in enumerate(drawn.items()):
            style = {**style_of(numbers.get(name, i)), "markersize": 4}
            for run in runs if len(runs) > 1 else ():
                axes.plot(*zip(*run, strict=True), **style, alpha=0.35, marker="o" if len(run) == 1 else "")
            mean = mean_curve(runs)
            x, y = [x for x, _ in mean], [y for _, y in mean]
            axes.plot(x, y, **style, linewidth=2, marker="o" if len(mean) == 1 else "", label=name)

    return render(title, labels, draw) if drawn else None


def plot_marks(title: str, drawn: Sequence[Mark], labels: tuple[str, str]) -> Plot | None:
    """A point per method and its intervals; None without points."""
    known = [mark for mark in drawn if math.isfinite(mark.x) and math.isfinite(mark.y)]

    def draw(axes: Any) -> None:
        for i, mark in enumerate(known):
            style = style_of(mark.number) | {"linestyle": "-"}
            for x, y in ((mark.across, (mark.y, mark.y)), ((mark.x, mark.x), mark.up)):
                if x and y and all(map(math.isfinite, (*x, *y))):
                    axes.plot(x, y, **style, linewidth=1, alpha=0.6)
            shape = SHAPES[mark.number // len(COLOURS) % len(SHAPES)]
            look = {"marker": shape, "fillstyle": "none" if mark.bound else "full", "linestyle": "", "gid": f"mark{i}"}
            axes.plot([mark.x], [mark.y], **{**style, **look}, markeredgewidth=1.6, label=mark.name)

    about = {f"mark{i}": f"{mark.name}: {mark.x:.4g}, {mark.y:.4g}" for i, mark in enumerate(known)}
    return render(title, labels, draw, about) if known else None


def style_of(number: int) -> dict[str, Any]:
    """Colour and dash of a method; the dash changes where the colours begin again."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number // len(COLOURS) % len(DASHES)]}


def render(title: str, labels: tuple[str, str], draw: Callable[[Any], None], about: Mapping[str, str] = {}) -> Plot:
    """The plot that ``draw`` puts on axes, with the names of its curves below; equal ones have equal bytes.
    ``about`` is id of a mark -> what is said where one points at it."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    inked = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    fonts = {"font.size": 9, "font.sans-serif": ["DejaVu Sans"], "svg.fonttype": "none", "svg.hashsalt": title}
    text = io.StringIO()
    with rc_context({**inked, **fonts, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(SIZE, layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.set(title=title, xlabel=labels[0], ylabel=labels[1])
        axes.grid(color=INK, alpha=0.15, linewidth=0.6)
        names = axes.get_legend_handles_labels()[1]
        columns = max(1, min(len(names), 80 // (max(map(len, names)) + 6)))  # 80 characters in a line
        figure.legend(loc="outside lower left", ncols=columns, frameon=False)
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=no_metadata)
    # Without the ids and the style sheet that would reach beyond it in a page, with the texts of its marks.
    svg = re.sub(r"\s*<defs>\s*<style.*?</defs>", "", text.getvalue().partition("<svg")[2], flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\n?", "", svg, flags=re.DOTALL)
    titles = {name: f"<title>{html.escape(said)}</title>" for name, said in about.items()}
    return Plot(title, "<svg" + re.sub(r'<g id="([^"]*)">', lambda m: "<g>" + titles.get(m[1], ""), svg))


def curves_of(cell: Path) -> dict[str, Curve]:
    """Name -> points ``(step, value)`` in the order of steps, of all ``curves/metrics*.csv``, the newest value of a
    step; empty for cells that did not train, or with ``logger=null``."""
    found: dict[str, dict[float, float]] = {}
    files = (file for file in (cell / "curves").glob("metrics*.csv") if file.is_file())
    for file in sorted(files, key=lambda f: (f.name == "metrics.csv", f.name)):  # the newest last: it has the last word
        try:
            with file.open(newline="", encoding="utf-8") as stream:
                rows = list(csv.DictReader(stream))
        except (ValueError, csv.Error) as error:
            raise UserError(f"{file} is damaged ({error}); delete it: the page goes without these curves") from error
        for row in rows:
            for name in filter(None, row):
                with suppress(ValueError):  # a text that is no number
                    step, value = (float(row[key] or "") for key in ("step", name))
                    if name not in ("step", "epoch") and math.isfinite(step) and math.isfinite(value):
                        found.setdefault(name, {})[step] = value
    return {name: sorted(points.items()) for name, points in found.items()}


def smoothed_curve(curve: Curve, width: int = SMOOTHED) -> Curve:
    """Means of ``width`` points in a row, at the last of their steps."""
    runs = [curve[i : i + width] for i in range(0, len(curve) - width + 1, width)]
    return [(run[-1][0], sum(y for _, y in run) / width) for run in runs] or list(curve)


def mean_curve(runs: Sequence[Curve]) -> Curve:
    """The mean over the seeds where all have a point."""
    values = [dict(run) for run in runs if run]
    shared = sorted(set.intersection(*map(set, values)))
    return [(x, sum(v[x] for v in values) / len(values)) for x in shared]
