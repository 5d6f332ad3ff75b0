"""The results page: one self-contained html file that opens anywhere, without a network.

It has the table, curves of the training, quality beside pose accuracy and cost, the table's columns by scenario, action and number of people, and a grid of
pictures, every pose with all methods side by side. ``posegen benchmark`` and ``posegen table`` write it as ``table.html``, ``posegen report`` as you like it.
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2

from posegen.runner import charts
from posegen.runner.charts import Figure
from posegen.runner.curves import Curve, curves_of, smoothed
from posegen.runner.formats import Entry, Grid, grid
from posegen.runner.pictures import SHOWN, picture, read_png

if TYPE_CHECKING:
    from posegen.runner.rows import Row
    from posegen.runner.scenarios import Scenarios
    from posegen.runner.table import Table

STYLE = """
:root { color-scheme: light dark; --ink: #222; --paper: #fff; --rule: #ddd; --dim: #555; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --paper: #16181c; --rule: #3a3d44; --dim: #a9adb5; } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; color: var(--ink); background: var(--paper); }
h2 { margin-top: 2.2rem; } nav a { margin-right: 1rem; color: inherit; }
table { border-collapse: collapse; margin: 1rem 0; }
td, th { padding: .3rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule); }
td:first-child, th:first-child { text-align: left; }
.sortable thead th { cursor: pointer; border-bottom: 2px solid var(--ink); } .sortable tbody th { font-weight: 400; }
.sortable tbody + tbody tr:first-child > * { border-top: 2px solid var(--rule); }
th[aria-sort=ascending]::after { content: ' \\2191'; } th[aria-sort=descending]::after { content: ' \\2193'; }
.best { font-weight: 700; } .second { text-decoration: underline; } .bound { color: var(--dim); font-style: italic; }
.notes, .dim { color: var(--dim); font-size: 13px; }
.grid td { text-align: center; padding: .15rem; border: 0; } .grid img { width: 96px; height: 96px; object-fit: contain; image-rendering: pixelated; }
.grid .prompt { text-align: left; white-space: normal; min-width: 8rem; max-width: 18rem; font-size: 12px; } .scroll { overflow-x: auto; }
.grid thead th { position: sticky; top: 0; background: var(--paper); text-align: center; font-size: 12px; }
"""

SORT = """
document.querySelectorAll('.sortable thead th').forEach(th => {
  const sort = () => {
    const i = th.cellIndex, up = th.getAttribute('aria-sort') !== 'ascending';
    th.closest('tr').querySelectorAll('th').forEach(other => other.removeAttribute('aria-sort'));
    th.setAttribute('aria-sort', up ? 'ascending' : 'descending');
    const key = row => { const t = row.cells[i].textContent, v = parseFloat(t); return isNaN(v) ? t : v; };
    const less = (a, b) => typeof a === typeof b ? (a > b) - (a < b) : typeof a === 'number' ? -1 : 1;
    for (const body of th.closest('table').tBodies) [...body.rows].sort((a, b) => less(key(a), key(b)) * (up ? 1 : -1)).forEach(row => body.append(row));
  };
  th.tabIndex = 0; th.addEventListener('click', sort); th.addEventListener('keydown', e => { if (e.key === 'Enter') sort(); });
});
"""

#: What the points of charts are: pose accuracy, and quality beside it, the first of each that the table has.
ACCURACY = ("PCK@0.1", "AP", "target PCK@0.1")
QUALITY = ("clean_FID", "LPIPS", "person_PSNR", "SSIM", "judge_frechet", "MSE")


#: Longer side of a picture on the page, in pixels.
SIDE = 256


def page(table: Table, poses: int = SHOWN) -> str:
    """The page as html text.

    Args:
        poses: most lines of the grid of pictures.
    """
    title = html.escape(table.title)
    bound = [not row["ranked"] for row in table.rows]
    sections = {
        "Table": f"<div class='scroll'>{sortable(grid(table), bound)}</div><p>{html.escape(table.caption)}</p>{listed(table.notes)}",
        "Curves": charted(learning(table)),
        "Accuracy, quality and cost": charted(compared(table)),
        **{f"By {parts.by}": by_part(parts) for parts in table.parts},
        "Pictures": f"<div class='scroll'>{pictures(table, poses)}</div>",
    }
    full = {name: content for name, content in sections.items() if content}
    links = "".join(f"<a href='#{anchor(name)}'>{name}</a>" for name in full)
    body = "".join(f"<section id='{anchor(name)}'><h2>{name}</h2>{content}</section>" for name, content in full.items())
    head = (
        f"<meta charset='utf-8'><meta name='viewport' content='width=device-width, initial-scale=1'><title>{title}</title><style>{STYLE}{charts.STYLE}</style>"
    )
    return f"<!doctype html><html lang='en'>{head}<h1>{title}</h1><nav>{links}</nav>{body}<script>{SORT}</script></html>\n"


def anchor(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.lower())


def sortable(lines: Grid, bound: Sequence[bool] = ()) -> str:
    """A table; a click on a column's head sorts by it, methods and reference rows each for themselves.

    Args:
        bound: which rows are reference rows; they stand below the others.
    """
    head, *rows = lines
    kinds = bound or [False] * len(rows)
    bodies = []
    for reference in (False, True):
        own = [row for row, kind in zip(rows, kinds, strict=True) if kind is reference]
        made = "".join(f"<tr{' class=bound' if reference else ''}><th scope='row'>{named(row[0])}</th>{''.join(map(cell, row[1:]))}</tr>" for row in own)
        bodies.append(f"<tbody>{made}</tbody>" if own else "")
    names = "".join(f"<th scope='col'>{html.escape(entry.text)}</th>" for entry in head)
    return f"<table class='sortable'><thead><tr>{names}</tr></thead>{''.join(bodies)}</table>"


def named(entry: Entry) -> str:
    return entry.marked("{}", "{}", html.escape)


def cell(entry: Entry) -> str:
    kind = {1: " class='best'", 2: " class='second'"}.get(entry.rank, "")
    return f"<td{kind}>{entry.marked('{}', '{}', html.escape)}</td>"


def listed(notes: Sequence[str]) -> str:
    return f"<ul class='notes'>{''.join(f'<li>{html.escape(note)}</li>' for note in notes)}</ul>" if notes else ""


def by_part(found: Scenarios) -> str:
    """One table per headline column, folded up."""
    parts = [f"<details><summary>{html.escape(column)}</summary><div class='scroll'>{sortable(found.grid(column))}</div></details>" for column in found.columns]
    return f"{''.join(parts)}<p class='dim'>{html.escape(found.caption)}</p>{listed(found.notes)}"


def charted(figures: Mapping[str, Figure]) -> str:
    return f"<div class='charts'>{''.join(figure.html() for figure in figures.values())}</div>" if figures else ""


def figures(table: Table) -> dict[str, Figure]:
    """File name -> every chart of the page."""
    return learning(table) | compared(table)


def learning(table: Table) -> dict[str, Figure]:
    """File name -> figure of the training's curves: the loss, and the columns that were looked at while training."""
    found: dict[str, list[dict[str, Curve]]] = {}
    for cell in table.cells:
        found.setdefault(cell.get("row", cell["method"]), []).append(curves_of(table.folder / cell["folder"]))
    shown = [f"live/{column}" for column in table.headline if any(f"live/{column}" in curve for runs in found.values() for curve in runs)][:3]
    made = {}
    for name in ("train/loss", *shown):
        drawn = [charts.Line(row, [smoothed(c[name]) if name == "train/loss" else c[name] for c in runs if name in c]) for row, runs in found.items()]
        title = "Loss of the training" if name == "train/loss" else f"{name.removeprefix('live/')} on validation images"
        made[name.replace("/", "_")] = charts.lines(title, [line for line in drawn if line.runs], ("step", name.partition("/")[2]))
    return {name: figure for name, figure in made.items() if figure}


def compared(table: Table) -> dict[str, Figure]:
    """File name -> figure of quality beside pose accuracy, and of pose accuracy beside what it costs."""
    accuracy = next((name for name in ACCURACY if name in table.columns), table.headline[0])
    quality = next((name for name in QUALITY if name in table.columns and name != accuracy and not empty(table, name)), None)
    done = [row for row in table.rows if row["state"] == "finished"]

    def mark(row: Row, x: str, y: str) -> charts.Mark:
        across, up = ((row[f"{n}_lo"], row[f"{n}_hi"]) if f"{n}_lo" in row else None for n in (x, y))
        return charts.Mark(row["method"], row.get(x, math.nan), row.get(y, math.nan), across, up, bound=not row["ranked"])

    made: dict[str, Figure | None] = {}
    if quality:
        lower = " (lower is better)" if quality in table.lower else ""
        made["quality"] = charts.marks("Quality beside pose accuracy", [mark(r, accuracy, quality) for r in done], (accuracy, quality + lower))
    for name, label in (("train_images_per_s", "training, images per second"), ("sample_images_per_s", "sampling, images per second")):
        ranked = [mark(r, f"cost_{name}", accuracy) for r in done if r["ranked"]]
        made[name] = charts.marks(f"Pose accuracy beside {label.partition(',')[0]} cost", ranked, (label, accuracy))
    return {name: figure for name, figure in made.items() if figure}


def empty(table: Table, column: str) -> bool:
    return all(math.isnan(row.get(column, math.nan)) for row in table.rows)


def pictures(table: Table, poses: int) -> str:
    """One line per pose: the caption, the source where the data has some, then every method's picture of it."""
    columns = dict(sorted(table.shown.items(), key=lambda item: item[0] != "reference/real"))
    if not columns:
        return "<p>No cell has finished.</p>"
    prompts = read_prompts(next(iter(columns.values())))
    having = next((folder / "sources" for folder in columns.values() if (folder / "sources").is_dir()), None)
    worded = any(prompts[:poses])
    head = "".join(f"<th>{html.escape(name)}</th>" for name in [*(["prompt"] if worded else []), *([] if having is None else ["source"]), *columns])
    lines = []
    for i, prompt in enumerate(prompts[:poses]):
        shown = [*([] if having is None else [having]), *(folder / "samples" for folder in columns.values())]
        images = "".join(f"<td>{inline(picture(folder, i))}</td>" for folder in shown)
        told = f"<td class='prompt'>{html.escape(prompt)}</td>" if worded else ""
        lines.append(f"<tr>{told}{images}</tr>")
    return f"<table class='grid'><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


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
