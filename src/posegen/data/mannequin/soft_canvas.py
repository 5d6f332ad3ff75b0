"""The canvas of the second rendering: light on round things, textures of the ground, and soft shadows.

Shadows and textures are 8-bit maps that are blurred with integers and multiplied into the picture, so that they are the
same on every machine, as everything else.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import cv2
import numpy as np

from posegen.data.mannequin.canvas import CANVAS_SIDE, SUBPIXEL_BITS, SUBPIXELS, Canvas, Colour, box, shade
from posegen.data.mannequin.rng import Dice

LIGHT_STEPS = 7  # coats of a round thing
NOISE = 9  # random stream of the textures, which all pictures share
#: Width, height and contrast (of 256) of the patches on the ground next to the viewer.
GROUNDS = {
    "park": (5, 13, 48), "beach": (41, 7, 34), "room": (61, 3, 26), "street": (7, 5, 30), "studio": (1, 1, 0),
    "night": (7, 13, 48),
}  # fmt: skip


class SoftCanvas(Canvas):
    """Paints the same things as `Canvas`, lit from the upper left; ``dice`` decide what only this rendering shows."""

    def __init__(self, style: str, dice: Dice):
        super().__init__(style)
        self.dice, self.horizon, self.scene = dice, CANVAS_SIDE, ""
        self.shaded = style in ("photo", "shadow")

    def group(self, outlines: Iterable[np.ndarray], colour: Colour) -> None:
        """Pieces that are dark at the edge and bright towards the light; in a cartoon, in two tones."""
        pieces = list(outlines)
        super().group(pieces, shade(colour, {"sketch": 1, "cartoon": 0.86}.get(self.style, 0.74)))
        steps = {"photo": range(1, LIGHT_STEPS), "shadow": range(1, LIGHT_STEPS), "cartoon": (2,), "sketch": ()}
        for step in steps[self.style]:
            tone, size = shade(colour, 0.74 + 0.4 * step / LIGHT_STEPS), 1 - step / (LIGHT_STEPS + 1)
            tone = colour if self.style == "cartoon" else tone
            for piece in pieces:
                self.fill(lit(piece, size, 0.42), tone)

    def shape(self, outline: np.ndarray, colour: Colour, edge: bool = True) -> None:
        super().shape(outline, colour, edge)
        if not self.shaded:
            return
        (left, top), (right, bottom) = outline.min(0), outline.max(0)
        if not edge and 20 < right - left < 40 and bottom < 100:  # sun and moon
            self._glow(((left + right) / 2, (top + bottom) / 2), colour)
        elif edge and len(outline) == 4:  # walls and posts: the side away from the light is darker
            for share, factor in ((0.55, 0.95), (0.8, 0.88)):
                self.fill(box(left + (right - left) * share, top, right, bottom), shade(colour, factor))
        elif edge and len(outline) > 8:  # hills, and the seats of stools
            for step in range(1, LIGHT_STEPS):
                self.fill(lit(outline, 1 - 0.09 * step, 0.5), shade(colour, 1 + 0.02 * step))

    def _glow(self, centre: tuple[float, float], colour: Colour) -> None:
        x, y = (round(c) for c in centre)
        left, top, right, bottom = max(0, x - 64), max(0, y - 64), min(CANVAS_SIDE, x + 64), min(CANVAS_SIDE, y + 64)
        weight = halo()[top - y + 64 : bottom - y + 64, left - x + 64 : right - x + 64, None]
        patch = self.pixels[top:bottom, left:right, :3]
        patch[:] = (patch * (256 - weight) + np.array(colour, np.uint16) * weight) >> 8

    def finish_scene(self, scene: str, horizon: int) -> None:
        self.scene, self.horizon = scene, horizon
        if self.style in ("sketch", "cartoon"):
            return
        far = self.pixels[:horizon]
        cv2.GaussianBlur(far, (5, 5), 0, dst=far)
        ground = self.pixels[horizon:]
        start = self.dice.integer(0, CANVAS_SIDE - 1)
        multiply(ground, ground_texture(scene)[: len(ground), start : start + CANVAS_SIDE])
        if self.style == "photo":
            multiply(self.pixels, falloff())

    def dim_outlines(
        self, outlines: np.ndarray, strength: int, blur: int, people: bool = False, first: int = 0
    ) -> None:
        """Multiplies a soft shadow in the shape of ``outlines [n, k, 2]``, in fixed-point numbers, into the picture.

        ``strength`` of 255, ``blur`` in pixels; on ``people`` alone, or on everything from row ``first`` down."""
        points = outlines.reshape(-1, 2)
        left, top = np.maximum(points.min(0) // SUBPIXELS - blur, (0, first)).tolist()
        right, bottom = np.minimum(points.max(0) // SUBPIXELS + blur + 2, CANVAS_SIDE).tolist()
        if left >= right or top >= bottom:
            return
        patch, mask = self.pixels[top:bottom, left:right], np.zeros((bottom - top, right - left), np.uint8)
        for outline in outlines - np.array((left, top), np.int32) * SUBPIXELS:
            cv2.fillConvexPoly(mask, outline, strength, cv2.LINE_8, SUBPIXEL_BITS)
        mask = cv2.blur(cv2.blur(mask, (blur, blur)), (blur, blur))
        if people:
            mask[patch[..., 3] == 0] = 0
        multiply(patch, 255 - mask)


def lit(outline: np.ndarray, size: float, reach: float) -> np.ndarray:
    """An outline that is smaller by the factor ``size`` and moved by a share of the difference towards the light."""
    middle = outline.mean(0)
    return middle + (outline.max(0) - middle) * ((1 - size) * reach) * (-1, -1) + (outline - middle) * size


@lru_cache(1)
def halo() -> np.ndarray:
    """Weights ``[128, 128] uint16`` of 256 of the glow around a light, which begins at 10 pixels."""
    axis = np.arange(128) - 64
    far = np.clip(axis[:, None] ** 2 + axis**2 - 100, 0, 63**2 - 100)
    return (100 * (63**2 - 100 - far) ** 2 // (63**2 - 100) ** 2).astype(np.uint16) * (far > 0)


def multiply(patch: np.ndarray, factors: np.ndarray) -> None:
    """Multiplies colours ``[h, w, 4] uint8`` by ``factors [h, w] uint8`` of 255, in place; 128 is half."""
    wide = (factors + (factors >> 7).astype(np.uint16))[..., None]  # 255 is 256, which leaves a colour as it is
    patch[..., :3] = (patch[..., :3] * wide + 127) >> 8


@lru_cache(16)
def ground_texture(scene: str) -> np.ndarray:
    """Factors ``[128, 512] uint8`` of a ground that recedes towards its first row."""
    width, height, contrast = GROUNDS[scene]
    words = np.random.PCG64(np.random.SeedSequence((NOISE, len(scene), width))).random_raw(CANVAS_SIDE * 256 // 8)
    noise = words.view(np.uint8).reshape(256, CANVAS_SIDE)
    spread = cv2.blur(np.hstack((noise, noise)), (width, height)).astype(np.int32) - 128
    scale = max(1, int(np.abs(spread).max()))
    rows = np.arange(128)
    depth = (rows * 3 // 2 + rows * rows // 200).clip(0, 255)  # farther rows are squeezed
    strength = contrast * (rows + 24) // 152
    texture = 256 - contrast // 2 + spread[depth] * strength[:, None] // scale
    return texture.clip(0, 255).astype(np.uint8)


@lru_cache(1)
def falloff() -> np.ndarray:
    """Factors ``[256, 256] uint8``: the light comes from the upper left and loses a sixth on its way."""
    x, y = np.arange(CANVAS_SIDE)[None, :], np.arange(CANVAS_SIDE)[:, None]
    return (255 - ((x * x + y * y) * 44 >> 17)).astype(np.uint8)
