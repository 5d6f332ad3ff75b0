"""What networks of any skeleton find in one image, as every estimator answers it."""

from __future__ import annotations

import numpy as np

from posegen.io.weights import WeightsError
from posegen.metrics.base import Poses
from posegen.poses.pose import Pose
from posegen.poses.topology import BEGIN_AS_COCO, COCO_17, COCO_JOINTS, WHOLE_BODY_133, Topology

#: Skeletons that begin with COCO's 17 joints, by their number of joints.
SKELETONS = {len(each): each for each in (COCO_17, *BEGIN_AS_COCO.values(), WHOLE_BODY_133)}


def skeleton_of(joints: int, model: str) -> Topology:
    """The skeleton of a ``model`` (its key and file, for the message) that finds so many joints."""
    if joints not in SKELETONS:
        known = ", ".join(f"{count} ({each.title})" for count, each in sorted(SKELETONS.items()))
        raise WeightsError(f"{model} finds {joints} joints; expected a model of people with {known}")
    return SKELETONS[joints]


def found_people(
    points: np.ndarray, heights: np.ndarray, topology: Topology, least: float, trust: np.ndarray | None = None
) -> Poses:
    """The people of an image, best first.

    Args:
        points: ``[N, joints, 2]`` in pixels of the image.
        heights: ``[N, joints]`` scores of the joints, which are cut to [0, 1]; nobody has none above 0.
        least: people with a lower score are left out.
        trust: ``[N]`` scores of the boxes that the people were looked for in. A person's score is this times the mean
            score of COCO's 17 joints.
    """
    points, heights = points.astype(np.float32), heights.astype(np.float32).clip(0, 1)
    lost = ~np.isfinite(points).all(-1) | ~np.isfinite(heights)  # in images unlike any that the network knows
    people = np.where(lost[..., None], 0, np.concatenate([points, heights[..., None]], -1))
    scores = people[:, :COCO_JOINTS, 2].mean(1) * (1 if trust is None else trust.astype(np.float32))
    best = np.argsort(-scores, kind="stable")
    best = best[(scores[best] >= least) & (people[best, :, 2] > 0).any(1)]
    people = people[best]
    whole = None if topology is COCO_17 else Pose(topology, people)
    return Poses(people[:, :COCO_JOINTS].copy(), scores[best], whole)
