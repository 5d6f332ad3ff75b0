"""Npz files of plain arrays, whole or absent."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from posegen.io.atomic import replacing

#: Errors of ``numpy.load`` where an npz file is missing or damaged.
NPZ_ERRORS = (
    OSError, ValueError, KeyError, EOFError, SyntaxError, MemoryError, RuntimeError, struct.error, zlib.error,
    zipfile.BadZipFile,
)  # fmt: skip


def write_arrays(path: Path, compressed: bool = True, **arrays: Any) -> None:
    with replacing(path) as temporary, temporary.open("wb") as stream:  # numpy would add .npz to a name
        (np.savez_compressed if compressed else np.savez)(stream, **arrays)


def read_arrays_or_none(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of an npz file that can be rebuilt; None where it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except NPZ_ERRORS:
        return None
