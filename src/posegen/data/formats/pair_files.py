"""The files of person image pairs and joints; unreadable lines are reported, and reading continues."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from posegen.data.condition import Defect
from posegen.data.on_disk.source import ReportDefect
from posegen.io.atomic import read_json
from posegen.io.foreign_files import csv_rows
from posegen.poses.joints import coco_joints
from posegen.poses.topology import OPENPOSE_NAMES

PERSON_IMAGE_SUFFIXES = (".jpg", ".png", ".jpeg")
OPENPOSE_JOINTS = len(OPENPOSE_NAMES)
NameOf = Callable[[str], str | None]  # the common name of an image, however a list spells it; None for other text
SEARCH_DEPTH = 3  # levels of folders that are searched, the root included
_NUMPY_NUMBER = re.compile(r"np\.\w+\(([^)]*)\)")  # how numpy 2 prints a number in a list


class Pair(NamedTuple):
    """A target image, and the images of the same person that it may be generated from."""

    target: str
    sources: tuple[str, ...]


def find_file(root: Path, names: Iterable[str]) -> Path | None:
    """The first of these files in the root or in a folder not far below it."""
    found = (min(root.glob("*/" * depth + name), default=None) for name in names for depth in range(SEARCH_DEPTH))
    return next(filter(None, found), None)


def searched_folders(root: Path) -> list[Path]:
    """The folders that `find_file` searches, without the root."""
    return [place for depth in range(1, SEARCH_DEPTH) for place in sorted(root.glob("*/" * depth))]


def require_file(root: Path, names: Sequence[str], fix: str) -> Path:
    """The first of these files, see `find_file`. Raises FileNotFoundError: there is none; names all and the fix."""
    if place := find_file(root, names):
        return place
    raise FileNotFoundError(f"data.root={root}: there is no {' or '.join(names)} in it or in its folders; {fix}")


def pairs_in(file: Path, name_of: NameOf, report: ReportDefect) -> Iterator[Pair]:
    """The pairs of csv (from,to), of json (source_image, target_image), or of lines with a target and its sources."""
    read = {".csv": _pairs_of_csv, ".json": _pairs_of_json}.get(file.suffix.lower())
    lines = ((f"line {n}", row[0], [each for each in row[1:] if each.strip()]) for n, row in csv_rows(file))
    for place, target, sources in read(file) if read else lines:
        names = [name_of(text.strip()) for text in (target, *sources)]
        unknown = [text for text, name in zip((target, *sources), names, strict=True) if name is None]
        if unknown or len(names) < 2:
            problem = f"{unknown[0].strip()!r} is no name of a picture" if unknown else "a pair of one picture"
            report(Defect(f"{file.name}: {place}", problem))
        else:
            yield Pair(*(names[0], tuple(names[1:])))  # type: ignore[arg-type]


PairLine = tuple[str, str, Sequence[str]]


def _pairs_of_csv(file: Path) -> Iterator[PairLine]:
    rows = iter(csv_rows(file))
    first = next(rows, (0, []))
    columns = [column.strip().lower() for column in first[1]]
    if not {"from", "to"} <= set(columns):
        raise ValueError(f"{file} begins with the columns {','.join(columns)}; expected from,to")
    source, target = columns.index("from"), columns.index("to")
    for number, row in rows:
        whole = len(row) == len(columns)
        yield f"line {number}", row[target if whole else 0], (row[source],) if whole else ()


def _pairs_of_json(file: Path) -> Iterator[PairLine]:
    content = read_json(file, "get it again")
    if not isinstance(content, list):
        raise ValueError(f"{file} holds a {type(content).__name__}; expected a list of {{source_image, target_image}}")
    for number, row in enumerate(content):
        whole = isinstance(row, Mapping) and {"source_image", "target_image"} <= row.keys()
        sources = (str(row["source_image"]),) if whole else ()
        yield f"entry {number}", str(row["target_image"] if whole else row), sources


def joints_in(file: Path, name_of: NameOf, report: ReportDefect) -> dict[str, np.ndarray]:
    """Image -> ``[18, 2]`` x and y, from a csv file with lines ``name: [18 y]: [18 x]``; NaN is kept."""
    people: dict[str, np.ndarray] = {}
    rows = iter(csv_rows(file, ":"))
    header = tuple(column.strip() for column in next(rows, (0, []))[1])
    names = ("name", "keypoints_y", "keypoints_x")
    if sorted(header) != sorted(names):
        raise ValueError(f"{file} begins with {':'.join(header)!r}; expected {':'.join(names)}")
    columns = [header.index(name) for name in names]
    for number, row in rows:
        where = f"{file.name}: line {number}"
        if len(row) != len(header):
            report(Defect(where, f"{len(row)} parts between colons; expected {len(header)}"))
            continue
        text, y, x = (row[column].strip() for column in columns)
        if (name := name_of(text)) is None:
            report(Defect(where, f"{text!r} is no name of a picture"))
            continue
        try:
            points = np.stack([_joint_coordinates(x), _joint_coordinates(y)], 1)
        except ValueError as error:
            report(Defect(where, f"joints of {text}: {error}"))
            continue
        if name in people:
            report(Defect(where, f"{text} is listed before; the first counts", fatal=False))
        people.setdefault(name, points)
    return people


def _joint_coordinates(text: str) -> np.ndarray:
    array = np.array(json.loads(_NUMPY_NUMBER.sub(r"\1", text)), np.float64)
    if array.shape != (OPENPOSE_JOINTS,):
        raise ValueError(f"numbers of the shape {list(array.shape)}; expected {OPENPOSE_JOINTS}")
    return array


def joints_of_text(file: Path) -> np.ndarray:
    """``[18, 2]`` x and y, from a text file with a line per joint. Raises ValueError: it holds something else."""
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    rows = [line.replace(",", " ").split() for line in lines if line.strip()]
    lengths = [len(row) for row in rows]
    if lengths != [2] * OPENPOSE_JOINTS:
        raise ValueError(f"{len(rows)} lines of {sorted(set(lengths))} numbers; expected {OPENPOSE_JOINTS} of x and y")
    return np.array(rows, np.float64)


def openpose_to_coco(points: np.ndarray | None) -> np.ndarray:
    """``[18, 2]`` x and y in OpenPose's order, negative where missing, as ``[1, 17, 3]``; ``[0, 17, 3]`` with none.

    The neck is left out. Lists differ in which eye and ear is the left one; the order of the file is kept.
    """
    if points is None:
        return np.zeros((0, 17, 3), np.float32)
    seen = ~np.any(points < 0, axis=1, keepdims=True)  # NaN counts as seen, to be reported
    rows = np.where(seen, np.concatenate([points, np.full((OPENPOSE_JOINTS, 1), 2.0)], 1), 0.0)
    person = coco_joints(rows).astype(np.float32)
    return person[None] if (person[:, 2] > 0).any() else np.zeros((0, *person.shape), np.float32)


def overlap_with_training(names: Mapping[str, Sequence[str]], key: Callable[[str], Any]) -> tuple[int, int]:
    """(groups of the list ``test`` that are also in ``train``, all groups of ``test``); ``key`` gives the group."""
    test, train = ({key(name) for name in names[split]} for split in ("test", "train"))
    return len(test & train), len(test)
