"""Draws skeletons as each published method expects them, on canvases of any size.

Line widths are those of the official programs on a canvas of 512 pixels. With ``scale=1`` every pixel equals theirs.
With ``scale="auto"`` the widths follow the canvas; below 512 pixels the skeleton is drawn four times as large and
reduced by area, so that it stays crisp.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Literal

import cv2
import numpy as np

from posegen.poses import topology

Scale = float | Literal["auto"]
Size = tuple[int, int]  # height, width
RGB = tuple[int, int, int]

REFERENCE_SIDE = 512
FINER = 4  # supersampling, for widths below the reference's
FRACTION_BITS = 4  # of coordinates on the finer canvas

HUMANSD_WIDTH, HUMANSD_RADIUS = 10, 5
HUMANSD_COLOURS: tuple[RGB, ...] = (
    (219, 94, 86), (219, 144, 86), (219, 194, 86), (194, 219, 86), (145, 219, 86), (95, 219, 86), (86, 219, 127),
    (86, 219, 177), (86, 211, 219), (86, 161, 219), (86, 111, 219), (111, 86, 219), (160, 86, 219), (210, 86, 219),
    (219, 86, 178), (219, 86, 128),
)  # fmt: skip
OPENPOSE_RADIUS, OPENPOSE_HALF_WIDTH, OPENPOSE_OPACITY = 4, 4, 0.6
OPENPOSE_COLOURS: tuple[RGB, ...] = (
    (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0), (0, 255, 85),
    (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255), (170, 0, 255), (255, 0, 255),
    (255, 0, 170), (255, 0, 85),
)  # fmt: skip
GUNET_HALF_WIDTH = 5
ROWS = 256  # that an overlay blends at a time
LEFT_COLOUR, RIGHT_COLOUR, MIDDLE_COLOUR = (40, 220, 90), (245, 60, 60), (255, 205, 40)


class Pen:
    """A black canvas and the strokes of skeletons.

    Args:
        scale: factor on all widths; below 1 the canvas is supersampled.
        channels: 3, or 4 with the coverage as the fourth.
    """

    def __init__(self, size: Size, scale: Scale, channels: int = 3):
        scale = min(size) / REFERENCE_SIDE if scale == "auto" else float(scale)
        if not scale > 0:
            raise ValueError(f"scale is {scale}: it must be positive or 'auto'")
        self.size, self.finer = size, 1 if scale >= 1 else FINER
        self.scale, self.shift = scale * self.finer, 0 if self.finer == 1 else FRACTION_BITS
        self.canvas = np.zeros((size[0] * self.finer, size[1] * self.finer, channels), np.uint8)

    def place(self, points: np.ndarray) -> np.ndarray:
        """Pixels ``[..., 2]`` to drawing coordinates: truncated as in the reference, fixed-point on a finer canvas."""
        points = np.asarray(points, np.float64)
        if self.finer == 1:
            return np.trunc(points).astype(np.int64)
        return np.rint(((points + 0.5) * self.finer - 0.5) * (1 << FRACTION_BITS)).astype(np.int64)

    def line(self, start: Sequence[int], end: Sequence[int], width: float, colour: tuple[int, ...]) -> None:
        cv2.line(self.canvas, start, end, colour, max(1, round(width * self.scale)), cv2.LINE_8, self.shift)

    def disc(self, centre: Sequence[int], radius: float, colour: tuple[int, ...]) -> None:
        pixels = max(1, round(radius * self.scale * (1 << self.shift)))
        cv2.circle(self.canvas, centre, pixels, colour, -1, cv2.LINE_8, self.shift)

    def spindles(self, ends: np.ndarray, half_width: float, colours: Sequence[RGB], opacity: float) -> None:
        """Filled ellipses whose long axes join placed points ``[n, 2, 2]``, blended in order."""
        ends, half_width = ends / (1 << self.shift), half_width * self.scale
        low = np.maximum(np.floor(ends.min(1) - half_width - 2), 0).astype(int)
        high = np.minimum(np.ceil(ends.max(1) + half_width + 3), self.canvas.shape[1::-1]).astype(int)
        outlines = (self._exact_ellipses if self.finer == 1 else self._ellipses)(ends, half_width, low)
        for (left, top), (right, bottom), outline, colour in zip(low, high, outlines, colours, strict=True):
            if left < right and top < bottom:
                patch = self.canvas[top:bottom, left:right]
                painted = cv2.fillConvexPoly(patch.copy(), outline, colour, cv2.LINE_8, self.shift)
                cv2.addWeighted(patch, 1 - opacity, painted, opacity, 0, dst=patch)

    def _ellipses(self, ends: np.ndarray, half_width: float, origins: np.ndarray) -> np.ndarray:
        """Outlines ``[n, 24, 2]`` around axes ``[n, 2, 2]``, relative to ``origins [n, 2]``, in fixed-point numbers."""
        along = ends[:, 0] - ends[:, 1]
        lengths = np.maximum(np.hypot(along[:, 0], along[:, 1]), 1e-6)
        across = np.stack((-along[:, 1], along[:, 0]), -1) * (half_width / lengths)[:, None]
        points = _CIRCLE[:, :1] * along[:, None] / 2 + _CIRCLE[:, 1:] * across[:, None]
        return np.rint(((ends.mean(1) - origins)[:, None] + points) * (1 << self.shift)).astype(np.int32)

    def _exact_ellipses(self, ends: np.ndarray, half_width: float, origins: np.ndarray) -> list[np.ndarray]:
        """The same in whole pixels and whole degrees, as in the reference; the outlines differ in length."""
        outlines = []
        for (start, end), origin in zip(ends, origins, strict=True):
            (x, y), (dx, dy) = (start + end) / 2, start - end
            axes = int(math.hypot(dx, dy) / 2), max(1, round(half_width))
            angle = int(math.degrees(math.atan2(dy, dx)))
            outlines.append(cv2.ellipse2Poly((int(x), int(y)), axes, angle, 0, 360, 1) - origin.astype(np.int32))
        return outlines

    def finish(self) -> np.ndarray:
        """The drawing ``[h, w, channels] uint8`` in its final size."""
        if self.finer == 1:
            return self.canvas
        return cv2.resize(self.canvas, self.size[::-1], interpolation=cv2.INTER_AREA)


_CIRCLE = np.stack((np.cos(np.arange(24) * np.pi / 12), np.sin(np.arange(24) * np.pi / 12)), 1)


def humansd(keypoints: np.ndarray, size: Size, threshold: float = 0.02, scale: Scale = "auto") -> np.ndarray:
    """The skeleton of HumanSD, Stable-Pose and GRPose: 16 coloured sticks with round ends, later ones on top.

    Args:
        keypoints: ``[P, 17, 3]`` COCO; a limb is drawn when both scores exceed ``threshold``.
        size: (height, width).
        scale: factor on the reference's widths, or "auto".

    Returns:
        ``[h, w, 3] uint8`` RGB on black.
    """
    pen = Pen(size, scale)
    for person in _checked(keypoints):
        points, seen = pen.place(person[:, :2]).tolist(), (person[:, 2] > threshold).tolist()
        for (a, b), colour in zip(topology.COCO_LIMBS, HUMANSD_COLOURS, strict=True):
            if seen[a] and seen[b]:
                pen.line(points[a], points[b], HUMANSD_WIDTH, colour)
                pen.disc(points[a], HUMANSD_RADIUS, colour)
                pen.disc(points[b], HUMANSD_RADIUS, colour)
    return pen.finish()


def openpose(keypoints: np.ndarray, size: Size, threshold: float = 0.02, scale: Scale = "auto") -> np.ndarray:
    """The 18-point skeleton of ControlNet and T2I-Adapter: dots, then translucent spindles; arguments as `humansd`."""
    pen, people = Pen(size, scale), topology.coco_to_openpose18(_checked(keypoints))
    placed, seen = pen.place(people[..., :2]), people[..., 2] > threshold
    for joint, person in np.argwhere(seen.T).tolist():
        pen.disc(placed[person, joint].tolist(), OPENPOSE_RADIUS, OPENPOSE_COLOURS[joint])
    first, second = np.array(topology.OPENPOSE_LIMBS).T
    limbs, owners = np.nonzero((seen[:, first] & seen[:, second]).T)  # limb by limb, in each of them person by person
    ends = np.stack((placed[owners, first[limbs]], placed[owners, second[limbs]]), 1)
    pen.spindles(ends, OPENPOSE_HALF_WIDTH, [OPENPOSE_COLOURS[k] for k in limbs], OPENPOSE_OPACITY)
    return pen.finish()


def gunet(keypoints: np.ndarray, size: Size, threshold: float = 0.02, scale: Scale = "auto") -> np.ndarray:
    """GUNet's pictures of poses: as `openpose`, but on COCO's bones and thicker.

    GUNet's program also swaps red and blue when it writes a file, and stretches the brightness; this does neither.
    """
    pen = Pen(size, scale)
    for person in _checked(keypoints):
        placed, seen = pen.place(person[:, :2]), person[:, 2] > threshold
        for joint in np.flatnonzero(seen).tolist():
            pen.disc(placed[joint].tolist(), OPENPOSE_RADIUS, OPENPOSE_COLOURS[joint])
        bones = [(k, bone) for k, bone in enumerate(topology.COCO_BONES) if seen[list(bone)].all()]
        ends = np.array([placed[list(bone)] for _, bone in bones]).reshape(-1, 2, 2)
        pen.spindles(ends, GUNET_HALF_WIDTH, [OPENPOSE_COLOURS[k] for k, _ in bones], OPENPOSE_OPACITY)
    return pen.finish()


DRAWING_STYLES: dict[str, Callable[..., np.ndarray]] = {"humansd": humansd, "openpose": openpose, "gunet": gunet}


class PoseDrawing:
    """A drawing style with its settings; an adapter names the one that its hint is drawn in.

    Args:
        style: a name in ``DRAWING_STYLES``.
        threshold: joints with a lower or equal score are not drawn.
        scale: factor on the reference's widths, or "auto" to follow the canvas.
        range: values of black and of full colour, (0, 1) or (-1, 1).
    """

    def __init__(
        self,
        style: str = "humansd",
        threshold: float = 0.02,
        scale: Scale = "auto",
        range: tuple[float, float] = (0.0, 1.0),
    ):
        if style not in DRAWING_STYLES:
            near = get_close_matches(style, DRAWING_STYLES, 1, 0)
            styles = ", ".join(DRAWING_STYLES)
            raise ValueError(f"unknown drawing style '{style}'; did you mean '{near[0]}'? Styles: {styles}")
        self.style, self.threshold, self.scale, self.range = style, threshold, scale, tuple(range)

    def __call__(self, keypoints: np.ndarray, size: Size) -> np.ndarray:
        """Draws people ``[P, 17, 3]`` on a canvas of ``size`` (height, width): ``[3, h, w] float32`` in ``range``."""
        image = DRAWING_STYLES[self.style](keypoints, size, self.threshold, self.scale)
        low, high = self.range
        channels = np.ascontiguousarray(image.transpose(2, 0, 1), np.float32)
        return channels * np.float32((high - low) / 255) + np.float32(low)

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={getattr(self, name)!r}" for name in ("style", "threshold", "scale", "range"))
        return f"PoseDrawing({given})"


def overlay(image: np.ndarray, keypoints: np.ndarray, threshold: float = 0.02, opacity: float = 0.85) -> np.ndarray:
    """An image ``[h, w, 3] uint8`` with the skeletons over it: left sides green, right sides red, the middle yellow."""
    pen = Pen(image.shape[:2], "auto", channels=4)
    for person in _checked(keypoints):
        points, seen = pen.place(person[:, :2]).tolist(), (person[:, 2] > threshold).tolist()
        for a, b in (*topology.COCO_BARS, *topology.COCO_LIMBS):
            if seen[a] and seen[b]:
                pen.line(points[a], points[b], HUMANSD_WIDTH * 0.8, (*_side_colour(a, b), 255))
        for joint, visible in enumerate(seen):
            if visible:
                pen.disc(points[joint], HUMANSD_RADIUS, (*_side_colour(joint, joint), 255))
    drawn, result = pen.finish(), np.empty_like(image)
    for rows in (slice(i, i + ROWS) for i in range(0, len(image), ROWS)):  # of photographs, in little memory
        drawing = drawn[rows].astype(np.float32)
        cover = drawing[..., 3:] * (opacity / 255)  # the drawing's colours are weighted already
        result[rows] = np.rint(image[rows] * (1 - cover) + drawing[..., :3] * opacity).astype(np.uint8)
    return result


def _side_colour(a: int, b: int) -> RGB:
    ends = {a, b} - {0}  # the nose belongs to no side
    if ends and ends <= set(topology.COCO_LEFT):
        return LEFT_COLOUR
    return RIGHT_COLOUR if ends and ends <= set(topology.COCO_RIGHT) else MIDDLE_COLOUR


def _checked(keypoints: np.ndarray) -> np.ndarray:
    """Keypoints as ``[P, 17, 3]`` without NaN or infinity."""
    keypoints = np.asarray(keypoints, np.float64)
    if keypoints.size == 0:
        return keypoints.reshape(0, 17, 3)
    if keypoints.ndim != 3 or keypoints.shape[1:] != (17, 3):
        raise ValueError(f"keypoints have the shape {keypoints.shape}; expected [P, 17, 3]")
    bad = ~np.isfinite(keypoints).all(-1)
    if bad.any():
        person, joint = np.argwhere(bad)[0]
        found = keypoints[person, joint].tolist()
        raise ValueError(f"person {person}, joint {joint} ({topology.COCO_NAMES[joint]}) is not finite: {found}")
    return keypoints
