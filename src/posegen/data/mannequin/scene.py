"""Six scenes behind the people; the canvas turns each into the four styles."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from posegen.data.mannequin.canvas import CANVAS_SIDE, PAPER, Canvas, Colour, box, ellipse, mix, shade, words
from posegen.data.mannequin.rng import Dice

Range = tuple[float, float]

SKIES: tuple[tuple[Colour, Colour], ...] = (
    ((92, 158, 236), (190, 222, 248)), ((120, 186, 240), (218, 236, 246)),
    ((84, 140, 220), (170, 206, 240)), ((142, 190, 226), (240, 226, 206)),
)  # fmt: skip
TINTS: dict[str, tuple[Colour, Colour]] = {  # darkest and lightest colour of a shadow picture
    "park": ((132, 140, 74), (232, 222, 158)), "beach": ((196, 136, 112), (252, 214, 160)),
    "room": ((190, 118, 72), (250, 204, 140)), "street": ((140, 108, 134), (240, 206, 196)),
    "studio": ((146, 140, 160), (226, 216, 220)), "night": ((66, 84, 132), (176, 196, 234)),
}  # fmt: skip


def paint_scene(canvas: Canvas, scene: str, dice: Dice) -> float:
    """Paints ``scene`` and returns the height (y in pixels) where the ground begins."""
    horizon = dice.uniform(0.56, 0.68) * CANVAS_SIDE
    PAINTERS[scene](canvas, round(horizon), dice)
    canvas.finish_scene(scene, round(horizon))
    if canvas.style == "shadow":  # all colours become a scale between two
        low, high = (np.array(_vary_each(colour, dice, 10)) for colour in TINTS[scene])
        grey = cv2.cvtColor(canvas.pixels, cv2.COLOR_RGBA2GRAY)
        first, last = int(grey.min()), int(grey.max())
        ramp = np.clip((np.arange(256) - first) / max(1, last - first), 0, 1)[:, None]
        canvas.words[:] = words(low + (high - low) * ramp)[grey]
    return horizon


def _vary(colour: Colour, dice: Dice, amount: float = 14) -> Colour:
    return _vary_each(colour, dice, amount / 2, dice.about(0, amount))


def _hue(dice: Dice, *options: Colour, amount: float = 14) -> Colour:
    """One of some colours, varied."""
    return _vary(dice.choice(options), dice, amount)


def _vary_each(colour: Colour, dice: Dice, amount: float, shift: float = 0) -> Colour:
    r, g, b = (min(255, max(0, int(c + shift + dice.about(0, amount)))) for c in colour)
    return r, g, b


def _sky(canvas: Canvas, horizon: int, dice: Dice) -> None:
    upper, lower = dice.choice(SKIES)
    canvas.gradient(0, horizon, _vary(upper, dice), _vary(lower, dice))


def _ground(canvas: Canvas, horizon: int, colour: Colour) -> None:
    canvas.gradient(horizon, CANVAS_SIDE, shade(colour, 1.06), shade(colour, 0.86))
    if canvas.style == "sketch":  # the ground hides what stands behind the horizon
        canvas.fill(box(-2, horizon, CANVAS_SIDE + 2, CANVAS_SIDE + 2), PAPER)
        canvas.line((0, horizon), (CANVAS_SIDE, horizon), colour)


def _sun(canvas: Canvas, dice: Dice, colour: Colour, low: float = 22, high: float = 62) -> None:
    radius = dice.uniform(12, 19)
    centre = dice.uniform(20, CANVAS_SIDE - 20), dice.uniform(low, high)
    canvas.shape(ellipse(centre, (radius, radius)), colour, edge=False)


def _cloud(canvas: Canvas, dice: Dice) -> None:
    x, y, size = dice.uniform(10, CANVAS_SIDE - 10), dice.uniform(18, 80), dice.uniform(0.8, 1.3)
    puffs = np.array(((-18, 2, 16, 8), (0, -3, 18, 12), (18, 2, 16, 8))) * size
    canvas.group([ellipse((x + dx, y + dy), radii) for dx, dy, *radii in puffs], (244, 248, 252))


def _hill(canvas: Canvas, dice: Dice, y: float, widths: Range, heights: Range, colour: Colour) -> None:
    if dice.chance(0.6):
        x = dice.uniform(0, CANVAS_SIDE)
        canvas.shape(ellipse((x, y), (dice.uniform(*widths), dice.uniform(*heights))), colour)


def _park(canvas: Canvas, horizon: int, dice: Dice) -> None:
    _sky(canvas, horizon, dice)
    if dice.chance(0.5):
        _sun(canvas, dice, (255, 244, 190))
    else:
        _cloud(canvas, dice)
    green = _hue(dice, (104, 176, 78), (122, 184, 82), (88, 160, 84))
    _hill(canvas, dice, horizon + 14, (90, 150), (34, 58), mix(green, (130, 170, 190), 0.45))
    _ground(canvas, horizon, green)
    for _ in range(dice.integer(1, 3)):
        _tree(canvas, dice, dice.uniform(6, CANVAS_SIDE - 6), horizon + dice.uniform(2, 14))


def _tree(canvas: Canvas, dice: Dice, x: float, foot: float) -> None:
    size = dice.uniform(0.8, 1.35)
    canvas.shape(box(x - 5 * size, foot - 46 * size, x + 5 * size, foot), (112, 78, 52))
    leaf = _hue(dice, (50, 128, 58), (66, 142, 52), (40, 112, 66))
    top = foot - 62 * size
    if dice.chance(0.3):  # a fir
        half, base = 26 * size, foot - 26 * size
        canvas.group([np.array(((x, top - 40 * size), (x + half, base), (x - half, base)))], leaf)
        return
    blobs = np.array(((-17, 6, 19), (17, 6, 19), (0, -10, 23))) * size
    canvas.group([ellipse((x + dx, top + dy), (r, r)) for dx, dy, r in blobs], leaf)


def _beach(canvas: Canvas, horizon: int, dice: Dice) -> None:
    sea_top = horizon - round(dice.uniform(26, 44))
    _sky(canvas, sea_top, dice)
    _sun(canvas, dice, (255, 238, 150))
    if dice.chance(0.4):
        _cloud(canvas, dice)
    sea = _hue(dice, (28, 120, 186), (20, 140, 170), (36, 104, 176))
    canvas.gradient(sea_top, horizon, sea, mix(sea, (120, 220, 220), 0.35))
    if canvas.style == "sketch":
        canvas.line((0, sea_top), (CANVAS_SIDE, sea_top), sea)
    if dice.chance(0.5):  # a sailing boat
        place, size = (dice.uniform(24, CANVAS_SIDE - 24), sea_top + 8), dice.uniform(0.8, 1.2)
        canvas.shape(place + np.array(((0, -34), (15, -4), (0, -4))) * size, (250, 250, 248))
        canvas.shape(place + np.array(((-15, 0), (18, 0), (11, 8), (-9, 8))) * size, (160, 74, 60))
    sand = _hue(dice, (236, 212, 154), (242, 206, 168), (226, 204, 148))
    _ground(canvas, horizon, sand)
    canvas.shape(box(-4, horizon - 2, CANVAS_SIDE + 4, horizon + 3), (240, 246, 244), edge=False)


def _room(canvas: Canvas, horizon: int, dice: Dice) -> None:
    wall = _hue(dice, (226, 206, 180), (204, 216, 204), (232, 196, 186), (206, 208, 224), (236, 224, 178))
    canvas.gradient(0, horizon, wall, shade(wall, 0.93))
    floor = _hue(dice, (150, 104, 74), (128, 92, 80), (166, 128, 88), (120, 110, 106))
    _ground(canvas, horizon, floor)
    canvas.shape(box(-4, horizon - 7, CANVAS_SIDE + 4, horizon), mix(wall, (255, 255, 255), 0.5))
    x = dice.uniform(44, CANVAS_SIDE - 44)
    _window(canvas, x, dice.uniform(34, 46), dice.uniform(26, 34), dice.uniform(32, 40))
    other = x + 128 if x < 128 else x - 128
    if dice.chance(0.5):  # a picture
        art = dice.choice(((206, 96, 84), (84, 130, 166), (222, 182, 84), (110, 160, 120)))
        canvas.shape(box(other - 17, 40, other + 17, 84), (110, 80, 58))
        canvas.shape(box(other - 12, 45, other + 12, 79), art, edge=False)
    elif dice.chance(0.5):  # a lamp
        place = (min(CANVAS_SIDE - 22, max(22, other)), horizon)
        canvas.shape(place + box(-2, -96, 2, 6), (92, 84, 78))
        canvas.shape(place + box(-12, 3, 12, 9), (92, 84, 78))
        canvas.shape(place + np.array(((-11, -122), (11, -122), (20, -92), (-20, -92))), (252, 226, 150))


def _window(canvas: Canvas, x: float, top: float, half: float, drop: float) -> None:
    canvas.shape(box(x - half - 6, top - 6, x + half + 6, top + 2 * drop + 6), (248, 246, 240))
    canvas.shape(box(x - half, top, x + half, top + 2 * drop), (150, 206, 240))
    width = 5 if canvas.style != "sketch" else 2
    canvas.line((x, top), (x, top + 2 * drop), (248, 246, 240), width)
    canvas.line((x - half, top + drop), (x + half, top + drop), (248, 246, 240), width)


def _street(canvas: Canvas, horizon: int, dice: Dice) -> None:
    _sky(canvas, horizon, dice)
    if dice.chance(0.4):
        _cloud(canvas, dice)
    left = -dice.uniform(0, 30)
    while left < CANVAS_SIDE:
        width = dice.uniform(54, 78)
        _house(canvas, left, width, horizon, dice)
        left += width + 1
    road = _vary((122, 122, 130), dice, 10)
    _ground(canvas, horizon, road)
    canvas.shape(box(-4, horizon, CANVAS_SIDE + 4, horizon + 16), (186, 184, 180))
    if canvas.style != "sketch":
        start = dice.uniform(-40, 0)
        for k in range(5):
            dash = box(start + 72 * k, CANVAS_SIDE - 22, start + 72 * k + 38, CANVAS_SIDE - 15)
            canvas.shape(dash, (222, 220, 206), edge=False)


def _house(canvas: Canvas, left: float, width: float, horizon: int, dice: Dice) -> None:
    top = horizon - dice.uniform(76, 136)
    walls = (196, 120, 98), (176, 150, 120), (140, 152, 176), (206, 178, 128), (150, 124, 150), (128, 160, 142)
    wall = _hue(dice, *walls)
    canvas.shape(box(left, top, left + width, horizon), wall)
    glass = mix(wall, (250, 240, 190), 0.7) if dice.chance(0.5) else mix(wall, (60, 70, 100), 0.55)
    columns = 2 if width < 64 else 3
    step = width / columns
    for row in range(int((horizon - top - 12) // 32)):
        for column in range(columns):
            x, y = left + (column + 0.5) * step, top + 14 + 32 * row
            canvas.shape(box(x - 6, y, x + 6, y + 16), glass, edge=False)


def _studio(canvas: Canvas, horizon: int, dice: Dice) -> None:
    drops = (206, 204, 206), (190, 204, 214), (212, 200, 216), (200, 212, 200), (222, 208, 196), (168, 172, 184)
    drop = _hue(dice, *drops)
    if canvas.style == "sketch":
        canvas.line((0, horizon + 18), (CANVAS_SIDE, horizon + 18), drop)
        return
    canvas.gradient(0, CANVAS_SIDE, shade(drop, 0.86), shade(drop, 0.98))
    x = dice.uniform(0.35, 0.65) * CANVAS_SIDE
    rings: list[tuple[int, float]] = [(132 - 6 * k, (k + 1) / 14) for k in range(14)]
    if canvas.style == "cartoon":
        rings = [(120, 0.35), (96, 0.6), (70, 0.85)]
    for radius, share in rings:  # the glow of a spotlight on the backdrop
        glow = mix(shade(drop, 0.9), mix(drop, (255, 255, 255), 0.6), share)
        canvas.shape(ellipse((x, 104), (radius, radius * 0.95)), glow, edge=False)
    canvas.gradient(horizon + 20, CANVAS_SIDE, shade(drop, 0.94), shade(drop, 0.8))


def _night(canvas: Canvas, horizon: int, dice: Dice) -> None:
    upper = _hue(dice, (20, 26, 74), (30, 22, 78), (16, 34, 72), amount=8)
    canvas.gradient(0, horizon, upper, mix(upper, (96, 104, 168), 0.55))
    for _ in range(dice.integer(10, 16)):
        size = dice.uniform(1.6, 2.8)
        centre = dice.uniform(4, CANVAS_SIDE - 4), dice.uniform(4, horizon - 26)
        canvas.shape(ellipse(centre, (size, size)), (250, 248, 226), edge=False)
    _sun(canvas, dice, (250, 244, 214), 24, 60)
    ground = _hue(dice, (54, 66, 104), (62, 72, 100), (52, 76, 96), amount=8)
    _hill(canvas, dice, horizon + 12, (100, 160), (30, 50), shade(ground, 0.78))
    _ground(canvas, horizon, ground)


PAINTERS: dict[str, Callable[[Canvas, int, Dice], None]] = {
    "park": _park, "beach": _beach, "room": _room, "street": _street, "studio": _studio, "night": _night,
}  # fmt: skip
