"""Files of other programs, read within stated limits: text, csv, json lines, npz. Json: `posegen.io.json_text`."""

from __future__ import annotations

import csv
import io
import math
import stat
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from numpy.lib import format as npy

from posegen.errors import UserError
from posegen.io.json_text import MAX_BYTES, decoded, parse_json

MOST_FIELD = 1 << 24
"""Longest value of a csv file in characters; Python's limit of 131,072 is shorter than some captions and polygons."""
MOST_ARRAY_BYTES = 2 << 30
"""Largest sum of the arrays of a numpy file; a file of a megabyte can unpack to gigabytes."""


def foreign_bytes(file: Path) -> bytes:
    """The content of a file. Raises ValueError: missing, no file (a device or pipe), forbidden, too large; says why."""
    try:
        about = file.stat()
        if stat.S_ISDIR(about.st_mode):
            raise ValueError("is a folder")
        if not stat.S_ISREG(about.st_mode):
            raise ValueError("is no file")
        if about.st_size > MAX_BYTES:
            raise ValueError(f"is larger than {MAX_BYTES >> 20} MiB")
        return file.read_bytes()
    except FileNotFoundError as error:
        raise ValueError("is missing") from error
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror or error})") from error


def read_foreign_text(file: Path) -> str:
    """The text of a file. Raises ValueError: it cannot be read, or is not in UTF-8 or UTF-16; names it and the fix."""
    try:
        return decoded(foreign_bytes(file)).removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def read_json_or_lines(file: Path, fix: str) -> Any:
    """The value of a json file, or the list of those of a file with an object per line. Raises ValueError."""
    try:
        content = foreign_bytes(file)
    except ValueError as error:
        raise ValueError(f"{file} {error}; {fix}") from error
    try:
        return parse_json(content, str(file), fix)
    except UserError:
        lines: list[tuple[int, str]] = []
        with suppress(ValueError):
            lines = [(i, line) for i, line in enumerate(decoded(content).split("\n"), 1) if line.strip()]
            if len(lines) < 2 or not isinstance(parse_json(lines[0][1], ""), dict):
                lines = []
        if not lines:
            raise
        return [parse_json(line, f"{file}: line {i}", fix) for i, line in lines]


def csv_rows(file: Path, separator: str = ",") -> list[tuple[int, list[str]]]:
    """The lines of a csv file that are not empty, and their numbers from 1. Raises ValueError: it is none; names it."""
    text, before = read_foreign_text(file), csv.field_size_limit(MOST_FIELD)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        return [(reader.line_num, row) for row in reader if any(part.strip() for part in row)]
    except csv.Error as error:
        raise ValueError(f"{file} is no csv file ({error}); write it again") from error
    finally:
        csv.field_size_limit(before)


def require_array_bytes(content: bytes, most: int = MOST_ARRAY_BYTES) -> None:
    """Refuses an npy or npz file by the sizes that it declares, before anything is unpacked.
    Raises ValueError or a `posegen.io.arrays.NPZ_ERRORS`: its arrays are larger than ``most``, or it is no such file.
    """
    heads, total = [content], 0
    if content[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            total, names = sum(member.file_size for member in archive.infolist()), archive.namelist()
            heads = [archive.open(name).read(1 << 16) for name in names] if total <= most else []
    for stream in map(io.BytesIO, heads):
        read_header = {(1, 0): npy.read_array_header_1_0}.get(npy.read_magic(stream), npy.read_array_header_2_0)
        shape, _, dtype = read_header(stream)
        total = max(total, math.prod(shape) * dtype.itemsize)
    if total > most:
        raise ValueError(f"its arrays take more than {most >> 20} MiB; it is damaged, or of another kind")
