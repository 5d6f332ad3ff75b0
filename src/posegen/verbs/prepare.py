"""Check and index the data on your disk, and encode it once."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from omegaconf import DictConfig

from posegen.config import nodes
from posegen.errors import UserError
from posegen.io.atomic import write_text
from posegen.poses.drawing import overlay
from posegen.runner.components import Parts
from posegen.runner.images import enlarged, write_png

if TYPE_CHECKING:
    from posegen.data.base import PoseData

SHEET = 4  # rows and columns of a contact sheet
TILE = 256  # pixels of each of its pictures
LISTED = 500  # defects of a split that the page names; the table has all


@dataclass(frozen=True)
class Chapter:
    """What is to be said of one split.

    Attributes:
        split: its name.
        facts: what was counted.
        warnings: what is suspicious about the whole; why nothing can be used, where that is so.
        defects: (file, problem, whether it is left out) of single files.
        usable: number of samples.
    """

    split: str
    facts: Mapping[str, Any]
    warnings: Sequence[str]
    defects: Sequence[tuple[str, str, bool]]
    usable: int

    @classmethod
    def of(cls, split: str, data: PoseData) -> Chapter:
        """Prepares a split; what makes all of it unusable is said instead of raised, since other splits may be fine."""
        failure, usable = [], 0
        try:
            data.prepare()
            usable = len(data)
        except (OSError, ValueError) as error:
            failure = [str(error)]
        try:
            found = data.condition
        except (OSError, ValueError):  # there is not even a list
            return cls(split, {}, failure, (), 0)
        return cls(
            split,
            found.facts,
            [*failure, *found.warnings],
            [(d.file, d.problem, d.fatal) for d in found.defects],
            usable,
        )

    @property
    def left_out(self) -> int:
        return sum(fatal for _, _, fatal in self.defects)

    @property
    def summary(self) -> str:
        people = f", {self.facts['people']:,} people" if "people" in self.facts else ""
        things = "pairs" if "pairs" in self.facts else "pictures"
        return (
            f"{self.usable:,} {things}{people}; {self.left_out} left out, {len(self.defects) - self.left_out} remarks"
        )


def main(cfg: DictConfig) -> None:
    """Prepares the configured splits."""
    prepare(cfg)


def prepare(cfg: DictConfig) -> None:
    """Prepares the configured splits, prints a summary and writes the report; does nothing where all is prepared and unchanged.

    Raises:
        UserError: no split can be used.
    """
    parts, out = Parts(cfg), Path(cfg.out)
    splits = list(cfg.splits or (name for name, node in nodes.children(cfg.data) if nodes.has_target(node)))
    chapters = [Chapter.of(split, parts.data(split)) for split in splits]
    text = page(str(cfg.dataset), chapters)
    report = out / "report.md"
    if not report.is_file() or report.read_text(encoding="utf-8") != text:
        for chapter in chapters:
            if chapter.usable:
                write_png(out / f"contact_{chapter.split}.png", contact_sheet(parts.data(chapter.split)))
        write_text(out / "report.csv", table(chapters))
        write_text(report, text)  # last: it says that the others are there
    for chapter in chapters:
        print(f"{chapter.split}: {chapter.summary}", *chapter.warnings, sep="\n  ")
    print(report)
    if not any(chapter.usable for chapter in chapters):
        raise UserError(f"nothing of data={cfg.dataset} can be used; {report} says why")
    encode(parts, chapters)
    if cfg.joint_vectors is not None:
        export(parts, Path(cfg.joint_vectors))


def export(parts: Parts, folder: Path) -> None:
    """Writes the training poses in the form in which GUNet's authors store theirs.

    Raises:
        UserError: the data cannot be had in that form.
    """
    write = getattr(parts.data("train"), "export", None)
    if write is None:
        raise UserError(
            f"joint_vectors={folder}: data={parts.cfg.dataset} has no single people to write; choose data=coco_single"
        )
    print(f"{folder}: {write(folder):,} people")


def encode(parts: Parts, chapters: Sequence[Chapter]) -> None:
    """Caches what training reads of the backbone's encodings, where it is asked for."""
    cfg = parts.cfg
    fields = [name for name in ("latents", "text") if cfg[name]]
    if not fields:
        return
    if not any(chapter.split == "train" and chapter.usable for chapter in chapters):
        raise UserError(
            f"{fields[0]}=true encodes the split train, which is not there; leave it out, or add train to splits"
        )
    if cfg.latents and parts.data("train").varies:
        print("no latents: the training images look different on every visit, see data.transform")

    from posegen.runner.precision import device_of
    from posegen.train.loop import encodings, prepare_threads

    prepare_threads(cfg)
    parts.backbone.to(device_of(cfg.trainer.accelerator))
    encodings(parts, fields)


# The report.


def page(dataset: str, chapters: Sequence[Chapter]) -> str:
    """The report as markdown."""
    lines = [f"# {dataset}", "", "| split | pictures | people | left out | remarks |", "|---|---|---|---|---|"]
    for c in chapters:
        lines.append(
            f"| {c.split} | {c.usable} | {c.facts.get('people', '')} | {c.left_out} | {len(c.defects) - c.left_out} |"
        )
    for c in chapters:
        lines += [
            "",
            f"## {c.split}",
            "",
            *(f"**{warning}**\n" for warning in c.warnings),
            *_facts(c.facts),
            *_kinds(c),
            *_named(c),
        ]
    return "\n".join(lines).rstrip() + "\n"


def _facts(facts: Mapping[str, Any]) -> Iterator[str]:
    for name, value in facts.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else value
        yield f"- {name.replace('_', ' ')}: {shown}"


def _kinds(chapter: Chapter) -> Iterator[str]:
    """How often each problem occurs, whatever its numbers."""
    if chapter.defects:
        yield from ("", "| problem | files | |", "|---|---|---|")
    kinds = Counter(
        ("".join("#" if c.isdigit() else c for c in problem), fatal) for _, problem, fatal in chapter.defects
    )
    for (kind, fatal), count in kinds.most_common(50):
        yield f"| {_cell(kind)} | {count} | {'left out' if fatal else 'kept'} |"


def _named(chapter: Chapter) -> Iterator[str]:
    if chapter.defects:
        yield from ("", "| file | problem | |", "|---|---|---|")
    for file, problem, fatal in sorted(chapter.defects, key=lambda defect: not defect[2])[:LISTED]:
        yield f"| {_cell(file)} | {_cell(problem)} | {'left out' if fatal else 'kept'} |"
    if len(chapter.defects) > LISTED:
        yield f"\nThe other {len(chapter.defects) - LISTED} are in report.csv."


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def table(chapters: Sequence[Chapter]) -> str:
    """All defects as csv."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("split", "file", "problem", "left_out"))
    writer.writerows((c.split, file, problem, int(fatal)) for c in chapters for file, problem, fatal in c.defects)
    return out.getvalue()


def contact_sheet(data: PoseData) -> np.ndarray:
    """Pictures from the whole split with their poses drawn over them, to look at."""
    rows = np.unique(np.linspace(0, len(data) - 1, SHEET * SHEET).round().astype(int)).tolist()
    tiles = [_tile(data[row].image, data[row].keypoints, data.size) for row in rows]
    tiles += [np.full_like(tiles[0], 255)] * (SHEET * SHEET - len(tiles))
    return np.concatenate([np.concatenate(tiles[i : i + SHEET], 1) for i in range(0, len(tiles), SHEET)])


def _tile(image: np.ndarray | None, keypoints: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    image = np.zeros((*size, 3), np.uint8) if image is None else image
    zoom = max(1, TILE // max(size))
    drawn = overlay(image.repeat(zoom, 0).repeat(zoom, 1), enlarged(keypoints, zoom))
    factor = TILE / max(drawn.shape[:2])
    return cv2.resize(drawn, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA) if factor < 1 else drawn
