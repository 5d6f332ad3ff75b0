"""One person on the canvas: clothes, joints, and rounded limbs painted from back to front in four styles. The head is
two spheres (skull and hair), with eyes, mouth, ears and a nose that give the direction.

Right limbs have 0.62 of the brightness, so that left and right can be told apart from the front and from behind.
Therefore images of the mannequin world are never mirrored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

import cv2
import numpy as np

from posegen.data.mannequin import canvas as drawing
from posegen.data.mannequin.body import EAR, EYE, NOSE, Body, J
from posegen.data.mannequin.canvas import INK, Canvas, Colour, capsules, ellipse, mix, shade, snapped
from posegen.data.mannequin.rng import Dice

GARMENTS: dict[str, Colour] = {
    "red": (214, 42, 46), "orange": (243, 134, 28), "yellow": (246, 212, 48), "green": (46, 152, 62),
    "blue": (44, 88, 214), "purple": (138, 56, 176), "pink": (246, 130, 178), "brown": (126, 78, 42),
    "black": (54, 54, 60), "white": (240, 240, 242),
}  # fmt: skip
SKINS: tuple[Colour, ...] = ((250, 214, 186), (238, 188, 148), (212, 156, 112), (160, 106, 70), (112, 72, 48))
HAIRS: tuple[Colour, ...] = ((44, 36, 34), (92, 58, 34), (150, 88, 40), (226, 186, 96), (150, 148, 146))
SHOES: tuple[Colour, ...] = ((70, 52, 44), (52, 52, 62), (206, 204, 206), (150, 54, 44))
DUSK: Colour = (60, 58, 68)  # a shadow figure


@dataclass(frozen=True)
class Outfit:
    """A person's looks apart from the pose; ``hair_style`` is short, long or bun."""

    skin: Colour
    hair: Colour
    shirt: Colour
    trousers: Colour
    shoes: Colour
    long_sleeves: bool
    hair_style: str


def random_outfit(style: str, shirt: str | None, trousers: str | None, dice: Dice) -> Outfit:
    """An outfit in the caption's colours; sketch and shadow figures wear the tones of their style."""
    skin, hair, shoes = dice.choice(SKINS), dice.choice(HAIRS), dice.choice(SHOES)
    sleeves, hair_style = dice.chance(0.45), dice.choice(("short", "long", "bun"), (0.6, 0.25, 0.15))
    shirt_factor, trousers_factor = (dice.about(1, 0.08) for _ in range(2))
    if style == "sketch":
        grey = (70 + hair[0] // 2,) * 3
        return Outfit((255,) * 3, grey, (255,) * 3, (255,) * 3, (255,) * 3, sleeves, hair_style)
    if style == "shadow":
        return Outfit(DUSK, shade(DUSK, 0.7), DUSK, DUSK, DUSK, sleeves, hair_style)
    assert shirt and trousers, "photo and cartoon captions name the colours"
    clothes = shade(GARMENTS[shirt], shirt_factor), shade(GARMENTS[trousers], trousers_factor)
    return Outfit(skin, hair, *clothes, shoes, sleeves, hair_style)


class Figure:
    """A body placed on the canvas with its pelvis at ``origin`` (x, y), ``unit`` pixels per body height."""

    def __init__(self, body: Body, outfit: Outfit, origin: tuple[float, float], unit: float):
        self.body, self.outfit, self.unit = body, outfit, unit
        self.joints = np.array(origin) + body.joints[:, :2] * (unit, -unit)  # [22, 2] in canvas pixels
        self.depth = body.joints[:, 2] * unit  # [22] nearness to the viewer in pixels

    def project(self, joint: str, offset: np.ndarray | None = None) -> np.ndarray:
        """Canvas position ``[2]`` of a joint, or of a point ``offset`` (body heights, ``[3]``) away from it."""
        point = self.joints[J[joint]]
        return point if offset is None else point + offset[:2] * (self.unit, -self.unit)


RIGHT_BRIGHTNESS = 0.62
TORSO_BRIGHTNESS = 0.98  # a little darker than the left limbs
LIGHT = (-0.6, -0.8)  # direction of the light in the image
HAIR_CENTRE = (0.0, 0.15, -0.17)  # in head radii, head frame
HAIR_RADIUS = 1.05
OUTLINE = {"photo": 0.5, "cartoon": 2.4, "sketch": 1.7, "shadow": 1.5}
EDGE = {"cartoon": INK, "sketch": INK, "shadow": (24, 23, 29)}
EYES: dict[str, Colour] = {
    "photo": (36, 28, 30), "cartoon": (20, 18, 22), "sketch": (30, 30, 34), "shadow": (168, 166, 178),
}  # fmt: skip

# One segment: from joint, to joint, start and end between them, radii at both ends (body heights), part of the outfit.
Segment = tuple[str, str, float, float, float, float, str]


def arm_segments(tag: str, long_sleeves: bool) -> tuple[Segment, ...]:
    shoulder, elbow, wrist, hand = (f"{joint}_{tag}" for joint in ("shoulder", "elbow", "wrist", "hand"))
    sleeve, end, lower = (1.0, 0.035, "shirt") if long_sleeves else (0.62, 0.039, "skin")
    return (
        (shoulder, elbow, 0.5, 1.0, 0.034, 0.031, lower),
        (elbow, wrist, 0.0, 1.0, 0.031, 0.025, lower),
        (wrist, hand, 0.2, 0.9, 0.027, 0.029, "skin"),
        (shoulder, elbow, 0.0, sleeve, 0.041, end, "shirt"),
    )


def leg_segments(tag: str) -> tuple[Segment, ...]:
    hip, knee, ankle, toe = (f"{joint}_{tag}" for joint in ("hip", "knee", "ankle", "toe"))
    return (
        (ankle, toe, -0.12, 0.86, 0.029, 0.026, "shoes"),
        (knee, ankle, 0.0, 0.95, 0.044, 0.032, "trousers"),
        (hip, knee, 0.0, 1.0, 0.060, 0.045, "trousers"),
    )


# The trunk's two pieces are hulls of bars across the body: joint pair and radius.
TRUNK: tuple[Segment, ...] = (
    ("neck", "head", -0.1, 0.7, 0.034, 0.032, "skin"),
    ("hip_l", "hip_r", 0, 1, 0.058, 0.058, "trousers"),
    ("side_l", "side_r", 0, 1, 0.060, 0.060, "trousers"),
    ("shoulder_l", "shoulder_r", 0, 1, 0.044, 0.044, "shirt"),
    ("side_l", "side_r", 0, 1, 0.065, 0.065, "shirt"),
)
NECK, PELVIS, CHEST = slice(0, 1), slice(1, 3), slice(3, 5)


class LimbGeometry:
    """All segments of a person as arrays, so that their geometry is computed at once."""

    def __init__(
        self,
        long_sleeves: bool,
        arm: Callable[[str, bool], tuple[Segment, ...]] = arm_segments,
        leg: Callable[[str], tuple[Segment, ...]] = leg_segments,
        places: Mapping[str, int] = J,
    ):
        groups = {f"arm_{tag}": arm(tag, long_sleeves) for tag in "lr"} | {f"leg_{tag}": leg(tag) for tag in "lr"}
        groups["trunk"] = TRUNK
        segments = [segment for group in groups.values() for segment in group]
        self.first, self.second = np.array([[places[joint] for joint in segment[:2]] for segment in segments]).T
        self.bars = np.array([segment in TRUNK[1:] for segment in segments])[:, None, None]
        self.share = np.array([segment[2:4] for segment in segments])[..., None]
        self.radii = np.array([segment[4:6] for segment in segments])
        self.parts = {name: [segment[6] for segment in group] for name, group in groups.items()}
        ends = accumulate(map(len, groups.values()))
        self.span = {name: slice(end - len(groups[name]), end) for name, end in zip(groups, ends, strict=True)}


LIMBS_BY_SLEEVES = {sleeves: LimbGeometry(sleeves) for sleeves in (False, True)}


@dataclass(frozen=True)
class Layer:
    """One coat of paint: radii are multiplied, then grown by pixels; the coat moves towards the light."""

    thickness: float
    grow: float
    towards_light: float
    brightness: float
    gloss: float = 0.0  # share of white
    ink: Colour | None = None


LAYERS: dict[str, tuple[Layer, ...]] = {
    "photo": (
        Layer(1, 0.4, 0, 0.66), Layer(0.84, 0, 0.12, 0.88), Layer(0.6, 0, 0.26, 1.0), Layer(0.28, 0, 0.4, 1.0, 0.13),
    ),
    "cartoon": (Layer(1, 2.4, 0, 1, ink=INK), Layer(1, 0, 0, 1)),
    "sketch": (Layer(1, 1.7, 0, 1, ink=INK), Layer(1, -0.6, 0, 1)),
    "shadow": (Layer(1, 1.5, 0, 1, ink=(24, 23, 29)), Layer(1, -0.5, 0, 1)),
}  # fmt: skip


class FigurePainter:
    """Paints people in the coats of a style; worlds that paint differently replace parts of it."""

    layers: ClassVar[Mapping[str, tuple[Layer, ...]]] = LAYERS
    limbs: ClassVar[Mapping[bool, LimbGeometry]] = LIMBS_BY_SLEEVES
    right_brightness: ClassVar[float] = RIGHT_BRIGHTNESS
    narrowing: ClassVar[float] = 0.0  # by how much the inner coats of the trunk are shorter bars, which rounds it

    def paint(self, canvas: Canvas, owner: int, figure: Figure) -> None:
        layers, geometry = self.layers[canvas.style], self.limbs[figure.outfit.long_sleeves]
        outlines = self.outlines(figure, layers)
        depths = [(_nearness(figure, f"elbow_{tag}", f"wrist_{tag}", 0.01), f"arm_{tag}") for tag in "lr"]
        depths += [(_nearness(figure, f"knee_{tag}", f"ankle_{tag}", -0.05), f"leg_{tag}") for tag in "lr"]
        depths += [(_nearness(figure, "neck", "pelvis", 0), "trunk"), (_nearness(figure, "head", "head", 0.02), "head")]
        for _, name in sorted(depths):
            if name == "head":
                self.head(canvas, owner, figure)
                continue
            group = outlines[:, geometry.span[name]]
            if name == "trunk":
                self.trunk(canvas, owner, figure, group)
            else:
                self.limb(canvas, owner, figure, name, group)

    def trunk(self, canvas: Canvas, owner: int, figure: Figure, outlines: np.ndarray) -> None:
        for pieces, part in ((NECK, "skin"), (PELVIS, "trousers"), (CHEST, "shirt")):
            colour = getattr(figure.outfit, part)
            for layer, coat in zip(self.layers[canvas.style], outlines[:, pieces], strict=True):
                hull = cv2.convexHull(coat.reshape(-1, 2))
                canvas.fill(hull, self.coat(layer, colour, TORSO_BRIGHTNESS, canvas.style), owner)

    def limb(self, canvas: Canvas, owner: int, figure: Figure, name: str, outlines: np.ndarray) -> None:
        factor = self.right_brightness if name.endswith("r") else 1.0
        parts = self.limbs[figure.outfit.long_sleeves].parts[name]
        for layer, coat in zip(self.layers[canvas.style], outlines, strict=True):
            for outline, part in zip(coat, parts, strict=True):
                canvas.fill(outline, self.coat(layer, getattr(figure.outfit, part), factor, canvas.style), owner)

    def head(self, canvas: Canvas, owner: int, figure: Figure) -> None:
        paint_head(canvas, owner, figure, self.face)

    def face(self, canvas: Canvas, owner: int, figure: Figure, head: HeadSurface) -> None:
        paint_face(canvas, owner, figure, head)

    def outlines(self, figure: Figure, layers: tuple[Layer, ...]) -> np.ndarray:
        """Every segment in every layer: ``[L, n, 18, 2]`` in the canvas's fixed-point numbers."""
        limbs, joints = self.limbs[figure.outfit.long_sleeves], figure.joints
        ends = joints[limbs.first][:, None] * (1 - limbs.share) + joints[limbs.second][:, None] * limbs.share
        radii = limbs.radii * (figure.unit * figure.body.girth)
        inwards = (ends.mean(1, keepdims=True) - ends) * limbs.bars * self.narrowing
        towards = radii[..., None] * np.array(LIGHT)
        moved = np.stack([ends + inwards * (1 - layer.thickness) + towards * layer.towards_light for layer in layers])
        coats = np.stack([radii * layer.thickness + layer.grow for layer in layers]).reshape(-1, 2)
        outlines = capsules(moved[..., 0, :].reshape(-1, 2), moved[..., 1, :].reshape(-1, 2), coats)
        return drawing.fixed(outlines).reshape(len(layers), -1, *outlines.shape[1:])

    def coat(self, layer: Layer, colour: Colour, factor: float, style: str) -> Colour:
        if layer.ink is not None:
            return layer.ink
        if style == "shadow":  # the left side is lighter than the trunk, the right side darker
            factor = {1.0: 1.5, self.right_brightness: self.right_brightness}.get(factor, 1.0)
        return mix(shade(colour, factor * layer.brightness), (255, 255, 255), layer.gloss * factor)


def _nearness(figure: Figure, first: str, second: str, bias: float) -> float:
    return round(float(figure.depth[J[first]] + figure.depth[J[second]]) / 2 + bias * figure.unit, 4)


def paint_head(canvas: Canvas, owner: int, figure: Figure, face: FacePainter) -> None:
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
    surface = HeadSurface.of(figure, centre, radius)
    if surface is not None:
        face(canvas, owner, figure, surface)
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


@dataclass(frozen=True)
class HeadSurface:
    """The ray-cast skull and hair on the patch around a head; arrays ``[h, w]``, lengths in head radii."""

    rows: slice
    columns: slice
    is_hair: np.ndarray
    is_face: np.ndarray
    light: np.ndarray  # 0 to 1
    across: np.ndarray  # to the head's left; features have these coordinates, so that they turn with the head
    up: np.ndarray
    forward: np.ndarray

    @classmethod
    def of(cls, figure: Figure, centre: np.ndarray, radius: float) -> HeadSurface | None:
        reach = int(radius * 1.35) + 3
        left, top = (max(0, int(c) - reach) for c in centre)
        right, bottom = (min(drawing.CANVAS_SIDE, int(c) + reach) for c in centre)
        if left >= right or top >= bottom:
            return None
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
        light = np.clip((-0.45 * x + 0.55 * y + 0.7 * z), 0, 1)
        axes = (frame[0, k] * x + frame[1, k] * y + frame[2, k] * z for k in range(3))
        return cls(slice(top, bottom), slice(left, right), is_hair, is_face, light, *axes)


FacePainter = Callable[[Canvas, int, Figure, HeadSurface], None]


def paint_face(canvas: Canvas, owner: int, figure: Figure, head: HeadSurface) -> None:
    """Skull and hair, in 16 steps of light in a photo; eyes and mouth."""
    patch = canvas.pixels[head.rows, head.columns]
    for where, colour in ((head.is_hair, figure.outfit.hair), (head.is_face, figure.outfit.skin)):
        if canvas.style != "photo":
            patch[where] = (*colour, owner)
            continue
        tones = [mix(shade(colour, 0.6 + 0.42 * i / 15), (255,) * 3, max(0, i - 12) * 0.03) for i in range(16)]
        patch[where] = np.array([(*tone, owner) for tone in tones], np.uint8)[
            (head.light[where] * 15.999).astype(np.intp)
        ]
    front = head.is_face & (head.forward > 0)
    eye = front & (((np.abs(head.across) - EYE[0]) / 0.15) ** 2 + ((head.up - EYE[1]) / 0.2) ** 2 < 1)
    mouth = front & ((head.across / 0.34) ** 2 + ((head.up + 0.52) / 0.085) ** 2 < 1)
    lips = {"shadow": EYES["shadow"], "sketch": (110, 110, 112)}
    patch[eye, :3] = EYES[canvas.style]
    patch[mouth, :3] = lips.get(canvas.style) or mix(figure.outfit.skin, (150, 40, 50), 0.6)
