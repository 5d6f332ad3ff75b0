"""People with the joints of any skeleton, and what is lost on the way from one skeleton to another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from posegen.poses.topology import COCO_NAMES, Topology

HIDDEN, VISIBLE = 1, 2  # COCO's third number: labelled but hidden, and visible
#: Joints that lie midway between two others, where a skeleton has no joint of that name.
MIDWAY = {
    "neck": ("left_shoulder", "right_shoulder"),
    "mid_hip": ("left_hip", "right_hip"),
    "pelvis": ("left_hip", "right_hip"),
}


@dataclass(frozen=True, eq=False)
class Pose:
    """The people of one image.

    Attributes:
        keypoints: ``[P, joints, 3]`` x and y in pixels, and COCO's visibility or a score; 0 where a joint is missing.
        confidences: ``[P, joints]`` scores where the third number is COCO's visibility; None where they are unknown.
        depth: ``[P]`` or ``[P, joints]`` distances to the viewer, of which only the order counts; None where unknown.
    """

    topology: Topology
    keypoints: np.ndarray
    confidences: np.ndarray | None = None
    depth: np.ndarray | None = None

    def __post_init__(self) -> None:
        people, joints = np.shape(self.keypoints)[:1], len(self.topology)
        if np.shape(self.keypoints) != (*people, joints, 3):
            raise ValueError(
                f"keypoints of the shape {list(np.shape(self.keypoints))}; {self.topology.title} has [P, {joints}, 3]"
            )
        for name, value in (("confidences", self.confidences), ("depth", self.depth)):
            known = [(*people, joints), *([people] if name == "depth" else [])]
            if value is not None and np.shape(value) not in known:
                raise ValueError(f"{name} of the shape {list(np.shape(value))}; expected {list(known[0])}")

    def __len__(self) -> int:
        return len(self.keypoints)

    @property
    def visibility(self) -> np.ndarray:
        """``[P, joints]`` COCO's 0, 1 and 2. A score above 0 is visible; 1 is hidden only in a part with some 2."""
        third = self.keypoints[..., 2]
        hidden = np.zeros(third.shape, bool)
        for joints in self.topology.parts.values():  # COCO-WholeBody's faces and hands have scores beside visibilities
            hidden[:, joints] = (third[:, joints] == HIDDEN) & (third[:, joints] == VISIBLE).any()
        return np.where(third > 0, np.where(hidden, HIDDEN, VISIBLE), 0)

    @property
    def scores(self) -> np.ndarray:
        """``[P, joints]`` the given scores, or 1 where a joint is labelled."""
        if self.confidences is not None:
            return self.confidences
        third = self.keypoints[..., 2]
        return (third > 0).astype(float) if (third == VISIBLE).any() else third

    def to(self, topology: Topology) -> Pose:
        """The same people in another skeleton, joint by joint of the same name; `lost` says which ones are left out.

        A neck, pelvis or middle of the hips that is missing here lies midway, with the lower score of both sides.
        """
        if topology is self.topology:
            return self
        places = {name: joint for joint, name in enumerate(self.topology.names)}
        ways = [
            [places[end] for end in ((name,) if name in places else MIDWAY.get(name, ())) if end in places]
            for name in topology.names
        ]
        needed = [1 if name in places else 2 for name in topology.names]

        def moved(values: np.ndarray) -> np.ndarray:
            result = np.zeros((len(self), len(topology), *values.shape[2:]), values.dtype)
            for joint, (sides, sources) in enumerate(zip(ways, needed, strict=True)):
                if len(sides) == sources:
                    result[:, joint] = values[:, sides].mean(1)
                    if values.ndim == 3:
                        result[:, joint, 2] = values[:, sides, 2].min(1)
            return result

        keypoints = moved(self.keypoints)
        keypoints[keypoints[..., 2] <= 0] = 0
        confidences = None if self.confidences is None else moved(self.confidences)
        each = self.depth is not None and np.ndim(self.depth) == 2
        return Pose(topology, keypoints, confidences, moved(np.asarray(self.depth)) if each else self.depth)

    def lost(self, topology: Topology) -> list[str]:
        """The names of the joints that somebody has here and that another skeleton lacks, but for those midway."""
        known = self.topology.names
        seen = np.flatnonzero((self.keypoints[..., 2] > 0).any(0)).tolist()
        return [known[joint] for joint in seen if known[joint] not in topology.names and not self._is_midway(joint)]

    def _is_midway(self, joint: int) -> bool:
        """Whether a joint is everywhere as `to` computes it from two others, to a pixel."""
        ends = [
            self.topology.names.index(end)
            for end in MIDWAY.get(self.topology.names[joint], ())
            if end in self.topology.names
        ]
        if len(ends) < 2:
            return False
        people = self.keypoints[self.keypoints[:, joint, 2] > 0]
        middle = people[:, ends, :2].mean(1)
        return bool((people[:, ends, 2] > 0).all() and (np.abs(people[:, joint, :2] - middle) <= 1).all())

    @staticmethod
    def joined(poses: Sequence[Pose]) -> Pose:
        """The people of several poses; of different skeletons, with the joints of all of them."""
        kinds = list(dict.fromkeys(pose.topology for pose in poses))
        target = max(kinds, key=len)
        if not all(set(kind.names) <= set(target.names) for kind in kinds):
            names = dict.fromkeys(name for kind in kinds for name in kind.names)
            target = Topology.of(tuple(names), " and ".join(dict.fromkeys(kind.title for kind in kinds)))
        poses = [pose.to(target) for pose in poses]
        scored = any(pose.confidences is not None for pose in poses)
        scores = np.concatenate([pose.scores for pose in poses]) if scored else None
        return Pose(target, np.concatenate([pose.keypoints for pose in poses]), scores)

    @staticmethod
    def together(parts: Sequence[Pose]) -> Pose:
        """The parts of the same people, such as a body and two hands, as one skeleton."""
        names = tuple(name for part in parts for name in part.topology.names)
        title = parts[0].topology.title
        if extra := [part.topology.title for part in parts[1:]]:
            title += f" with {', '.join(dict.fromkeys(extra))}"
        scored = any(part.confidences is not None for part in parts)
        scores = np.concatenate([part.scores for part in parts], 1) if scored else None
        return Pose(Topology.of(names, title), np.concatenate([part.keypoints for part in parts], 1), scores)

    def scaled(self, scale: np.ndarray) -> Pose:
        """The same on a canvas that is larger by ``scale`` (x, y), whose pixels' centres are whole numbers."""
        keypoints = self.keypoints.copy()
        keypoints[..., :2] = (keypoints[..., :2] + 0.5) * scale - 0.5
        return replace(self, keypoints=keypoints)


def loss_sentence(source: Topology, target: Topology, lost: Sequence[str]) -> str:
    """What is left out between two skeletons, in a sentence; empty where it is nothing."""
    left = Topology("", tuple(lost)).parts
    body = [lost[joint] for joint in left.pop("body", [])]
    parts = [*body, *(f"the {part} ({len(joints)} joints)" for part, joints in left.items())]
    return f"{source.title} is read as {target.title}, without {', '.join(parts)}" if parts else ""


class Losses:
    """What many poses lose in another skeleton: one sentence for each skeleton that they have."""

    def __init__(self, target: Topology) -> None:
        self.target, self.names = target, dict[Topology, dict[str, None]]()

    def add(self, pose: Pose) -> None:
        self.names.setdefault(pose.topology, {}).update(dict.fromkeys(pose.lost(self.target)))

    @property
    def sentences(self) -> list[str]:
        return [loss_sentence(source, self.target, list(names)) for source, names in self.names.items() if names]


def lacking(topology: Topology) -> list[str]:
    """COCO's joints that a skeleton lacks."""
    return [name for name in COCO_NAMES if name not in topology.names]
