"""The results page: one self-contained html file with the table, the same by scenario, and a grid of pictures, every pose with all methods side by side."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2

from posegen.runner.formats import Entry, Grid, grid
from posegen.runner.pictures import SHOWN, picture, read_png

if TYPE_CHECKING:
    from posegen.runner.table import Table

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; color: #222; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; }
td, th { padding: .3rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #ddd; }
td:first-child, th:first-child { text-align: left; }
th { cursor: pointer; border-bottom: 2px solid #222; }
.best { font-weight: 700; } .second { text-decoration: underline; } .bound { color: #666; font-style: italic; } .notes { color: #444; font-size: 13px; }
.grid td { text-align: center; padding: .15rem; border: 0; } .grid img { width: 96px; height: 96px; object-fit: contain; image-rendering: pixelated; }
.grid .prompt { text-align: left; white-space: normal; max-width: 18rem; font-size: 12px; } .scroll { overflow-x: auto; }
"""

SORT = """
document.querySelectorAll('.sortable th').forEach(th => th.addEventListener('click', () => {
  const i = th.cellIndex, body = th.closest('table').tBodies[0], up = th.dataset.up !== '1'; th.dataset.up = up ? '1' : '0';
  const key = row => { const t = row.cells[i].textContent; const v = parseFloat(t); return isNaN(v) ? t : v; };
  [...body.rows].sort((a, b) => (key(a) > key(b) ? 1 : -1) * (up ? 1 : -1)).forEach(row => body.append(row));
}));
"""


#: Longer side of a picture on the page, in pixels.
SIDE = 256


def page(table: Table) -> str:
    """The page as html text."""
    title = html.escape(table.title)
    classes = ["" if row["ranked"] else "bound" for row in table.rows]
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{title}</title><style>{STYLE}</style>"
        f"<h1>{title}</h1><div class='scroll'>{sortable(grid(table), classes)}</div><p>{html.escape(table.caption)}</p>{listed(table.notes)}"
        f"{scenarios(table)}<h2>Pictures</h2><div class='scroll'>{pictures(table)}</div><script>{SORT}</script></html>\n"
    )


def sortable(lines: Grid, classes: Sequence[str] = ()) -> str:
    """A table; a click on a column's head sorts by it.

    Args:
        classes: of the rows, for the style sheet.
    """
    head, *rows = lines
    body = []
    for row, kind in zip(rows, classes or [""] * len(rows), strict=True):
        body.append(f"<tr{f' class={kind}' if kind else ''}>{''.join(map(cell, row))}</tr>")
    names = "".join(f"<th>{html.escape(entry.text)}</th>" for entry in head)
    return f"<table class='sortable'><thead><tr>{names}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def cell(entry: Entry) -> str:
    kind = {1: " class='best'", 2: " class='second'"}.get(entry.rank, "")
    return f"<td{kind}>{entry.marked('{}', '{}', html.escape)}</td>"


def listed(notes: Sequence[str]) -> str:
    return f"<ul class='notes'>{''.join(f'<li>{html.escape(note)}</li>' for note in notes)}</ul>" if notes else ""


def scenarios(table: Table) -> str:
    """One table per headline column, folded up."""
    if table.scenarios is None:
        return ""
    found = table.scenarios
    parts = [f"<details><summary>{html.escape(column)}</summary><div class='scroll'>{sortable(found.grid(column))}</div></details>" for column in found.columns]
    return f"<h2>By scenario</h2>{''.join(parts)}<p>{html.escape(found.caption)}</p>{listed(found.notes)}"


def pictures(table: Table) -> str:
    """One line per pose: the caption, the source where the data has some, then every method's picture of it."""
    columns = dict(sorted(table.shown.items(), key=lambda item: item[0] != "reference/real"))
    if not columns:
        return "<p>No cell has finished.</p>"
    prompts = read_prompts(next(iter(columns.values())))
    having = next((folder / "sources" for folder in columns.values() if (folder / "sources").is_dir()), None)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ["prompt", *([] if having is None else ["source"]), *columns])
    lines = []
    for i, prompt in enumerate(prompts[:SHOWN]):
        shown = [*([] if having is None else [having]), *(folder / "samples" for folder in columns.values())]
        images = "".join(f"<td>{inline(picture(folder, i))}</td>" for folder in shown)
        lines.append(f"<tr><td class='prompt'>{html.escape(prompt)}</td>{images}</tr>")
    return f"<table class='grid'><tr>{head}</tr>{''.join(lines)}</table>"


def read_prompts(cell: Path) -> list[str]:
    path = cell / "samples" / "prompts.txt"
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else [""] * SHOWN


def inline(path: Path) -> str:
    """A picture as a data address, so that the page needs no other file; large ones are made smaller."""
    if not path.is_file():
        return ""
    image = read_png(path)
    scale = SIDE / max(image.shape[:2])
    data = path.read_bytes()
    if scale < 1:
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        data = cv2.imencode(".png", cv2.cvtColor(small, cv2.COLOR_RGB2BGR))[1].tobytes()
    return f"<img alt='' src='data:image/png;base64,{base64.b64encode(data).decode()}'>"
