"""Paints one person: rounded limbs from back to front, the right side darker than the left, in four styles.

Right limbs have 0.62 of the brightness, which is how left and right can be told apart from the front and from behind; so images of the
mannequin world are never mirrored.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from posegen.data.mannequin.body import Body, J
from posegen.data.mannequin.canvas import INK, Canvas, Colour, capsules, fixed, mix, scaled
from posegen.data.mannequin.head import paint_head
from posegen.data.mannequin.rng import Dice

GARMENTS: dict[str, Colour] = {
    "red": (214, 42, 46), "orange": (243, 134, 28), "yellow": (246, 212, 48), "green": (46, 152, 62), "blue": (44, 88, 214),
    "purple": (138, 56, 176), "pink": (246, 130, 178), "brown": (126, 78, 42), "black": (54, 54, 60), "white": (240, 240, 242),
}  # fmt: skip
SKINS: tuple[Colour, ...] = ((250, 214, 186), (238, 188, 148), (212, 156, 112), (160, 106, 70), (112, 72, 48))
HAIRS: tuple[Colour, ...] = ((44, 36, 34), (92, 58, 34), (150, 88, 40), (226, 186, 96), (150, 148, 146))
SHOES: tuple[Colour, ...] = ((70, 52, 44), (52, 52, 62), (206, 204, 206), (150, 54, 44))
RIGHT = 0.62
TORSO = 0.98  # a trifle darker than the left limbs
DUSK: Colour = (60, 58, 68)  # a shadow figure
LIGHT = (-0.6, -0.8)  # where the light comes from, in the image


@dataclass(frozen=True)
class Outfit:
    """What a person looks like apart from the pose; ``hair_style`` is short, long or bun."""

    skin: Colour
    hair: Colour
    shirt: Colour
    trousers: Colour
    shoes: Colour
    long_sleeves: bool
    hair_style: str


def dress(style: str, shirt: str | None, trousers: str | None, dice: Dice) -> Outfit:
    """An outfit that agrees with the caption; sketch and shadow figures wear the style's own tones."""
    skin, hair, shoes = dice.choice(SKINS), dice.choice(HAIRS), dice.choice(SHOES)
    sleeves, hair_style = dice.chance(0.45), dice.choice(("short", "long", "bun"), (0.6, 0.25, 0.15))
    shade = [dice.about(1, 0.08) for _ in range(2)]
    if style == "sketch":
        grey = (70 + hair[0] // 2,) * 3
        return Outfit((255,) * 3, grey, (255,) * 3, (255,) * 3, (255,) * 3, sleeves, hair_style)
    if style == "shadow":
        return Outfit(DUSK, scaled(DUSK, 0.7), DUSK, DUSK, DUSK, sleeves, hair_style)
    assert shirt and trousers, "photo and cartoon captions name the colours"
    return Outfit(
        skin, hair, scaled(GARMENTS[shirt], shade[0]), scaled(GARMENTS[trousers], shade[1]), shoes, sleeves, hair_style
    )


# One limb segment: from joint, to joint, where it starts and ends between them, radii at both ends (body heights), part of the outfit.
Segment = tuple[str, str, float, float, float, float, str]


def _arm(tag: str, long_sleeves: bool) -> tuple[Segment, ...]:
    shoulder, elbow, wrist, hand = (f"{joint}_{tag}" for joint in ("shoulder", "elbow", "wrist", "hand"))
    sleeve = 1.0 if long_sleeves else 0.62
    lower = "shirt" if long_sleeves else "skin"
    return (
        (shoulder, elbow, 0.5, 1.0, 0.034, 0.031, lower),
        (elbow, wrist, 0.0, 1.0, 0.031, 0.025, lower),
        (wrist, hand, 0.2, 0.9, 0.027, 0.029, "skin"),
        (shoulder, elbow, 0.0, sleeve, 0.041, 0.035 if long_sleeves else 0.039, "shirt"),
    )


def _leg(tag: str) -> tuple[Segment, ...]:
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


class Plan:
    """All segments of a person as arrays: one pass of geometry instead of one per limb."""

    def __init__(self, long_sleeves: bool):
        groups = {
            "arm_l": _arm("l", long_sleeves),
            "arm_r": _arm("r", long_sleeves),
            "leg_l": _leg("l"),
            "leg_r": _leg("r"),
            "trunk": TRUNK,
        }
        segments = [segment for group in groups.values() for segment in group]
        self.first, self.second = np.array([(J[segment[0]], J[segment[1]]) for segment in segments]).T
        self.share = np.array([segment[2:4] for segment in segments])[..., None]
        self.radii = np.array([segment[4:6] for segment in segments])
        self.parts = {name: [segment[6] for segment in group] for name, group in groups.items()}
        starts = np.cumsum([0] + [len(group) for group in groups.values()])
        self.span = {
            name: slice(start, start + len(group))
            for (name, group), start in zip(groups.items(), starts[:-1], strict=True)
        }


PLANS = {sleeves: Plan(sleeves) for sleeves in (False, True)}


@dataclass(frozen=True)
class Layer:
    """One coat of paint: radii are multiplied, then grown in pixels; the coat is moved towards the light by a share of the radius."""

    thickness: float
    grow: float
    towards_light: float
    brightness: float
    gloss: float = 0.0  # share of white
    ink: Colour | None = None


LAYERS: dict[str, tuple[Layer, ...]] = {
    "photo": (
        Layer(1, 0.4, 0, 0.66),
        Layer(0.84, 0, 0.12, 0.88),
        Layer(0.6, 0, 0.26, 1.0),
        Layer(0.28, 0, 0.4, 1.0, 0.13),
    ),
    "cartoon": (Layer(1, 2.4, 0, 1, ink=INK), Layer(1, 0, 0, 1)),
    "sketch": (Layer(1, 1.7, 0, 1, ink=INK), Layer(1, -0.6, 0, 1)),
    "shadow": (Layer(1, 1.5, 0, 1, ink=(24, 23, 29)), Layer(1, -0.5, 0, 1)),
}


class Figure:
    """A body placed on the canvas.

    Attributes:
        joints: ``[22, 2]`` joints in canvas pixels.
        depth: ``[22]`` nearness to the viewer in pixels.
        unit: pixels per body height.
    """

    def __init__(self, body: Body, outfit: Outfit, origin: tuple[float, float], unit: float):
        self.body, self.outfit, self.unit = body, outfit, unit
        self.joints = np.array(origin) + body.joints[:, :2] * (unit, -unit)
        self.depth = body.joints[:, 2] * unit

    def project(self, joint: str, offset: np.ndarray | None = None) -> np.ndarray:
        """Canvas position ``[2]`` of a joint, or of a point ``offset`` (body heights, ``[3]``) away from it."""
        point = self.joints[J[joint]]
        return point if offset is None else point + offset[:2] * (self.unit, -self.unit)

    def paint(self, canvas: Canvas, owner: int) -> None:
        """Paints the groups of parts from back to front."""
        outlines = self._outlines(LAYERS[canvas.style])
        plan = PLANS[self.outfit.long_sleeves]
        depths = [(self._nearness(f"elbow_{tag}", f"wrist_{tag}", 0.01), f"arm_{tag}") for tag in "lr"]
        depths += [(self._nearness(f"knee_{tag}", f"ankle_{tag}", -0.05), f"leg_{tag}") for tag in "lr"]
        depths += [(self._nearness("neck", "pelvis", 0), "trunk"), (self._nearness("head", "head", 0.02), "head")]
        for _, name in sorted(depths):
            if name == "head":
                paint_head(canvas, owner, self)
            elif name == "trunk":
                self._trunk(canvas, owner, outlines[:, plan.span[name]])
            else:
                self._limb(
                    canvas, owner, outlines[:, plan.span[name]], plan.parts[name], RIGHT if name.endswith("r") else 1.0
                )

    def _nearness(self, first: str, second: str, bias: float) -> float:
        return round(float(self.depth[J[first]] + self.depth[J[second]]) / 2 + bias * self.unit, 4)

    def _outlines(self, layers: tuple[Layer, ...]) -> np.ndarray:
        """Every segment in every coat of paint: ``[L, n, 18, 2]`` in the canvas's fixed-point numbers."""
        plan = PLANS[self.outfit.long_sleeves]
        ends = self.joints[plan.first][:, None] * (1 - plan.share) + self.joints[plan.second][:, None] * plan.share
        radii = plan.radii * (self.unit * self.body.girth)
        moved = np.stack([ends + radii[..., None] * layer.towards_light * np.array(LIGHT) for layer in layers])
        coats = np.stack([radii * layer.thickness + layer.grow for layer in layers]).reshape(-1, 2)
        outlines = capsules(moved[..., 0, :].reshape(-1, 2), moved[..., 1, :].reshape(-1, 2), coats)
        return fixed(outlines).reshape(len(layers), -1, *outlines.shape[1:])

    def _limb(self, canvas: Canvas, owner: int, outlines: np.ndarray, parts: list[str], factor: float) -> None:
        for layer, coat in zip(LAYERS[canvas.style], outlines, strict=True):
            for outline, part in zip(coat, parts, strict=True):
                canvas.fill(outline, self._paint(layer, getattr(self.outfit, part), factor, canvas.style), owner)

    def _trunk(self, canvas: Canvas, owner: int, outlines: np.ndarray) -> None:
        for pieces, part in ((NECK, "skin"), (PELVIS, "trousers"), (CHEST, "shirt")):
            for layer, coat in zip(LAYERS[canvas.style], outlines[:, pieces], strict=True):
                outline = cv2.convexHull(coat.reshape(-1, 2))
                canvas.fill(outline, self._paint(layer, getattr(self.outfit, part), TORSO, canvas.style), owner)

    def _paint(self, layer: Layer, colour: Colour, factor: float, style: str) -> Colour:
        if layer.ink is not None:
            return layer.ink
        if style == "shadow":  # the left side is lighter than the trunk, the right side darker
            factor = {1.0: 1.5, RIGHT: RIGHT}.get(factor, 1.0)
        return mix(scaled(colour, factor * layer.brightness), (255, 255, 255), layer.gloss * factor)
