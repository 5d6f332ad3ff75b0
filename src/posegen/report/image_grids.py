"""The grid of pictures of the results page: a line per pose, all methods side by side, with the poses found in them."""

from __future__ import annotations

import base64
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from posegen.errors import UserError
from posegen.metrics.records import CSV_FILE, from_csv
from posegen.report.side_by_side import judged_panels, source_file
from posegen.report.table import Table
from posegen.runner.images import AGAIN, picture, read_png

SHARP = 112  # pixels of a side up to which a picture is shown with its pixels


@dataclass(frozen=True)
class Picture:
    """One picture of the page: its data address, its description, and the class of its look."""

    address: str
    about: str
    look: str = ""


@dataclass(frozen=True)
class GridEntry:
    """What stands below one name in a line: pictures (none where they are missing), and a note."""

    name: str
    pictures: Sequence[Picture]
    note: str = ""
    missing: bool = False


class GridLine(NamedTuple):
    """One pose: its number, part and caption, and entries: pose and source if any, one per row."""

    words: Sequence[str]
    entries: Sequence[GridEntry]


def picture_grid(table: Table, poses: int, side: int) -> list[GridLine] | None:
    """At most ``poses`` lines of target pose, source where the data has some, and every method's picture, no side
    of which is longer than ``side`` pixels; None without cells."""
    cells = dict(sorted(table.pictured.items(), key=lambda item: item[0] != "reference/real"))
    if not cells:
        return None
    labels = table.scenarios.labels if table.scenarios else []
    indices = shown_indices(cells.values(), labels, poses)
    judged = {i: judged_panels(cells, i) for i in indices}
    sources = {i: source_file(cells.values(), i) for i in indices}
    posed, sourced = any(judged.values()), any(sources.values())
    notes = {name: joints_found(cell) for name, cell in cells.items()}
    prompts = next(filter(None, map(prompts_of, cells.values())), [])
    lines = []
    for i in indices:
        about, entries = f"picture {i}", []
        if posed:
            poses_shown = [panels[0] for panels in judged[i].values()][:1]
            entries.append(GridEntry("pose", [shrunk_picture(p, f"target pose of {about}", side) for p in poses_shown]))
        if sourced:
            source = sources[i]
            entries.append(GridEntry("source", [stored_picture(source, f"source of {about}", side)] if source else []))
        for name, cell in cells.items():
            file, pictures = picture(cell / "samples", i), []
            if name in judged[i]:
                found = f"{name}, {about}, with the poses that were found"
                pictures.append(shrunk_picture(judged[i][name][2], found, side, "found"))
            if file.is_file():
                pictures.append(stored_picture(file, f"{name}, {about}", side))
            entries.append(GridEntry(name, pictures, notes[name].get(i, ""), not file.is_file()))
        words = [str(i), *labels[i : i + 1], *prompts[i : i + 1]]
        lines.append(GridLine([word for word in words if word], entries))
    return lines


def shown_indices(folders: Collection[Path], labels: Sequence[str], poses: int) -> list[int]:
    """The images that are shown: the first ones; with scenarios the first of each, the second of each, and so on."""
    known = numbered_pngs(folders, "samples")
    if not labels:
        return sorted(known)[:poses]
    known &= set(range(len(labels)))
    judged, parts = numbered_pngs(folders, "judged"), {}
    for i in sorted(known, key=lambda i: (i not in judged, i)):
        parts.setdefault(labels[i], []).append(i)
    turns = chain.from_iterable(zip_longest(*(parts[name] for name in sorted(parts))))
    return [i for i in turns if i is not None][:poses]


def numbered_pngs(folders: Collection[Path], kind: str) -> set[int]:
    return {int(f.stem) for folder in folders for f in (folder / kind).glob("*.png") if f.stem.isdecimal()}


def prompts_of(cell: Path) -> list[str]:
    """The prompts of a cell's pictures, as far as it has them."""
    file = cell / "samples" / "prompts.txt"
    try:
        return file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    except ValueError as error:
        raise UserError(f"{file} is no text in UTF-8 ({error}); {AGAIN}") from error


def joints_found(cell: Path) -> dict[int, str]:
    """Image -> how many of its joints were found where they should be, as far as the records know."""
    records = from_csv(cell / CSV_FILE)
    counts = [records.get(name, []) for name in ("joints_correct", "joints")]
    if not all(isinstance(value, float) for column in counts for value in column):
        return {}
    return {i: f"{correct:g} of {joints:g}" for i, (correct, joints) in enumerate(zip(*counts, strict=False))}


def stored_picture(path: Path, about: str, side: int) -> Picture:
    """A picture file, so that the page needs no other file; a large one is made smaller."""
    image = read_png(path)
    if max(image.shape[:2]) > side:
        return shrunk_picture(image, about, side)
    return Picture(data_address(path.read_bytes(), "png"), about, "" if max(image.shape[:2]) > SHARP else "small")


def shrunk_picture(image: np.ndarray, about: str, side: int, look: str = "") -> Picture:
    """An image ``[H, W, 3] uint8``, no larger than ``side``."""
    if (scale := side / max(image.shape[:2])) < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    data = cv2.imencode(".webp", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_WEBP_QUALITY, 88])[1]
    return Picture(data_address(data.tobytes(), "webp"), about, look)


def data_address(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
