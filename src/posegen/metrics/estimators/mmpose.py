"""Any pose estimator of mmpose 1.x as a judge: by its config file and its weights.

Bottom-up models find the people themselves. Top-down ones look at one person each: the people of another estimator
(``finder``), or the whole image as one. mmpose 1.3.2 imports compiled operations and packages, mmdet among them, that
do not exist for a current PyTorch and numpy; none of its models here needs them, so stand-ins take their places.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor, nn

from posegen.data.base import to_uint8
from posegen.io.hub import local_place
from posegen.io.weights import WeightsError, read_tensors
from posegen.metrics.base import Estimator, Poses
from posegen.metrics.network_weights import load_every_weight
from posegen.poses.topology import COCO_NAMES
from posegen.ranges import ZeroToOne

INSTALL = "pip install 'posegen[mmpose]'"
MARGIN = 0.1  # room around the joints of a found person on each side, as a share of the longer side of their box
SEEN = 0.05  # least score of a joint that counts for a person's box


class MMPose(nn.Module, Estimator):
    """An estimator that runs a model of mmpose.

    Args:
        config: a config file of mmpose 1.x, or its place below the package's own ``configs``, such as
            ``body_2d_keypoint/rtmo/coco/rtmo-s_8xb32-600e_coco-640x640.py``; a Python program, which is run.
        weights: the model's file (``.pth`` or safetensors); None leaves random weights.
        finder: finds the people that a top-down model looks at; None takes the whole image for one person.

    Raises ImportError without mmpose, FileNotFoundError without the config, and ValueError where it makes no model of
    COCO's joints, or the weights are another model's.
    """

    def __init__(
        self,
        config: str | Path,
        weights: str | Path | None,
        finder: Estimator | None = None,
        score_threshold: ZeroToOne = 0.0,
    ) -> None:
        super().__init__()
        self.finder, self.score_threshold = finder, score_threshold
        with quietly():
            self.model = built(config)
            if weights is None:
                self.model.init_weights()
        known = self.model.dataset_meta["keypoint_name2id"]
        if missing := [name for name in COCO_NAMES if name not in known]:
            found = f"knows {len(known)} joints without COCO's {', '.join(missing)}"
            raise ValueError(f"estimator.config={config} {found}; choose a model of COCO's 17 joints")
        self.order = [known[name] for name in COCO_NAMES]
        self.top_down = type(self.model).__name__ == "TopdownPoseEstimator"
        if finder is not None and not self.top_down:
            reason = f"{config} is bottom-up and finds the people itself"
            raise ValueError(f"estimator.finder is of no use: {reason}; leave it out")
        if weights is not None:
            fill_model(self.model, local_place(weights))
        self.eval().requires_grad_(False)

    def estimate(self, images: Tensor) -> list[Poses]:
        """The people in each of B images ``[B, 3, H, W]``, one image at a time, as mmpose's own programs do."""
        if self.model.data_preprocessor.device != images.device:
            self.model.to(images.device)  # mmpose's own tells its preprocessing; that of modules around it does not
        pixels = np.ascontiguousarray(to_uint8(images)[..., ::-1])  # mmpose reads BGR
        people = [None] * len(pixels) if self.finder is None else self.finder.estimate(images)
        with quietly():
            if not self.top_down:
                return [self._found(mmpose_apis().inference_bottomup(self.model, image)) for image in pixels]
            return [self._looked_at(image, found) for image, found in zip(pixels, people, strict=True)]

    def _looked_at(self, image: np.ndarray, people: Poses | None) -> Poses:
        """The people of whom another estimator tells where they are; their scores are those of both, multiplied."""
        if people is None:
            return self._found(mmpose_apis().inference_topdown(self.model, image))
        people = Poses(people.keypoints[there := (people.keypoints[..., 2] > SEEN).any(1)], people.scores[there])
        if not len(people):
            return Poses(np.zeros((0, len(COCO_NAMES), 3), np.float32), np.zeros(0, np.float32))
        results = mmpose_apis().inference_topdown(self.model, image, boxes_around(people.keypoints))
        return self._found(results, people.scores)

    def _found(self, results: list[Any], trust: np.ndarray | None = None) -> Poses:
        """mmpose's results for one image as COCO's joints, best person first."""
        instances = [result.pred_instances for result in results]

        def joined(name: str) -> np.ndarray:
            return np.concatenate([np.asarray(getattr(i, name), np.float32) for i in instances])

        points, heights = joined("keypoints")[:, self.order], joined("keypoint_scores")[:, self.order].clip(0, 1)
        lost = ~np.isfinite(points).all(-1) | ~np.isfinite(heights)  # in images unlike any that the network knows
        points[lost], heights[lost] = 0, 0
        scores = heights.mean(1) * (1 if trust is None else trust)
        if not self.top_down and all("bbox_scores" in i for i in instances):
            scores = joined("bbox_scores").reshape(-1).clip(0, 1)  # the model's, which tell people from stray joints
        best = np.argsort(-scores, kind="stable")
        best = best[scores[best] >= self.score_threshold]
        people = np.concatenate([points, heights[..., None]], -1)
        return Poses(people[best].astype(np.float32), scores[best].astype(np.float32))


def boxes_around(keypoints: np.ndarray) -> np.ndarray:
    """``[N, 4]`` boxes (x, y of two corners) around the joints of ``[N, 17, 3]``, with a margin."""
    seen = keypoints[..., 2:] > SEEN
    low, high = np.where(seen, keypoints[..., :2], np.inf).min(1), np.where(seen, keypoints[..., :2], -np.inf).max(1)
    room = np.maximum(1.0, MARGIN * (high - low).max(1, keepdims=True))
    return np.concatenate([low - room, high + room], 1).astype(np.float32)


def model_config(config: str | Path) -> Any:
    """A config without the weights that training would start from; raises FileNotFoundError and ValueError."""
    import mmpose
    from mmengine.config import Config

    shipped = Path(mmpose.__file__).parent / ".mim" / "configs"
    file = next((path for path in (Path(config).expanduser(), shipped / config) if path.is_file()), None)
    if file is None:
        raise FileNotFoundError(f"estimator.config={config}: no such file, neither here nor below {shipped}")
    try:
        read = Config.fromfile(str(file))
        read.model, read.test_dataloader.dataset.pipeline  # noqa: B018 - both are needed
    except Exception as error:  # it is a program, and may fail in any way
        reason = f"is no config of a pose estimator of mmpose 1.x ({type(error).__name__}: {error})"
        raise ValueError(f"estimator.config={file} {reason}") from error
    _forget_pretrained(read.model)
    return read


def _forget_pretrained(node: Any) -> None:
    if isinstance(node, dict) and isinstance(start := node.get("init_cfg"), dict) and start.get("type") == "Pretrained":
        del node["init_cfg"]
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple) else ():
        _forget_pretrained(child)


def built(config: str | Path) -> nn.Module:
    """The model of a config, with new weights; raises ValueError where it cannot be built."""
    apis, read = mmpose_apis(), model_config(config)
    try:
        return apis.init_model(read, device="cpu")
    except Exception as error:  # registries wrap errors of every kind
        needs = "models that need mmdet, mmpretrain or compiled operations of mmcv do not work on a current PyTorch"
        reason = f"its model cannot be built here ({type(error).__name__}: {error})"
        raise ValueError(f"estimator.config={config}: {reason}; {needs}: choose another") from error


def fill_model(model: nn.Module, weights: Path) -> None:
    """Loads a file's state dict; a ValueError where that must run it, or a tensor is missing or of another shape."""
    try:
        given = read_tensors(weights)
    except WeightsError as error:
        hint = "If it is a checkpoint of your training, mmengine's logs in it are programs"
        raise ValueError(f"estimator.weights: {error}. {hint}: save the model's state_dict alone") from error
    known = {key: given[key] for key in model.state_dict() if key in given}
    refusal = f"estimator.weights={weights} are not those of the config's model"
    load_every_weight(model, known, refusal, "give the config that they were published with")


@contextmanager
def quietly() -> Iterator[None]:
    """Without mmpose's remarks on registries and metadata, and without torch's on the functions that it calls."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)


def mmpose_apis() -> Any:
    """``mmpose.apis``; raises ImportError where mmpose, or something that it needs, is not installed."""
    if "mmpose.apis" not in sys.modules:
        try:
            with stand_ins(), warnings.catch_warnings(action="ignore"):  # deprecations of ten packages
                import mmpose.apis
                import mmpose.datasets
                import mmpose.models  # noqa: F401
        except ImportError as error:
            sys.modules.pop("mmpose.apis", None)
            needs = f"mmpose 1.3 and what belongs to it ({error})"
            raise ImportError(f"estimator=mmpose needs {needs}: {INSTALL}") from error
    return sys.modules["mmpose.apis"]


@contextmanager
def stand_ins() -> Iterator[None]:
    """Modules that mmpose imports and does not need, in place while the block runs."""
    from pycocotools import coco, cocoeval, mask
    from torchvision.ops import DeformConv2d

    class Deformable(DeformConv2d):
        """torchvision's in the place of mmcv's, with the same layout; the number of groups follows from the offsets."""

        def __init__(self, *arguments: Any, deform_groups: int = 1, bias: bool = False, **options: Any) -> None:
            super().__init__(*arguments, bias=bias, **options)

    class MultiScaleDeformableAttention:
        def __init__(self, *_: Any, **__: Any) -> None:
            reason = "this model needs the compiled operations of mmcv, which do not exist for a current PyTorch"
            raise ImportError(f"{reason}; choose another estimator.config")

    mmcv_ops = {"DeformConv2d": Deformable, "MultiScaleDeformableAttention": MultiScaleDeformableAttention}
    mmdet_utils = {"ConfigType": Any, "reduce_mean": lambda value: value}  # the mean over processes, in training
    empty: dict[str, Any] = {"__path__": []}  # xtcocotools is built for numpy 1
    contents = {"xtcocotools": empty, "mmdet": empty, "mmcv.ops": mmcv_ops, "mmdet.utils": mmdet_utils}
    modules = {"xtcocotools.coco": coco, "xtcocotools.cocoeval": cocoeval, "xtcocotools.mask": mask}
    for name, content in contents.items():
        modules[name] = ModuleType(name)
        vars(modules[name]).update(content)
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in before:
            del sys.modules[name]
        sys.modules.update({name: module for name, module in before.items() if module is not None})
