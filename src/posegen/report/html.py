"""The results page: one html file that opens anywhere, without a network.

``posegen benchmark`` and ``posegen table`` write it as ``table.html``, ``posegen report`` with as many and as large
pictures as it is asked for.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from posegen.metrics.base import Column
from posegen.report.breakdown import CAPTION, Breakdown
from posegen.report.errors import CAPTION as ERRORS_CAPTION
from posegen.report.errors import PCK, SHEETS
from posegen.report.formats import (
    Grid,
    TableEntry,
    breakdown_grid,
    errors_grid,
    judges_grid,
    slices_grid,
    table_grid,
)
from posegen.report.image_grids import GridLine, picture_grid
from posegen.report.plots import result_plots, training_plots
from posegen.report.table import Table
from posegen.runner.images import SHOWN
from posegen.runner.received.state_files import read_status

SIDE = 256  # longer side of a picture on the page, in pixels
#: Class of a row -> what stands above the rows of its kind.
KINDS = {"": "Methods", "unfinished": "Not finished", "bound": "Bounds, not ranked"}
KINDS |= {"reported": "Published numbers, not ranked"}


@dataclass(frozen=True)
class SheetLine:
    name: str
    entries: Sequence[tuple[TableEntry, float | None]]  # each with the strength of its background, 0 to 1 or None
    kind: str = ""  # its class
    failed: bool = False  # its first entry says why there is no result, and fills the line


@dataclass(frozen=True)
class Sheet:
    """A sortable table on the page."""

    about: str  # what it shows, for those who do not see it
    names: Sequence[str]  # of its columns
    bodies: Sequence[tuple[str, str, Sequence[SheetLine]]]  # (class, label, lines) of groups that are sorted apart
    better: Mapping[str, str | None]  # column -> higher or lower; the first click on it puts the best on top
    arrows: bool = True  # whether the names show what is better


def results_page(table: Table, poses: int = SHOWN, side: int = SIDE) -> str:
    """The page as html text, with at most ``poses`` lines of pictures of at most ``side`` pixels."""
    sections: dict[str, tuple[str, Any]] = {
        "Table": ("results", {"sheet": results_sheet(table), "caption": table.caption, "notes": table.notes}),
        "By judge": ("results", judges_section(table)),
        "Curves": ("plots", [Markup(plot.inline()) for plot in training_plots(table).values()]),
        "Accuracy, quality and cost": ("plots", [Markup(plot.inline()) for plot in result_plots(table).values()]),
        "Errors": ("parts", errors_section(table)),
        **{f"By {parts.by}": ("parts", parts_section(parts)) for parts in table.parts},
        "Pictures": ("pictures", pictures_section(picture_grid(table, poses, side)) if poses else None),
        "Cells": ("cells", cells_section(table)),
    }
    return rendered(table.title, sections)


def rendered(title: str, sections: Mapping[str, tuple[str, Any]]) -> str:
    """A page as html text: its sections by heading, each a kind and what the template shows of that kind, if any."""
    filled = [(name, re.sub(r"[\W_]", "-", name.lower()), *section) for name, section in sections.items() if section[1]]
    loader = PackageLoader("posegen.report")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["breakable"] = breakable
    return environment.get_template("page.html").render(title=title, sections=filled).lstrip()


def breakable(name: str) -> Markup:
    """A name as html that may be broken behind a slash, a comma or an underscore."""
    return Markup(re.sub(r"([/_,])(?=\w\w)", r"\1<wbr>", html.escape(name)))


def results_sheet(table: Table) -> Sheet:
    """The table: methods, then those that did not finish, bounds and published numbers, each for themselves."""
    head, *lines = table_grid(table)
    kinds: dict[str, list[SheetLine]] = {kind: [] for kind in KINDS}
    for row, (name, *entries) in zip(table.rows, lines, strict=True):
        if row["state"] not in ("finished", "reported"):
            kinds["unfinished"].append(SheetLine(name.text, unshaded(entries[:1]), failed=True))
        else:
            kind = "reported" if row["state"] == "reported" else "" if row["ranked"] else "bound"
            kinds[kind].append(SheetLine(name.text, unshaded(entries), kind))
    filled = [kind for kind, found in kinds.items() if found]
    bodies = [("", KINDS[kind] if filled != [""] else "", kinds[kind]) for kind in filled]
    return Sheet(table.title, [entry.text for entry in head], bodies, {c: c.better for c in table.headline})


def judges_section(table: Table) -> dict[str, Any] | None:
    """The columns of several judges side by side; None with one judge."""
    if table.judges is None:
        return None
    better: dict[str, str | None] = {column: column.better for column in table.judges.columns}
    notes = [*(each.sentence for each in table.judges.agreements), *table.judges.notes]
    return {"sheet": plain_sheet("the judges", judges_grid(table.judges), better), "caption": "", "notes": notes}


def errors_section(table: Table) -> dict[str, Any] | None:
    """The diagnosis; None without poses in the records."""
    if table.errors is None:
        return None
    sheets = []
    for name, columns in SHEETS.items():
        better: dict[str, str | None] = {column: column.better for column in columns}
        sheets.append((Column(name, None), plain_sheet(name, errors_grid(table.errors, columns), better)))
    if table.errors.slices:
        name = f"{PCK} by kind of people"
        sheets.append((Column(name), plain_sheet(name, slices_grid(table.errors), {})))
    return {"sheets": sheets, "caption": ERRORS_CAPTION, "notes": [f"As {table.errors.judge} sees the pictures."]}


def plain_sheet(about: str, grid: Grid, better: Mapping[str, str | None]) -> Sheet:
    """A sheet of one body, as the grid has it."""
    head, *lines = grid
    found = [SheetLine(name.text, unshaded(entries)) for name, *entries in lines]
    return Sheet(about, [entry.text for entry in head], [("", "", found)], better)


def unshaded(entries: Iterable[TableEntry]) -> list[tuple[TableEntry, float | None]]:
    return [(entry, None) for entry in entries]


def parts_section(parts: Breakdown) -> dict[str, Any]:
    """A sheet per column; the better a method is in a part, the stronger its background."""
    sheets = []
    for column in parts.columns:
        head, *lines = breakdown_grid(parts, column)
        names, shades, found = [entry.text for entry in head], shading(parts, column), []
        for part, *entries in lines:
            shaded = [(e, shades.get((part.text, name))) for e, name in zip(entries, names[1:], strict=True)]
            found.append(SheetLine(part.text, shaded))
        better = {row["method"]: column.better for row in parts.rows if row["ranked"]}
        bodies = [("", "", found[:-1]), ("mean", "", found[-1:])]
        sheets.append((column, Sheet(f"{column} by {parts.by}", names, bodies, better, arrows=False)))
    return {"sheets": sheets, "caption": CAPTION, "notes": merged(parts.notes)}


def shading(parts: Breakdown, column: Column) -> dict[tuple[str, str], float]:
    """(part, method) -> 0 for the worst value of a column to 1 for the best; empty where neither is better."""
    ranked = [row for row in parts.rows if row["ranked"] and row["state"] == "finished"]
    values = {(row[parts.by], row["method"]): row[column] for row in ranked if not math.isnan(row[column])}
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


def pictures_section(grid: Sequence[GridLine] | None) -> dict[str, Any]:
    """The grid, whether it shows poses that the judge found, and whether it says how many joints were found."""
    entries = [entry for line in grid or () for entry in line.entries]
    judged = any(picture.look == "found" for entry in entries for picture in entry.pictures)
    return {"grid": grid, "judged": judged, "counted": any(entry.note for entry in entries)}


def cells_section(table: Table) -> dict[str, Any]:
    """The state of every cell, and what it was computed with; folded up where all is well."""
    lines = []
    for cell in table.cells:
        status = read_status(table.folder / cell["folder"])
        versions, hours = status.get("versions", {}), status.get("wall_s", 0.0) / 3600
        state = f"{cell['state']}: {cell['reason']}" if cell["reason"] else cell["state"]
        version = f"{versions.get('posegen', '-')} {(status.get('git') or '')[:10]}".strip()
        texts = (state, f"{hours:.2f}" if hours else "-", version, status.get("machine", "-"))
        lines.append(SheetLine(cell["folder"], unshaded(map(TableEntry, texts)), failed=cell["state"] != "finished"))
    names = ("cell", "state", "hours", "posegen", "machine")
    finished = sum(not line.failed for line in lines)
    return {"sheet": Sheet("cells", names, [("", "", lines)], {}), "finished": finished, "all": len(lines)}
