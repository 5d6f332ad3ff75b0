"""The results page: one self-contained html file with the table and a grid of pictures, every pose with all methods side by side."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import TYPE_CHECKING

from posegen.runner.pictures import SHOWN, picture

if TYPE_CHECKING:
    from posegen.runner.table import Table

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; color: #222; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; }
td, th { padding: .3rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #ddd; }
td:first-child, th:first-child { text-align: left; }
th { cursor: pointer; border-bottom: 2px solid #222; }
.best { font-weight: 700; } .bound { color: #666; font-style: italic; }
.grid td { text-align: center; padding: .15rem; border: 0; } .grid img { width: 96px; height: 96px; object-fit: contain; image-rendering: pixelated; }
.grid .prompt { text-align: left; white-space: normal; max-width: 18rem; font-size: 12px; } .scroll { overflow-x: auto; }
"""

SORT = """
document.querySelectorAll('#results th').forEach((th, i) => th.addEventListener('click', () => {
  const body = th.closest('table').tBodies[0], up = th.dataset.up !== '1'; th.dataset.up = up ? '1' : '0';
  const key = row => { const t = row.cells[i].textContent; const v = parseFloat(t); return isNaN(v) ? t : v; };
  [...body.rows].sort((a, b) => (key(a) > key(b) ? 1 : -1) * (up ? 1 : -1)).forEach(row => body.append(row));
}));
"""


def page(table: Table) -> str:
    """The page as html text."""
    title = html.escape(table.title)
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{title}</title><style>{STYLE}</style>"
        f"<h1>{title}</h1><div class='scroll'>{results(table)}</div><p>{html.escape(table.caption)}</p>"
        f"<h2>Pictures</h2><div class='scroll'>{pictures(table)}</div><script>{SORT}</script></html>\n"
    )


def results(table: Table) -> str:
    """The table; a click on a column's head sorts by it."""
    head, *rows = table.grid()
    body = []
    for row, facts in zip(rows, table.rows, strict=True):
        cells = "".join(f"<td class='best'>{html.escape(c[2:-2])}</td>" if c.startswith("**") else f"<td>{html.escape(c)}</td>" for c in row)
        body.append(f"<tr{'' if facts['ranked'] else ' class=bound'}>{cells}</tr>")
    return f"<table id='results'><thead><tr>{''.join(f'<th>{html.escape(c)}</th>' for c in head)}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def pictures(table: Table) -> str:
    """One line per pose: the caption, then every method's picture of it."""
    columns = dict(sorted(table.shown.items(), key=lambda item: item[0] != "reference/real"))
    if not columns:
        return "<p>No cell has finished.</p>"
    prompts = read_prompts(next(iter(columns.values())))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ["prompt", *columns])
    lines = []
    for i, prompt in enumerate(prompts[:SHOWN]):
        images = "".join(f"<td>{inline(picture(folder / 'samples', i))}</td>" for folder in columns.values())
        lines.append(f"<tr><td class='prompt'>{html.escape(prompt)}</td>{images}</tr>")
    return f"<table class='grid'><tr>{head}</tr>{''.join(lines)}</table>"


def read_prompts(cell: Path) -> list[str]:
    path = cell / "samples" / "prompts.txt"
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else [""] * SHOWN


def inline(path: Path) -> str:
    """A picture as a data address, so that the page needs no other file."""
    if not path.is_file():
        return ""
    return f"<img alt='' src='data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}'>"
