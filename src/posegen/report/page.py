"""The results page: one self-contained html file that opens anywhere, without a network.

It has the table, curves of the training, quality beside pose accuracy and cost, the table's columns by scenario, action and number of people, a grid of
pictures, every pose with all methods side by side, and what became of every cell. ``posegen benchmark`` and ``posegen table`` write it as ``table.html``,
``posegen report`` as you like it.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import TYPE_CHECKING

from posegen.report import charts, page_tables
from posegen.report import image_grids as gallery
from posegen.report.charts import Figure
from posegen.report.figures import compared, learning
from posegen.report.page_tables import by_part, cells, listed, results
from posegen.runner.images import SHOWN

if TYPE_CHECKING:
    from posegen.report.table import Table

STYLE = """
:root { color-scheme: light dark; --ink: #222; --paper: #fff; --rule: #ddd; --dim: #5a5a5a; --bad: #a4260b; --heat: #56b4e9; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --paper: #16181c; --rule: #3a3d44; --dim: #a9adb5; --bad: #ff9d80; --heat: #0072b2; } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 84rem; padding: 0 1rem; color: var(--ink); background: var(--paper); }
h1 { line-height: 1.2; font-size: 1.8rem; } h2 { margin-top: 2.2rem; } nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; } nav a { color: inherit; }
@media (max-width: 40rem) { body { margin: 1rem auto; padding: 0 .6rem; } h1 { font-size: 1.4rem; } }
@media print { nav { display: none; } body { max-width: none; } .scroll { overflow: visible; } }
"""
#: The page may load nothing, and cannot.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
#: Longer side of a picture on the page, in pixels.
SIDE = 256


def page(table: Table, poses: int = SHOWN, side: int = SIDE) -> str:
    """The page as html text.

    Args:
        poses: most lines of the grid of pictures.
        side: longer side, in pixels, to which larger pictures are made smaller.
    """
    title = html.escape(table.title)
    sections = {
        "Table": f"{results(table)}<p class='dim'>{html.escape(table.caption)}</p>{listed(table.notes)}",
        "Curves": charted(learning(table)),
        "Accuracy, quality and cost": charted(compared(table)),
        **{f"By {parts.by}": by_part(parts) for parts in table.parts},
        "Pictures": gallery.gallery(table, poses, side) if poses else "",
        "Cells": cells(table),
    }
    full = {name: content for name, content in sections.items() if content}
    links = "".join(f"<a href='#{anchor(name)}'>{name}</a>" for name in full)
    body = "".join(f"<section id='{anchor(name)}'><h2>{name}</h2>{content}</section>" for name, content in full.items())
    style = STYLE + page_tables.STYLE + gallery.STYLE + charts.STYLE
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    view = "<meta name='viewport' content='width=device-width, initial-scale=1'>"
    head = f"<head><meta charset='utf-8'>{policy}{view}<title>{title}</title><style>{style}</style></head>"
    main = f"<body><h1>{title}</h1><nav aria-label='sections'>{links}</nav><main>{body}</main><script>{page_tables.SORT}</script></body>"
    return f"<!doctype html><html lang='en'>{head}{main}</html>\n"


def anchor(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.lower())


def charted(figures: Mapping[str, Figure]) -> str:
    return f"<div class='charts'>{''.join(figure.html() for figure in figures.values())}</div>" if figures else ""
