"""The grid of pictures of the results page: a line per pose, all methods side by side, and what the judge found in each picture."""

from __future__ import annotations

import base64
import csv
import html
from collections.abc import Collection, Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from posegen.report.page_tables import broken
from posegen.runner.images import picture, read_png

if TYPE_CHECKING:
    from posegen.report.table import Table

STYLE = """
.grid td, .grid th { padding: .15rem .2rem; border: 0; text-align: center; vertical-align: top; white-space: normal; font-size: 12px; }
.grid thead th { position: sticky; top: 0; background: var(--paper); width: 112px; min-width: 84px; vertical-align: bottom; }
.grid img { display: block; width: 112px; max-height: 168px; object-fit: contain; margin: 0 auto; } .grid img.small { image-rendering: pixelated; }
.grid tbody th { text-align: left; min-width: 7rem; max-width: 16rem; } .grid .worded { min-width: 12rem; } .grid thead th:first-child { z-index: 2; }
.grid small { color: var(--dim); }
.found { display: none !important; } #found:checked ~ .scroll .found { display: block !important; } #found:checked ~ .scroll .found + img { display: none; }
@media (max-width: 40rem) { .grid img, .grid thead th { width: 84px; } .grid tbody th { min-width: 4rem; max-width: 6rem; overflow-wrap: anywhere; } }
"""
QUALITY = 88  # of pictures that were made smaller, of 100


def gallery(table: Table, poses: int, side: int) -> str:
    """The caption and target pose of each line, the source where the data has some, then every method's picture.

    Args:
        poses: most lines.
        side: longer side, in pixels, to which larger pictures are made smaller.
    """
    cells = dict(sorted(table.shown.items(), key=lambda item: item[0] != "reference/real"))
    if not cells:
        return "<p>No cell has finished.</p>"
    labels = table.scenarios.labels if table.scenarios else []
    lines = [Line(i, cells, labels[i : i + 1], side) for i in chosen(cells.values(), labels, poses)]
    posed, sourced = any(line.pose for line in lines), any(line.source for line in lines)
    names = ["picture", *(["pose"] if posed else []), *(["source"] if sourced else []), *cells]
    head = "".join(f"<th scope='col'>{broken(name)}</th>" for name in names)
    facts = {name: facts_of(cell) for name, cell in cells.items()}
    prompts = read_prompts(cells.values())
    body = "".join(
        line.html(prompts[line.index] if line.index < len(prompts) else "", posed, sourced, facts) for line in lines
    )
    switch = (
        "<input type='checkbox' id='found'> <label for='found'>show the poses that the judge found</label>"
        if any(line.judged for line in lines)
        else ""
    )
    told = (
        "<p class='dim'>Below a picture: how many joints were found where they should be.</p>"
        if any(facts.values())
        else ""
    )
    return f"{told}{switch}<div class='scroll'><table class='grid' aria-label='pictures'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


class Line:
    """One pose's pictures, as files that are there."""

    def __init__(self, index: int, cells: Mapping[str, Path], label: Sequence[str], side: int) -> None:
        self.index, self.label, self.side = index, label, side
        self.samples = {name: picture(cell / "samples", index) for name, cell in cells.items()}
        files = {name: picture(cell / "judged", index) for name, cell in cells.items()}
        self.judged = {name: np.split(read_png(file), 3, axis=1) for name, file in files.items() if file.is_file()}
        self.pose = next((panels[0] for panels in self.judged.values()), None) is not None
        self.source = next(
            (file for cell in cells.values() if (file := picture(cell / "sources", index)).is_file()), None
        )

    def html(self, prompt: str, posed: bool, sourced: bool, facts: Mapping[str, Mapping[int, str]]) -> str:
        about = f"picture {self.index}"
        head = f"<th scope='row'{' class=worded' if prompt else ''}>{'<br>'.join(map(html.escape, filter(None, [f'{self.index}', *self.label, prompt])))}</th>"
        parts = []
        if posed:
            parts.append(
                shown(next((panels[0] for panels in self.judged.values()), None), f"target pose of {about}", self.side)
            )
        if sourced:
            parts.append(inline(self.source, f"source of {about}", self.side) if self.source else "")
        for name, file in self.samples.items():
            found = (
                shown(self.judged[name][2], f"{name}, {about}, with the poses that were found", self.side, "found")
                if name in self.judged
                else ""
            )
            told = facts[name].get(self.index, "")
            parts.append(
                f"{found}{inline(file, f'{name}, {about}', self.side)}{f'<small>{told}</small>' if told else ''}"
            )
        return f"<tr>{head}{''.join(f'<td>{part}</td>' for part in parts)}</tr>"


def chosen(folders: Collection[Path], labels: Sequence[str], poses: int) -> list[int]:
    """The images that are shown: the first ones, and where there are scenarios the first of each, then the second of each, and so on."""
    known = sorted(
        {int(file.stem) for folder in folders for file in (folder / "samples").glob("*.png") if file.stem.isdigit()}
    )
    if not labels:
        return known[:poses]
    pictured = {
        int(file.stem) for folder in folders for file in (folder / "judged").glob("*.png") if file.stem.isdigit()
    }
    parts: dict[str, list[int]] = {}
    for i in sorted(known, key=lambda i: (i not in pictured, i)):
        parts.setdefault(labels[i], []).append(i)
    return [i for i in chain.from_iterable(zip_longest(*(parts[name] for name in sorted(parts)))) if i is not None][
        :poses
    ]


def facts_of(cell: Path) -> dict[int, str]:
    """Image -> how many of its joints were found where they should be, as far as the records know."""
    with (cell / "records.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not {"joints", "joints_correct"} <= (rows[0].keys() if rows else set()):
        return {}
    return {i: f"{float(row['joints_correct']):g} of {float(row['joints']):g}" for i, row in enumerate(rows)}


def read_prompts(cells: Collection[Path]) -> list[str]:
    """The captions that the cells know, as many as there are."""
    files = [path for cell in cells if (path := cell / "samples" / "prompts.txt").is_file()]
    return files[0].read_text(encoding="utf-8").splitlines() if files else []


def inline(path: Path, about: str, side: int) -> str:
    """A picture as a data address, so that the page needs no other file; large ones are made smaller."""
    if not path.is_file():
        return "<span class='dim'>none</span>"
    image = read_png(path)
    if max(image.shape[:2]) > side:
        return shown(image, about, side)
    return tag(path.read_bytes(), "png", about, "" if max(image.shape[:2]) > 112 else "small")


def shown(image: np.ndarray | None, about: str, side: int, kind: str = "") -> str:
    """An image ``[H, W, 3] uint8`` as a data address, no larger than ``side``."""
    if image is None:
        return ""
    scale = side / max(image.shape[:2])
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    data = cv2.imencode(".webp", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_WEBP_QUALITY, QUALITY])[1]
    return tag(data.tobytes(), "webp", about, kind)


def tag(data: bytes, kind: str, about: str, look: str) -> str:
    return f"<img{f' class={look!r}' if look else ''} alt='{html.escape(about, quote=True)}' src='data:image/{kind};base64,{base64.b64encode(data).decode()}'>"
