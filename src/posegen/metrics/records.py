"""Records on disk: numbers and strings in ``records.csv``, one row per image, arrays in ``features.npz``.

Equal records give equal bytes: numbers are written in their shortest exact form and the archive has no time stamps.
Arrays whose shape differs from image to image are stored flat, with a table of shapes. Nothing is unpickled. The
archive has checksums of its arrays and, as its comment, that of the csv file, so that a changed digit is noticed.
"""

from __future__ import annotations

import csv
import hashlib
import io
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from posegen.errors import UserError
from posegen.io.arrays import NPZ_ERRORS, load_npz
from posegen.io.atomic import replacing
from posegen.io.tables import csv_text
from posegen.metrics.base import Records, count_images

CSV_FILE, ARRAY_FILE = "records.csv", "features.npz"
SHAPES = ".shapes"  # suffix of the table of shapes of a ragged array
NAMES = ("id", "scenario", "action", "pose")  # columns of text, also where every entry looks like a number
AGAIN = f"delete {CSV_FILE} and {ARRAY_FILE} there and run the command of this cell again, which makes them again"
PLAIN_ZIP = 20  # zip's version without its extension for large files, which `pack` does not use
NOBODY = 16 * "0"
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip archive can hold


def write_records(folder: str | Path, records: Records, owner: str = NOBODY) -> None:
    """Writes ``records`` (with ``id``) to ``folder``; each file appears complete or not at all, the csv last.
    ``owner``: 16 hex digits of what they belong to, such as a cell's hash."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if "id" not in records:
        raise ValueError("records have no 'id' column; make them with Protocol.records")
    lengths = {len(values) for values in records.values()}
    if len(lengths) > 1:
        raise ValueError(f"record columns have different lengths {sorted(lengths)}; each needs one entry per image")
    arrays = {name: values for name, values in records.items() if any(isinstance(v, np.ndarray) for v in values)}
    scalars = {name: values for name, values in records.items() if name not in arrays}
    flat = {key: array for name, values in arrays.items() for key, array in flatten(name, values).items()}
    rows = zip(*scalars.values(), strict=True)  # ``repr`` of a float is the shortest text that reads back exactly
    text = csv_text(scalars, ([v if isinstance(v, str) else repr(float(v)) for v in row] for row in rows))
    for name, content in ((ARRAY_FILE, pack(flat, seal(text.encode(), owner))), (CSV_FILE, text.encode())):
        with replacing(folder / name) as temporary:
            temporary.write_bytes(content)


def read_records(folder: str | Path, owner: str = NOBODY) -> dict[str, list]:
    """What `write_records` wrote: columns of numbers come back as floats, others as strings. A UserError says that they
    are damaged, or of another ``owner``."""
    folder = Path(folder)
    for name in (CSV_FILE, ARRAY_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing; run the command of this cell again, which makes it")
    try:
        stored, sealed = load_npz(folder / ARRAY_FILE)
        if sealed and len(sealed) != len(seal(b"")):
            raise ValueError("its end is damaged")
        with zipfile.ZipFile(folder / ARRAY_FILE) as archive:
            if any(member.extract_version > PLAIN_ZIP for member in archive.infolist()):
                raise ValueError("another program has written it")  # numpy.savez, say, which leaves no seal
    except NPZ_ERRORS as error:
        reason = str(error) or type(error).__name__
        raise UserError(f"{folder / ARRAY_FILE} cannot be read ({reason}); it is damaged: {AGAIN}") from error
    records = from_csv(folder / CSV_FILE)
    n_images = count_images(records)
    for name in stored:
        if not name.endswith(SHAPES):
            try:
                records[name] = unflatten(stored[name], stored.get(name + SHAPES))
            except (ValueError, TypeError, IndexError) as error:
                raise UserError(f"{folder / ARRAY_FILE}: '{name}' is damaged ({error}): {AGAIN}") from error
            if len(records[name]) != n_images:
                found = f"'{name}' has {len(records[name])} entries for {n_images} images"
                raise UserError(f"{folder}: {found}; {AGAIN}")
    if sealed and owner != NOBODY and sealed[-len(NOBODY) :].decode(errors="replace") not in (owner, NOBODY):
        raise UserError(f"{folder}: these records are those of another cell or data set: {AGAIN}")
    # records of earlier versions have no seal
    if sealed and sealed[: -len(NOBODY)] != seal((folder / CSV_FILE).read_bytes())[: -len(NOBODY)]:
        one = f"{CSV_FILE} and {ARRAY_FILE} do not belong together, one of them is damaged"
        raise UserError(f"{folder}: {one}: {AGAIN}")
    return records


def has_records(folder: Path) -> bool:
    """Whether both files are there."""
    return all((folder / name).is_file() for name in (CSV_FILE, ARRAY_FILE))


def seal(text: bytes, owner: str = NOBODY) -> bytes:
    """The checksum of a csv file and its owner, as the archive beside it holds them."""
    return f"{CSV_FILE} sha256 {hashlib.sha256(text).hexdigest()} of {owner}".encode()


def flatten(name: str, values: Sequence[Any]) -> dict[str, np.ndarray]:
    """One stacked array where all shapes agree, else the flat values and the shapes ``[n, dimensions]``."""
    arrays = [np.asarray(v) for v in values]
    if len({a.shape for a in arrays}) == 1:
        return {name: np.stack(arrays)}
    shapes = np.array([a.shape for a in arrays], np.int32)
    return {name: np.concatenate([a.ravel() for a in arrays]), name + SHAPES: shapes}


def unflatten(stored: np.ndarray, shapes: np.ndarray | None) -> list[np.ndarray]:
    """The inverse of `flatten`."""
    if shapes is None:
        return list(stored)
    ends = np.cumsum(shapes.prod(1, dtype=np.int64))
    return [part.reshape(shape) for part, shape in zip(np.split(stored, ends[:-1]), shapes, strict=True)]


def pack(arrays: dict[str, np.ndarray], comment: bytes) -> bytes:
    """An npz archive that is a function of its content alone (`numpy.savez` writes the time of day)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.comment = comment
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(name + ".npy", EPOCH), content.getvalue())
    return buffer.getvalue()


def from_csv(path: Path) -> dict[str, list]:
    """Columns of a csv file, `NAMES` as strings and every other column as floats where all its entries are numbers."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file)) or [[]]
    except (ValueError, csv.Error) as error:
        reason = "it is no text in UTF-8" if isinstance(error, UnicodeDecodeError) else error
        raise UserError(f"{path} is damaged ({reason}): {AGAIN}") from error
    if "id" not in header or any(len(row) != len(header) for row in rows):
        expected = f"an 'id' column and {len(header)} entries in every row"
        raise UserError(f"{path} is damaged: it needs {expected}; {AGAIN}")
    columns: dict[str, list] = {name: [row[i] for row in rows] for i, name in enumerate(header)}
    for name in columns.keys() - NAMES:
        with suppress(ValueError):
            columns[name] = [float(value) for value in columns[name]]
    return columns
