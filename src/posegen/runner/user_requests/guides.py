"""The people in what a user gives as poses: keypoints, or a picture that an estimator reads."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from posegen.config import groups as listing
from posegen.data.base import to_tensor
from posegen.errors import UserError
from posegen.metrics.base import Estimator
from posegen.poses.reading import PEOPLE, PoseInput
from posegen.runner.images import visible

MANNEQUIN = "mannequin"  # the estimator that judges in the mannequin world; recipes of its backbones begin with it


def default_estimator(name: str, recipe: str) -> Estimator:
    """The judge of the mannequin world, on its backbone; elsewhere a `UserError` about the picture ``name``."""
    if not recipe.startswith(MANNEQUIN):
        raise UserError(
            f"{name}: a picture that is no skeleton on black needs something that reads its poses: estimator=..."
        )
    return instantiate(OmegaConf.load(listing.conf_dir() / "estimator" / f"{MANNEQUIN}.yaml"))


@torch.inference_mode()
def people_in_picture(guide: PoseInput, size: tuple[int, int], estimator: Estimator) -> np.ndarray:
    """The people ``[P, 17, 3]`` in a picture, on the canvas of an image of a ``size`` (height, width)."""
    assert guide.picture is not None
    picture = cv2.resize(guide.picture, size[::-1], interpolation=cv2.INTER_AREA)
    people = visible(estimator.estimate(to_tensor(picture)[None])[0].keypoints)
    people = people[(people[..., 2] > 0).any(-1)][:PEOPLE]
    if not len(people):
        raise UserError(f"{guide.name}: the estimator finds nobody in this picture; give another one, or keypoints")
    return people
