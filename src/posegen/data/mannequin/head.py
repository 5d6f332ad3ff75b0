"""Paints a head: two spheres (skull and hair), with eyes, mouth, ears and a nose that give the direction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from posegen.data.mannequin.body import EAR, EYE, NOSE
from posegen.data.mannequin.canvas import CANVAS_SIDE, INK, Canvas, Colour, capsules, ellipse, mix, shade, snapped
from posegen.data.mannequin.figure import Figure

HAIR_CENTRE = (0.0, 0.15, -0.17)  # in head radii, head frame
HAIR_RADIUS = 1.05
OUTLINE = {"photo": 0.5, "cartoon": 2.4, "sketch": 1.7, "shadow": 1.5}
EDGE = {"cartoon": INK, "sketch": INK, "shadow": (24, 23, 29)}
EYES: dict[str, Colour] = {
    "photo": (36, 28, 30), "cartoon": (20, 18, 22), "sketch": (30, 30, 34), "shadow": (168, 166, 178),
}  # fmt: skip


def paint_head(canvas: Canvas, owner: int, figure: Figure) -> None:
    """Hair behind, ears, skull with hair and face, hair in front, nose: in the order of depth."""
    radius = figure.body.head_radius * figure.unit
    centre = snapped(figure.project("head"))
    nose_behind = figure.body.face(NOSE)[2] < -0.01
    _hair_tail(canvas, owner, figure, behind=True)
    if nose_behind:
        _nose(canvas, owner, figure, radius)
    _ears(canvas, owner, figure, radius, near=False)
    if canvas.style in EDGE:
        hair = figure.project("head", figure.body.face(HAIR_CENTRE))
        for place, size in ((centre, radius), (hair, HAIR_RADIUS * radius)):
            canvas.fill(ellipse(place, (size + OUTLINE[canvas.style],) * 2), EDGE[canvas.style], owner)
    _spheres(canvas, owner, figure, centre, radius)
    _ears(canvas, owner, figure, radius, near=True)
    _hair_tail(canvas, owner, figure, behind=False)
    if not nose_behind:
        _nose(canvas, owner, figure, radius)


def _capsule(canvas: Canvas, owner: int, ends: Sequence[np.ndarray], radii: np.ndarray, colour: Colour) -> None:
    """A disc or capsule with the style's contour; two ends ``[2]`` and ``radii [2]`` in pixels."""
    for grow, paint in ((OUTLINE[canvas.style], EDGE.get(canvas.style, shade(colour, 0.7))), (-0.5, colour)):
        canvas.fill(capsules(ends[0][None], ends[1][None], radii[None] + grow)[0], paint, owner)


def _hair_tail(canvas: Canvas, owner: int, figure: Figure, behind: bool) -> None:
    """Long hair or a bun, if it lies on this side of the head's centre."""
    if figure.outfit.hair_style == "short":
        return
    top, low, size = ((0, 0.62, -0.98), (0, 0.66, -1.02), (0.42, 0.42))
    if figure.outfit.hair_style == "long":
        top, low, size = ((0, 0.1, -0.5), (0, -1.05, -0.62), (0.8, 0.58))
    offsets = [figure.body.face(point) for point in (top, low)]
    if (round(offsets[0][2] + offsets[1][2], 6) < 0) == behind:
        radii = np.array(size) * figure.body.head_radius * figure.unit
        _capsule(canvas, owner, [figure.project("head", each) for each in offsets], radii, figure.outfit.hair)


def _ears(canvas: Canvas, owner: int, figure: Figure, radius: float, near: bool) -> None:
    for side in (1, -1):
        offset = figure.body.face(EAR, side)
        if (offset[2] > 0.25 * figure.body.head_radius) == near:
            skin = shade(figure.outfit.skin, 0.72 if side < 0 and canvas.style != "shadow" else 0.94)
            _capsule(canvas, owner, [figure.project("head", offset)] * 2, np.full(2, 0.23 * radius), skin)


def _nose(canvas: Canvas, owner: int, figure: Figure, radius: float) -> None:
    if figure.body.face(NOSE)[2] < -0.35 * figure.body.head_radius:
        return
    bridge, tip = (figure.project("head", figure.body.face(point)) for point in ((0, 0.02, 0.95), (0, -0.18, 1.08)))
    tone = shade(figure.outfit.skin, 0.86 if canvas.style == "shadow" else 0.8)
    colour = (150, 150, 152) if canvas.style == "sketch" else tone
    radii = np.array((0.07, 0.15)) * radius
    canvas.fill(capsules(bridge[None], tip[None], radii[None])[0], colour, owner)


def _spheres(canvas: Canvas, owner: int, figure: Figure, centre: np.ndarray, radius: float) -> None:
    """Ray-casts skull and hair on the patch around the head, in 16 steps of light in a photo."""
    reach = int(radius * 1.35) + 3
    left, top = (max(0, int(c) - reach) for c in centre)
    right, bottom = (min(CANVAS_SIDE, int(c) + reach) for c in centre)
    if left >= right or top >= bottom:
        return
    frame = np.rint(figure.body.head * 4096) / 4096  # a rounded frame: the same comparisons on every machine
    size = round(radius * 16) / 16
    x = ((np.arange(left, right) - centre[0]) / size)[None, :]
    y = ((centre[1] - np.arange(top, bottom)) / size)[:, None]
    inside = 1 - x * x - y * y
    z = np.sqrt(np.maximum(inside, 0))
    hx, hy, hz = (sum(frame[row, k] * HAIR_CENTRE[k] for k in range(3)) for row in range(3))
    hair_inside = HAIR_RADIUS**2 - (x - hx) ** 2 - (y - hy) ** 2
    hair_z = hz + np.sqrt(np.maximum(hair_inside, 0))
    is_hair = (hair_inside > 0) & ((inside <= 0) | (hair_z > z))
    is_face = (inside > 0) & ~is_hair
    patch = canvas.pixels[top:bottom, left:right]
    light = np.clip((-0.45 * x + 0.55 * y + 0.7 * z), 0, 1)
    for where, colour in ((is_hair, figure.outfit.hair), (is_face, figure.outfit.skin)):
        if canvas.style != "photo":
            patch[where] = (*colour, owner)
            continue
        tones = [mix(shade(colour, 0.6 + 0.42 * i / 15), (255,) * 3, max(0, i - 12) * 0.03) for i in range(16)]
        patch[where] = np.array([(*tone, owner) for tone in tones], np.uint8)[(light[where] * 15.999).astype(np.intp)]
    # eyes and mouth lie on the skull's surface, so that they turn with it
    across, up, forward = (frame[0, k] * x + frame[1, k] * y + frame[2, k] * z for k in range(3))
    front = is_face & (forward > 0)
    eye = front & (((np.abs(across) - EYE[0]) / 0.15) ** 2 + ((up - EYE[1]) / 0.2) ** 2 < 1)
    mouth = front & ((across / 0.34) ** 2 + ((up + 0.52) / 0.085) ** 2 < 1)
    lips = {"shadow": EYES["shadow"], "sketch": (110, 110, 112)}
    patch[eye, :3] = EYES[canvas.style]
    patch[mouth, :3] = lips.get(canvas.style) or mix(figure.outfit.skin, (150, 40, 50), 0.6)
