"""People with hands, feet and faces: COCO-WholeBody's AP of every part (Jin et al. 2020, arXiv:2007.11858), and PCK of
hands. The same AP serves other skeletons that have sigmas of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from posegen.metrics.base import Column, Judged, Metric, Records, Values
from posegen.metrics.math.average_precision import EVERY_AREA, MAX_DETECTIONS, summary
from posegen.metrics.math.oks import TINY, box_areas, oks, sides
from posegen.poses.pose import Pose
from posegen.poses.topology import COCO_17, TOPOLOGIES, Topology, topology_named
from posegen.ranges import Positive

HANDS = ("left_hand", "right_hand")


class WholeBodyMetric(Metric):
    """COCO's AP and AR of every part of a skeleton with the skeleton's sigmas, and PCK of the hands, in percent.

    As in the authors' evaluation the scale of each part is the area of the whole person, detections are ranked by the
    person's score, and people without a labelled joint of a part do not count for it: neither they, nor the detections
    that are most like them. Those are told by the person's box, here that around all labelled joints.

    ``topology`` is a name in `TOPOLOGIES`. ``pck`` is the radius of a correct joint of a hand relative to the longer
    side of the box around that hand's labelled joints, of the detection that is most like the whole person."""

    def __init__(self, topology: str = "wholebody133", pck: Positive = 0.2) -> None:
        self.topology, self.pck = topology_named(topology), pck
        if self.topology.sigmas is None:
            known = ", ".join(name for name, each in TOPOLOGIES.items() if each.sigmas is not None)
            raise ValueError(f"topology={topology} has no published sigmas, which AP needs; choose from {known}")
        self.parts = evaluated_parts(self.topology, topology)
        self.whole = [*self.parts][-1]
        self.pck_column = Column(f"hand_PCK@{pck:g}", headline=1, family="accuracy", unit="%")
        self.columns = (
            *(Column(f"{part}_AP", family="accuracy", unit="%") for part in self.parts),
            *(Column(f"{part}_AR", headline=None, family="accuracy", unit="%") for part in self.parts),
            *([self.pck_column] if HANDS[0] in self.parts else []),
        )

    def absent(self, records: Records) -> dict[str, str]:
        if f"{self.whole}_oks" not in records:
            reason = f"the judge does not find the joints of {self.topology.title}: choose an estimator that does"
            return dict.fromkeys(self.columns, reason)
        empty = [part for part in self.parts if not any((areas >= 0).any() for areas in records[f"{part}_areas"])]
        missing = {c: f"the data have no joints of {self.topology.title} there" for p in empty for c in self._of(p)}
        return missing | ({self.pck_column: missing[f"{HANDS[0]}_AP"]} if {*HANDS} <= {*empty} else {})

    def _of(self, part: str) -> list[str | Column]:
        return [column for column in self.columns if column in (f"{part}_AP", f"{part}_AR")]

    def record(self, judged: Judged) -> dict[str, float | np.ndarray]:
        """By part ``oks [D, P]``, ``scores [D]``, best detection first, and ``areas [P]``, -1 of people who do not
        count; ``hand_joints`` and those that are correct. Empty where the judge does not know these joints."""
        if judged.found.whole is None or judged.found.whole.topology is not self.topology:
            return {}
        known = judged.whole is not None and judged.whole.topology is self.topology
        labels = judged.whole if known else Pose(COCO_17, judged.keypoints)
        assert labels is not None
        areas = np.where(np.isnan(judged.areas), box_areas(labels.keypoints), judged.areas)
        boxes = around(labels.keypoints)
        keypoints = labels.keypoints if known else np.zeros((len(labels), len(self.topology), 3))
        order = np.argsort(-judged.found.scores, kind="stable")
        found, scores = judged.found.whole.keypoints[order], judged.found.scores[order]
        facts: dict[str, float | np.ndarray] = {}
        for part, joints in self.parts.items():
            seen = np.flatnonzero((found[:, joints, 2] > 0).any(-1))[:MAX_DETECTIONS]
            some, labelled = found[seen][:, joints], (keypoints[:, joints, 2] > 0).any(-1)
            sigmas = self.topology.sigmas[joints]  # type: ignore[index]  # see __init__
            similar = np.where(
                labelled, oks(some, keypoints[:, joints], areas, sigmas), inside(some, boxes, areas, sigmas)
            )
            facts |= {f"{part}_oks": similar, f"{part}_scores": scores[seen]}
            facts[f"{part}_areas"] = np.where(labelled, areas, -1.0)
        if HANDS[0] in self.parts:
            best = oks(found, keypoints, areas, self.topology.sigmas).argmax(0) if len(found) else []  # type: ignore[arg-type]
            facts |= {"hand_joints": 0.0, "hand_joints_correct": 0.0}
            for joints in (self.parts[hand] for hand in HANDS):
                hand = keypoints[:, joints]
                facts["hand_joints"] += float((hand[..., 2] > 0).sum())
                if len(found) and len(hand):
                    away = np.linalg.norm(found[best][:, joints, :2] - hand[..., :2], axis=-1)
                    right = (hand[..., 2] > 0) & (away <= self.pck * sides(hand).max(-1, keepdims=True))
                    facts["hand_joints_correct"] += float(right.sum())
        return facts

    def resampled(self, records: Records, weights: np.ndarray, reference: Records | None = None) -> Values:
        if f"{self.whole}_oks" not in records:
            return {column: np.full(len(weights), np.nan) for column in self.columns}
        values: Values = {}
        for part in self.parts:
            scores, areas = records[f"{part}_scores"], records[f"{part}_areas"]
            nowhere = [np.zeros(len(each)) for each in scores]  # areas of detections, which no range leaves out
            found = summary(records[f"{part}_oks"], scores, areas, nowhere, weights, {"": EVERY_AREA})
            values |= {f"{part}_{name}": 100 * found[name] for name in ("AP", "AR")}
        if HANDS[0] in self.parts:
            correct, joints = (np.asarray(records[name], float) for name in ("hand_joints_correct", "hand_joints"))
            with np.errstate(invalid="ignore"):
                values[self.pck_column] = 100 * (weights @ correct) / (weights @ joints)
        return values


def evaluated_parts(topology: Topology, name: str) -> dict[str, Sequence[int]]:
    """The joints of each part that is measured by itself, hand by hand, and at last all of them."""
    parts: dict[str, Sequence[int]] = dict(topology.parts)
    for hand in HANDS if (hands := parts.pop("hands", ())) else ():
        parts[hand] = [joint for joint in hands if topology.names[joint].startswith(hand.partition("_")[0])]
    every = range(len(topology))
    return {**parts, "whole": [*every]} if len(parts) > 1 else {name: [*every]}


def around(keypoints: np.ndarray) -> np.ndarray:
    """``[P, 4]`` boxes (x, y of two corners) around the labelled joints of ``[P, joints, 3]``, and as far again on
    every side; COCO's evaluation looks there for people of whom no joint is labelled. 0 without any."""
    labelled, size = keypoints[..., 2:] > 0, sides(keypoints)
    low = np.where(labelled, keypoints[..., :2], np.inf).min(1, initial=np.inf)
    low = np.where(labelled.any(1), low, 0.0)
    return np.concatenate([low - size, low + 2 * size], 1)


def inside(found: np.ndarray, boxes: np.ndarray, areas: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """As OKS ``[D, P]`` of ``found [D, joints, 3]``, with the distance of each joint from ``boxes [P, 4]``."""
    points = found[:, None, :, :2].astype(float)
    away = np.maximum(boxes[:, None, :2] - points, 0) + np.maximum(points - boxes[:, None, 2:], 0)
    return np.exp(-(away**2).sum(-1) / np.square(2 * sigmas) / (areas[:, None] + TINY) / 2).mean(-1)
