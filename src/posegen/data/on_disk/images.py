"""Images of a data set, read where they lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from posegen.data.on_disk.source import FileSpan
from posegen.io.pictures import decode_image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
LOSSLESS_MODES = ("RGB", "YCbCr")  # those that lose nothing as RGB


def read_span(root: Path, place: FileSpan) -> bytes:
    """The bytes of an image. Raises OSError; ValueError: the place is not below ``root``, or behind the file's end."""
    path = Path(place.file)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError("leads out of the data set's folder")
    with (root / path).open("rb") as stream:
        stream.seek(place.offset)
        found = stream.read(place.length or -1)
    if len(found) < max(1, place.length):
        raise ValueError(f"ends after {len(found)} bytes" if found else "is empty")
    return found


def read_image(root: Path, place: FileSpan, size: tuple[int, int] | None = None) -> np.ndarray:
    """``[H, W, 3] uint8``, see `decode_with_mode`. Raises ValueError: it cannot be read; names the file and the fix."""
    try:
        return decode_image(read_span(root, place), size)
    except (OSError, ValueError) as error:
        problem = "is missing" if isinstance(error, FileNotFoundError) else str(error)
        where = f"{root / place.file}" + (f" at byte {place.offset}" if place.offset else "")
        fix = "it was there when the data was prepared: bring it back, or run `posegen prepare` again"
        raise ValueError(f"{where} {problem}; {fix}") from error
