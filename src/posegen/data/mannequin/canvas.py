"""Shapes on a 256 x 256 canvas, painted in one of four styles.

Every coordinate is rounded to 1/16 pixel before it is painted, and only integer rasterisers are used, so that the last
bit of a sine never shows. A fourth channel holds the owner of each pixel (0 the scene, k the k-th painted person):
visible areas and occlusion come from the same strokes as the picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import ArrayLike

CANVAS_SIDE = 256
SUBPIXEL_BITS = 4
SUBPIXELS = 1 << SUBPIXEL_BITS

Colour = tuple[int, int, int]

INK: Colour = (46, 44, 48)
PAPER: Colour = (248, 246, 240)
PENCIL: Colour = (186, 184, 180)

_ARC = np.linspace(-np.pi / 2, np.pi / 2, 9)
_HALF = np.stack((np.cos(_ARC), np.sin(_ARC)), 1).round(6)  # half a circle, opening to the left
_ROUND = np.stack((np.cos(np.arange(28) * np.pi / 14), np.sin(np.arange(28) * np.pi / 14)), 1).round(6)


def fixed(points: ArrayLike) -> np.ndarray:
    """Points in pixels to the rasteriser's 1/16 pixel integers."""
    return np.rint(np.asarray(points) * SUBPIXELS).astype(np.int32)


def snapped(points: ArrayLike) -> np.ndarray:
    """Points where they are painted: rounded to 1/16 pixel."""
    return np.rint(np.asarray(points) * SUBPIXELS) / SUBPIXELS


def capsules(start: np.ndarray, end: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Outlines ``[n, 18, 2]`` of n tapered limbs from ``start`` to ``end`` ``[n, 2]`` with the two radii ``[n, 2]``."""
    along = end - start
    length = np.sqrt((along * along).sum(-1, keepdims=True))
    along = np.where(length > 1e-3, along / np.maximum(length, 1e-3), (1.0, 0.0))
    across = np.stack((-along[:, 1], along[:, 0]), -1)
    arc = _HALF[:, :1] * along[:, None] + _HALF[:, 1:] * across[:, None]
    return np.concatenate((end[:, None] + radius[:, None, 1:] * arc, start[:, None] - radius[:, None, :1] * arc), 1)


def ellipse(centre: ArrayLike, radii: ArrayLike) -> np.ndarray:
    """Outline ``[28, 2]`` of an upright ellipse."""
    return np.asarray(centre) + _ROUND * np.asarray(radii)


def box(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """Outline ``[4, 2]`` of an upright rectangle."""
    return np.array(((left, top), (right, top), (right, bottom), (left, bottom)))


@lru_cache(8192)
def mix(colour: Colour, other: Colour, share: float) -> Colour:
    """``colour`` with a ``share`` of ``other`` in it."""
    (r, g, b), (x, y, z) = colour, other
    return int(r + (x - r) * share + 0.5), int(g + (y - g) * share + 0.5), int(b + (z - b) * share + 0.5)


@lru_cache(8192)
def shade(colour: Colour, factor: float) -> Colour:
    """``colour`` with its brightness multiplied."""
    r, g, b = colour
    return min(255, int(r * factor + 0.5)), min(255, int(g * factor + 0.5)), min(255, int(b * factor + 0.5))


def words(colours: np.ndarray) -> np.ndarray:
    """Colours ``[n, 3]`` as pixels of the scene, ``[n] uint32``: whole pixels are copied faster than channels."""
    pixels = np.zeros((len(colours), 4), np.uint8)
    pixels[:, :3] = np.clip(np.rint(colours), 0, 255)
    return pixels.view(np.uint32)[:, 0]


class Canvas:
    """The picture in a ``style``: photo, cartoon, sketch or shadow."""

    def __init__(self, style: str):
        self.style, self.owner = style, 0  # whose pixels the shapes become
        self.pixels = np.zeros((CANVAS_SIDE, CANVAS_SIDE, 4), np.uint8)  # red, green, blue, owner
        self.words = self.pixels.view(np.uint32)[..., 0]  # the same memory, one number per pixel
        if style == "sketch":
            self.pixels[..., :3] = PAPER

    def finish_scene(self, scene: str, horizon: int) -> None:
        """Ends the painting of the scenery, before the tint of its style; the ground begins at row ``horizon``."""
        if self.style == "photo":
            cv2.GaussianBlur(self.pixels, (5, 5), 0, dst=self.pixels)

    def fill(self, outline: np.ndarray, colour: Colour, owner: int | None = None) -> None:
        """Fills a convex outline ``[n, 2]``, or one already in ``fixed`` integers."""
        owner = self.owner if owner is None else owner
        points = outline if outline.dtype == np.int32 else fixed(outline)
        cv2.fillConvexPoly(self.pixels, points, (*colour, owner), cv2.LINE_8, SUBPIXEL_BITS)

    def shape(self, outline: np.ndarray, colour: Colour, edge: bool = True) -> None:
        """A piece of scenery, in the style of the picture: in a sketch, pencil lines over paper."""
        points, sketch = fixed(outline), self.style == "sketch"
        self.fill(points, PAPER if sketch else colour)
        if sketch or (edge and self.style == "cartoon"):
            ink = PENCIL if sketch else shade(colour, 0.62)
            cv2.polylines(self.pixels, [points], True, (*ink, self.owner), 2, cv2.LINE_8, SUBPIXEL_BITS)

    def group(self, outlines: Iterable[np.ndarray], colour: Colour) -> None:
        """Overlapping pieces of one colour that share one contour, such as the crown of a tree."""
        points, sketch = [fixed(outline) for outline in outlines], self.style == "sketch"
        if self.style in ("sketch", "cartoon"):
            ink = PENCIL if sketch else shade(colour, 0.62)
            for piece in points:
                cv2.polylines(self.pixels, [piece], True, (*ink, self.owner), 4, cv2.LINE_8, SUBPIXEL_BITS)
        for piece in points:
            self.fill(piece, PAPER if sketch else colour)

    def gradient(self, top: float, bottom: float, upper: Colour, lower: Colour) -> None:
        """A horizontal band from colour ``upper`` to ``lower``; white in a sketch, their mean in a cartoon."""
        first, last = round(top), round(bottom)
        if self.style == "sketch" or last <= first:
            return
        if self.style == "cartoon":
            upper = lower = mix(upper, lower, 0.5)
        share = (np.arange(first, last) - first)[:, None] / max(1, last - first - 1)
        self.words[first:last] = words(np.array(upper) + (np.array(lower) - np.array(upper)) * share)[:, None]

    def line(self, start: Sequence[float], end: Sequence[float], colour: Colour, width: int = 2) -> None:
        colour = PENCIL if self.style == "sketch" else colour
        a, b = fixed((start, end)).tolist()
        cv2.line(self.pixels, a, b, (*colour, self.owner), width, cv2.LINE_8, SUBPIXEL_BITS)

    def dim(self, centre: tuple[float, float], radii: tuple[float, float], strength: float) -> None:
        """A soft shadow on the ground."""
        (x, y), (rx, ry) = centre, radii
        left, right = max(0, int(x - rx) - 2), min(CANVAS_SIDE, int(x + rx) + 3)
        top, bottom = max(0, int(y - ry) - 2), min(CANVAS_SIDE, int(y + ry) + 3)
        if left >= right or top >= bottom:
            return
        patch = self.pixels[top:bottom, left:right]
        dark = patch.copy()
        points = fixed(ellipse((x - left, y - top), radii))
        cv2.fillConvexPoly(dark, points, (20, 18, 30, 0), cv2.LINE_8, SUBPIXEL_BITS)
        weight = int(strength * 256)
        patch[:] = (patch.astype(np.uint16) * (256 - weight) + dark.astype(np.uint16) * weight) >> 8
