"""The report of ``posegen prepare``: each split's counts, suspicions and defects, as a page, a table and pictures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from posegen.data.base import PoseData
from posegen.data.condition import Defect
from posegen.io.tables import csv_text
from posegen.poses.drawing import overlay
from posegen.poses.reading import PoseInput

SHEET_SIDE = 4  # rows and columns of a contact sheet
SHEET_TILE = 256  # pixels of each of its pictures
MOST_LISTED = 500  # defects of a split on the page; the table has all


@dataclass(frozen=True)
class SplitReport:
    split: str  # its name
    facts: Mapping[str, Any]
    warnings: Sequence[str]  # suspicions about the whole; the reason where nothing can be used
    defects: Sequence[Defect]
    usable: int  # number of samples

    @classmethod
    def of(cls, split: str, data: PoseData) -> SplitReport:
        """Prepares a split. An error that makes all of it unusable becomes a warning: other splits may be fine."""
        failure, usable = [], 0
        try:
            data.prepare()
            usable = len(data)
        except (OSError, ValueError) as error:
            failure = [str(error)]
        try:
            found = data.condition
        except (OSError, ValueError):  # even the list is missing
            return cls(split, {}, failure, (), 0)
        return cls(split, found.facts, [*failure, *found.warnings], found.defects, usable)

    @property
    def left_out(self) -> int:
        return sum(defect.fatal for defect in self.defects)

    @property
    def remarks(self) -> int:
        return len(self.defects) - self.left_out

    @property
    def summary(self) -> str:
        people = f", {self.facts['people']:,} people" if "people" in self.facts else ""
        things = "pairs" if "pairs" in self.facts else "pictures"
        return f"{self.usable:,} {things}{people}; {self.left_out} left out, {self.remarks} remarks"


def report_page(dataset: str, reports: Sequence[SplitReport]) -> str:
    lines = [f"# {dataset}", "", "| split | pictures | people | left out | remarks |", "|---|---|---|---|---|"]
    for r in reports:
        lines.append(f"| {r.split} | {r.usable} | {r.facts.get('people', '')} | {r.left_out} | {r.remarks} |")
    for r in reports:
        lines += ["", f"## {r.split}", "", *(f"**{warning}**\n" for warning in r.warnings)]
        for name, value in r.facts.items():
            shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else value
            lines.append(f"- {name.replace('_', ' ')}: {shown}")
        lines += _defect_lines(r.defects) if r.defects else ()
    return "\n".join(lines).rstrip() + "\n"


def _defect_lines(defects: Sequence[Defect]) -> Iterator[str]:
    """The number of each problem, with digits replaced by #, then the defects, those that leave images out first."""
    yield from ("", "| problem | files | |", "|---|---|---|")
    kinds = Counter((re.sub(r"\d", "#", defect.problem), defect.fatal) for defect in defects)
    for (kind, fatal), count in kinds.most_common(50):
        yield f"| {_markdown_cell(kind)} | {count} | {'left out' if fatal else 'kept'} |"
    yield from ("", "| file | problem | |", "|---|---|---|")
    for file, problem, fatal in sorted(defects, key=lambda defect: not defect.fatal)[:MOST_LISTED]:
        yield f"| {_markdown_cell(file)} | {_markdown_cell(problem)} | {'left out' if fatal else 'kept'} |"
    if len(defects) > MOST_LISTED:
        yield f"\nThe other {len(defects) - MOST_LISTED} are in report.csv."


def _markdown_cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def defect_table(reports: Sequence[SplitReport]) -> str:
    rows = ((r.split, file, problem, int(fatal)) for r in reports for file, problem, fatal in r.defects)
    return csv_text(("split", "file", "problem", "left_out"), rows)


def contact_sheet(data: PoseData) -> np.ndarray:
    """Pictures from the whole split with their poses over them, ``[H, W, 3] uint8``."""
    count = SHEET_SIDE * SHEET_SIDE
    rows = np.unique(np.linspace(0, len(data) - 1, count).round().astype(int)).tolist()
    tiles, zoom = [], max(1, SHEET_TILE // max(data.size))
    for sample in (data[row] for row in rows):
        image = np.zeros((*data.size, 3), np.uint8) if sample.image is None else sample.image
        pose = PoseInput("pose", sample.keypoints, size=data.size).on((data.size[0] * zoom, data.size[1] * zoom))
        assert pose.keypoints is not None
        tile = overlay(image.repeat(zoom, 0).repeat(zoom, 1), pose.keypoints)
        factor = SHEET_TILE / max(tile.shape[:2])
        small = cv2.resize(tile, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA) if factor < 1 else tile
        tiles.append(small)
    tiles += [np.full_like(tiles[0], 255)] * (count - len(tiles))
    return np.concatenate([np.concatenate(tiles[i : i + SHEET_SIDE], 1) for i in range(0, count, SHEET_SIDE)])
