"""The results page: one html file that opens anywhere, without a network.

It has the table, curves of the training, quality beside pose accuracy and cost, the columns by scenario, action and
number of people, a grid of pictures, and the state of every cell. ``posegen benchmark`` and ``posegen table`` write it
as ``table.html``, ``posegen report`` with as many and as large pictures as it is asked for.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from posegen.metrics.base import Column
from posegen.report.breakdown import CAPTION, Breakdown
from posegen.report.formats import Entry, breakdown_grid, table_grid
from posegen.report.image_grids import picture_grid
from posegen.report.plots import result_plots, training_plots
from posegen.report.rows import Row
from posegen.report.study import read_status
from posegen.report.table import Table
from posegen.runner.images import SHOWN

#: Longer side of a picture on the page, in pixels.
SIDE = 256
#: Class of a row -> what stands above the rows of its kind.
KINDS = {
    "": "Methods",
    "unfinished": "Not finished",
    "bound": "Bounds, not ranked",
    "reported": "Published numbers, not ranked",
}


@dataclass(frozen=True)
class Line:
    """A line of a table on the page.

    Attributes:
        entries: each with the strength of its background, 0 to 1 or None.
        kind: its class.
        failed: its first entry says why there is no result, and fills the line.
    """

    name: str
    entries: Sequence[tuple[Entry, float | None]]
    kind: str = ""
    failed: bool = False


@dataclass(frozen=True)
class Sheet:
    """A sortable table on the page.

    Attributes:
        about: what it shows, for those who do not see it.
        names: of its columns.
        better: column -> higher or lower; the first click on such a column puts the best on top.
        bodies: (class, label, lines) of groups of lines that are sorted apart.
        arrows: whether the names show what is better.
    """

    about: str
    names: Sequence[str]
    bodies: Sequence[tuple[str, str, Sequence[Line]]]
    better: Mapping[str, str | None]
    arrows: bool = True


def page(table: Table, poses: int = SHOWN, side: int = SIDE) -> str:
    """The page as html text.

    Args:
        poses: most lines of the grid of pictures.
        side: longer side, in pixels, to which larger pictures are made smaller.
    """
    sections: dict[str, tuple[str, Any]] = {
        "Table": ("results", {"sheet": results_sheet(table), "caption": table.caption, "notes": table.notes}),
        "Curves": ("plots", [Markup(plot.inline()) for plot in training_plots(table).values()]),
        "Accuracy, quality and cost": ("plots", [Markup(plot.inline()) for plot in result_plots(table).values()]),
        **{f"By {parts.by}": ("parts", parts_of_page(parts)) for parts in table.parts},
        "Pictures": ("pictures", {"grid": picture_grid(table, poses, side)} if poses else None),
        "Cells": ("cells", cells_of_page(table)),
    }
    filled = [(name, anchor(name), kind, data) for name, (kind, data) in sections.items() if data]
    environment = Environment(
        loader=PackageLoader("posegen.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["breakable"] = breakable
    return environment.get_template("page.html").render(title=table.title, sections=filled).lstrip()


def anchor(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.lower())


def breakable(name: str) -> Markup:
    """A name as html that may be broken behind a slash, a comma or an underscore."""
    return Markup(re.sub(r"([/_,])(?=\w\w)", r"\1<wbr>", html.escape(name)))


def results_sheet(table: Table) -> Sheet:
    """The table: methods, then those that did not finish, bounds and published numbers, each for themselves."""
    head, *lines = table_grid(table)
    kinds = [kind_of(row) for row in table.rows]
    bodies = []
    for kind, label in KINDS.items():
        found = [
            Line(line[0].text, plain(line[1:2]), failed=True)
            if kind == "unfinished"
            else Line(line[0].text, plain(line[1:]), kind)
            for line, own in zip(lines, kinds, strict=True)
            if own == kind
        ]
        bodies += [("", label if set(kinds) != {""} else "", found)] if found else []
    return Sheet(table.title, [entry.text for entry in head], bodies, {c: c.better for c in table.headline})


def kind_of(row: Row) -> str:
    if row["state"] not in ("finished", "reported"):
        return "unfinished"
    return "reported" if row["state"] == "reported" else "" if row["ranked"] else "bound"


def plain(entries: Iterable[Entry]) -> list[tuple[Entry, float | None]]:
    return [(entry, None) for entry in entries]


def parts_of_page(parts: Breakdown) -> dict[str, Any]:
    """A sheet per column; the better a method is in a part, the stronger its background."""
    sheets = []
    for column in parts.columns:
        head, *lines = breakdown_grid(parts, column)
        names, shades = [entry.text for entry in head], shading(parts, column)
        *rows, mean = [
            Line(
                line[0].text,
                [(entry, shades.get((line[0].text, name))) for entry, name in zip(line[1:], names[1:], strict=True)],
            )
            for line in lines
        ]
        better = {row["method"]: column.better for row in parts.rows if row["ranked"]}
        bodies = [("", "", rows), ("mean", "", [mean])]
        sheets.append((column, Sheet(f"{column} by {parts.by}", names, bodies, better, arrows=False)))
    return {"sheets": sheets, "caption": CAPTION, "notes": merged(parts.notes)}


def shading(parts: Breakdown, column: Column) -> dict[tuple[str, str], float]:
    """(part, method) -> 0 for the worst value of a column among the methods to 1 for the best.

    Empty where neither direction is better.
    """
    values = {
        (row[parts.by], row["method"]): row[column]
        for row in parts.rows
        if row["ranked"] and row["state"] == "finished" and row[column] == row[column]
    }
    low, high = min(values.values(), default=0.0), max(values.values(), default=0.0)
    if column.better is None or low == high:
        return {}
    return {key: (high - v if column.better == "lower" else v - low) / (high - low) for key, v in values.items()}


def merged(notes: Sequence[str]) -> list[str]:
    """``part: reason`` with the parts of the same reason together."""
    found: dict[str, list[str]] = {}
    for note in notes:
        part, colon, reason = note.partition(": ")
        found.setdefault(reason if colon else note, []).append(part if colon else "")
    return [f"{', '.join(parts)}: {reason}" if any(parts) else reason for reason, parts in found.items()]


def cells_of_page(table: Table) -> dict[str, Any]:
    """The state of every cell, and what it was computed with; folded up where all is well."""
    lines = []
    for cell in table.cells:
        status = read_status(table.folder / cell["folder"])
        versions, hours = status.get("versions", {}), status.get("wall_s", 0.0) / 3600
        texts = (
            f"{cell['state']}: {cell['reason']}" if cell["reason"] else cell["state"],
            f"{hours:.2f}" if hours else "-",
            f"{versions.get('posegen', '-')} {(status.get('git') or '')[:10]}".strip(),
            status.get("machine", "-"),
        )
        lines.append(Line(cell["folder"], plain(map(Entry, texts)), failed=cell["state"] != "finished"))
    names = ("cell", "state", "hours", "posegen", "machine")
    finished = sum(not line.failed for line in lines)
    return {"sheet": Sheet("cells", names, [("", "", lines)], {}), "finished": finished, "all": len(lines)}
