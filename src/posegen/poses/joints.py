"""The numbers that files write for the joints of one person, in one of the forms that programs have for them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from posegen.poses.pose import Pose
from posegen.poses.topology import BEGIN_AS_COCO, COCO_17, COCO_JOINTS, COCO_NAMES, TOPOLOGIES, Topology, joint_name

FARTHEST = 1e7  # pixels; a joint that lies farther away is a fault of its file
BY_COUNT = {len(topology): topology for topology in TOPOLOGIES.values()} | BEGIN_AS_COCO
#: Numbers of joints that several skeletons have: which one it is must be said.
AMBIGUOUS = {
    14: ("crowdpose14", "those of CrowdPose-14 or of LSP"),
    16: ("mpii16", "those of MPII-16"),
    21: ("humanart21", "those of Human-Art-21 or of one hand"),
}


def person_joints(numbers: Any, names: Sequence[str] | None = None, scores: Any = None) -> np.ndarray:
    """One person as COCO's ``[17, 3]``, see `read_person`."""
    return read_person(numbers, names, scores).to(COCO_17).keypoints[0]


def read_person(
    numbers: Any, names: Sequence[str] | None = None, scores: Any = None, declared: Topology | None = None
) -> Pose:
    """One person; joints that the file gives as null, NaN, (-1, -1) or (0, 0) are missing.

    Args:
        numbers: x and y, and the score unless ``scores`` has it, of all joints: flat, a list per joint, or columns.
        names: of the joints; by default their number says which skeleton it is.
        declared: the skeleton, where the user says it.

    Raises:
        ValueError: no numbers, an unknown skeleton, another one than declared, or a joint that is nowhere.
    """
    points = _points(numbers, _counts(names, declared), scores)
    missing = np.isnan(points).any(-1) | (points[:, :2] == -1).all(-1) | (points[:, :2] == 0).all(-1)
    points[missing | ~(points[:, 2] > 0) & ~np.isfinite(points).all(-1)] = 0
    far = np.flatnonzero((points[:, 2] > 0) & ~(np.abs(points) <= FARTHEST).all(-1))
    if len(far):
        raise ValueError(f"joint {far[0]} is nowhere: {points[far[0]].tolist()}")
    beside = None if scores is None else np.nan_to_num(np.array(scores, np.float64).reshape(1, -1))
    return Pose(_topology(len(points), names, declared), points[None], beside)


def has_people(names: Sequence[str]) -> bool:
    return not {joint_name(name) for name in names}.isdisjoint(COCO_NAMES)


def coco_joints(points: np.ndarray) -> np.ndarray:
    """COCO's ``[17, 3]`` of joints ``[joints, 3]``. Raises ValueError: no known skeleton has so many joints."""
    return Pose(_topology(len(points), None, None), points[None]).to(COCO_17).keypoints[0]


def _counts(names: Sequence[str] | None, declared: Topology | None) -> list[int]:
    """The numbers of joints that fit. A file's names may be those of a skeleton that another one begins with."""
    if declared is not None:
        return [len(declared)]
    if not names:
        return list(BY_COUNT)
    spelt = tuple(joint_name(name) for name in names)
    kin = [len(t) for t in BY_COUNT.values() if t.names[: len(spelt)] == spelt or spelt[: len(t)] == t.names]
    return [len(spelt), *kin]


def _topology(joints: int, names: Sequence[str] | None, declared: Topology | None) -> Topology:
    known = BY_COUNT.get(joints)
    spelt = tuple(joint_name(name) for name in names or ())
    if declared is not None:
        if names and has_people(names) and spelt[:joints] != declared.names[: len(spelt)]:
            other = next((name for name, mine in zip(spelt, declared.names, strict=False) if name != mine), "fewer")
            raise ValueError(
                f"its category names the joints, and not as {declared.title} has them ({other}); leave topology out"
            )
        return declared
    if names:
        if twice := [name for name in COCO_NAMES if spelt.count(name) > 1]:
            raise ValueError(f"its category names {twice[0]} twice")
        if joints != len(spelt):
            assert known is not None  # as `_counts` says
            return known
        unique = tuple(f"{name} {i}" if spelt.count(name) > 1 else name for i, name in enumerate(spelt))
        return Topology.of(unique)
    if joints in AMBIGUOUS:
        key, which = AMBIGUOUS[joints]
        raise ValueError(f"{joints} joints without names may be {which}; add topology={key} if they are the former")
    if known is None:
        raise ValueError(f"{3 * joints} numbers, of {joints} joints; COCO's {COCO_JOINTS} joints have 51")
    return known


def _points(numbers: Any, counts: Sequence[int], scores: Any) -> np.ndarray:
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
    fewest = COCO_JOINTS if COCO_JOINTS in counts else counts[0]
    if values.ndim == 1:
        width = next((n for n in (3, 2) if len(values) % n == 0 and len(values) // n in counts), 0)
        if not width:
            raise ValueError(f"{len(values)} numbers; {fewest} joints have {3 * fewest}")
        values = values.reshape(-1, width)
    fits = len(values) in counts or len(counts) == len(BY_COUNT)  # of any other number `_topology` says it
    if values.ndim != 2 or values.shape[1] not in (2, 3) or not fits:
        raise ValueError(f"keypoints of the shape {list(values.shape)}; expected [{fewest}, 3]")
    column = np.ones(len(values)) if scores is None else np.array(scores, np.float64).reshape(-1)
    if len(column) != len(values):
        raise ValueError(f"{len(column)} scores for {len(values)} joints")
    return values if values.shape[1] == 3 else np.column_stack([values, column])
