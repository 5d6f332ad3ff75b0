"""The pose as the value of the page's editor, and as keypoints.

The value is ``{"people": [[[x, y, v], ...], ...], "selected": i}``: 17 joints per person, x and y as shares of the
canvas (0 is the left or upper, 1 the right or lower edge), v 2 for a joint that is drawn and 0 for one that is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from posegen.errors import UserError
from posegen.poses.reading import PEOPLE
from posegen.poses.topology import COCO_BARS, COCO_FLIP, COCO_JOINTS, COCO_LEFT, COCO_LIMBS, COCO_NAMES, COCO_RIGHT

#: A standing person for "add" and for an empty start: shares of a square, in COCO's order.
EDITOR_PERSON = (
    (0.500, 0.160), (0.517, 0.145), (0.483, 0.145), (0.537, 0.155), (0.463, 0.155), (0.575, 0.275), (0.425, 0.275),
    (0.625, 0.405), (0.375, 0.405), (0.640, 0.530), (0.360, 0.530), (0.545, 0.535), (0.455, 0.535), (0.555, 0.715),
    (0.445, 0.715), (0.560, 0.890), (0.440, 0.890),
)  # fmt: skip


def standing_pose() -> dict[str, Any]:
    """The editor's value with one standing person."""
    return {"people": [[[x, y, 2] for x, y in EDITOR_PERSON]], "selected": 0}


def skeleton_facts() -> dict[str, Any]:
    """Names, limbs, sides and mirror images of joints for the editor's script."""
    sides = ["left" if i in COCO_LEFT else "right" if i in COCO_RIGHT else "middle" for i in range(COCO_JOINTS)]
    names, limbs = [name.replace("_", " ") for name in COCO_NAMES], [list(limb) for limb in (*COCO_BARS, *COCO_LIMBS)]
    facts = {"joints": names, "limbs": limbs, "sides": sides, "flip": list(COCO_FLIP), "most": PEOPLE}
    return {**facts, "standing": standing_pose()["people"][0]}


def to_editor(keypoints: np.ndarray, size: tuple[int, int]) -> dict[str, Any]:
    """Keypoints ``[P, 17, 3]`` on a canvas of ``size`` (height, width) as the editor's value."""
    people = np.array(keypoints, np.float64).reshape(-1, COCO_JOINTS, 3)
    shares = ((people[..., :2] + 0.5) / size[::-1]).round(5).tolist()
    seen = np.where(people[..., 2] > 0, 2, 0).tolist()
    joints = [zip(*person, strict=True) for person in zip(shares, seen, strict=True)]
    return {"people": [[[x, y, v] for (x, y), v in person] for person in joints], "selected": 0}


def to_keypoints(value: Any, size: tuple[int, int]) -> np.ndarray:
    """The editor's value as keypoints ``[P, 17, 3] float32``: hidden joints are zeros, people without any left out."""
    people = value.get("people") if isinstance(value, Mapping) else None
    try:
        shares = np.asarray([] if people is None else people, np.float64).reshape(-1, COCO_JOINTS, 3)
    except (TypeError, ValueError) as error:
        expected = "expected 17 joints of x, y and visibility per person"
        raise UserError(f"the pose is damaged ({error}); {expected}: reload the page") from error
    seen = shares[..., 2] > 0
    if not np.isfinite(shares[seen]).all():
        raise UserError("the pose has a joint whose place is no number; reload the page")
    pixels = shares[..., :2] * size[::-1] - 0.5
    keypoints = np.where(seen[..., None], np.concatenate([pixels, np.full((*seen.shape, 1), 2.0)], -1), 0.0)
    return keypoints[seen.any(-1)].astype(np.float32)
