"""Image files of any format, colour mode and orientation as RGB arrays."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from posegen.data.on_disk.source import FileSpan

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
ORIENTATION = 0x0112  # EXIF's tag
#: Colour modes that lose nothing as RGB.
LOSSLESS_MODES = ("RGB", "YCbCr")


def read_span(root: Path, place: FileSpan) -> bytes:
    """The bytes of an image. Raises OSError: the file is missing or cannot be read; ValueError: the place is not below
    ``root``, or the file ends before it.
    """
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
    """An image, wholly decoded, and the colour mode of its file.

    Transparent pixels become white. The image is turned as its camera noted, unless the data set lists the size that it
    has without that. Raises ValueError: it cannot be decoded; says why.

    Args:
        data: the content of a file.
        size: (height, width) that the data set lists.

    Returns:
        The image as RGB, and Pillow's name of the mode.
    """
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as image:
            warnings.simplefilter("ignore")  # on odd metadata, and on large pictures such as paintings
            image.load()
            upright = image.getexif().get(ORIENTATION, 1) == 1
            turned = image if upright else ImageOps.exif_transpose(image)  # which would copy it
            as_stored = size is not None and (turned.height, turned.width) != size == (image.height, image.width)
            return _rgb(image if as_stored else turned), image.mode
    except Exception as error:  # decoders raise many kinds on damaged files
        raise ValueError(f"cannot be decoded ({_reason(error)})") from error


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


def _reason(error: BaseException) -> str:
    """The message without the address of Pillow's buffer."""
    if isinstance(error, UnidentifiedImageError):
        return "no picture format that is known"
    return str(error).split("<_io")[0].strip() or type(error).__name__


def read_image(root: Path, place: FileSpan, size: tuple[int, int] | None = None) -> np.ndarray:
    """The image at a place, ``[H, W, 3] uint8``; see `decode_with_mode`. Raises ValueError: it cannot be read; names
    the file and the fix.
    """
    try:
        return decode_image(read_span(root, place), size)
    except (OSError, ValueError) as error:
        problem = "is missing" if isinstance(error, FileNotFoundError) else str(error)
        where = f"{root / place.file}" + (f" at byte {place.offset}" if place.offset else "")
        raise ValueError(
            f"{where} {problem}; it was there when the data was prepared: bring it back, or run `posegen prepare` again"
        ) from error
