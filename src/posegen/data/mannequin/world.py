"""The mannequin world: an endless, exactly labelled data set that is a pure function of (seed, split, index).

Two independent random streams make an image: the *description* is the content of the caption, the *realisation* all
else. A second realisation of the same description is the ``same_caption`` reference: the image of a perfect generator
that reads only the text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np

from posegen.data.base import Sample
from posegen.data.mannequin.body import EAR, EYE, NOSE, Body, J, random_body
from posegen.data.mannequin.canvas import CANVAS_SIDE, Canvas, box, ellipse, snapped
from posegen.data.mannequin.captions import ACTIONS, SCENES, STYLES, Description, PersonCaption, garment_colours
from posegen.data.mannequin.figure import Figure, FigurePainter, Outfit, random_outfit
from posegen.data.mannequin.rng import Dice
from posegen.data.mannequin.scene import paint_scene

WORLD_VERSION = 1  # raise it whenever a pixel, a caption or a keypoint changes
SPLIT_STREAMS = {"train": 0, "validation": 1, "test": 2}
STYLE_SHARES = (0.40, 0.25, 0.20, 0.15)
COUNT_SHARES = (0.70, 0.22, 0.08)
DESCRIPTION, REALISATION, TWIN = range(3)  # independent random streams
BORDER = 5  # pixels that stay free at the canvas border
LIMBS = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")


@dataclass(frozen=True)
class Realisation:
    """The people of an image, from left to right: bodies, outfits and places in canvas pixels."""

    bodies: list[Body]
    outfits: list[Outfit]
    units: list[float]
    origins: list[tuple[float, float]]
    grounds: list[float]


class World:
    """Renders samples of ``size`` pixels, a divisor of 256; another seed is another world with the same rules."""

    name, version = "mannequin", str(WORLD_VERSION)
    figure: ClassVar[type[Figure]] = Figure
    painter: ClassVar[FigurePainter] = FigurePainter()

    def __init__(self, seed: int = 0, size: int = 64):
        if CANVAS_SIDE % size:
            raise ValueError(f"size {size} does not divide the {CANVAS_SIDE} pixel canvas: use 32, 64, 128 or 256")
        self.seed, self.size = seed, size

    def describe(self, split: str, index: int) -> Description:
        """The caption of image ``index`` as a value."""
        dice, looks = self._dice(split, index, DESCRIPTION), []
        style, scene = dice.choice(STYLES, STYLE_SHARES), dice.choice(SCENES)
        for _ in range(dice.choice((1, 2, 3), COUNT_SHARES)):
            action, colours = dice.choice(ACTIONS), garment_colours(style, dice.integer(0, 9), dice.integer(1, 9))
            looks.append(PersonCaption(action, *colours))
        return Description(style, scene, tuple(looks))

    def render(self, split: str, index: int) -> Sample:
        """Image ``index`` of ``split`` with its caption, keypoints and visible areas."""
        return self._sample(split, index, REALISATION)

    def render_caption_twin(self, split: str, index: int) -> Sample:
        """Another image with the caption of image ``index``; all that the caption leaves open is drawn again."""
        return self._sample(split, index, TWIN)

    def sample_id(self, split: str, index: int) -> str:
        """Stable name of an image; it contains the world's seed unless that is 0."""
        world = self.name if self.seed == 0 else f"{self.name}{self.seed}"
        return f"{world}/{split}/{index:06d}"

    def _dice(self, split: str, index: int, stream: int) -> Dice:
        if split not in SPLIT_STREAMS:
            raise ValueError(f"split '{split}' is not one of {', '.join(SPLIT_STREAMS)}")
        if index < 0:
            raise ValueError(f"index {index} is negative")
        return Dice(WORLD_VERSION, self.seed, SPLIT_STREAMS[split], index, stream)

    def _sample(self, split: str, index: int, stream: int) -> Sample:
        description = self.describe(split, index)
        image, keypoints, areas = self._paint(split, index, stream)
        ratio = self.size / CANVAS_SIDE
        image = cv2.resize(image, (self.size, self.size), interpolation=cv2.INTER_AREA)
        labelled = keypoints[..., 2:] > 0
        keypoints[..., :2] = np.where(labelled, (keypoints[..., :2] + 0.5) * ratio - 0.5, 0)
        name = self.sample_id(split, index) + ("" if stream == REALISATION else "/twin")
        keypoints, areas = keypoints.astype(np.float32), (areas * ratio**2).astype(np.float32)
        return Sample(name, str(description), keypoints, areas, image, image.shape[:2], description.attributes)

    def _paint(self, split: str, index: int, stream: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Image ``[256, 256, 3]``, keypoints ``[P, 17, 3]`` and visible areas ``[P]``, in canvas pixels."""
        description, dice = self.describe(split, index), self._dice(split, index, stream)
        style, people, canvas = description.style, description.people, self._blank(description, split, index, stream)
        horizon = paint_scene(canvas, description.scene, dice)
        bodies = [random_body(look.action, dice) for look in people]
        outfits = [random_outfit(style, look.shirt, look.trousers, dice) for look in people]
        return self._populate(canvas, side_by_side(bodies, outfits, largest_units(bodies, dice), horizon, dice))

    def _blank(self, description: Description, split: str, index: int, stream: int) -> Canvas:
        return Canvas(description.style)

    def _populate(self, canvas: Canvas, people: Realisation) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Paints people into a scene; returns the image, keypoints and visible areas, see `_paint`."""
        each = zip(people.bodies, people.outfits, people.origins, people.units, strict=True)
        figures = [self.figure(*one) for one in each]
        # nearer people stand lower and are painted later
        order = sorted(range(len(figures)), key=lambda k: (round(people.grounds[k], 3), k))
        for k in order:
            self._ground_shadow(canvas, figures[k], people.grounds[k])
        for owner, k in enumerate(order, 1):
            if figures[k].body.seated:
                _stool(canvas, figures[k], people.grounds[k])
            self.painter.paint(canvas, owner, figures[k])
        self._finish(canvas, [figures[k] for k in order], max(people.grounds))
        owners = cv2.extractChannel(canvas.pixels, 3)
        ranks = np.argsort(order) + 1
        keypoints = np.stack([_keypoints(figure, owners, rank) for figure, rank in zip(figures, ranks, strict=True)])
        areas = np.array([np.count_nonzero(owners == rank) for rank in ranks])
        return cv2.cvtColor(canvas.pixels, cv2.COLOR_RGBA2RGB), keypoints, areas

    def _ground_shadow(self, canvas: Canvas, figure: Figure, ground: float) -> None:
        if canvas.style == "sketch":
            return
        low, high = figure.joints[:, 0].min(), figure.joints[:, 0].max()
        rise = abs(figure.joints[J["head"], 1] - figure.joints[J["pelvis"], 1])
        if rise > 0.15 * figure.unit:  # upright: the legs alone throw it
            feet = figure.joints[[J[f"{joint}_{tag}"] for joint in ("ankle", "toe") for tag in "lr"], 0]
            low, high = feet.min(), feet.max()
        width = (high - low) / 2 + 0.07 * figure.unit
        x, y = snapped(((low + high) / 2, ground - 0.012 * figure.unit))
        canvas.dim((x, y), (width, 0.035 * figure.unit + 0.06 * width), 0.16 if canvas.style == "shadow" else 0.26)

    def _finish(self, canvas: Canvas, figures: list[Figure], ground: float) -> None:
        """Paints what stands before the people, `figures` from far to near."""


def side_by_side(
    bodies: list[Body], outfits: list[Outfit], units: list[float], horizon: float, dice: Dice
) -> Realisation:
    """People side by side on the ground; ``units`` are their sizes in pixels per body height."""
    boxes = [_extent(body) for body in bodies]
    widths = [(b[1] - b[0]) * u for b, u in zip(boxes, units, strict=True)]
    shares = [dice.uniform(0.15, 1) for _ in range(len(widths) + 1)]
    free = CANVAS_SIDE - 2 * BORDER - sum(widths)
    if free > 0:
        gaps = [free * share / sum(shares) for share in shares]
    else:  # no room: they overlap evenly
        gaps = [0.0] + [free / max(1, len(widths) - 1)] * (len(widths) - 1)
    origins, grounds, left = [], [], float(BORDER)
    for body, extent, unit, gap, width in zip(bodies, boxes, units, gaps, widths, strict=False):
        height = (extent[3] - extent[2] + body.lift) * unit
        standing = dice.uniform(0.82, 0.97) * CANVAS_SIDE
        ground = min(CANVAS_SIDE - BORDER, max(horizon + 18, BORDER + height, standing))
        grounds.append(ground)
        origins.append((left + gap - extent[0] * unit, ground - (body.lift + extent[3]) * unit))
        left += gap + width
    return Realisation(bodies, outfits, units, origins, grounds)


def _extent(body: Body) -> tuple[float, float, float, float]:
    """Left, right, top, bottom of a body around its pelvis, in body heights, image directions."""
    limbs = np.delete(body.joints[:, :2], J["head"], 0) * (1, -1)
    head = body.joints[J["head"], :2] * (1, -1)
    reach = 1.3 * body.head_radius
    low, high = np.minimum(limbs.min(0) - 0.045, head - reach), np.maximum(limbs.max(0) + 0.045, head + reach)
    return low[0], high[0], low[1], high[1]


def largest_units(bodies: list[Body], dice: Dice) -> list[float]:
    """Pixels per body height with which everybody fits: fewer people are larger, wide poses smaller."""
    boxes = [_extent(body) for body in bodies]
    room = CANVAS_SIDE - 2 * BORDER
    widest = room * {1: 1.0, 2: 0.62, 3: 0.46}[len(boxes)]
    common = {1: (0.66, 0.93), 2: (0.56, 0.80), 3: (0.46, 0.66)}[len(boxes)]
    base = dice.uniform(*common) * CANVAS_SIDE
    units = []
    for extent, body in zip(boxes, bodies, strict=True):
        unit = base if len(boxes) == 1 else base * dice.about(1, 0.1)
        units.append(min(unit, widest / (extent[1] - extent[0]), (room - 4) / (extent[3] - extent[2] + body.lift)))
    total = sum(unit * (extent[1] - extent[0]) for unit, extent in zip(units, boxes, strict=True))
    shrink = min(1.0, 1.1 * room / total) if len(boxes) > 1 else 1.0  # outstretched arms may overlap a little
    return [unit * shrink for unit in units]


def _stool(canvas: Canvas, figure: Figure, ground: float) -> None:
    x, y = figure.project("pelvis")
    unit, seat = figure.unit, y + 0.035 * figure.unit
    styles = {"shadow": ((118, 106, 110), (96, 88, 94)), "sketch": ((236, 234, 230), (226, 224, 220))}
    wood, side = styles.get(canvas.style, ((196, 146, 96), (150, 104, 66)))
    half = 0.115 * unit
    for leg in (-0.82, 0.82):
        middle, foot = x + half * leg, max(seat + 4, ground - 0.02 * unit)
        canvas.shape(box(middle - 0.016 * unit, seat, middle + 0.016 * unit, foot), side)
    canvas.shape(ellipse((x, seat + 0.03 * unit), (half, 0.032 * unit)), side)
    canvas.shape(ellipse((x, seat), (half, 0.032 * unit)), wood)


def _keypoints(figure: Figure, owners: np.ndarray, owner: int) -> np.ndarray:
    """The 17 COCO keypoints ``[17, 3]`` in canvas pixels, exactly where the joints were painted."""
    body, points = figure.body, np.zeros((17, 3))
    offsets = [body.face(NOSE), body.face(EYE), body.face(EYE, -1), body.face(EAR), body.face(EAR, -1)]
    points[:5, :2] = [figure.project("head", offset) for offset in offsets]
    nearness = np.array([offset[2] for offset in offsets]) / body.head_radius
    points[:5, 2] = np.where(nearness > (-0.2, 0.08, 0.08, -0.3, -0.3), 2, (0, 0, 0, 1, 1))
    points[5:, :2] = [figure.project(f"{limb}_{tag}") for limb in LIMBS for tag in "lr"]
    points[5:, 2] = 2
    points[:, :2] = snapped(points[:, :2])
    pixel = np.rint(points[:, :2]).astype(int)
    outside = ((pixel < 0) | (pixel >= CANVAS_SIDE)).any(1)
    column, row = np.clip(pixel, 0, CANVAS_SIDE - 1).T
    points[(owners[row, column] > owner) & (points[:, 2] > 0), 2] = 1
    points[outside | (points[:, 2] == 0)] = 0
    return points
