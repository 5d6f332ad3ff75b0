"""Paints one person: rounded limbs from back to front, in four styles.

Right limbs have 0.62 of the brightness, so that left and right can be told apart from the front and from behind.
Therefore images of the mannequin world are never mirrored.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import cv2
import numpy as np

from posegen.data.mannequin.body import J
from posegen.data.mannequin.canvas import INK, Canvas, Colour, capsules, fixed, mix, shade
from posegen.data.mannequin.figure import Figure
from posegen.data.mannequin.head import paint_head

RIGHT_BRIGHTNESS = 0.62
TORSO_BRIGHTNESS = 0.98  # a little darker than the left limbs
LIGHT = (-0.6, -0.8)  # direction of the light in the image

# One segment: from joint, to joint, start and end between them, radii at both ends (body heights), part of the outfit.
Segment = tuple[str, str, float, float, float, float, str]


def _arm(tag: str, long_sleeves: bool) -> tuple[Segment, ...]:
    shoulder, elbow, wrist, hand = (f"{joint}_{tag}" for joint in ("shoulder", "elbow", "wrist", "hand"))
    sleeve, end, lower = (1.0, 0.035, "shirt") if long_sleeves else (0.62, 0.039, "skin")
    return (
        (shoulder, elbow, 0.5, 1.0, 0.034, 0.031, lower),
        (elbow, wrist, 0.0, 1.0, 0.031, 0.025, lower),
        (wrist, hand, 0.2, 0.9, 0.027, 0.029, "skin"),
        (shoulder, elbow, 0.0, sleeve, 0.041, end, "shirt"),
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


class LimbGeometry:
    """All segments of a person as arrays, so that their geometry is computed at once."""

    def __init__(self, long_sleeves: bool):
        groups = {f"arm_{tag}": _arm(tag, long_sleeves) for tag in "lr"} | {f"leg_{tag}": _leg(tag) for tag in "lr"}
        groups["trunk"] = TRUNK
        segments = [segment for group in groups.values() for segment in group]
        self.first, self.second = np.array([(J[segment[0]], J[segment[1]]) for segment in segments]).T
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


def paint_figure(canvas: Canvas, owner: int, figure: Figure) -> None:
    """Paints head, trunk and limbs from back to front."""
    layers = LAYERS[canvas.style]
    outlines = _outlines(figure, layers)
    geometry = LIMBS_BY_SLEEVES[figure.outfit.long_sleeves]
    depths = [(_nearness(figure, f"elbow_{tag}", f"wrist_{tag}", 0.01), f"arm_{tag}") for tag in "lr"]
    depths += [(_nearness(figure, f"knee_{tag}", f"ankle_{tag}", -0.05), f"leg_{tag}") for tag in "lr"]
    depths += [(_nearness(figure, "neck", "pelvis", 0), "trunk"), (_nearness(figure, "head", "head", 0.02), "head")]
    for _, name in sorted(depths):
        if name == "head":
            paint_head(canvas, owner, figure)
        elif name == "trunk":
            for pieces, part in ((NECK, "skin"), (PELVIS, "trousers"), (CHEST, "shirt")):
                colour = getattr(figure.outfit, part)
                for layer, coat in zip(layers, outlines[:, geometry.span[name]][:, pieces], strict=True):
                    hull = cv2.convexHull(coat.reshape(-1, 2))
                    canvas.fill(hull, _coat(layer, colour, TORSO_BRIGHTNESS, canvas.style), owner)
        else:
            factor = RIGHT_BRIGHTNESS if name.endswith("r") else 1.0
            for layer, coat in zip(layers, outlines[:, geometry.span[name]], strict=True):
                for outline, part in zip(coat, geometry.parts[name], strict=True):
                    canvas.fill(outline, _coat(layer, getattr(figure.outfit, part), factor, canvas.style), owner)


def _nearness(figure: Figure, first: str, second: str, bias: float) -> float:
    return round(float(figure.depth[J[first]] + figure.depth[J[second]]) / 2 + bias * figure.unit, 4)


def _outlines(figure: Figure, layers: tuple[Layer, ...]) -> np.ndarray:
    """Every segment in every layer: ``[L, n, 18, 2]`` in the canvas's fixed-point numbers."""
    limbs, joints = LIMBS_BY_SLEEVES[figure.outfit.long_sleeves], figure.joints
    ends = joints[limbs.first][:, None] * (1 - limbs.share) + joints[limbs.second][:, None] * limbs.share
    radii = limbs.radii * (figure.unit * figure.body.girth)
    moved = np.stack([ends + radii[..., None] * layer.towards_light * np.array(LIGHT) for layer in layers])
    coats = np.stack([radii * layer.thickness + layer.grow for layer in layers]).reshape(-1, 2)
    outlines = capsules(moved[..., 0, :].reshape(-1, 2), moved[..., 1, :].reshape(-1, 2), coats)
    return fixed(outlines).reshape(len(layers), -1, *outlines.shape[1:])


def _coat(layer: Layer, colour: Colour, factor: float, style: str) -> Colour:
    if layer.ink is not None:
        return layer.ink
    if style == "shadow":  # the left side is lighter than the trunk, the right side darker
        factor = {1.0: 1.5, RIGHT_BRIGHTNESS: RIGHT_BRIGHTNESS}.get(factor, 1.0)
    return mix(shade(colour, factor * layer.brightness), (255, 255, 255), layer.gloss * factor)
