"""Pictures of any format, colour mode and orientation as RGB arrays, and which files of a folder are pictures."""

from __future__ import annotations

import io
import os
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from posegen.io.foreign_files import foreign_bytes

MOST_PIXELS = 178_956_970
"""Largest picture that is opened, as in Pillow: a file of kilobytes can unpack to gigabytes."""
#: All that people keep pictures in; one that Pillow cannot open here is named as unreadable, not passed over.
PICTURE_SUFFIXES = frozenset((
    ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".jfif", ".avif", ".heic", ".heif", ".jxl",
))  # fmt: skip
#: Folders of copies and thumbnails, beside those whose names begin with a dot.
PASSED_OVER = frozenset(("__MACOSX", "@eaDir", "$RECYCLE.BIN"))


def decode_with_mode(data: bytes | Image.Image, size: tuple[int, int] | None = None) -> tuple[Image.Image, str]:
    """The content of an image file, or an opened one, as RGB, and Pillow's name of its colour mode.

    Of several frames it is the first. Transparent pixels become white. The image is turned as its camera noted, unless
    the data set lists the ``size`` (height, width) that it has without that. Raises ValueError: it cannot be decoded;
    says why.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on odd metadata, and on large pictures such as paintings
            image = data if isinstance(data, Image.Image) else Image.open(io.BytesIO(data))
            if image.width * image.height > MOST_PIXELS:
                raise Image.DecompressionBombError
            image.load()
            turned = image if _orientation(image) == 1 else ImageOps.exif_transpose(image)  # which would copy it
            as_stored = size is not None and (turned.height, turned.width) != size == (image.height, image.width)
            return _rgb(image if as_stored else turned), image.mode
    except Image.DecompressionBombError as error:
        raise ValueError(f"has more than {MOST_PIXELS // 10**6} megapixels; save it smaller") from error
    except Exception as error:  # decoders raise many kinds on damaged files
        reason = str(error).split("<_io")[0].strip() or type(error).__name__  # without the address of Pillow's buffer
        reason = "no picture format that is known" if isinstance(error, UnidentifiedImageError) else reason
        raise ValueError(f"cannot be decoded ({reason})") from error


def _orientation(image: Image.Image) -> int:
    with suppress(Exception):  # of damaged notes; the pixels are whole
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    return 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode[0] in "IF":  # 16 or 32 bits, or fractions; Pillow would clip at 255
        image = Image.fromarray(_eight_bits(np.asarray(image)))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(grey: np.ndarray) -> np.ndarray:
    if grey.dtype.kind == "f":
        grey = np.nan_to_num(grey * 255 if grey.max(initial=0) <= 1 else grey)
    elif grey.dtype == np.uint16 or grey.max(initial=0) > 255:
        grey = grey.astype(np.int64) >> 8
    return grey.clip(0, 255).astype(np.uint8)


def decode_image(data: bytes | Image.Image, size: tuple[int, int] | None = None) -> np.ndarray:
    """``[H, W, 3] uint8`` RGB of an image file; see `decode_with_mode`."""
    return np.asarray(decode_with_mode(data, size)[0])


def open_picture(file: Path) -> np.ndarray:
    """The same of a file. Raises ValueError: missing, no file, too large or no picture; says why, not which."""
    return decode_image(foreign_bytes(file))


def pictures_below(start: Path) -> list[Path]:
    """The files below a folder that are pictures by their suffix, sorted.

    Hidden files and folders do not count, links do; a folder with several links counts once. A broken link and a
    folder that may not be read are among the pictures: whoever opens them says why they cannot be used.
    """
    found, waiting, links, seen = list[Path](), [start], list[Path](), set[str]()
    while waiting or links:
        folder = waiting.pop() if waiting else links.pop(0)
        if (real := os.path.realpath(folder)) in seen:
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            found.append(folder)
            continue
        for entry in entries:
            path, linked = folder / entry.name, entry.is_symlink()
            if entry.name.startswith(".") or entry.name in PASSED_OVER:
                continue
            if path.is_dir() if linked else entry.is_dir():
                (links if linked else waiting).append(path)
            elif path.suffix.lower() in PICTURE_SUFFIXES and (
                entry.is_file(follow_symlinks=False) or (linked and (path.is_file() or not path.exists()))
            ):  # neither a pipe nor a device
                found.append(path)
    return sorted(found)


def is_utf8(name: str | Path) -> bool:
    """Whether a file's name is text in UTF-8; json, csv and hashes hold no others."""
    return printable(name) == str(name)


def printable(name: str | Path) -> str:
    """A file's name as text whatever its bytes are."""
    return str(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
