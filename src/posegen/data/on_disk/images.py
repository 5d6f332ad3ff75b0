"""Image files of any format, colour mode and orientation as RGB arrays."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from posegen.data.on_disk.source import FileSpan

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


def decode_with_mode(data: bytes, size: tuple[int, int] | None = None) -> tuple[Image.Image, str]:
    """The content of an image file as RGB, and Pillow's name of the file's colour mode.

    Transparent pixels become white. The image is turned as its camera noted, unless the data set lists the ``size``
    (height, width) that it has without that. Raises ValueError: it cannot be decoded; says why.
    """
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as image:
            warnings.simplefilter("ignore")  # on odd metadata, and on large pictures such as paintings
            image.load()
            upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
            turned = image if upright else ImageOps.exif_transpose(image)  # which would copy it
            as_stored = size is not None and (turned.height, turned.width) != size == (image.height, image.width)
            return _rgb(image if as_stored else turned), image.mode
    except Exception as error:  # decoders raise many kinds on damaged files
        reason = str(error).split("<_io")[0].strip() or type(error).__name__  # without the address of Pillow's buffer
        reason = "no picture format that is known" if isinstance(error, UnidentifiedImageError) else reason
        raise ValueError(f"cannot be decoded ({reason})") from error


def decode_image(data: bytes, size: tuple[int, int] | None = None) -> np.ndarray:
    """``[H, W, 3] uint8`` RGB of an image file; see `decode_with_mode`."""
    return np.asarray(decode_with_mode(data, size)[0])


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow would clip at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def read_image(root: Path, place: FileSpan, size: tuple[int, int] | None = None) -> np.ndarray:
    """``[H, W, 3] uint8``, see `decode_with_mode`. Raises ValueError: it cannot be read; names the file and the fix."""
    try:
        return decode_image(read_span(root, place), size)
    except (OSError, ValueError) as error:
        problem = "is missing" if isinstance(error, FileNotFoundError) else str(error)
        where = f"{root / place.file}" + (f" at byte {place.offset}" if place.offset else "")
        fix = "it was there when the data was prepared: bring it back, or run `posegen prepare` again"
        raise ValueError(f"{where} {problem}; {fix}") from error
