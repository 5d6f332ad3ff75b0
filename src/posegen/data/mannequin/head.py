"""Paints a head: two spheres (skull and hair), with eyes, mouth, ears and a nose that give the direction."""

from __future__ import annotations

import numpy as np

from posegen.data.mannequin.body import EAR, EYE, NOSE
from posegen.data.mannequin.canvas import CANVAS_SIDE, INK, Canvas, Colour, capsules, ellipse, mix, shade, snapped
from posegen.data.mannequin.figure import Figure

HAIR_CENTRE = (0.0, 0.15, -0.17)  # in head radii, head frame
HAIR_RADIUS = 1.05
OUTLINE = {"photo": 0.5, "cartoon": 2.4, "sketch": 1.7, "shadow": 1.5}
EDGE = {"cartoon": INK, "sketch": INK, "shadow": (24, 23, 29)}
EYES: dict[str, Colour] = {
    "photo": (36, 28, 30),
    "cartoon": (20, 18, 22),
    "sketch": (30, 30, 34),
    "shadow": (168, 166, 178),
}


def paint_head(canvas: Canvas, owner: int, figure: Figure) -> None:
    """Hair behind, ears, skull with hair and face, hair in front, nose: in the order of depth."""
    radius = figure.body.head_radius * figure.unit
    centre = snapped(figure.project("head"))
    outfit = figure.outfit
    tail = _hair_tail(figure)
    tail_behind = tail is None or tail[1] < 0
    nose_behind = figure.body.face(NOSE)[2] < -0.01
    if tail is not None and tail_behind:
        _pieces(canvas, owner, tail[0], outfit.hair)
    if nose_behind:
        _nose(canvas, owner, figure, radius)
    _ears(canvas, owner, figure, radius, near=False)
    _contour(canvas, owner, figure, centre, radius)
    _spheres(canvas, owner, figure, centre, radius)
    _ears(canvas, owner, figure, radius, near=True)
    if tail is not None and not tail_behind:
        _pieces(canvas, owner, tail[0], outfit.hair)
    if not nose_behind:
        _nose(canvas, owner, figure, radius)


def _pieces(canvas: Canvas, owner: int, outlines: list[tuple[np.ndarray, np.ndarray]], colour: Colour) -> None:
    """Discs or capsules of one colour, as (ends ``[2, 2]``, radii ``[2]``) in pixels, with the style's contour."""
    for grow, paint in ((OUTLINE[canvas.style], EDGE.get(canvas.style, shade(colour, 0.7))), (-0.5, colour)):
        for ends, radii in outlines:
            canvas.fill(capsules(ends[None, 0], ends[None, 1], radii[None] + grow)[0], paint, owner)


def _hair_tail(figure: Figure) -> tuple[list[tuple[np.ndarray, np.ndarray]], float] | None:
    """Long hair or a bun: its pieces and its nearness relative to the head's centre; None for short hair."""
    if figure.outfit.hair_style == "short":
        return None
    top, low = (
        ((0, 0.1, -0.5), (0, -1.05, -0.62))
        if figure.outfit.hair_style == "long"
        else ((0, 0.62, -0.98), (0, 0.66, -1.02))
    )
    size = (0.8, 0.58) if figure.outfit.hair_style == "long" else (0.42, 0.42)
    offsets = [figure.body.face(point) for point in (top, low)]
    ends = np.stack([figure.project("head", offset) for offset in offsets])
    radii = np.array(size) * figure.body.head_radius * figure.unit
    return [(ends, radii)], float(round(offsets[0][2] + offsets[1][2], 6))


def _ears(canvas: Canvas, owner: int, figure: Figure, radius: float, near: bool) -> None:
    for side in (1, -1):
        offset = figure.body.face(EAR, side)
        if (offset[2] > 0.25 * figure.body.head_radius) == near:
            point = figure.project("head", offset)
            factor = 0.72 if side < 0 and canvas.style != "shadow" else 0.94
            _pieces(
                canvas,
                owner,
                [(np.stack((point, point)), np.full(2, 0.23 * radius))],
                shade(figure.outfit.skin, factor),
            )


def _nose(canvas: Canvas, owner: int, figure: Figure, radius: float) -> None:
    if figure.body.face(NOSE)[2] < -0.35 * figure.body.head_radius:
        return
    bridge, tip = (figure.project("head", figure.body.face(point)) for point in ((0, 0.02, 0.95), (0, -0.18, 1.08)))
    colour = shade(figure.outfit.skin, 0.8 if canvas.style in ("photo", "cartoon") else 0.86)
    if canvas.style == "sketch":
        colour = (150, 150, 152)
    radii = np.array((0.07, 0.15)) * radius
    canvas.fill(capsules(bridge[None], tip[None], radii[None])[0], colour, owner)


def _contour(canvas: Canvas, owner: int, figure: Figure, centre: np.ndarray, radius: float) -> None:
    colour = EDGE.get(canvas.style)
    if colour is None:
        return
    hair = figure.project("head", figure.body.face(HAIR_CENTRE))
    canvas.fill(ellipse(centre, (radius + OUTLINE[canvas.style],) * 2), colour, owner)
    canvas.fill(ellipse(hair, (HAIR_RADIUS * radius + OUTLINE[canvas.style],) * 2), colour, owner)


def _spheres(canvas: Canvas, owner: int, figure: Figure, centre: np.ndarray, radius: float) -> None:
    """Ray-casts skull and hair on the patch around the head."""
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
    local = [frame[0, k] * x + frame[1, k] * y + frame[2, k] * z for k in range(3)]
    patch = canvas.pixels[top:bottom, left:right]
    light = np.clip((-0.45 * x + 0.55 * y + 0.7 * z), 0, 1) if canvas.style == "photo" else None
    _tone(patch, is_hair, figure.outfit.hair, owner, light)
    _tone(patch, is_face, figure.outfit.skin, owner, light)
    _features(patch, is_face, local, canvas.style, figure.outfit.skin)


def _tone(patch: np.ndarray, where: np.ndarray, colour: Colour, owner: int, light: np.ndarray | None) -> None:
    """Colours the pixels of ``where``, in 16 steps of light if there is any."""
    if light is None:
        patch[where] = (*colour, owner)
        return
    ramp = np.array(
        [(*mix(shade(colour, 0.6 + 0.42 * i / 15), (255,) * 3, max(0, i - 12) * 0.03), owner) for i in range(16)],
        np.uint8,
    )
    patch[where] = ramp[(light[where] * 15.999).astype(np.intp)]


def _features(patch: np.ndarray, face: np.ndarray, local: list[np.ndarray], style: str, skin: Colour) -> None:
    """Eyes and mouth, painted on the skull's surface so that they turn with it."""
    across, up, forward = local
    front = face & (forward > 0)
    aside = np.abs(across) - EYE[0]
    eye = front & ((aside / 0.15) ** 2 + ((up - EYE[1]) / 0.2) ** 2 < 1)
    mouth = front & ((across / 0.34) ** 2 + ((up + 0.52) / 0.085) ** 2 < 1)
    patch[eye, :3] = EYES[style]
    patch[mouth, :3] = (
        EYES["shadow"] if style == "shadow" else mix(skin, (150, 40, 50), 0.6) if style != "sketch" else (110, 110, 112)
    )
