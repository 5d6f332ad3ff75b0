"""The people in what a user gives as poses: keypoints, or a picture that an estimator reads."""

from __future__ import annotations

import warnings
from functools import lru_cache

import cv2
import numpy as np
import torch
from omegaconf import OmegaConf

from posegen.config import groups as listing
from posegen.data.base import to_tensor
from posegen.errors import UserError
from posegen.metrics.base import INSTALL_PHOTOS, Estimator
from posegen.poses.pose import Pose
from posegen.poses.reading import PEOPLE, PoseInput
from posegen.poses.topology import COCO_17, Topology
from posegen.runner.components import build_node
from posegen.runner.images import visible

MANNEQUIN = "mannequin"  # the estimator that judges in the mannequin world; recipes of its backbones begin with it


def default_estimator(name: str, recipe: str) -> Estimator:
    """The judge of the mannequin world, on its backbone; elsewhere a `UserError` about the picture ``name``."""
    if not recipe.startswith(MANNEQUIN):
        needed = "a picture that is no skeleton on black needs something that reads its poses: estimator=..."
        raise UserError(f"{name}: {needed}, for instance estimator=rtmlib ({INSTALL_PHOTOS})")
    return estimator_named(MANNEQUIN)


@lru_cache(maxsize=1)
def estimator_named(option: str) -> Estimator:
    """The estimator of ``estimator=option``, with its default settings; the last one is kept."""
    known = listing.groups()["estimator"]
    if option not in known:
        raise UserError(f"estimator={option!r}: there is none of this name; known are {', '.join(sorted(known))}")
    return build_node(OmegaConf.load(known[option].file))


@torch.inference_mode()
def people_in_picture(
    guide: PoseInput, size: tuple[int, int], estimator: Estimator, wanted: Topology = COCO_17
) -> np.ndarray:
    """The people ``[P, joints, 3]`` in a picture, on the canvas of an image of a ``size`` (height, width), with the
    joints of the ``wanted`` skeleton that the estimator finds; warns where it knows no photographs."""
    assert guide.picture is not None
    picture = np.array(guide.picture)  # a copy, because torch wants a writable array
    if not estimator.any_size:
        picture = cv2.resize(picture, size[::-1], interpolation=cv2.INTER_AREA)
    poses = estimator.estimate(to_tensor(picture)[None])[0]
    found = (poses.whole or Pose(COCO_17, poses.keypoints)).to(wanted)
    if picture.shape[:2] != size:
        found = found.scaled(np.divide(size[::-1], picture.shape[1::-1]))
    people = visible(found.keypoints)
    people = people[(people[..., 2] > 0).any(-1)][:PEOPLE]
    warning = estimator.warning()
    if not len(people):
        nobody = "the estimator finds nobody in this picture; give another one, or keypoints"
        raise UserError(f"{guide.name}: {nobody}{warning and f'. {warning}'}")
    if warning:
        warnings.warn(f"{guide.name}: {warning}", stacklevel=2)
    return people
