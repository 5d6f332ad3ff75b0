"""Json files of poses as programs write them: COCO's annotations and results, OpenPose, mmpose, pose editors.

An entry that cannot be used spoils the image that it belongs to, and no other one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from posegen.io.foreign_files import read_json_or_lines
from posegen.poses.topology import BODY_25_NAMES, COCO_JOINTS, COCO_NAMES, OPENPOSE_NAMES

TOPOLOGIES = {18: OPENPOSE_NAMES, 25: BODY_25_NAMES, COCO_JOINTS: COCO_NAMES}
#: Skeletons that begin with COCO's 17 joints: with feet, Halpe's two, and COCO-WholeBody's 133.
BEGIN_AS_COCO = (23, 26, 133, 136)
FARTHEST = 1e7  # pixels; a joint that lies farther away is a fault of its file
POSE_FORMATS = (
    "expected COCO annotations or results with 'keypoints' of 17 joints (or 133, of which the body counts), "
    "OpenPose's 'people' with 'pose_keypoints_2d' of 25 (BODY_25), 18 (COCO) or 17 joints, mmpose's predictions, or a "
    "pose editor's 'width', 'height' and 'keypoints'"
)
DAMAGED = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError)  # of an entry of another form
Size = tuple[int, int]  # height, width


@dataclass(frozen=True, eq=False)
class PosedImage:
    """One image of a file of poses."""

    label: str = ""  # for messages: ``image 3 (a.jpg)``, ``frame 2``; empty where the file has only one
    picture: str = ""  # name of the picture, or the id that may be one; empty where the file says neither
    people: np.ndarray = field(default_factory=lambda: np.zeros((0, COCO_JOINTS, 3)))  # ``[P, 17, 3]``
    areas: np.ndarray = field(default_factory=lambda: np.zeros(0))  # ``[P]``; NaN where unknown
    size: Size | None = None  # (height, width) of the picture, or of the canvas that the joints lie on
    is_canvas: bool = False  # the picture may have another size than the canvas
    drawing: str = ""  # file of a drawn skeleton in place of people
    problem: str = ""  # why its poses cannot be used


@dataclass(frozen=True, eq=False)
class PoseFile:
    images: Sequence[PosedImage]
    faults: Sequence[str] = ()  # entries that belong to no image
    remarks: Sequence[str] = ()  # entries that were passed over, because they are no poses


def read_posed_images(file: Path) -> PoseFile:
    """The images of a json file, or of a file with a json value per line, in the file's order. Raises ValueError: it
    is no json, or of no known format; names the file.
    """
    content = read_json_or_lines(file, "check it, or write it again")
    try:
        return _images_of(content)
    except DAMAGED as error:
        raise ValueError(f"{file}: {_reason(error)}; {POSE_FORMATS}") from error


def _images_of(content: Any) -> PoseFile:
    if isinstance(content, Mapping):
        if "people" not in content and ("annotations" in content or "images" in content):
            return _coco_images(content)
        if "instance_info" in content:
            return _frames(content["instance_info"], _names_of_mmpose(content.get("meta_info")))
        if "predictions" in content:
            return _images_of(content["predictions"])
        return _frames([content])
    if isinstance(content, Sequence) and not isinstance(content, str) and content:
        return _frames(content)
    raise ValueError("it has neither COCO's nor OpenPose's format")


def _frames(entries: Sequence[Any], names: Sequence[str] | None = None) -> PoseFile:
    """A frame per entry, or all entries people of COCO's results or of one image, as their first known form says."""
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        raise ValueError(f"its entries are a {type(entries).__name__}")
    read: Callable[[Any], PosedImage]
    if all(isinstance(entry, list) for entry in entries):
        read = lambda entry: _instances(entry, names)  # noqa: E731
    else:
        keys = {key for entry in entries if isinstance(entry, Mapping) for key in entry}
        if "people" in keys:
            read = _openpose_frame
        elif "instances" in keys:
            read = lambda entry: _instances(entry["instances"], names)  # noqa: E731
        elif {"width", "height", "keypoints"} <= keys and "image_id" not in keys:
            read = _edited_pose
        elif "keypoints" in keys:
            return _coco_images({"annotations": entries}, names)
        elif "source" in keys:  # ControlNet's training data: source, target, prompt
            read = lambda entry: PosedImage(picture=str(entry.get("target", "")), drawing=str(entry["source"]))  # noqa: E731
        else:
            raise ValueError("it has neither COCO's nor OpenPose's format")
    images = []
    for i, entry in enumerate(entries):
        label = f"entry {i}" if len(entries) > 1 else ""
        try:
            images.append(replace(read(entry), label=label))
        except DAMAGED as error:
            images.append(PosedImage(label, problem=_reason(error)))
    return PoseFile(images)


def _reason(error: Exception) -> str:
    """An error in plain words."""
    if isinstance(error, KeyError):
        return f"it lacks {error}, which its format has"
    return str(error) if type(error) is ValueError else "a value in it is of another kind than its format has"


def _openpose_frame(frame: Mapping[str, Any]) -> PosedImage:
    people = []
    for i, person in enumerate(frame["people"] or ()):
        try:
            people.append(person_joints(person["pose_keypoints_2d"] or (0,) * 51))
        except DAMAGED as error:
            raise ValueError(f"person {i}: {_reason(error)}") from error
    return _on_canvas(people, size_of(frame, "canvas_height", "canvas_width"))


def _edited_pose(frame: Mapping[str, Any]) -> PosedImage:
    """What pose editors export: points of one or several people, null where a joint is missing."""
    parts = frame["keypoints"] or ()
    points = [point or (math.nan,) * 2 for part in parts for point in (part if _is_nested(part) else [part])]
    joints = next((n for n in (18, 25, COCO_JOINTS) if len(points) % n == 0), len(points))
    people = [person_joints(points[i : i + joints]) for i in range(0, len(points), joints)]
    return _on_canvas(people, size_of(frame, "height", "width"))


def _is_nested(part: Any) -> bool:
    return isinstance(part, list) and not any(isinstance(each, int | float) for each in part)


def _instances(rows: Sequence[Any], names: Sequence[str] | None) -> PosedImage:
    """The people of one image as mmpose writes them."""
    people = []
    for i, row in enumerate(rows):
        try:
            people.append(person_joints(row["keypoints"], names, row.get("keypoint_scores")))
        except DAMAGED as error:
            raise ValueError(f"person {i}: {_reason(error)}") from error
    return _on_canvas(people, None)


def _names_of_mmpose(meta: Any) -> Sequence[str] | None:
    named = meta.get("keypoint_id2name") if isinstance(meta, Mapping) else None
    return [str(named[key]) for key in sorted(named, key=int)] if isinstance(named, Mapping) and named else None


def _on_canvas(people: Sequence[np.ndarray], size: Size | None) -> PosedImage:
    """Coordinates are shares of the canvas where most joints lie within it or its surroundings: a person in pixels
    would be a dot in the corner."""
    labelled = [person for person in people if (person[:, 2] > 0).any()]
    if not labelled:
        return PosedImage(size=size, is_canvas=True)
    keypoints = np.stack(labelled)
    points = keypoints[(keypoints[..., 2] > 0) & keypoints[..., :2].any(-1), :2]
    if len(points) and 2 * int((np.abs(points - 0.5) <= 1.5).all(-1).sum()) > len(points):
        if size is None:
            shares = "all coordinates lie between 0 and 1, as shares of a canvas that the file does not know"
            raise ValueError(f"{shares}; write them in pixels, or add canvas_width and canvas_height")
        keypoints[..., :2] *= size[::-1]
    return PosedImage(people=keypoints, areas=np.full(len(keypoints), np.nan), size=size, is_canvas=True)


def size_of(entry: Mapping[str, Any], height: str, width: str) -> Size | None:
    """The (height, width) in an entry; None where it is missing, or no size."""
    tall, wide = _number(entry.get(height)), _number(entry.get(width))
    return (int(tall), int(wide)) if 1 <= tall < FARTHEST and 1 <= wide < FARTHEST else None


def _number(value: Any) -> float:
    with suppress(*DAMAGED):
        return float(value)
    return math.nan


# COCO


def id_text(value: Any) -> str:
    """An id as text: 1, 1.0 and "1" are the same. Raises ValueError: it is no number and no text, or empty."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).strip():
        raise ValueError(f"{str(value)[:80]!r} is no id")
    return str(value).strip()


def number_of(key: str) -> int | None:
    """The number that an id or a name is, whatever zeros it begins with."""
    return int(key) if key.isdecimal() and len(key) < 40 else None


def _coco_images(content: Mapping[str, Any], names: Sequence[str] | None = None) -> PoseFile:
    """The images in their order, with the people of their annotations; without a list of images, those of the ids."""
    listed, rows = (_list_of(content, key) for key in ("images", "annotations"))
    faults, passed, strays = list[str](), 0, list[str]()
    keys, images = _listed_images(listed, faults) if listed else _images_of_ids(rows)
    if listed and not images:
        raise ValueError(f"it is not in COCO's format: {faults[0]}")
    find, orders = _finder(keys, images), _joint_orders(content.get("categories"))
    people: list[list[tuple[np.ndarray, float]]] = [[] for _ in images]
    taken: Sequence[str] | None = None  # names of the joints of the last person
    problems = [""] * len(images)
    for i, row in enumerate(rows):
        about = f"annotation {row['id']}" if isinstance(row, Mapping) and row.get("id") is not None else f"entry {i}"
        places: Sequence[int] = ()
        try:
            if row.get("image_id") is None and len(images) > 1:
                raise ValueError("no image_id says whose it is")
            places = find(id_text(row["image_id"])) if row.get("image_id") is not None else [0]
            if not places:
                strays.append(str(row["image_id"]))
                continue
            named = names or orders(row.get("category_id"))
            person = _joints_of_row(row, named)
            if person is None:
                passed += not row.get("iscrowd")
            elif len(places) > 1:
                raise ValueError(f"the id {row['image_id']} is used by {len(places)} images, so whose it is is unknown")
            elif (person[:, 2] > 0).any():
                taken = named
                area = _number(row.get("area"))
                people[places[0]].append((person, area if math.isfinite(area) and area else math.nan))
        except DAMAGED as error:
            for place in places:
                problems[place] = problems[place] or f"{about}: {_reason(error)}"
            if not places:
                faults.append(f"{about}: {_reason(error)}")
    for i, (image, found, problem) in enumerate(zip(images, people, problems, strict=True)):
        joints, areas = (np.array([pair[part] for pair in found]) for part in (0, 1))
        label = image.label if len(images) > 1 else ""
        images[i] = replace(image, label=label, people=joints.reshape(-1, 17, 3), areas=areas, problem=problem)
    remarks = [f"{passed} annotations without joints of a person are passed over"] if passed else []
    lacking = [name for name in COCO_NAMES if name not in map(joint_name, taken or COCO_NAMES)]
    if lacking:
        remarks.append(f"its skeleton lacks {', '.join(lacking)}")
    if strays:
        remarks.append(f"{len(strays)} annotations belong to images that are not listed, such as {strays[0][:80]}")
    return PoseFile(images, faults, remarks)


def _list_of(content: Mapping[str, Any], key: str) -> Sequence[Any]:
    found = content.get(key) or ()
    if isinstance(found, Sequence) and not isinstance(found, str):
        return found
    raise ValueError(f"'{key}' is a {type(found).__name__}, not a list")


def _listed_images(listed: Sequence[Any], faults: list[str]) -> tuple[list[str], list[PosedImage]]:
    """The ids and images of COCO's list."""
    known: dict[tuple[str, str], PosedImage] = {}  # the same line twice is one image
    for i, image in enumerate(listed):
        try:
            key = id_text(image["id"])
            name = str(image.get("file_name") or key)
            label = f"image {key}" + (f" ({name})" if name != key else "")
            known.setdefault((key, name), PosedImage(label, name, size=size_of(image, "height", "width")))
        except DAMAGED as error:
            faults.append(f"image {i} of the list: {_reason(error)}")
    return [key for key, _ in known], list(known.values())


def _images_of_ids(rows: Sequence[Any]) -> tuple[list[str], list[PosedImage]]:
    keys: dict[str, None] = {}
    for row in rows:
        with suppress(*DAMAGED):
            keys[id_text(row["image_id"])] = None
    named = list(keys) or [""] * bool(rows)  # without ids all are of one image
    return named, [PosedImage(f"image {key}", key) for key in named]


def _finder(keys: Sequence[str], images: Sequence[PosedImage]) -> Callable[[str], Sequence[int]]:
    """Places of the images that an id means: by its text, else its number (0012 is 12), else a file name."""
    ways: tuple[dict[Any, list[int]], ...] = ({}, {}, {})
    for i, (key, image) in enumerate(zip(keys, images, strict=True)):
        for way, name in zip(ways, (key, number_of(key), image.picture), strict=True):
            way.setdefault(name, []).append(i)

    def find(key: str) -> Sequence[int]:
        number = number_of(key)
        return ways[0].get(key) or (ways[1].get(number) if number is not None else None) or ways[2].get(key) or ()

    return find


def _joint_orders(categories: Any) -> Callable[[Any], Sequence[str] | None]:
    """The names of a category's joints, in their order; of the only one that has names, where an entry names none."""
    known: dict[str, Sequence[str] | None] = {}
    for category in categories if isinstance(categories, list) else ():
        with suppress(*DAMAGED):
            known[id_text(category["id"])] = [str(name) for name in category.get("keypoints") or ()] or None
    named = [names for names in known.values() if names]
    if any(_has_people(names) for names in named):  # a hand or an animal beside them is passed over
        known = {key: () if names and not _has_people(names) else names for key, names in known.items()}
        named = [names for names in named if _has_people(names)]

    def order(category: Any) -> Sequence[str] | None:
        with suppress(ValueError):
            if (key := id_text(category)) in known:
                return known[key]
        return named[0] if len(named) == 1 else None

    return order


def _has_people(names: Sequence[str]) -> bool:
    return not {joint_name(name) for name in names}.isdisjoint(COCO_NAMES)


def _joints_of_row(row: Mapping[str, Any], names: Sequence[str] | None) -> np.ndarray | None:
    """The joints of an annotation; None where it marks a crowd, or something without joints of a person."""
    numbers = row.get("keypoints")
    if row.get("iscrowd") or numbers is None or not len(numbers) or names == ():
        return None
    if names and not _has_people(names):
        raise ValueError(f"its joints are {', '.join(names[:4])}, ...: none is one of COCO's names, such as left_hip")
    return person_joints(numbers, names, row.get("keypoint_scores"))


# Joints


def person_joints(numbers: Any, names: Sequence[str] | None = None, scores: Any = None) -> np.ndarray:
    """One person as COCO's ``[17, 3]``; joints that the file lacks, or gives as null, NaN or (-1, -1), are zeros.

    Args:
        numbers: x and y, and the score unless ``scores`` has it, of all joints: flat, a list per joint, or columns.
        names: of the joints; by default their number says which skeleton it is.

    Raises:
        ValueError: no numbers, an unknown skeleton, or a joint that is nowhere.
    """
    points = _points(numbers, len(names) if names else None, scores)
    missing = np.isnan(points).any(-1) | (points[:, :2] == -1).all(-1)
    points[missing | ~(points[:, 2] > 0) & ~np.isfinite(points).all(-1)] = 0
    far = np.flatnonzero((points[:, 2] > 0) & ~(np.abs(points) <= FARTHEST).all(-1))
    if len(far):
        raise ValueError(f"joint {far[0]} is nowhere: {points[far[0]].tolist()}")
    if not names:
        return coco_joints(points)
    places = [joint_name(name) for name in names]
    if twice := [name for name in COCO_NAMES if places.count(name) > 1]:
        raise ValueError(f"its category names {twice[0]} twice")
    person = np.zeros((COCO_JOINTS, 3))
    for joint, name in enumerate(COCO_NAMES):
        if name in places:
            person[joint] = points[places.index(name)]
    return person


def _points(numbers: Any, joints: int | None, scores: Any) -> np.ndarray:
    """``[joints, 3] float64``, NaN for null."""
    if isinstance(numbers, Mapping):
        numbers = list(zip(*(numbers[key] for key in ("x", "y", "visible") if key in numbers), strict=True))
    nested = [point for point in numbers if isinstance(point, list | tuple)]
    if nested:
        numbers = [(math.nan,) * len(nested[0]) if point is None else point for point in numbers]
    try:
        values = np.array(numbers, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError("its keypoints are no list of numbers, or a number is missing") from error
    while values.ndim > 2 and len(values) == 1:
        values = values[0]
    if values.ndim == 1:
        known = {joints} if joints else {*TOPOLOGIES, *BEGIN_AS_COCO}
        width = next((n for n in (3, 2) if len(values) % n == 0 and len(values) // n in known), 0)
        if not width:
            expected = f"{joints} joints have {3 * joints}" if joints else f"{COCO_JOINTS} joints have 51"
            raise ValueError(f"{len(values)} numbers; {expected}")
        values = values.reshape(-1, width)
    if values.ndim != 2 or values.shape[1] not in (2, 3) or len(values) != (joints or len(values)):
        raise ValueError(f"keypoints of the shape {list(values.shape)}; expected [{joints or COCO_JOINTS}, 3]")
    if values.shape[1] == 3:
        return values
    column = np.ones(len(values)) if scores is None else np.array(scores, np.float64).reshape(-1)
    if len(column) != len(values):
        raise ValueError(f"{len(column)} scores for {len(values)} joints")
    return np.column_stack([values, column])


def coco_joints(points: np.ndarray) -> np.ndarray:
    """COCO's ``[17, 3]`` of joints ``[joints, 3]``. Raises ValueError: no known skeleton has so many joints."""
    if len(points) in BEGIN_AS_COCO:
        return points[:COCO_JOINTS]
    names = TOPOLOGIES.get(len(points))
    if names is None:
        raise ValueError(f"{points.size} numbers, of {len(points)} joints; COCO's {COCO_JOINTS} joints have 51")
    return points[[names.index(joint) for joint in COCO_NAMES]]


def joint_name(text: str) -> str:
    """A joint's name as COCO spells it: ``LShoulder``, ``l_shoulder``, ``shoulder left`` are ``left_shoulder``."""
    words = [word.lower() for word in re.findall(r"[A-Z](?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+", text)]
    words = [{"l": "left", "r": "right"}.get(word, word) for word in words]
    return "_".join(reversed(words) if len(words) == 2 and words[1] in ("left", "right") else words)
