"""Json files of poses as programs write them: COCO, COCO-WholeBody and Human-Art, annotation tools, OpenPose, DWPose,
mmpose, rtmlib, pose editors. Each is known by its content, not by its name.

An entry that cannot be used spoils the image that it belongs to, and no other one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from posegen.io.foreign_files import read_json_or_lines
from posegen.poses.joints import FARTHEST, has_people, read_person
from posegen.poses.pose import Losses, Pose, lacking
from posegen.poses.topology import (
    COCO_17,
    COCO_JOINTS,
    FACE_NAMES,
    FACE_POINTS,
    FEET_NAMES,
    HUMAN_ART_21,
    MPII_16,
    OPENPOSE_18,
    TOPOLOGIES,
    Topology,
    hand_names,
)

POSE_FORMATS = (
    "expected COCO annotations or results with 'keypoints' of 17 joints (or 133, COCO-WholeBody's), OpenPose's or "
    "DWPose's 'people' with 'pose_keypoints_2d' of 25 (BODY_25), 18 (COCO) or 17 joints, mmpose's predictions, or a "
    "pose editor's 'width', 'height' and 'keypoints'"
)
FACE, LEFT_HAND, RIGHT_HAND = FACE_NAMES[:FACE_POINTS], hand_names("left"), hand_names("right")
#: The further parts of a person in OpenPose's files, and in COCO-WholeBody's; OpenPose's face has the pupils, too.
OPENPOSE_PARTS = {
    "foot_keypoints_2d": FEET_NAMES, "face_keypoints_2d": FACE_NAMES, "hand_left_keypoints_2d": LEFT_HAND,
    "hand_right_keypoints_2d": RIGHT_HAND,
}  # fmt: skip
WHOLE_BODY_PARTS = {
    "foot_kpts": FEET_NAMES, "face_kpts": FACE, "lefthand_kpts": LEFT_HAND, "righthand_kpts": RIGHT_HAND,
}  # fmt: skip
DAMAGED = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError)  # of an entry of another form
Size = tuple[int, int]  # height, width


@dataclass(frozen=True, eq=False)
class PosedImage:
    """One image of a file of poses."""

    label: str = ""  # for messages: ``image 3 (a.jpg)``, ``frame 2``; empty where the file has only one
    picture: str = ""  # name of the picture, or the id that may be one; empty where the file says neither
    pose: Pose = field(default_factory=lambda: Pose(COCO_17, np.zeros((0, COCO_JOINTS, 3))))  # of any skeleton
    areas: np.ndarray = field(default_factory=lambda: np.zeros(0))  # ``[P]``; NaN where unknown
    size: Size | None = None  # (height, width) of the picture, or of the canvas that the joints lie on
    is_canvas: bool = False  # the picture may have another size than the canvas
    drawing: str = ""  # file of a drawn skeleton in place of people
    problem: str = ""  # why its poses cannot be used

    @cached_property
    def people(self) -> np.ndarray:
        """``[P, 17, 3]`` COCO's joints."""
        return self.pose.to(COCO_17).keypoints


@dataclass(frozen=True, eq=False)
class PoseFile:
    images: Sequence[PosedImage]
    faults: Sequence[str] = ()  # entries that belong to no image
    remarks: Sequence[str] = ()  # entries that were passed over, because they are no poses

    def lost(self, topology: Topology) -> list[str]:
        """A sentence for each skeleton of the file that has joints which another one lacks."""
        found = Losses(topology)
        for image in self.images:
            found.add(image.pose)
        return found.sentences


def read_posed_images(file: Path, declared: Topology | None = None) -> PoseFile:
    """The images of a json file, or of a file with a json value per line, in the file's order. ``declared`` is the
    skeleton where the user says it. Raises ValueError: it is no json, or of no known format; names the file.
    """
    return posed_images(read_json_or_lines(file, "check it, or write it again"), str(file), declared)


def posed_images(content: Any, name: str, declared: Topology | None = None) -> PoseFile:
    """The same of the content of such a file; ``name`` is for messages."""
    try:
        return _images_of(content, declared)
    except DAMAGED as error:
        raise ValueError(f"{name}: {_reason(error)}; {POSE_FORMATS}") from error


def _images_of(content: Any, declared: Topology | None) -> PoseFile:
    if isinstance(content, Mapping):
        if "people" not in content and ("annotations" in content or "images" in content):
            return _coco_images(content, None, declared)
        if "instance_info" in content:
            return _frames(content["instance_info"], _names_of_mmpose(content.get("meta_info")), declared)
        if "predictions" in content:
            return _images_of(content["predictions"], declared)
        return _frames([content], None, declared)
    if isinstance(content, Sequence) and not isinstance(content, str) and content:
        return _frames(content, None, declared)
    raise ValueError("it has neither COCO's nor OpenPose's format")


def _frames(entries: Sequence[Any], names: Sequence[str] | None, declared: Topology | None) -> PoseFile:
    """A frame per entry, or all entries people of COCO's results or of one image, as their first known form says."""
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        raise ValueError(f"its entries are a {type(entries).__name__}")
    read: Callable[[Any], PosedImage]
    keys = {key for entry in entries if isinstance(entry, Mapping) for key in entry}
    if all(isinstance(entry, list) for entry in entries):
        read = partial(_instances, names=names, declared=declared)
    elif "people" in keys:
        read = partial(_openpose_frame, declared=declared)
    elif "bodies" in keys:
        read = _dwpose_frame
    elif "instances" in keys:
        read = lambda entry: _instances(entry["instances"], names, declared)  # noqa: E731
    elif {"joints", "joints_vis"} <= keys:  # MPII's, as mmpose has them; they count from 1
        rows = [{**row, "image_id": row["image"], "keypoints": _mpii_joints(row)} for row in entries]
        return _coco_images({"annotations": rows}, None, MPII_16)
    elif {"keypoints", "scores"} <= keys:  # rtmlib's arrays
        read = partial(_scored_people, names=names, declared=declared)
    elif {"width", "height", "keypoints"} <= keys and "image_id" not in keys:
        read = partial(_edited_pose, declared=declared)
    elif "keypoints" in keys or not keys.isdisjoint(WHOLE_BODY_PARTS):
        return _coco_images({"annotations": entries}, names, declared)
    elif "source" in keys:  # ControlNet's training data: source, target, prompt
        read = lambda entry: PosedImage(picture=str(entry.get("target", "")), drawing=str(entry["source"]))  # noqa: E731
    elif {"annotations", "data"} <= keys:
        raise ValueError("it is Label Studio's own json; export it as COCO")
    elif "bbox" in keys:
        raise ValueError("its entries are boxes without joints")
    else:
        raise ValueError("it has neither COCO's nor OpenPose's format")
    images = []
    for i, entry in enumerate(entries):
        label = f"entry {i}" if len(entries) > 1 else ""
        try:
            images.append(replace(read(entry), label=label))
        except DAMAGED as error:
            images.append(PosedImage(label, problem=_reason(error)))
    return PoseFile(images, remarks=_lacks([image.pose.topology for image in images if len(image.pose)]))


def _lacks(taken: Sequence[Topology]) -> list[str]:
    """What bodies lack of COCO's joints, for the first skeleton of a file."""
    lacks = lacking(taken[0]) if taken and "body" in taken[0].parts else []
    return [f"its skeleton lacks {', '.join(lacks)}"] if lacks else []


def _reason(error: Exception) -> str:
    """An error in plain words."""
    if isinstance(error, KeyError):
        return f"it lacks {error}, which its format has"
    return str(error) if type(error) is ValueError else "a value in it is of another kind than its format has"


def _openpose_frame(frame: Mapping[str, Any], declared: Topology | None) -> PosedImage:
    return _on_canvas(
        _each(frame["people"] or (), lambda person: _openpose_person(person, declared)),
        size_of(frame, "canvas_height", "canvas_width"),
    )


def _each(rows: Sequence[Any], read: Callable[[Any], Pose]) -> list[Pose]:
    people = []
    for i, row in enumerate(rows):
        try:
            people.append(read(row))
        except DAMAGED as error:
            raise ValueError(f"person {i}: {_reason(error)}") from error
    return people


def _openpose_person(person: Mapping[str, Any], declared: Topology | None) -> Pose:
    """The body, or an empty one where the person is a hand or a face alone, with the parts that are there."""
    parts = _parts_of(person, OPENPOSE_PARTS)
    numbers = person.get("pose_keypoints_2d") if parts else person["pose_keypoints_2d"]
    body = read_person(numbers, None, None, declared) if numbers else Pose(COCO_17, np.zeros((1, COCO_JOINTS, 3)))
    return Pose.together([body, *(part for part in parts if part.topology.names[0] not in body.topology.names)])


def _parts_of(person: Mapping[str, Any], known: Mapping[str, tuple[str, ...]]) -> list[Pose]:
    """The feet, face and hands beside a body. A face may lack the last points, OpenPose's pupils."""
    parts = []
    for key, names in known.items():
        if (numbers := person.get(key)) is not None and len(numbers):
            joints = FACE_POINTS if names is FACE_NAMES and len(numbers) == 3 * FACE_POINTS else len(names)
            title = key.partition("_")[0].replace("lefthand", "hands").replace("righthand", "hands")
            title = {"hand": "hands", "foot": "feet"}.get(title, title)
            try:
                parts.append(read_person(numbers, None, None, Topology.of(names[:joints], title)))
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from error
    return parts


def _dwpose_frame(frame: Mapping[str, Any]) -> PosedImage:
    """The arrays of DWPose's own programs: of each person the places of 18 joints in a list, -1 where one is missing;
    all left hands, then all right ones, and the faces."""
    bodies, joints = frame["bodies"], len(OPENPOSE_18)
    places = np.array(bodies["subset"], np.float64)[:, :joints].astype(int)
    points = np.array(bodies["candidate"], np.float64)[..., :2].reshape(-1, 2)
    parts = [Pose(OPENPOSE_18, np.concatenate([points[places], places[..., None] >= 0], -1))]
    hands, faces = (
        np.array(() if frame.get(key) is None else frame[key], np.float64).reshape(-1, count, 2)
        for key, count in (("hands", len(LEFT_HAND)), ("faces", FACE_POINTS))
    )
    half = len(hands) // 2
    for title, names, found in (
        ("hands", LEFT_HAND, hands[:half]), ("hands", RIGHT_HAND, hands[half:]), ("face", FACE, faces),
    ):  # fmt: skip
        if len(found) == len(places):
            seen = (found > 0).all(-1, keepdims=True)
            parts.append(Pose(Topology.of(names, title), np.concatenate([found, seen], -1)))
        elif len(found):
            raise ValueError(f"{len(found)} {title} of one side for {len(places)} bodies")
    people = Pose.together(parts)
    people.keypoints[people.keypoints[..., 2] <= 0] = 0
    return _on_canvas([replace(people, keypoints=person[None]) for person in people.keypoints], _any_size(frame))


def _any_size(frame: Mapping[str, Any]) -> Size | None:
    return size_of(frame, "canvas_height", "canvas_width") or size_of(frame, "height", "width")


def _mpii_joints(row: Mapping[str, Any]) -> list[Any]:
    seen = zip(row["joints"], row["joints_vis"], strict=True)
    return [(x - 1, y - 1, float(shown)) if x >= 0 else (0, 0, 0) for (x, y), shown in seen]


def _scored_people(entry: Mapping[str, Any], names: Sequence[str] | None, declared: Topology | None) -> PosedImage:
    pairs = zip(entry["keypoints"], entry["scores"], strict=True)
    people = _each(list(pairs), lambda pair: read_person(pair[0], names, pair[1], declared))
    return _on_canvas(people, _any_size(entry))


def _edited_pose(frame: Mapping[str, Any], declared: Topology | None) -> PosedImage:
    """What pose editors export: points of one or several people, null where a joint is missing."""
    parts = frame["keypoints"] or ()
    points = [point or (math.nan,) * 2 for part in parts for point in (part if _is_nested(part) else [part])]
    counts = (len(declared),) if declared else (18, 25, COCO_JOINTS)
    joints = next((n for n in counts if len(points) % n == 0), len(points))
    people = [read_person(points[i : i + joints], None, None, declared) for i in range(0, len(points), joints)]
    return _on_canvas(people, size_of(frame, "height", "width"))


def _is_nested(part: Any) -> bool:
    return isinstance(part, list) and not any(isinstance(each, int | float) for each in part)


def _instances(rows: Sequence[Any], names: Sequence[str] | None, declared: Topology | None) -> PosedImage:
    """The people of one image as mmpose writes them."""
    read = lambda row: read_person(row["keypoints"], names, row.get("keypoint_scores"), declared)  # noqa: E731
    return _on_canvas(_each(rows, read), None)


def _names_of_mmpose(meta: Any) -> Sequence[str] | None:
    named = meta.get("keypoint_id2name") if isinstance(meta, Mapping) else None
    return [str(named[key]) for key in sorted(named, key=int)] if isinstance(named, Mapping) and named else None


def _on_canvas(people: Sequence[Pose], size: Size | None) -> PosedImage:
    """Coordinates are shares of the canvas where most joints lie within it or its surroundings: a person in pixels
    would be a dot in the corner."""
    labelled = [person for person in people if (person.keypoints[..., 2] > 0).any()]
    if not labelled:
        return PosedImage(size=size, is_canvas=True)
    pose = Pose.joined(labelled)
    points = pose.keypoints[(pose.keypoints[..., 2] > 0) & pose.keypoints[..., :2].any(-1), :2]
    if len(points) and 2 * int((np.abs(points - 0.5) <= 1.5).all(-1).sum()) > len(points):
        if size is None:
            shares = "all coordinates lie between 0 and 1, as shares of a canvas that the file does not know"
            raise ValueError(f"{shares}; write them in pixels, or add canvas_width and canvas_height")
        pose.keypoints[..., :2] *= size[::-1]
    return PosedImage(pose=pose, areas=np.full(len(pose), np.nan), size=size, is_canvas=True)


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


def _coco_images(content: Mapping[str, Any], names: Sequence[str] | None, declared: Topology | None) -> PoseFile:
    """The images in their order, with the people of their annotations; without a list of images, those of the ids."""
    listed, rows = (_list_of(content, key) for key in ("images", "annotations"))
    faults, passed, strays = list[str](), 0, list[str]()
    keys, images = _listed_images(listed, faults) if listed else _images_of_ids(rows)
    if listed and not images:
        raise ValueError(f"it is not in COCO's format: {faults[0]}")
    find, orders = _finder(keys, images), _joint_orders(content.get("categories"))
    people: list[list[tuple[Pose, float]]] = [[] for _ in images]
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
            person = _person_of_row(row, names or orders(row.get("category_id")), declared)
            if person is None:
                passed += not row.get("iscrowd")
            elif len(places) > 1:
                raise ValueError(f"the id {row['image_id']} is used by {len(places)} images, so whose it is is unknown")
            elif (person.keypoints[..., 2] > 0).any():
                area = _number(row.get("area"))
                people[places[0]].append((person, area if math.isfinite(area) and area else math.nan))
        except DAMAGED as error:
            for place in places:
                problems[place] = problems[place] or f"{about}: {_reason(error)}"
            if not places:
                faults.append(f"{about}: {_reason(error)}")
    for i, (image, found, problem) in enumerate(zip(images, people, problems, strict=True)):
        pose = Pose.joined([person for person, _ in found]) if found else image.pose
        label, areas = image.label if len(images) > 1 else "", np.array([area for _, area in found])
        images[i] = replace(image, label=label, pose=pose, areas=areas, problem=problem)
    remarks = [f"{passed} annotations without joints of a person are passed over"] if passed else []
    remarks += _lacks([image.pose.topology for image in images if len(image.pose)])
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
    if any(has_people(names) for names in named):  # a hand or an animal beside them is passed over
        known = {key: () if names and not has_people(names) else names for key, names in known.items()}
        named = [names for names in named if has_people(names)]

    def order(category: Any) -> Sequence[str] | None:
        with suppress(ValueError):
            if (key := id_text(category)) in known:
                return known[key]
        return named[0] if len(named) == 1 else None

    return order


def _person_of_row(row: Mapping[str, Any], names: Sequence[str] | None, declared: Topology | None) -> Pose | None:
    """The person of an annotation, with the parts of COCO-WholeBody, or the tips of fingers and toes of Human-Art; None
    where it marks a crowd, or something without joints of a person."""
    numbers, parts = row.get("keypoints"), _parts_of(row, WHOLE_BODY_PARTS)
    numbers = numbers if numbers is not None and len(numbers) else ((0,) * 51 if parts else None)
    if row.get("iscrowd") or numbers is None or names == ():
        return None
    if names and not has_people(names):
        if declared is None:
            raise ValueError(_strange_names(names))
        names = None
    body = read_person(numbers, names, row.get("keypoint_scores"), declared)
    if (tips := row.get("keypoints_21")) and body.topology is COCO_17:
        more = read_person(tips, None, None, HUMAN_ART_21).keypoints[:, COCO_JOINTS:]
        parts = [Pose(Topology.of(HUMAN_ART_21.names[COCO_JOINTS:]), more)]
    return Pose.together([body, *parts]) if parts and body.topology is COCO_17 else body


def _strange_names(names: Sequence[str]) -> str:
    listed = f"its joints are {', '.join(names[:4])}, ...: none is one of COCO's names, such as left_hip"
    same = next((key for key, topology in TOPOLOGIES.items() if len(topology) == len(names)), None)
    return (
        f"{listed}; add topology={same} if they are those of {TOPOLOGIES[same].title} in their order"
        if same
        else listed
    )
