"""Npz files of plain arrays, whole or absent."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from posegen.io.atomic import replacing
from posegen.io.hashes import joint_hash

#: Errors of ``numpy.load`` where an npz file is missing or damaged.
NPZ_ERRORS = (
    *(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError),
    *(MemoryError, OverflowError, TypeError, IndexError, RuntimeError),
)
CHECKSUM = "checksum"  # name of the array with that of the others and of the file's name
INFLATED, SMALL = 100, 1 << 28  # most bytes in place of a packed one; bytes that any file may unpack to


def write_arrays(path: Path, compressed: bool = True, **arrays: Any) -> None:
    """Writes arrays that can be rebuilt, with a checksum."""
    plain = {name: np.asarray(value) for name, value in arrays.items()}
    checked: dict[str, Any] = {**plain, CHECKSUM: np.array(arrays_hash(path, plain))}
    with replacing(path) as temporary, temporary.open("wb") as stream:  # numpy would add .npz to a name
        (np.savez_compressed if compressed else np.savez)(stream, **checked)


def read_arrays_or_none(path: Path) -> dict[str, np.ndarray] | None:
    """What `write_arrays` wrote there; None, and a line that says so, where it is damaged or another file's."""
    try:
        arrays = load_npz(path)[0]
        if str(arrays.pop(CHECKSUM)) == arrays_hash(path, arrays):
            return arrays
    except NPZ_ERRORS:
        if not path.exists():
            return None
    print(f"{path} is damaged, of an earlier version or of another place: it is written again", flush=True)
    return None


def load_npz(path: Path) -> tuple[dict[str, np.ndarray], bytes]:
    """The arrays of an npz file by name, and the comment of its archive. Raises `NPZ_ERRORS`."""
    if not zipfile.is_zipfile(path):  # numpy would take it for a pickle
        raise ValueError("it is no whole npz archive" if path.is_file() else "it is no file")
    with np.load(path, allow_pickle=False) as stored:
        unpacked = sum(member.file_size for member in stored.zip.infolist())
        if unpacked > max(SMALL, INFLATED * path.stat().st_size):
            raise ValueError(f"it would unpack to {unpacked >> 20} MiB")
        return {name: stored[name] for name in stored.files}, stored.zip.comment


def arrays_hash(path: Path, arrays: dict[str, np.ndarray]) -> str:
    """A hash of arrays, and of where they lie, so that another cache's file is none of this place."""
    parts: list[bytes | str] = [f"{path.parent.name}/{path.name}"]
    for name, array in sorted(arrays.items()):
        parts += [f"{name} {array.dtype.str} {array.shape}", np.ascontiguousarray(array).tobytes()]
    return joint_hash(parts)
