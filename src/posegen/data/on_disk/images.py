"""Pictures as people have them on disk, of any format, colour mode and orientation, as RGB arrays."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from posegen.data.on_disk.source import Place

ORIENTATION = 0x0112  # EXIF's tag
#: Colour modes that need no remark: they lose nothing as RGB.
COLOUR = ("RGB", "YCbCr")


def content(root: Path, place: Place) -> bytes:
    """The bytes of a picture.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: the place is not below ``root``, or the file ends before it.
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


def opened(data: bytes, size: tuple[int, int] | None = None) -> tuple[Image.Image, str]:
    """A picture, wholly decoded, and the colour mode that it was stored in.

    What is transparent becomes white. A picture is turned as its camera noted, unless its data set lists the size that it has without that.

    Args:
        data: the content of a file.
        size: (height, width) that the data set lists.

    Returns:
        The picture as RGB, and the name of the mode as Pillow has it.

    Raises:
        ValueError: it cannot be decoded; says why.
    """
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as image:
            warnings.simplefilter("ignore")  # on odd metadata, and on large pictures, which paintings are
            image.load()
            turned = (
                ImageOps.exif_transpose(image) if image.getexif().get(ORIENTATION, 1) != 1 else image
            )  # which would be a copy
            as_stored = size is not None and (turned.height, turned.width) != size == (image.height, image.width)
            return _rgb(image if as_stored else turned), image.mode
    except Exception as error:  # decoders raise whatever a damaged file makes them stumble over
        raise ValueError(f"cannot be decoded ({_short(error)})") from error


def decoded(data: bytes, size: tuple[int, int] | None = None) -> np.ndarray:
    """``[H, W, 3] uint8`` RGB of a picture; see `opened`."""
    return np.asarray(opened(data, size)[0])


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow would cut off what exceeds 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _short(error: BaseException) -> str:
    """Why, without the address of the buffer that Pillow read from."""
    if isinstance(error, UnidentifiedImageError):
        return "no picture format that is known"
    return str(error).split("<_io")[0].strip() or type(error).__name__


def read(root: Path, place: Place, size: tuple[int, int] | None = None) -> np.ndarray:
    """The picture at a place, ``[H, W, 3] uint8``; see `opened`.

    Raises:
        ValueError: it cannot be read; names the file and how to have the data set checked.
    """
    try:
        return decoded(content(root, place), size)
    except (OSError, ValueError) as error:
        problem = "is missing" if isinstance(error, FileNotFoundError) else str(error)
        where = f"{root / place.file}" + (f" at byte {place.offset}" if place.offset else "")
        raise ValueError(
            f"{where} {problem}; it was there when the data was prepared: bring it back, or run `posegen prepare` again"
        ) from error
