"""The tables of the results page: sortable, groups of rows each for themselves, readable by programs that read pages aloud."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from posegen.io.atomic import read_json
from posegen.report.formats import Entry, grid

if TYPE_CHECKING:
    from posegen.metrics.base import Column
    from posegen.report.breakdown import Scenarios
    from posegen.report.rows import Row
    from posegen.report.table import Table

STYLE = """
table { border-collapse: collapse; margin: .5rem 0; } .scroll { overflow-x: auto; }
td, th { padding: .3rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule); font-variant-numeric: tabular-nums; }
td small { display: block; color: var(--dim); font-weight: 400; } thead th { vertical-align: bottom; white-space: normal; border-bottom: 2px solid var(--ink); }
td:first-child, th:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); z-index: 1; } tbody th { font-weight: 400; }
th button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer; text-align: inherit; }
th button:hover { text-decoration: underline; }
th[aria-sort=ascending] button::after { content: ' \\25b4'; } th[aria-sort=descending] button::after { content: ' \\25be'; }
.label th { font-size: 12px; color: var(--dim); padding-top: .9rem; } .reason { text-align: left; white-space: normal; min-width: 16rem; color: var(--bad); }
.best { font-weight: 700; } .second { text-decoration: underline; } .bound, .reported { color: var(--dim); } .mean tr > * { border-top: 2px solid var(--rule); }
.heat { background: color-mix(in srgb, var(--heat) calc(var(--v) * 55%), transparent); }
.notes, .dim { color: var(--dim); font-size: 13px; } details { margin: .3rem 0; } summary { cursor: pointer; }
"""

SORT = """
document.querySelectorAll('table.sortable thead button').forEach(button => button.addEventListener('click', () => {
  const th = button.closest('th'), i = th.cellIndex, now = th.getAttribute('aria-sort'), first = th.dataset.first;
  const up = now ? now !== 'ascending' : first !== 'descending';
  th.closest('tr').querySelectorAll('th').forEach(other => other.removeAttribute('aria-sort'));
  th.setAttribute('aria-sort', up ? 'ascending' : 'descending');
  const key = row => { const t = row.cells[i] ? row.cells[i].textContent : ''; const v = parseFloat(t); return isNaN(v) ? (i ? null : t) : i ? v : t; };
  const order = (a, b) => a === null || b === null ? (a === null) - (b === null) : (up ? 1 : -1) * (typeof a === 'number' ? a - b : a.localeCompare(b));
  for (const body of th.closest('table').tBodies)
    [...body.rows].filter(row => row.className !== 'label').sort((a, b) => order(key(a), key(b))).forEach(row => body.append(row));
}));
"""

#: State of a row -> what stands above the rows of its kind.
KINDS = {
    "": "Methods",
    "unfinished": "Not finished",
    "bound": "Bounds, not ranked",
    "reported": "Published numbers, not ranked",
}


def results(table: Table) -> str:
    """The benchmark's table: methods, then those that did not finish, bounds and published numbers, each for themselves."""
    head, *lines = grid(table)
    body = []
    kinds = list(map(kind_of, table.rows))
    for kind, label in KINDS.items():
        rows = [(line, row) for line, row, own in zip(lines, table.rows, kinds, strict=True) if own == kind]
        if rows:
            drawn = "".join(unfinished(line) if kind == "unfinished" else tr(line, kind) for line, _ in rows)
            above = (
                f"<tr class='label'><th colspan='{len(head)}' scope='rowgroup'>{label}</th></tr>"
                if set(kinds) != {""}
                else ""
            )
            body.append(f"<tbody>{above}{drawn}</tbody>")
    return shell(head, "".join(body), {c: c.better == "lower" for c in table.headline if c.better}, table.title)


def kind_of(row: Row) -> str:
    if row["state"] not in ("finished", "reported"):
        return "unfinished"
    return "reported" if row["state"] == "reported" else "" if row["ranked"] else "bound"


def shell(head: Sequence[Entry], body: str, lower: Mapping[str, bool], about: str, arrows: bool = True) -> str:
    """A table around its rows.

    Args:
        lower: column -> whether smaller is better; the first click on such a column puts the best on top.
        about: what the table shows, for those who do not see it.
        arrows: show what is better.
    """
    names = []
    for i, entry in enumerate(head):
        least = lower.get(entry.text)
        first = "ascending" if i == 0 or least else "descending"
        mark = arrow(least) if arrows and least is not None else ""
        names.append(
            f"<th scope='col' data-first='{first}'><button type='button'>{broken(entry.text)}{mark}</button></th>"
        )
    label = html.escape(about, quote=True)
    return f"<div class='scroll'><table class='sortable' aria-label='{label}'><thead><tr>{''.join(names)}</tr></thead>{body}</table></div>"


def arrow(least: bool) -> str:
    return f"<span title='{'lower' if least else 'higher'} is better'>&nbsp;{'↓' if least else '↑'}</span>"


def tr(line: Sequence[Entry], kind: str = "") -> str:
    return f"<tr{f' class={kind!r}' if kind else ''}><th scope='row'>{broken(line[0].text)}</th>{''.join(map(td, line[1:]))}</tr>"


def unfinished(line: Sequence[Entry]) -> str:
    """A row whose only entry is what became of it."""
    return f"<tr><th scope='row'>{broken(line[0].text)}</th><td class='reason' colspan='{len(line) - 1}'>{html.escape(line[1].text)}</td></tr>"


def td(entry: Entry, share: float | None = None) -> str:
    """A value, above its interval where it has one.

    Args:
        share: strength of the background, 0 to 1.
    """
    found = re.fullmatch(r"(.*?) (\[[^\]]*\])", entry.text)
    value, interval = found.groups() if found else (entry.text, "")
    classes = " ".join(filter(None, [{1: "best", 2: "second"}.get(entry.rank), None if share is None else "heat"]))
    look = (f" class='{classes}'" if classes else "") + ("" if share is None else f" style='--v:{share:.2f}'")
    small = f" <small>{html.escape(interval)}</small>" if interval else ""
    return f"<td{look}>{Entry(value, entry.rank, entry.differs).marked('{}', '{}', html.escape)}{small}</td>"


def broken(name: str) -> str:
    """A name as html that may be broken behind a slash or an underscore."""
    return re.sub(r"([/_,])(?=\w\w)", r"\1<wbr>", html.escape(name))


def by_part(found: Scenarios) -> str:
    """One table per column, the first one open; the better a method is in a part, the stronger its background."""
    tables = []
    for i, column in enumerate(found.columns):
        head, *lines = found.grid(column)
        names, shades = [row["method"] for row in found.rows if row["ranked"]], shading(found, column)
        *rows, mean = [part_row(line, [entry.text for entry in head], shades) for line in lines]
        body = f"<tbody>{''.join(rows)}</tbody><tbody class='mean'>{mean}</tbody>"
        made = shell(
            head, body, dict.fromkeys(names, column.better == "lower"), f"{column} by {found.by}", arrows=False
        )
        better = arrow(column.better == "lower") if column.better else ""
        tables.append(
            f"<details{'' if i else ' open'}><summary>{html.escape(column)}{better}</summary>{made}</details>"
        )
    return f"{''.join(tables)}<p class='dim'>{html.escape(found.caption)}</p>{listed(merged(found.notes))}"


def part_row(line: Sequence[Entry], head: Sequence[str], shades: Mapping[tuple[str, str], float]) -> str:
    cells = "".join(td(entry, shades.get((line[0].text, name))) for entry, name in zip(line[1:], head[1:], strict=True))
    return f"<tr><th scope='row'>{html.escape(line[0].text)}</th>{cells}</tr>"


def shading(found: Scenarios, column: Column) -> dict[tuple[str, str], float]:
    """(part, method) -> 0 for the worst value of a column among the methods to 1 for the best; empty where there is no better."""
    values = {
        (row[found.by], row["method"]): row[column]
        for row in found.rows
        if row["ranked"] and row[column] == row[column]
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


def cells(table: Table) -> str:
    """What became of every cell, and what it was computed with; folded up where all is well."""
    head = [Entry(name) for name in ("cell", "state", "hours", "posegen", "machine")]
    rows = []
    for cell in table.cells:
        path = table.folder / cell["folder"] / "status.json"
        status = read_json(path) if path.is_file() else {}
        versions, hours = status.get("versions", {}), status.get("wall_s", 0.0) / 3600
        commit = (status.get("git") or "")[:10]
        told = f"{cell['state']}: {cell['reason']}" if cell["reason"] else cell["state"]
        rest = [
            f"{hours:.2f}" if hours else "-",
            f"{versions.get('posegen', '-')} {commit}".strip(),
            status.get("machine", "-"),
        ]
        kind = "" if cell["state"] == "finished" else " class='reason'"
        shown = "".join(f"<td>{html.escape(text)}</td>" for text in rest)
        rows.append(f"<tr><th scope='row'>{broken(cell['folder'])}</th><td{kind}>{html.escape(told)}</td>{shown}</tr>")
    count = sum(cell["state"] == "finished" for cell in table.cells)
    drawn = shell(head, f"<tbody>{''.join(rows)}</tbody>", {}, "cells")
    return f"<details{'' if count == len(table.cells) else ' open'}><summary>{count} of {len(table.cells)} finished</summary>{drawn}</details>"


def listed(notes: Sequence[str]) -> str:
    return f"<ul class='notes'>{''.join(f'<li>{html.escape(note)}</li>' for note in notes)}</ul>" if notes else ""
