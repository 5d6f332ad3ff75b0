"""The files that come with pairs of person images: which pictures are pairs, and the 18 joints of each, in the forms in which they are passed around.

Nothing in them is trusted: whatever cannot be read is reported by file and line, and reading goes on.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from posegen.data.on_disk.source import Defect, Report
from posegen.poses.reading import coco_joints

JOINTS = 18
#: How a picture is called by everyone, whatever a list calls it; None where the text is no name of a picture.
Named = Callable[[str], str | None]
HEADER = ("name", "keypoints_y", "keypoints_x")
DEPTH = 3  # folders below the root that are looked into
_NUMPY = re.compile(r"np\.\w+\(([^)]*)\)")  # how numpy 2 prints a number inside a list


class Pair(NamedTuple):
    """A picture to be made, and the pictures of the same person that it may be made from."""

    target: str
    sources: tuple[str, ...]


def found(root: Path, names: Iterable[str]) -> Path | None:
    """The first of these files that is in the root or in a folder not far below it."""
    for name in names:
        for depth in range(DEPTH):
            if place := min(root.glob("*/" * depth + name), default=None):
                return place
    return None


def folders(root: Path) -> list[Path]:
    """The folders in which `found` looks, but the root."""
    return [place for depth in range(1, DEPTH) for place in sorted(root.glob("*/" * depth))]


def needed(root: Path, names: Sequence[str], how: str) -> Path:
    """The first of these files.

    Raises:
        FileNotFoundError: there is none; names all and says how to get them.
    """
    place = found(root, names)
    if place is None:
        raise FileNotFoundError(f"data.root={root}: there is no {' or '.join(names)} in it or in its folders; {how}")
    return place


def sha256(*files: Path | None) -> str:
    """How the SHA-256 of the content of files begins; those that are None are not there."""
    sha = hashlib.sha256()
    for file in files:
        sha.update(b"" if file is None else file.read_bytes())
    return sha.hexdigest()[:16]


# Pairs.


def pairs_in(file: Path, named: Named, report: Report) -> Iterator[Pair]:
    """The pairs of a file, in its order: csv with the columns from,to; json with source_image and target_image; or lines of the target and its sources."""
    read = {".csv": _pairs_of_csv, ".json": _pairs_of_json}.get(file.suffix.lower(), _pairs_of_lines)
    for place, target, sources in read(file):
        names = [named(text.strip()) for text in (target, *sources)]
        unknown = [text for text, name in zip((target, *sources), names, strict=True) if name is None]
        if unknown or len(names) < 2:
            report(
                Defect(
                    f"{file.name}: {place}",
                    f"{unknown[0].strip()!r} is no name of a picture" if unknown else "a pair of one picture",
                )
            )
        else:
            yield Pair(*(names[0], tuple(names[1:])))  # type: ignore[arg-type]


Line = tuple[str, str, Sequence[str]]


def _pairs_of_csv(file: Path) -> Iterator[Line]:
    rows = _rows(file, ",")
    first = next(rows, (0, []))
    columns = [column.strip().lower() for column in first[1]]
    if not {"from", "to"} <= set(columns):
        raise ValueError(f"{file} begins with the columns {','.join(columns)}; expected from,to")
    source, target = columns.index("from"), columns.index("to")
    for number, row in rows:
        whole = len(row) == len(columns)
        yield f"line {number}", row[target if whole else 0], (row[source],) if whole else ()


def _pairs_of_lines(file: Path) -> Iterator[Line]:
    for number, row in _rows(file, ","):
        yield f"line {number}", row[0], [text for text in row[1:] if text.strip()]


def _pairs_of_json(file: Path) -> Iterator[Line]:
    content = _json(file)
    if not isinstance(content, list):
        raise ValueError(f"{file} holds a {type(content).__name__}; expected a list of {{source_image, target_image}}")
    for number, row in enumerate(content):
        whole = isinstance(row, Mapping) and {"source_image", "target_image"} <= row.keys()
        yield (
            f"entry {number}",
            str(row["target_image"] if whole else row),
            (str(row["source_image"]),) if whole else (),
        )


# Joints.


def joints_in(file: Path, named: Named, report: Report) -> dict[str, np.ndarray]:
    """Picture -> ``[18, 2]`` x and y, of a csv file with a line ``name: [18 y]: [18 x]`` for each, as the header says; not a number is kept as it is."""
    people: dict[str, np.ndarray] = {}
    rows = _rows(file, ":")
    header = tuple(column.strip() for column in next(rows, (0, []))[1])
    if sorted(header) != sorted(HEADER):
        raise ValueError(f"{file} begins with {':'.join(header)!r}; expected {':'.join(HEADER)}")
    columns = [header.index(name) for name in (HEADER[0], HEADER[2], HEADER[1])]
    for number, row in rows:
        where = f"{file.name}: line {number}"
        if len(row) != len(header):
            report(Defect(where, f"{len(row)} parts between colons; expected {len(header)}"))
            continue
        text, x, y = (row[column].strip() for column in columns)
        name = named(text)
        if name is None:
            report(Defect(where, f"{text!r} is no name of a picture"))
            continue
        try:
            points = np.stack([_numbers(x), _numbers(y)], 1)
        except ValueError as error:
            report(Defect(where, f"joints of {text}: {error}"))
            continue
        if name in people:
            report(Defect(where, f"{text} is listed before; the first counts", fatal=False))
        people.setdefault(name, points)
    return people


def _numbers(text: str) -> np.ndarray:
    values = json.loads(_NUMPY.sub(r"\1", text))
    array = np.array(values, np.float64)
    if array.shape != (JOINTS,):
        raise ValueError(f"numbers of the shape {list(array.shape)}; expected {JOINTS}")
    return array


def joints_of(file: Path) -> np.ndarray:
    """``[18, 2]`` x and y, of a text file with a line for each joint.

    Raises:
        ValueError: it holds something else.
    """
    rows = [
        line.replace(",", " ").split()
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.strip()
    ]
    if [len(row) for row in rows] != [2] * JOINTS:
        raise ValueError(
            f"{len(rows)} lines of {sorted({len(row) for row in rows})} numbers; expected {JOINTS} of x and y"
        )
    return np.array(rows, np.float64)


def as_coco(points: np.ndarray) -> np.ndarray:
    """``[18, 2]`` x and y in OpenPose's order, below zero where missing, as one person ``[1, 17, 3]``; nobody, ``[0, 17, 3]``, where all are.

    The neck is left out, because it is drawn midway between the shoulders. Lists differ in which eye and ear is the left one; the order of the file is kept.
    """
    seen = ~np.any(points < 0, axis=1, keepdims=True)  # what is not a number counts as seen, to be told of
    rows = np.where(seen, np.concatenate([points, np.full((JOINTS, 1), 2.0)], 1), 0.0)
    person = coco_joints(rows.reshape(-1), "joints").astype(np.float32)
    return person[None] if (person[:, 2] > 0).any() else np.zeros((0, *person.shape), np.float32)


# Text.


def _rows(file: Path, separator: str) -> Iterator[tuple[int, list[str]]]:
    """The lines that are not empty, with their numbers from 1.

    Raises:
        ValueError: the file is not text.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream, delimiter=separator)
            for row in reader:
                if any(part.strip() for part in row):
                    yield reader.line_num, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file} is no text file ({error}); get it again") from error


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not a readable json file ({error}); get it again") from error
