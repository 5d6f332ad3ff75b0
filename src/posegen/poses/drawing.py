"""Draws skeletons as each published method expects them, on canvases of any size.

Line widths are those of the official programs on a canvas of 512 pixels. With ``scale=1`` every pixel equals theirs.
With ``scale="auto"`` the widths follow the canvas; below 512 pixels the skeleton is drawn four times as large and
reduced by area, so that it stays crisp.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from typing import Literal, get_args

import cv2
import numpy as np

from posegen.poses import topology
from posegen.poses.pose import HIDDEN, Pose

Scale = float | Literal["auto"]
Occlusion = Literal["drawn", "faint", "left_out"]
Part = Literal["body", "feet", "hands", "face"]
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
# The feet are those of Wan-Animate's skeletons: from the ankle to the middle of two toes.
FEET_LIMBS, FEET_COLOURS = ((13, 18), (10, 19)), ((200, 200, 0), (100, 100, 0))
HAND_WIDTH, HAND_RADIUS, HAND_COLOUR, FACE_RADIUS, FACE_COLOUR = 2, 4, (0, 0, 255), 3, (255, 255, 255)
DWPOSE_PARTS: tuple[Part, ...] = ("body", "hands", "face")
KEYPOSE_WIDTH, KEYPOSE_RADIUS = 2, 2
KEYPOSE_LEFT, KEYPOSE_RIGHT, KEYPOSE_MIDDLE = (0, 255, 0), (0, 128, 255), (255, 153, 51)
KEYPOSE_LIMBS = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10), (1, 2),
    (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)  # fmt: skip
FAINTNESS = 0.4  # brightness of hidden joints
ROWS = 256  # that an overlay blends at a time
LEFT_COLOUR, RIGHT_COLOUR, MIDDLE_COLOUR = (40, 220, 90), (245, 60, 60), (255, 205, 40)


class Pen:
    """A black canvas and the strokes of skeletons.

    Args:
        scale: factor on all widths; below 1 the canvas is supersampled.
        channels: 3, or 4 with the coverage as the fourth.
        thin: whether strokes of two pixels are to keep their width on the smallest canvases.
    """

    def __init__(self, size: Size, scale: Scale, channels: int = 3, thin: bool = False):
        scale = min(size) / REFERENCE_SIDE if scale == "auto" else float(scale)
        if not scale > 0:
            raise ValueError(f"scale is {scale}: it must be positive or 'auto'")
        self.size, self.finer = size, 1 if scale >= 1 else FINER * 2 if thin and scale * FINER < 1 else FINER
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


def humansd(
    keypoints: np.ndarray,
    size: Size,
    threshold: float = 0.02,
    scale: Scale = "auto",
    depth: np.ndarray | None = None,
) -> np.ndarray:
    """The skeleton of HumanSD, Stable-Pose and GRPose: 16 coloured sticks with round ends, later ones on top.

    Args:
        keypoints: ``[P, 17, 3]`` COCO; a limb is drawn when both scores exceed ``threshold``.
        size: (height, width).
        scale: factor on the reference's widths, or "auto".
        depth: ``[P, 17]`` distances to the viewer: what is near covers what is far.

    Returns:
        ``[h, w, 3] uint8`` RGB on black.
    """
    pen = Pen(size, scale)
    for person, distances in _far_to_near(_checked(keypoints), depth):
        points, seen = pen.place(person[:, :2]).tolist(), (person[:, 2] > threshold).tolist()
        for k, (a, b) in _limbs(topology.COCO_LIMBS, distances):
            if seen[a] and seen[b]:
                pen.line(points[a], points[b], HUMANSD_WIDTH, HUMANSD_COLOURS[k])
                pen.disc(points[a], HUMANSD_RADIUS, HUMANSD_COLOURS[k])
                pen.disc(points[b], HUMANSD_RADIUS, HUMANSD_COLOURS[k])
    return pen.finish()


def openpose(
    keypoints: np.ndarray,
    size: Size,
    threshold: float = 0.02,
    scale: Scale = "auto",
    depth: np.ndarray | None = None,
) -> np.ndarray:
    """The 18-point skeleton of ControlNet and T2I-Adapter: dots, then translucent spindles; arguments as `humansd`."""
    pen, people = Pen(size, scale), topology.coco_to_openpose18(_checked(keypoints))
    placed, seen = pen.place(people[..., :2]), people[..., 2] > threshold
    for joint, person in np.argwhere(seen.T).tolist():
        pen.disc(placed[person, joint].tolist(), OPENPOSE_RADIUS, OPENPOSE_COLOURS[joint])
    first, second = np.array(topology.OPENPOSE_LIMBS).T
    limbs, owners = np.nonzero((seen[:, first] & seen[:, second]).T)  # limb by limb, in each of them person by person
    if depth is not None:
        distances = _openpose_depth(depth)
        far = distances[owners, first[limbs]] + distances[owners, second[limbs]]
        limbs, owners = (each[np.argsort(-far, kind="stable")] for each in (limbs, owners))
    ends = np.stack((placed[owners, first[limbs]], placed[owners, second[limbs]]), 1)
    pen.spindles(ends, OPENPOSE_HALF_WIDTH, [OPENPOSE_COLOURS[k] for k in limbs], OPENPOSE_OPACITY)
    return pen.finish()


def gunet(
    keypoints: np.ndarray,
    size: Size,
    threshold: float = 0.02,
    scale: Scale = "auto",
    depth: np.ndarray | None = None,
) -> np.ndarray:
    """GUNet's pictures of poses: as `openpose`, but on COCO's bones and thicker.

    GUNet's program also swaps red and blue when it writes a file, and stretches the brightness; this does neither.
    """
    pen = Pen(size, scale)
    for person, distances in _far_to_near(_checked(keypoints), depth):
        placed, seen = pen.place(person[:, :2]), person[:, 2] > threshold
        for joint in np.flatnonzero(seen).tolist():
            pen.disc(placed[joint].tolist(), OPENPOSE_RADIUS, OPENPOSE_COLOURS[joint])
        bones = [(k, bone) for k, bone in _limbs(topology.COCO_BONES, distances) if seen[list(bone)].all()]
        ends = np.array([placed[list(bone)] for _, bone in bones]).reshape(-1, 2, 2)
        pen.spindles(ends, GUNET_HALF_WIDTH, [OPENPOSE_COLOURS[k] for k, _ in bones], OPENPOSE_OPACITY)
    return pen.finish()


def keypose(
    keypoints: np.ndarray,
    size: Size,
    threshold: float = 0.02,
    scale: Scale = "auto",
    depth: np.ndarray | None = None,
) -> np.ndarray:
    """The pictures that T2I-Adapter's keypose weights read: dots, then thin lines between joints on the canvas.

    Its program draws two people at most, from a score of 0.1 on; this draws all, from ``threshold`` on.
    """
    pen = Pen(size, scale, thin=True)
    for person, distances in _far_to_near(_checked(keypoints), depth):
        points, seen = pen.place(person[:, :2]).tolist(), (person[:, 2] > threshold).tolist()
        for joint in np.flatnonzero(seen).tolist():
            pen.disc(points[joint], KEYPOSE_RADIUS, _keypose_colour(joint, joint))
        inside = ((np.trunc(person[:, :2]) > 0) & (np.trunc(person[:, :2]) < size[::-1])).all(-1).tolist()
        for _, (a, b) in _limbs(KEYPOSE_LIMBS, distances):
            if seen[a] and seen[b] and inside[a] and inside[b]:
                pen.line(points[a], points[b], KEYPOSE_WIDTH, _keypose_colour(a, b))
    return pen.finish()


def _keypose_colour(a: int, b: int) -> RGB:
    """Arms from the shoulders and legs from the hips on have their side's colour, and so have their joints."""
    torso = {a, b} <= {5, 6, 11, 12} and a != b
    if min(a, b) < 5 or torso:
        return KEYPOSE_MIDDLE
    return KEYPOSE_LEFT if a % 2 else KEYPOSE_RIGHT


def dwpose(
    keypoints: np.ndarray,
    size: Size,
    threshold: float = 0.02,
    scale: Scale = "auto",
    depth: np.ndarray | None = None,
    parts: Sequence[Part] = DWPOSE_PARTS,
) -> np.ndarray:
    """The skeleton of ControlNets of today (DWPose's preprocessor): dark spindles, then dots, hands and face points.

    Args:
        keypoints: ``[P, 133, 3]`` COCO-WholeBody, or ``[P, 17, 3]`` COCO.
        parts: what is drawn; with ``feet``, the body ends in them.
    """
    pen, people = Pen(size, scale, thin=True), _checked(keypoints)
    whole = np.zeros((len(people), len(topology.WHOLE_BODY_133), 3))
    whole[:, : people.shape[1]] = people
    if depth is not None:
        depth = np.pad(depth, ((0, 0), (0, whole.shape[1] - depth.shape[1])))
    limbs = (*topology.OPENPOSE_LIMBS, *(FEET_LIMBS if "feet" in parts else ()))
    colours = (*OPENPOSE_COLOURS[: len(topology.OPENPOSE_LIMBS)], *FEET_COLOURS)
    for person, distances in _far_to_near(whole, depth):
        body = np.concatenate([topology.coco_to_openpose18(person[None, :17])[0], *_toes(person)[:, None]])
        far = None if distances is None else np.append(_openpose_depth(distances[None, :17])[0], distances[[15, 16]])
        placed, seen = pen.place(body[:, :2]), body[:, 2] > threshold
        exact = body[:, :2] if pen.finer == 1 else placed  # the preprocessor truncates dots alone
        drawn = [(k, ends) for k, ends in _limbs(limbs, far) if seen[list(ends)].all() and "body" in parts]
        ends = np.array([exact[list(limb)] for _, limb in drawn]).reshape(-1, 2, 2)
        darker = [tuple(int(OPENPOSE_OPACITY * c) for c in colours[k]) for k, _ in drawn]
        pen.spindles(ends, OPENPOSE_HALF_WIDTH, darker, 1.0)  # type: ignore[arg-type]
        dots = (*range(18), *((18, 19) if "feet" in parts else ())) if "body" in parts else ()
        for joint in (joint for joint in dots if seen[joint]):
            colour = OPENPOSE_COLOURS[joint] if joint < 18 else FEET_COLOURS[joint - 18]
            pen.disc(placed[joint].tolist(), OPENPOSE_RADIUS, colour)
        points = pen.place(person[:, :2]).tolist()
        shown = (person[:, 2] > threshold) & (np.trunc(person[:, :2]) > 0).all(-1)
        for start in (91, 112) if "hands" in parts else ():
            for k, (a, b) in enumerate(topology.HAND_LIMBS):
                if shown[start + a] and shown[start + b]:
                    pen.line(points[start + a], points[start + b], HAND_WIDTH, _HAND_COLOURS[k])
            for joint in range(start, start + 21):
                if shown[joint]:
                    pen.disc(points[joint], HAND_RADIUS, HAND_COLOUR)
        for joint in topology.WHOLE_BODY_133.parts["face"] if "face" in parts else ():
            if shown[joint]:
                pen.disc(points[joint], FACE_RADIUS, FACE_COLOUR)
    return pen.finish()


_HAND_COLOURS = [tuple(round(255 * c) for c in colorsys.hsv_to_rgb(k / 20, 1, 1)) for k in range(20)]


def _toes(person: np.ndarray) -> np.ndarray:
    """``[2, 3]`` the middles of the left and the right toes of ``[133, 3]``, with the lower score of both."""
    toes = person[[[17, 18], [20, 21]]]
    return np.concatenate([toes[..., :2].mean(1), toes[..., 2:].min(1)], -1)


def _openpose_depth(depth: np.ndarray) -> np.ndarray:
    """Distances ``[P, 17]`` as those of OpenPose's 18 joints."""
    return Pose(topology.COCO_17, np.ones((*depth.shape, 3)), depth=depth).to(topology.OPENPOSE_18).depth  # type: ignore[return-value]


def _far_to_near(people: np.ndarray, depth: np.ndarray | None) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """People and their distances, the farthest first by their labelled joints; in their order without a depth."""
    if depth is None:
        yield from ((person, None) for person in people)
        return
    seen = people[..., 2] > 0
    far = np.where(seen, depth, 0).sum(1) / np.maximum(seen.sum(1), 1)
    yield from ((people[i], depth[i]) for i in np.argsort(-far, kind="stable"))


def _limbs(limbs: Sequence[tuple[int, int]], depth: np.ndarray | None) -> list[tuple[int, tuple[int, int]]]:
    """The limbs with their numbers, the farthest first; in their order without a depth."""
    numbered = list(enumerate(limbs))
    return numbered if depth is None else sorted(numbered, key=lambda limb: -float(depth[list(limb[1])].sum()))


DRAWING_STYLES: dict[str, Callable[..., np.ndarray]] = {
    "humansd": humansd, "openpose": openpose, "gunet": gunet, "dwpose": dwpose, "keypose": keypose,
}  # fmt: skip


class PoseDrawing:
    """A drawing style with its settings; an adapter names the one that its hint is drawn in.

    Args:
        style: a name in ``DRAWING_STYLES``.
        threshold: joints with a lower or equal score are not drawn.
        scale: factor on the reference's widths, or "auto" to follow the canvas.
        range: values of black and of full colour, (0, 1) or (-1, 1).
        parts: what ``dwpose`` draws, some of body, feet, hands and face; None is all but the feet. Others draw bodies.
        occlusion: joints that are labelled as hidden are ``drawn`` as others, ``faint`` below the others, or
            ``left_out``.
    """

    def __init__(
        self,
        style: str = "humansd",
        threshold: float = 0.02,
        scale: Scale = "auto",
        range: tuple[float, float] = (0.0, 1.0),
        parts: Sequence[Part] | None = None,
        occlusion: Occlusion = "drawn",
    ):
        if style not in DRAWING_STYLES:
            near = get_close_matches(style, DRAWING_STYLES, 1, 0)
            styles = ", ".join(DRAWING_STYLES)
            raise ValueError(f"unknown drawing style '{style}'; did you mean '{near[0]}'? Styles: {styles}")
        usual, able = (DWPOSE_PARTS, get_args(Part)) if style == "dwpose" else (("body",), ("body",))
        self.parts = usual if parts is None else tuple(parts)
        if not self.parts or not set(self.parts) <= set(able):
            fix = "" if style == "dwpose" else "; style=dwpose draws feet, hands and face, too"
            raise ValueError(f"parts={list(self.parts)}: style={style} draws {', '.join(able)}{fix}")
        if occlusion not in get_args(Occlusion):
            raise ValueError(f"occlusion={occlusion}; expected one of {', '.join(get_args(Occlusion))}")
        self.style, self.threshold, self.scale, self.range = style, threshold, scale, tuple(range)
        self.occlusion = occlusion

    @property
    def topology(self) -> topology.Topology:
        """The skeleton whose joints are drawn; `__call__` takes COCO's as well."""
        return topology.COCO_17 if self.parts == ("body",) else topology.WHOLE_BODY_133

    def __call__(self, keypoints: np.ndarray | Pose, size: Size, depth: np.ndarray | None = None) -> np.ndarray:
        """Draws people on a canvas of ``size`` (height, width): ``[3, h, w] float32`` in ``range``.

        Args:
            keypoints: ``[P, 17, 3]``, or ``[P, 133, 3]`` where the style draws the whole body, or a `Pose`.
            depth: ``[P]`` or ``[P, joints]`` distances to the viewer: what is near covers what is far.
        """
        if isinstance(keypoints, Pose):
            moved = keypoints.to(self.topology)
            keypoints, depth = moved.keypoints, moved.depth if depth is None else depth
        if depth is not None:
            depth = np.broadcast_to(np.asarray(depth, float).reshape(len(keypoints), -1), np.shape(keypoints)[:2])
        image = self._drawn(keypoints, size, depth)
        if self.occlusion != "drawn" and (hidden := hidden_joints(keypoints)).any():
            seen = np.where(hidden[..., None], 0, keypoints)
            visible = self._drawn(seen, size, depth)
            faint = np.rint(image * FAINTNESS).astype(np.uint8) if self.occlusion == "faint" else visible
            image = np.maximum(visible, faint)
        low, high = self.range
        channels = np.ascontiguousarray(image.transpose(2, 0, 1), np.float32)
        return channels * np.float32((high - low) / 255) + np.float32(low)

    def _drawn(self, keypoints: np.ndarray, size: Size, depth: np.ndarray | None) -> np.ndarray:
        options = {"parts": self.parts} if self.style == "dwpose" else {}
        return DRAWING_STYLES[self.style](keypoints, size, self.threshold, self.scale, depth, **options)

    def __repr__(self) -> str:
        given = ("style", "threshold", "scale", "range", *(("parts",) if self.style == "dwpose" else ()))
        given = (*given, *(("occlusion",) if self.occlusion != "drawn" else ()))
        return f"PoseDrawing({', '.join(f'{name}={getattr(self, name)!r}' for name in given)})"


def hidden_joints(keypoints: np.ndarray) -> np.ndarray:
    """``[P, joints]`` whether joints of COCO or COCO-WholeBody are labelled as hidden, see `Pose.visibility`."""
    keypoints = _checked(keypoints)
    known = topology.COCO_17 if keypoints.shape[1] == topology.COCO_JOINTS else topology.WHOLE_BODY_133
    return Pose(known, keypoints).visibility == HIDDEN


def overlay(image: np.ndarray, keypoints: np.ndarray, threshold: float = 0.02, opacity: float = 0.85) -> np.ndarray:
    """An image ``[h, w, 3] uint8`` with the skeletons over it: left sides green, right sides red, the middle yellow.

    ``keypoints``: ``[P, 17, 3]``, or ``[P, 133, 3]`` with feet, face and hands."""
    pen = Pen(image.shape[:2], "auto", channels=4)
    for person in _checked(keypoints):
        points, seen = pen.place(person[:, :2]).tolist(), (person[:, 2] > threshold).tolist()
        for a, b in (*topology.COCO_BARS, *topology.COCO_LIMBS):
            if seen[a] and seen[b]:
                pen.line(points[a], points[b], HUMANSD_WIDTH * 0.8, (*_side_colour(a, b), 255))
        for a, b in topology.WHOLE_BODY_133.limbs[len(topology.COCO_BONES) :]:  # of feet and hands
            if b < len(seen) and seen[a] and seen[b]:
                pen.line(points[a], points[b], HAND_WIDTH, (*_side_colour(b, b), 255))
        for joint, visible in enumerate(seen):
            if visible:
                radius = HUMANSD_RADIUS if joint < topology.COCO_JOINTS else HAND_WIDTH
                pen.disc(points[joint], radius, (*_side_colour(joint, joint), 255))
    drawn, result = pen.finish(), np.empty_like(image)
    for rows in (slice(i, i + ROWS) for i in range(0, len(image), ROWS)):  # of photographs, in little memory
        drawing = drawn[rows].astype(np.float32)
        cover = drawing[..., 3:] * (opacity / 255)  # the drawing's colours are weighted already
        result[rows] = np.rint(image[rows] * (1 - cover) + drawing[..., :3] * opacity).astype(np.uint8)
    return result


def _side_colour(a: int, b: int) -> RGB:
    sides = {topology.WHOLE_BODY_133.names[joint].partition("_")[0] for joint in {a, b} - {0}}  # the nose has none
    return LEFT_COLOUR if sides == {"left"} else RIGHT_COLOUR if sides == {"right"} else MIDDLE_COLOUR


def _checked(keypoints: np.ndarray) -> np.ndarray:
    """Keypoints as ``[P, 17, 3]`` or ``[P, 133, 3]`` without NaN or infinity."""
    keypoints = np.asarray(keypoints, np.float64)
    if keypoints.size == 0:
        return keypoints.reshape(0, 17, 3)
    known = {len(each): each.names for each in (topology.COCO_17, topology.WHOLE_BODY_133)}
    if keypoints.ndim != 3 or keypoints.shape[1] not in known or keypoints.shape[2] != 3:
        raise ValueError(f"keypoints have the shape {keypoints.shape}; expected [P, 17, 3]")
    bad = ~np.isfinite(keypoints).all(-1)
    if bad.any():
        person, joint = np.argwhere(bad)[0]
        found, name = keypoints[person, joint].tolist(), known[keypoints.shape[1]][joint]
        raise ValueError(f"person {person}, joint {joint} ({name}) is not finite: {found}")
    return keypoints
