"""Poses as users have them: arrays of keypoints, COCO and OpenPose files, drawn skeletons and other pictures.

Everything becomes COCO-17 keypoints on a canvas, or a picture. What cannot be used is one error that names it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from posegen.io.atomic import read_json
from posegen.poses.topology import COCO_JOINTS, COCO_NAMES, OPENPOSE_NAMES

BODY_25_NAMES = (*OPENPOSE_NAMES[:8], "mid_hip", *OPENPOSE_NAMES[8:])  # its feet come last; COCO has no such joints
TOPOLOGIES = {18: OPENPOSE_NAMES, 25: BODY_25_NAMES, COCO_JOINTS: COCO_NAMES}
PEOPLE = 10  # the most that the published methods were trained and judged with
DARK, BACKGROUND = 16, 0.5  # at least half of a drawing is black, but for the noise of a lossy file
POSE_FORMATS = (
    "expected COCO annotations or results with 'keypoints' of 17 joints, "
    "or OpenPose's 'people' with 'pose_keypoints_2d' of 25 (BODY_25), 18 (COCO) or 17 joints"
)


@dataclass(frozen=True, eq=False)
class PoseInput:
    """The pose of one image as the user gave it: ``keypoints``, ``picture`` or ``hint``; none of them means nobody."""

    name: str  # for messages
    keypoints: np.ndarray | None = None  # [P, 17, 3] COCO
    picture: np.ndarray | None = None  # [H, W, 3] uint8 RGB, a drawn skeleton or a picture of people
    hint: np.ndarray | None = None  # [3, H, W] float32, a drawn skeleton in the range of the method that reads it
    size: tuple[int, int] | None = None  # (height, width) of the canvas; None where it is unknown

    @property
    def is_drawing(self) -> bool:
        """Whether the picture is a skeleton on black rather than a picture of people."""
        return self.picture is not None and bool((self.picture.max(-1) < DARK).mean() >= BACKGROUND)

    def on(self, size: tuple[int, int]) -> PoseInput:
        """The same with its keypoints scaled to a canvas of another (height, width)."""
        if self.keypoints is None or self.size in (None, size):
            return self
        scale = np.divide(size[::-1], self.size[::-1])  # type: ignore[index]
        keypoints = self.keypoints.copy()
        keypoints[..., :2] = (keypoints[..., :2] + 0.5) * scale - 0.5
        return replace(self, keypoints=keypoints, size=size)


def read_poses(poses: Any, name: str = "poses") -> list[PoseInput]:
    """The poses of one or several images, one entry per image; a ValueError names what is something else.

    For one image ``poses`` is an array or tensor ``[17, 3]`` or ``[P, 17, 3]``, the path of a json file or a picture, a
    PIL image, an array ``[H, W, 3] uint8``, or a drawn skeleton ``[3, H, W]`` in the method's range. For several, it is
    a list or tuple of these, an array ``[B, P, 17, 3]``, or a json file of several images. Nested lists of numbers
    count as arrays. ``name`` is for messages.
    """
    if isinstance(poses, list | tuple) and not _is_array(poses):
        entries = [read_poses(entry, f"{name}[{i}]") for i, entry in enumerate(poses)]
        for i, entry in enumerate(entries):
            if len(entry) != 1:
                fix = "an entry of a list is one image: give it alone, or take it apart"
                raise ValueError(f"{name}[{i}] holds poses of {len(entry)} images; {fix}")
        return [entry[0] for entry in entries]
    if isinstance(poses, str | Path):
        return read_pose_file(Path(poses).expanduser())
    if hasattr(poses, "convert"):  # a PIL image, without importing PIL
        return [_picture_input(np.asarray(poses.convert("RGB")), name)]
    return _array_input(poses, name)


def _is_array(entries: Any) -> bool:
    """Whether nested lists hold numbers."""
    while isinstance(entries, list | tuple) and entries:
        entries = entries[0]
    return isinstance(entries, int | float)


def _array_input(values: Any, name: str) -> list[PoseInput]:
    try:
        values = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    except (TypeError, ValueError) as error:  # lists of unequal lengths, tensors of types that numpy lacks
        raise ValueError(f"{name} is no array ({error}); expected COCO keypoints [17, 3] or [P, 17, 3]") from error
    if values.ndim in (2, 3, 4) and values.shape[-2:] == (COCO_JOINTS, 3):
        people = values.astype(np.float64)
        if people.ndim == 4:
            return [PoseInput(f"{name}[{i}]", image) for i, image in enumerate(people)]
        return [PoseInput(name, people.reshape(-1, COCO_JOINTS, 3))]
    if values.ndim == 3 and values.dtype == np.uint8 and values.shape[-1] == 3:
        return [_picture_input(values, name)]
    if values.ndim == 3 and np.issubdtype(values.dtype, np.floating) and len(values) == 3 and values.shape[-1] > 3:
        return [PoseInput(name, hint=values.astype(np.float32), size=values.shape[1:])]
    raise ValueError(
        f"{name} has the shape {list(values.shape)} ({values.dtype}); expected COCO keypoints [17, 3] or [P, 17, 3] "
        "with x, y and visibility, a picture [H, W, 3] uint8, or a drawn skeleton [3, H, W] float"
    )


def _picture_input(picture: np.ndarray, name: str) -> PoseInput:
    return PoseInput(name, picture=np.ascontiguousarray(picture), size=picture.shape[:2])


def read_pose_file(file: Path) -> list[PoseInput]:
    """The poses of a json file, or a picture; raises ValueError where it cannot be read or its format is unknown."""
    if not file.is_file():
        raise ValueError(f"{file}: no such file; expected a json file of keypoints or a picture")
    if file.suffix.lower() == ".json":
        return read_pose_json(file)
    image = cv2.imdecode(np.frombuffer(file.read_bytes() or b"\0", np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        expected = "expected a json file of keypoints, or a picture such as png or jpg"
        raise ValueError(f"{file}: not a readable picture; {expected}")
    return [_picture_input(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), str(file))]


def read_pose_json(file: Path) -> list[PoseInput]:
    """The people of each image of a file in COCO's format (annotations or results) or OpenPose's (one or a list);
    raises ValueError where it is not json, of another format, or empty.
    """
    content = read_json(file, "check it, or write it again")
    try:
        images = _people_by_image(content, str(file))
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        reason = f"an entry lacks what its format has ({type(error).__name__}: {error})"
        raise ValueError(f"{file}: {reason}; {POSE_FORMATS}") from error
    if not images:
        raise ValueError(f"{file}: nobody is in it; {POSE_FORMATS}")
    return images


def _people_by_image(content: Any, name: str) -> list[PoseInput]:
    if isinstance(content, Mapping) and "people" in content:
        return [_openpose_people(content, name)]
    if isinstance(content, Mapping) and "annotations" in content:
        sized = (image for image in content.get("images", ()) if {"height", "width"} <= image.keys())
        sizes = {image["id"]: (int(image["height"]), int(image["width"])) for image in sized}
        return _coco_people(content["annotations"], name, sizes)
    if isinstance(content, Sequence) and content and all(isinstance(entry, Mapping) for entry in content):
        if all("people" in entry for entry in content):
            return [_openpose_people(frame, f"{name}[{i}]") for i, frame in enumerate(content)]
        return _coco_people(content, name, {})
    raise ValueError(f"{name}: neither COCO's nor OpenPose's format; {POSE_FORMATS}")


def _coco_people(rows: Sequence[Any], name: str, sizes: Mapping[Any, tuple[int, int]]) -> list[PoseInput]:
    """People by image, in the order of their first rows, without crowds and others who have no labelled joint."""
    images: dict[Any, list[np.ndarray]] = {}
    for i, row in enumerate(rows):
        person = coco_joints(row["keypoints"], f"{name}: entry {i}")
        if (person[:, 2] > 0).any():
            images.setdefault(row.get("image_id"), []).append(person)
    names = {image: f"{name} (image {image})" if len(images) > 1 else name for image in images}
    return [PoseInput(names[i], np.stack(people), size=sizes.get(i)) for i, people in images.items()]


def _openpose_people(frame: Mapping[str, Any], name: str) -> PoseInput:
    """One frame; some programs write coordinates as fractions of a canvas, and its size."""
    given = [person["pose_keypoints_2d"] for person in frame["people"]]
    people = [coco_joints(numbers, f"{name}: person {i}") for i, numbers in enumerate(given)]
    people = [person for person in people if (person[:, 2] > 0).any()]
    if not people:
        raise ValueError(f"{name}: nobody is in it")
    keypoints, size = np.stack(people), None
    if {"canvas_height", "canvas_width"} <= frame.keys():
        size = int(frame["canvas_height"]), int(frame["canvas_width"])
    if (np.abs(keypoints[..., :2]) <= 1).all():
        if size is None:
            reason = "all coordinates lie between 0 and 1, as shares of a canvas that the file does not know"
            raise ValueError(f"{name}: {reason}; write them in pixels")
        keypoints[..., :2] *= size[::-1]
    return PoseInput(name, keypoints, size=size)


def coco_joints(numbers: Any, name: str) -> np.ndarray:
    """A flat list of x, y, score per joint as COCO's ``[17, 3]``; raises ValueError for an unknown number of joints."""
    values = np.asarray(numbers, np.float64).reshape(-1)
    names = TOPOLOGIES.get(len(values) // 3)
    if len(values) == 3 * 25:
        values = values[: 3 * len(BODY_25_NAMES)]
    if names is None or len(values) != 3 * len(names):
        raise ValueError(f"{name} has {len(values)} numbers; {POSE_FORMATS}")
    return values.reshape(-1, 3)[[names.index(joint) for joint in COCO_NAMES]]


def checked_people(keypoints: np.ndarray, size: tuple[int, int], name: str, threshold: float = 0.0) -> np.ndarray:
    """The people of ``[P, 17, 3]`` who have a visible joint: one with a score above ``threshold``. Joints outside the
    canvas of a ``size`` (height, width) may stay: drawing cuts them off.

    Raises:
        ValueError: a visible joint is not finite, nobody is visible, all are outside, or there are too many people.
    """
    seen = ~(keypoints[..., 2] <= threshold)  # a score that is NaN counts as seen, and is reported
    bad = seen & ~np.isfinite(keypoints).all(-1)
    if bad.any():
        person, joint = np.argwhere(bad)[0]
        found = keypoints[person, joint].tolist()
        raise ValueError(f"{name}: person {person}, joint {joint} ({COCO_NAMES[joint]}) is not finite: {found}")
    people = np.where(seen[..., None], keypoints, 0.0)[seen.any(-1)]
    if not len(people):
        reason = f"no joint is visible (the third number is at most {threshold:g} everywhere)"
        raise ValueError(f"{name}: {reason}; leave poses out to sample without a pose")
    if len(people) > PEOPLE:
        raise ValueError(f"{name}: {len(people)} people; the methods know up to {PEOPLE}: keep the largest")
    x, y, score = np.moveaxis(people, -1, 0)
    inside = (score > threshold) & (x > -0.5) & (x < size[1] - 0.5) & (y > -0.5) & (y < size[0] - 0.5)
    if not inside.any():
        low, high = people[..., :2][score > threshold].min(0), people[..., :2][score > threshold].max(0)
        raise ValueError(
            f"{name}: all joints are outside the canvas of {size[1]} x {size[0]} pixels: x is {low[0]:g} to "
            f"{high[0]:g}, y is {low[1]:g} to {high[1]:g}; scale them to it, or set width and height"
        )
    return people.astype(np.float32)


def checked_hint(hint: np.ndarray, size: tuple[int, int], range: tuple[float, float], name: str) -> np.ndarray:
    """A drawn skeleton ``[3, H, W]`` for an image of a ``size`` (height, width) and a method that expects a ``range``
    (black, full colour); raises ValueError where it has another size, other channels or another range.
    """
    if hint.shape != (3, *size):
        raise ValueError(
            f"{name}: a drawn skeleton of {hint.shape[2]} x {hint.shape[1]} pixels and {hint.shape[0]} channels for an "
            f"image of {size[1]} x {size[0]}; expected 3 channels and the size of the image: draw it anew, "
            "or set width and height"
        )
    low, high = range
    lightest_black = low + 0.25 * (high - low)  # a drawing has black in it; [0, 1] where [-1, 1] is expected has none
    if not np.isfinite(hint).all() or not low - 1e-3 <= hint.min() <= lightest_black or hint.max() > high + 1e-3:
        raise ValueError(
            f"{name}: a drawn skeleton with values from {hint.min():g} to {hint.max():g}; the method reads {low:g} "
            f"(black) to {high:g}: scale it, or give a picture [H, W, 3] uint8"
        )
    return hint
