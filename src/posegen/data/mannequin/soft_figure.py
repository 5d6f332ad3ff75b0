"""People of the second rendering: rounder limbs, hands with fingers, faces with features, clothes, soft shadows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby
from math import sqrt
from typing import ClassVar

import cv2
import numpy as np

from posegen.data.mannequin.body import EYE, Body, J
from posegen.data.mannequin.canvas import INK, SUBPIXEL_BITS, SUBPIXELS, Canvas, Colour, ellipse, fixed, mix, shade
from posegen.data.mannequin.figure import (
    EYES,
    Figure,
    FigurePainter,
    HeadSurface,
    Layer,
    LimbGeometry,
    Outfit,
    Segment,
    arm_segments,
    leg_segments,
)  # fmt: skip
from posegen.data.mannequin.soft_canvas import SoftCanvas

#: Fingers from the index to the little one, then the thumb: offsets along the forearm and across it (to the thumb's
#: side) of root and tip, in body heights from the wrist.
FINGERS = (
    ((0.030, 0.018), (0.072, 0.026)), ((0.032, 0.006), (0.078, 0.009)), ((0.032, -0.006), (0.076, -0.009)),
    ((0.030, -0.017), (0.066, -0.026)), ((0.010, 0.014), (0.042, 0.041)),
)  # fmt: skip
FINGER_RADIUS = 0.0088
HAND_POINTS = {
    f"{end}{k}_{tag}": len(J) + len(FINGERS) * 2 * side + 2 * k + number
    for side, tag in enumerate("lr") for k in range(len(FINGERS)) for number, end in enumerate(("root", "tip"))
}  # fmt: skip


class SoftFigure(Figure):
    """A figure whose hands have fingers: ``joints [42, 2]`` are those of the body, then `HAND_POINTS`."""

    def __init__(self, body: Body, outfit: Outfit, origin: tuple[float, float], unit: float):
        super().__init__(body, outfit, origin, unit)
        points = []
        for tag, sign in (("l", 1), ("r", -1)):
            wrist, hand = (body.joints[J[f"{joint}_{tag}"]] for joint in ("wrist", "hand"))
            along = (hand - wrist) / np.linalg.norm(hand - wrist)
            flat = np.hypot(*along[:2])
            # the palm is turned to the viewer, so that the fingers show
            across = np.array((-along[1], along[0])) / flat * sign if flat > 1e-3 else np.array((1.0, 0.0))
            points += [wrist[:2] + a * along[:2] + b * across for finger in FINGERS for a, b in finger]
        self.joints = np.concatenate((self.joints, np.array(origin) + np.array(points) * (unit, -unit)))


def _arm(tag: str, long_sleeves: bool) -> tuple[Segment, ...]:
    fingers: list[Segment] = [
        (f"root{k}_{tag}", f"tip{k}_{tag}", 0.0, 1.0, FINGER_RADIUS, FINGER_RADIUS, "skin") for k in range(len(FINGERS))
    ]
    upper, lower, _, sleeve = arm_segments(tag, long_sleeves)
    palm: Segment = (f"wrist_{tag}", f"hand_{tag}", -0.1, 0.75, 0.021, 0.024, "skin")
    return (*fingers, palm, upper, lower, sleeve)


def _leg(tag: str) -> tuple[Segment, ...]:
    shoe, *trousers = leg_segments(tag)
    sole: Segment = (f"ankle_{tag}", f"toe_{tag}", -0.2, 1.0, 0.024, 0.02, "shoes")
    return (sole, shoe, *trousers)


FOLD = Layer(1, 0, 0, 0.72)


def coats(low: float, high: float, steps: int = 8, gloss: float = 0.16) -> tuple[Layer, ...]:
    """Coats that shade a limb like a cylinder, from the brightness of its edge to that of its middle."""
    sizes = [1 - 0.86 * step / (steps - 1) for step in range(steps)]
    tones = [low + (high - low) * sqrt(1 - size * size) for size in sizes]
    glosses = [0.0] * (steps - 2) + [gloss / 2, gloss]
    return tuple(
        Layer(size, 0.4 if size == 1 else 0, 0.46 * (1 - size), tone, light)
        for size, tone, light in zip(sizes, tones, glosses, strict=True)
    )


SOFT_LAYERS: dict[str, tuple[Layer, ...]] = {
    "photo": coats(0.55, 1.05),
    "cartoon": (Layer(1, 2.4, 0, 1, ink=INK), Layer(1, 0, 0, 0.78), Layer(0.84, 0, 0.16, 1)),
    "sketch": (Layer(1, 1.5, 0, 1, ink=INK), Layer(1, -0.6, 0, 0.82), Layer(0.8, -0.5, 0.2, 1)),
    "shadow": (Layer(1, 0.6, 0, 2.1), Layer(0.9, -0.5, -0.1, 1.2), Layer(0.72, -0.5, -0.25, 1)),
}  # fmt: skip


@dataclass(frozen=True)
class Feature:
    """An ellipse on the face, in head radii; ``twice``: on both sides; ``curve`` lifts its ends."""

    place: tuple[float, float]
    radii: tuple[float, float]
    colour: Callable[[str, Outfit], Colour]
    twice: bool = True
    curve: float = 0.0


def _white(style: str, outfit: Outfit) -> Colour:
    return {"photo": (236, 232, 228), "cartoon": (252, 252, 252), "sketch": (255, 255, 255), "shadow": (96, 94, 104)}[
        style
    ]


def _iris(style: str, outfit: Outfit) -> Colour:
    return EYES[style]


def _brow(style: str, outfit: Outfit) -> Colour:
    return (92, 92, 94) if style == "sketch" else shade(outfit.hair, 0.8)


def _blush(style: str, outfit: Outfit) -> Colour:
    return mix(outfit.skin, (236, 90, 80), 0.14) if style in ("photo", "cartoon") else outfit.skin


def _lips(style: str, outfit: Outfit) -> Colour:
    return {"shadow": EYES["shadow"], "sketch": (110, 110, 112)}.get(style) or mix(outfit.skin, (150, 30, 46), 0.62)


FEATURES = (
    Feature((0.56, -0.3), (0.2, 0.14), _blush),
    Feature((0.38, 0.34), (0.2, 0.07), _brow, curve=-0.25),
    Feature((0.37, 0.05), (0.21, 0.17), _white),
    Feature((EYE[0], EYE[1]), (0.11, 0.16), _iris),
    Feature((0.0, -0.58), (0.3, 0.09), _lips, twice=False, curve=0.9),
)


def _smooth_tones(colour: Colour) -> list[Colour]:
    return [mix(shade(colour, 0.52 + 0.5 * i / 27), (255, 255, 255), max(0, i - 21) * 0.025) for i in range(28)]


TONES: dict[str, Callable[[Colour], list[Colour]]] = {
    "photo": _smooth_tones,
    "cartoon": lambda colour: [shade(colour, 0.8)] * 12 + [colour] * 16,
    "sketch": lambda colour: [shade(colour, 0.84)] * 12 + [colour] * 16,
    "shadow": lambda colour: [colour] * 22 + [shade(colour, 1.5)] * 6,
}


class SoftFigurePainter(FigurePainter):
    layers: ClassVar[Mapping[str, tuple[Layer, ...]]] = SOFT_LAYERS
    limbs: ClassVar[Mapping[bool, LimbGeometry]] = {
        sleeves: LimbGeometry(sleeves, _arm, _leg, J | HAND_POINTS) for sleeves in (False, True)
    }
    narrowing: ClassVar[float] = 0.8

    def limb(self, canvas: Canvas, owner: int, figure: Figure, name: str, outlines: np.ndarray) -> None:
        self._contact(canvas, outlines[0], figure)
        factor, start = self.right_brightness if name.endswith("r") else 1.0, 0
        for part, run in groupby(self.limbs[figure.outfit.long_sleeves].parts[name]):
            end, colour = start + len(list(run)), getattr(figure.outfit, part)
            for layer, coat in zip(self.layers[canvas.style], outlines[:, start:end], strict=True):
                tone = self.coat(layer, colour, factor, canvas.style)
                for outline in coat:
                    canvas.fill(outline, tone, owner)
            start = end
        joint = "knee" if name.startswith("leg") else "elbow"
        if joint == "knee" or figure.outfit.long_sleeves:
            cloth = figure.outfit.trousers if joint == "knee" else figure.outfit.shirt
            self._folds(canvas, owner, figure, f"{joint}_{name[-1]}", self.coat(FOLD, cloth, factor, canvas.style))

    def trunk(self, canvas: Canvas, owner: int, figure: Figure, outlines: np.ndarray) -> None:
        self._contact(canvas, outlines[0], figure)
        super().trunk(canvas, owner, figure, outlines)
        neck, waist, left, right = (figure.body.joints[J[j]] for j in ("neck", "waist", "shoulder_l", "shoulder_r"))
        forward = np.cross(left - right, neck - waist)
        forward *= 0.045 / np.linalg.norm(forward)
        if round(float(forward[2]), 4) <= 0.008:  # the front does not show
            return
        collar, hem = (figure.project(joint, forward * reach) for joint, reach in (("neck", 0.9), ("waist", 1.3)))
        if not figure.outfit.long_sleeves:  # a round neckline
            size = (0.034 * figure.unit, 0.026 * figure.unit)
            canvas.fill(ellipse(collar, size), self.coat(FOLD, figure.outfit.skin, 1.15, canvas.style), owner)
            return
        ink = self.coat(FOLD, figure.outfit.shirt, 0.9, canvas.style)
        a, b = fixed((collar, hem)).tolist()
        cv2.line(canvas.pixels, a, b, (*ink, owner), 1, cv2.LINE_8, SUBPIXEL_BITS)
        for share in (0.25, 0.5, 0.75):  # buttons
            place = collar + (hem - collar) * share + (0.008 * figure.unit, 0)
            canvas.fill(ellipse(place, (0.006 * figure.unit,) * 2), shade(ink, 0.7), owner)

    def head(self, canvas: Canvas, owner: int, figure: Figure) -> None:
        radius = figure.body.head_radius * figure.unit
        self._contact(canvas, fixed(ellipse(figure.project("head"), (radius, radius)))[None], figure)
        super().head(canvas, owner, figure)

    def _contact(self, canvas: Canvas, outlines: np.ndarray, figure: Figure) -> None:
        """The shadow that a part throws on what is painted behind it."""
        if canvas.style in ("photo", "cartoon"):
            shift = np.rint(np.array((0.014, 0.02)) * figure.unit * SUBPIXELS).astype(np.int32)
            strength, blur = (100, 5) if canvas.style == "photo" else (60, 1)
            assert isinstance(canvas, SoftCanvas)
            canvas.dim_outlines(outlines + shift, strength, blur, people=True)

    def _folds(self, canvas: Canvas, owner: int, figure: Figure, joint: str, colour: Colour) -> None:
        """Two creases of the cloth across a limb."""
        x, y = figure.project(joint)
        half = 0.02 * figure.unit
        for dy in (-0.012, 0.014):
            a, b = fixed(((x - half, y + dy * figure.unit), (x + half * 0.3, y + (dy + 0.012) * figure.unit))).tolist()
            cv2.line(canvas.pixels, a, b, (*colour, owner), 1, cv2.LINE_8, SUBPIXEL_BITS)

    def face(self, canvas: Canvas, owner: int, figure: Figure, head: HeadSurface) -> None:
        patch, outfit = canvas.pixels[head.rows, head.columns], figure.outfit
        strands = (np.abs(head.across * 7 + head.up * 2).astype(np.intp) & 1) * 2
        steps = (head.light * 27.999).astype(np.intp)
        for where, colour, shift in ((head.is_hair, outfit.hair, strands), (head.is_face, outfit.skin, 0 * strands)):
            tones = np.array([(*tone, owner) for tone in TONES[canvas.style](colour)], np.uint8)
            patch[where] = tones[np.maximum(steps - shift, 0)[where]]
        front, large = head.is_face & (head.forward > 0), figure.body.head_radius * figure.unit > 10
        for feature in FEATURES if large else FEATURES[-2:]:
            aside = np.abs(head.across) if feature.twice else head.across
            up = head.up - feature.curve * head.across**2
            where = front & (
                ((aside - feature.place[0]) / feature.radii[0]) ** 2 + ((up - feature.place[1]) / feature.radii[1]) ** 2
                < 1
            )
            patch[where, :3] = feature.colour(canvas.style, outfit)
