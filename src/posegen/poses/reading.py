"""Poses as users have them: arrays of keypoints, COCO and OpenPose files, drawn skeletons and other pictures.

Everything becomes keypoints on a canvas, COCO-17 unless a drawing reads more joints, or a picture. What is left out on
the way is said in a sentence, and what cannot be used is one error that names it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from posegen.io.pictures import decode_image, open_picture
from posegen.poses.joints import BY_COUNT, FARTHEST
from posegen.poses.pose import Pose, loss_sentence
from posegen.poses.pose_files import POSE_FORMATS, PoseFile, posed_images, read_posed_images
from posegen.poses.topology import COCO_17, COCO_JOINTS, WHOLE_BODY_133, Topology, topology_named

PEOPLE = 10  # the most that the published methods were trained and judged with
LEAST_SCORE = 0.02  # joints with a lower one are missing, in the published readers and here
LEAST_INSIDE = 0.95  # share of joints inside their images; with less, the poses belong to other images, or x is y
MOST_UNLIKE = 0.1  # logarithm of the ratio of two aspects that count as equal
POSE_SUFFIXES = (".json", ".jsonl", ".ndjson")
DARK, BACKGROUND = 16, 0.5  # at least half of a drawing is black, but for the noise of a lossy file
BLACK = 4  # half of that is darker than a photograph of a dark place
SMALL, COLOURED = 13, 0.5  # pixels, up to which lines may be wider if their median saturation is at least that
THIN = 0.1  # half the width of a drawing's lines, where they meet, as a share of the shorter side


@dataclass(frozen=True, eq=False)
class PoseInput:
    """The pose of one image as the user gave it: ``keypoints``, ``picture`` or ``hint``; none of them means nobody."""

    name: str  # for messages
    keypoints: np.ndarray | None = None  # [P, joints, 3], of COCO-17 unless others were asked for
    picture: np.ndarray | None = None  # [H, W, 3] uint8 RGB, a drawn skeleton or a picture of people
    hint: np.ndarray | None = None  # [3, H, W] float32, a drawn skeleton in the range of the method that reads it
    size: tuple[int, int] | None = None  # (height, width) of the canvas; None where it is unknown
    depth: np.ndarray | None = None  # [P] or [P, joints] distances to the viewer, see `Pose`

    @property
    def is_drawing(self) -> bool:
        """Whether the picture is a skeleton on black rather than a picture of people: mostly black, and thin lines
        where a person is a wide shape. In a small picture lines are wide, too; there their colours tell.
        """
        if self.picture is None or min(self.picture.shape[:2]) < 1:
            return False
        light = self.picture.max(-1)
        if (light < DARK).mean() < BACKGROUND or (light <= BLACK).mean() < BACKGROUND / 2:
            return False
        lines = light >= DARK
        widest = cv2.distanceTransform(lines.astype(np.uint8), cv2.DIST_L2, 3).max()
        colours = 1 - self.picture.min(-1)[lines] / light[lines]
        return bool(widest <= THIN * min(light.shape) or (widest <= SMALL and np.median(colours) >= COLOURED))

    def drawn_for(self, size: tuple[int, int], range: tuple[float, float]) -> np.ndarray | None:
        """The drawn skeleton ``[3, H, W]`` in a method's range, see `checked_hint`; None for other poses."""
        hint, (low, high) = self.hint, range
        if hint is None and self.is_drawing:
            hint = self.picture.transpose(2, 0, 1).astype(np.float32) * ((high - low) / 255) + low  # type: ignore[union-attr]
        return None if hint is None else checked_hint(hint, size, range, self.name)

    def on(self, size: tuple[int, int]) -> PoseInput:
        """The same with its keypoints scaled to a canvas of another (height, width)."""
        if self.keypoints is None or self.size in (None, size):
            return self
        scale = np.divide(size[::-1], self.size[::-1])  # type: ignore[index]
        keypoints = self.keypoints.copy()
        keypoints[..., :2] = (keypoints[..., :2] + 0.5) * scale - 0.5
        return replace(self, keypoints=keypoints, size=size)


def read_poses(
    poses: Any, name: str = "poses", wanted: Topology = COCO_17, topology: str | None = None
) -> list[PoseInput]:
    """The poses of one or several images, one entry per image; a ValueError names what is something else.

    For one image ``poses`` is an array or tensor ``[17, 3]`` or ``[P, 17, 3]``, the path of a json file or a picture, a
    PIL image, an array ``[H, W, 3] uint8``, a drawn skeleton ``[3, H, W]`` in the method's range, a `Pose`, or what
    mmpose's and DWPose's programs (a dict) and rtmlib's (keypoints ``[P, joints, 2]`` and scores) return. For several,
    it is a list or tuple of these, an array ``[B, P, 17, 3]``, or a json file of several images. Nested lists of
    numbers count as arrays. ``name`` is for messages.

    Args:
        wanted: the skeleton of the result; a warning says what is left out.
        topology: a name in `TOPOLOGIES`, of the skeleton that ``poses`` has, where they do not tell.
    """
    declared = None if topology is None else topology_named(topology)
    if isinstance(poses, Pose):
        return [_pose_input(poses, name, wanted)]
    if isinstance(poses, Mapping) or (isinstance(poses, tuple) and _is_scored(poses)):
        content = poses if isinstance(poses, Mapping) else {"keypoints": [*poses[0]], "scores": [*poses[1]]}
        return _inputs_of(posed_images(content, name, declared), name, None, wanted)
    if isinstance(poses, list | tuple) and not _is_array(poses):
        entries = [read_poses(entry, f"{name}[{i}]", wanted, topology) for i, entry in enumerate(poses)]
        for i, entry in enumerate(entries):
            if len(entry) != 1:
                fix = "an entry of a list is one image: give it alone, or take it apart"
                raise ValueError(f"{name}[{i}] holds poses of {len(entry)} images; {fix}")
        return [entry[0] for entry in entries]
    if isinstance(poses, str | Path):
        return read_pose_file(Path(poses).expanduser(), wanted, declared)
    if isinstance(poses, bytes | bytearray | Image.Image):
        try:
            return [_picture_input(decode_image(bytes(poses) if isinstance(poses, bytearray) else poses), name)]
        except ValueError as error:
            raise ValueError(f"{name} {error}; give another picture") from error
    return _array_input(poses, name, wanted, declared)


def _is_scored(poses: tuple[Any, ...]) -> bool:
    """Whether these are keypoints ``[P, joints, 2]`` and their scores ``[P, joints]``."""
    shapes = [tuple(getattr(each, "shape", ())) for each in poses]
    return len(shapes) == 2 and len(shapes[0]) == 3 and shapes[0] == (*shapes[1], 2)


def _is_array(entries: Any) -> bool:
    """Whether nested lists hold numbers."""
    while isinstance(entries, list | tuple) and entries:
        entries = entries[0]
    return isinstance(entries, int | float)


def _array_input(values: Any, name: str, wanted: Topology, declared: Topology | None) -> list[PoseInput]:
    try:
        values = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    except (TypeError, ValueError) as error:  # lists of unequal lengths, tensors of types that numpy lacks
        raise ValueError(f"{name} is no array ({error}); expected COCO keypoints [17, 3] or [P, 17, 3]") from error
    known = {len(each): each for each in ([declared] if declared else [COCO_17, WHOLE_BODY_133])}
    joints = values.shape[-2] if values.ndim in (2, 3, 4) and values.shape[-1] == 3 else 0
    if joints in known and not (values.dtype == np.uint8 and joints > COCO_JOINTS):  # a picture is 133 pixels wide
        people, skeleton = values.astype(np.float64), known[joints]
        if people.ndim == 4:
            return [_pose_input(Pose(skeleton, each), f"{name}[{i}]", wanted) for i, each in enumerate(people)]
        return [_pose_input(Pose(skeleton, people.reshape(-1, joints, 3)), name, wanted)]
    if values.ndim == 3 and values.dtype == np.uint8 and values.shape[-1] == 3:
        return [_picture_input(values, name)]
    if values.ndim == 3 and np.issubdtype(values.dtype, np.floating) and len(values) == 3 and values.shape[-1] > 3:
        return [PoseInput(name, hint=values.astype(np.float32), size=values.shape[1:])]
    raise ValueError(
        f"{name} has the shape {list(values.shape)} ({values.dtype}); expected COCO keypoints [17, 3] or [P, 17, 3] "
        "with x, y and visibility, a picture [H, W, 3] uint8, or a drawn skeleton [3, H, W] float; "
        "of another skeleton say which one: topology=openpose18"
    )


def _pose_input(pose: Pose, name: str, wanted: Topology, size: tuple[int, int] | None = None) -> PoseInput:
    if lost := loss_sentence(pose.topology, wanted, pose.lost(wanted)):
        warnings.warn(f"{name}: {lost}", stacklevel=3)
    moved = pose.to(wanted)
    return PoseInput(name, moved.keypoints, size=size, depth=moved.depth)


def _picture_input(picture: np.ndarray, name: str) -> PoseInput:
    return PoseInput(name, picture=np.ascontiguousarray(picture), size=picture.shape[:2])


def read_pose_file(file: Path, wanted: Topology = COCO_17, declared: Topology | None = None) -> list[PoseInput]:
    """The poses of a json file, or a picture; raises ValueError where it cannot be read or its format is unknown."""
    if not os.path.isfile(file):  # which knows no errors, of names that are too long for instance
        raise ValueError(f"{file}: no such file; expected a json file of keypoints or a picture")
    return read_pose_json(file, wanted, declared) if file.suffix.lower() in POSE_SUFFIXES else [_read_picture(file)]


def _read_picture(file: Path) -> PoseInput:
    try:
        return _picture_input(open_picture(file), str(file))
    except ValueError as error:
        expected = "expected a json file of keypoints, or a picture such as png or jpg"
        raise ValueError(f"{file}: not a readable picture: it {error}; {expected}") from error


def read_pose_json(file: Path, wanted: Topology = COCO_17, declared: Topology | None = None) -> list[PoseInput]:
    """The people of each image of a json file, in the order of its images, see `posegen.poses.pose_files`; raises
    ValueError where it is not json or of another format, where an entry is damaged, or nobody is in it.
    """
    return _inputs_of(read_posed_images(file, declared), str(file), file.parent, wanted)


def _inputs_of(found: PoseFile, file: str, folder: Path | None, wanted: Topology) -> list[PoseInput]:
    poses, lost = list[PoseInput](), [f"; {text}" for text in found.lost(wanted)]
    for fault in found.faults:
        raise ValueError(f"{file}: {fault}; {POSE_FORMATS}")
    for image in found.images:
        name = f"{file} ({image.label})" if image.label else file
        if image.problem:
            raise ValueError(f"{name}: {image.problem}; {POSE_FORMATS}")
        if image.drawing:
            poses.append(_read_picture((folder or Path()) / image.drawing))
            continue
        people = image.pose.to(wanted).keypoints
        seen = (people[..., 2] > 0).any(-1)
        if len(people) and not seen.any():
            style = "a drawing of the whole body (adapter.style=dwpose) shows hands and faces alone"
            raise ValueError(f"{name}: nobody in it has a joint of {wanted.title}{''.join(lost)}; {style}")
        poses.append(PoseInput(name, people[seen] if len(people) else None, size=image.size))
    if all(pose.keypoints is None and pose.picture is None for pose in poses):
        raise ValueError(f"{file}: nobody is in it{''.join(f'; {text}' for text in found.remarks)}; {POSE_FORMATS}")
    for remark in (*found.remarks, *found.lost(wanted)):
        warnings.warn(f"{file}: {remark}", stacklevel=3)
    return poses


def is_shown(keypoints: np.ndarray, threshold: float = 0.0) -> np.ndarray:
    """``[P]`` who has a visible joint: one whose score is above the threshold, or no number."""
    return np.logical_not(np.all(keypoints[..., 2] <= threshold, -1))


def checked_people(
    keypoints: np.ndarray,
    size: tuple[int, int],
    name: str,
    threshold: float = 0.0,
    drawn: float = LEAST_SCORE,
) -> np.ndarray:
    """The people of ``[P, joints, 3]`` who have a visible joint: one with a score above ``threshold``.

    Joints outside the canvas of a ``size`` (height, width) may stay: drawing cuts them off. Warns where less than 95 %
    of the joints with a score above ``drawn`` lie on the canvas.

    Raises:
        ValueError: a visible joint is nowhere, nobody is visible, all are outside, or there are too many people.
    """
    seen = ~(keypoints[..., 2] <= threshold)  # a score that is NaN counts as seen, and is reported
    bad = seen & ~(np.abs(keypoints) <= FARTHEST).all(-1)
    if bad.any():
        person, joint = np.argwhere(bad)[0]
        found, fault = keypoints[person, joint], "is too far away" if np.isfinite(keypoints[bad]).all() else ""
        what = f"joint {joint} ({BY_COUNT[keypoints.shape[1]].names[joint]}) {fault or 'is not finite'}"
        raise ValueError(f"{name}: person {person}, {what}: {found.tolist()}")
    people = np.where(seen[..., None], keypoints, 0.0)[seen.any(-1)]
    shown = people[..., 2] > (drawn := max(drawn, threshold))
    if not shown.any():
        reason = f"no joint is visible (the third number is at most {drawn if len(people) else threshold:g} everywhere)"
        raise ValueError(f"{name}: {reason}; leave poses out to sample without a pose")
    if len(people) > PEOPLE:
        raise ValueError(f"{name}: {len(people)} people; the methods know up to {PEOPLE}: keep the largest")
    points = people[..., :2]
    inside = shown & ((points > -0.5) & (points < np.subtract(size[::-1], 0.5))).all(-1)
    low, high = points[shown].min(0), points[shown].max(0)
    place, canvas = f"x is {low[0]:g} to {high[0]:g}, y is {low[1]:g} to {high[1]:g}", f"{size[1]} x {size[0]} pixels"
    fix = "scale them to it, or name their canvas (canvas=[HEIGHT,WIDTH], in Python height and width)"
    if not inside.any():
        raise ValueError(f"{name}: all joints are outside the canvas of {canvas}: {place}; {fix}")
    if inside.sum() < LEAST_INSIDE * shown.sum():
        share = f"only {inside.sum()} of {shown.sum()} joints lie on the canvas of {canvas}"
        warnings.warn(f"{name}: {share}: {place}", stacklevel=2)
    return people.astype(np.float32)


def checked_hint(hint: np.ndarray, size: tuple[int, int], range: tuple[float, float], name: str) -> np.ndarray:
    """A drawn skeleton ``[3, H, W]`` for an image of a ``size`` (height, width) and a method that expects a ``range``
    (black, full colour), stretched to the image; warns where that changes its proportions. Raises ValueError where it
    has other channels or another range.
    """
    (channels, tall, wide), (height, width) = hint.shape, size
    if channels != 3:
        raise ValueError(f"{name}: a drawn skeleton of {channels} channels; expected 3: red, green and blue")
    low, high = range
    lightest_black = low + 0.25 * (high - low)  # a drawing has black in it; [0, 1] where [-1, 1] is expected has none
    if not np.isfinite(hint).all() or not low - 1e-3 <= hint.min() <= lightest_black or hint.max() > high + 1e-3:
        raise ValueError(
            f"{name}: a drawn skeleton with values from {hint.min():g} to {hint.max():g}; the method reads {low:g} "
            f"(black) to {high:g}: scale it, or give a picture [H, W, 3] uint8"
        )
    if (tall, wide) == size:
        return hint
    if abs(np.log(tall * width / (wide * height))) > MOST_UNLIKE:
        sizes = f"a drawn skeleton of {wide} x {tall} pixels is stretched to {width} x {height}"
        warnings.warn(f"{name}: {sizes}, which changes its proportions; height and width can keep them", stacklevel=2)
    way = cv2.INTER_AREA if height * width < tall * wide else cv2.INTER_LINEAR
    return cv2.resize(hint.transpose(1, 2, 0), (width, height), interpolation=way).transpose(2, 0, 1)
