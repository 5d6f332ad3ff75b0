"""Pictures that a user brings, from files or from memory, as RGB arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from posegen.io.pictures import decode_image, open_picture

ARRAY_FORMS = "a file, a PIL image, or an array [H, W, 3] uint8"


def user_picture(value: Any, name: str) -> np.ndarray:
    """``[H, W, 3] uint8`` RGB of a path, the bytes of a file, a PIL image, or an array or tensor of that form, ``[H,
    W, 4]`` (transparent pixels become white) or ``[H, W]``. Raises ValueError: of none of these.
    """
    if isinstance(value, str | Path | bytes | bytearray | Image.Image):
        try:
            if isinstance(value, str | Path):
                return np.array(open_picture(Path(value).expanduser()))
            return np.array(decode_image(bytes(value) if isinstance(value, bytearray) else value))
        except ValueError as error:
            what = f"{name}={value}" if isinstance(value, str | Path) else name
            raise ValueError(
                f"{what} is no picture that can be read ({error}); expected png, jpg or another"
            ) from error
    try:
        array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    except (TypeError, ValueError) as error:  # lists of unequal lengths, tensors of types that numpy lacks
        raise ValueError(f"{name} is no array ({error}); expected {ARRAY_FORMS}") from error
    if array.dtype == np.uint8 and array.size and (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (3, 4))):
        return np.array(decode_image(Image.fromarray(array)))
    raise ValueError(f"{name} has the shape {list(array.shape)} ({array.dtype}); expected {ARRAY_FORMS}")


def user_pictures(value: Any, name: str = "source") -> list[np.ndarray]:
    """One picture or a list of them. Raises ValueError: the list is empty, or a picture cannot be used."""
    if not isinstance(value, list | tuple):
        return [user_picture(value, name)]
    if not len(value):
        raise ValueError(f"{name}=[] holds no picture; give one, or a list of them")
    return [user_picture(each, f"{name}[{i}]") for i, each in enumerate(value)]


def pictures_per_image(value: Any, count: int, name: str = "source") -> list[list[np.ndarray]]:
    """For each of ``count`` images its pictures: of a list of lists one list each, else the same for all.
    Raises ValueError: a picture cannot be used, or the lists do not match the images or each other in length.
    """
    if not (isinstance(value, list | tuple) and any(isinstance(entry, list | tuple) for entry in value)):
        return [user_pictures(value, name)] * count
    each = [user_pictures(entry, f"{name}[{i}]") for i, entry in enumerate(value)]
    if len(each) != count or len({len(pictures) for pictures in each}) > 1:
        found = f"lists of {[len(pictures) for pictures in each]} pictures for {count} images"
        raise ValueError(f"{name} has {found}; give one list per image, all of one length")
    return each


def stretch_to(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture at another (height, width), stretched, as published methods resize their training images."""
    if picture.shape[:2] == size:
        return picture
    shrinks = size[0] * size[1] < picture.shape[0] * picture.shape[1]
    return cv2.resize(picture, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def user_mask(value: Any, picture: np.ndarray, name: str = "mask") -> np.ndarray:
    """The pixels ``[H, W] bool`` to repaint, where a mask is light: as for `user_picture`, or an array ``[H, W]`` of
    booleans, of 0 to 1 or of 0 to 255. Raises ValueError: unreadable, of another size, light nowhere or everywhere.
    """
    shown = value if isinstance(value, str | Path) else "array"
    if not isinstance(value, str | Path | bytes | Image.Image):
        value = np.asarray(value)
        if value.ndim == 2:
            grey = value * 255 if value.dtype == bool or value.max(initial=0) <= 1 else value
            value = np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    mask = user_picture(value, name).max(-1) > 127
    if mask.shape != picture.shape[:2]:
        (height, width), (tall, wide) = mask.shape, picture.shape[:2]
        sizes = f"is {width} x {height} pixels and its picture is {wide} x {tall}"
        raise ValueError(f"{name}={shown} {sizes}; expected a mask of the picture's size")
    if not mask.any():
        raise ValueError(f"{name}={shown} is dark everywhere, so nothing would change; paint the part to repaint white")
    if mask.all():
        fix = "paint the part to keep black, or use posegen sample"
        raise ValueError(f"{name}={shown} is light everywhere, so nothing of the picture would stay; {fix}")
    return mask
