"""RTMPose, RTMW, DWPose, RTMO and ViTPose on photographs, by rtmlib and onnxruntime, without mmcv.

rtmlib (https://github.com/Tau-J/rtmlib) has the detectors, everything before and after the networks, and the addresses
of the published weights; here is only what makes an estimator of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from posegen.data.base import to_uint8
from posegen.errors import UserError
from posegen.io.hub import HubPlace, fetched, first_sentence, on_hub
from posegen.io.weights import WeightsError
from posegen.metrics.base import INSTALL_PHOTOS, Estimator, Poses
from posegen.metrics.estimators.any_skeleton import found_people, skeleton_of
from posegen.poses.topology import COCO_17
from posegen.ranges import ZeroToOne

#: rtmlib's class for a pose network, by the number of dimensions of its outputs.
POSE_CLASSES = {(3, 3): "RTMPose", (3, 4): "RTMO", (4,): "ViTPose"}
WIDTH_FIRST = ("RTMPose", "ViTPose")  # classes whose input size is (width, height); that of others is the reverse
PERSON = 0  # in COCO's list of classes
ON_CPU = "or set estimator.accelerator=cpu"


class RTMLib(Estimator):
    """An estimator that runs networks of rtmlib, one image at a time, as rtmlib does.

    Files are named by their place on this machine, as ``hub:owner/name/FILE.onnx[@revision]``, or by an https address,
    which rtmlib downloads into its cache. What a file of poses is (top-down with two outputs or heatmaps, or RTMO,
    which finds the people itself), its own outputs tell.

    Args:
        path: the network that finds joints; None takes that of ``solution`` and ``mode``.
        detector_path: the network that finds people; None takes that of ``solution`` and ``mode`` where ``path`` is
            None, too, else the whole image for one person.
        detector: rtmlib's class for the detector.
        solution, mode: names that rtmlib has for the networks it downloads; Wholebody finds 133 joints, Body and RTMO
            17, BodyWithFeet 26.
        size, detector_size: (height, width) of the networks' inputs, where their files leave it open.
        accelerator: ``auto`` uses a GPU where onnxruntime has one.
        score_threshold: least score of a person, the mean score of COCO's 17 joints.

    Raises ImportError without rtmlib or onnxruntime, FileNotFoundError, and ValueError where a file holds something
    else or cannot be fetched.
    """

    any_size = True

    def __init__(
        self,
        path: str | Path | None = None,
        detector_path: str | Path | None = None,
        detector: Literal["YOLOX", "RTMDet", "RFDETR"] = "YOLOX",
        solution: Literal["Wholebody", "Body", "BodyWithFeet", "RTMO"] = "Wholebody",
        mode: Literal["performance", "balanced", "lightweight"] = "balanced",
        size: Sequence[int] | None = None,
        detector_size: Sequence[int] | None = None,
        accelerator: Literal["auto", "cpu", "gpu"] = "auto",
        score_threshold: ZeroToOne = 0.0,
    ) -> None:
        library, self.score_threshold = imported_rtmlib(), score_threshold
        if path is None:
            known = library.Body.RTMO_MODE if solution == "RTMO" else getattr(library, solution).MODE
            path = known[mode]["pose"]
            size = size or known[mode]["pose_input_size"][::-1]
            if solution != "RTMO" and detector_path is None:
                detector, detector_path = "YOLOX", known[mode]["det"]
                detector_size = detector_size or known[mode]["det_input_size"]
        self.model = f"estimator.path={path}"
        file = local_onnx(str(path), "path")
        self.pose = rtmlib_tool(library.RTMPose, file, self.model, accelerator)
        shapes = [output.shape for output in self.pose.session.get_outputs()]
        name = POSE_CLASSES.get(tuple(map(len, shapes)))
        if name is None:
            expected = "expected two of SimCC (RTMPose, RTMW, DWPose), boxes and joints (RTMO) or heatmaps (ViTPose)"
            raise WeightsError(f"{self.model} has the outputs {shapes}, as no pose network of rtmlib has; {expected}")
        if isinstance(joints := shapes[-1][2 if name == "RTMO" else 1], int):
            skeleton_of(joints, self.model)
        if name != "RTMPose":
            self.pose = rtmlib_tool(getattr(library, name), file, self.model, accelerator)
        set_input_size(self.pose, size, self.model, "size")
        self.detector: Any = None
        if detector_path is not None:
            if name == "RTMO":
                raise ValueError(f"{self.model} finds the people itself; leave estimator.detector_path out")
            self.detector = person_detector(library, str(detector_path), detector, detector_size, accelerator)

    def estimate(self, images: Tensor) -> list[Poses]:
        return [self._people(np.ascontiguousarray(image[..., ::-1])) for image in to_uint8(images)]

    def _people(self, image: np.ndarray) -> Poses:
        """The people in a picture ``[H, W, 3] uint8`` BGR, the order of rtmlib's own programs."""
        try:
            if self.detector is None:
                points, heights = self.pose(image)
            elif len(boxes := self._boxes(image)):
                points, heights = self.pose(image, bboxes=boxes)
            else:  # rtmlib would look at the whole image, as it does without a detector
                return found_people(np.zeros((0, 17, 2)), np.zeros((0, 17)), COCO_17, 0)
        except Exception as error:  # of onnxruntime, and of what comes before and after a foreign network
            model = self.model if self.detector is None else f"{self.model} with estimator.detector_path"
            fix = "choose networks that rtmlib runs"
            raise WeightsError(f"{model} fails on a picture ({first_sentence(error)}); {fix}") from error
        return found_people(points, heights, skeleton_of(points.shape[1], self.model), self.score_threshold)

    def _boxes(self, image: np.ndarray) -> Any:
        """Boxes of people, corners in pixels."""
        if self.detector.det_mode != "multiclass":
            return self.detector(image)
        boxes, classes = self.detector(image)
        return boxes[classes == PERSON]


def person_detector(library: Any, place: str, kind: str, size: Sequence[int] | None, accelerator: str) -> Any:
    """rtmlib's detector of a file; raises WeightsError where its outputs are no boxes."""
    name = f"estimator.detector_path={place}"
    detector = rtmlib_tool(getattr(library, kind), local_onnx(place, "detector_path"), name, accelerator)
    shapes = [output.shape for output in detector.session.get_outputs()]
    width = shapes[0][-1] if len(shapes[0]) == 3 else 0
    boxes, classes = width in (4, 5) or not isinstance(width, int), len(shapes) == 1 and width > 5
    if not (boxes or classes):
        expected = "expected boxes [1, N, 5], or RFDETR's [1, N, 4], or boxes with the scores of their classes"
        raise WeightsError(f"{name} has the outputs {shapes}, as no detector of rtmlib has; {expected}")
    if kind == "YOLOX" and classes and width > 6:  # of COCO's 80 classes; rtmlib would take all for people
        detector.det_mode = "multiclass"
    set_input_size(detector, size, name, "detector_size")
    return detector


def rtmlib_tool(kind: Any, file: Path, name: str, accelerator: str) -> Any:
    """rtmlib's tool of a class for a file; ``name`` is for messages."""
    device = device_of_onnx(accelerator)
    try:
        with redirect_stdout(StringIO()):  # a line about the file
            tool = kind(str(file), backend="onnxruntime", device=device)
    except Exception as error:  # onnxruntime has a class for each kind of damage
        fix = "expected an ONNX file of rtmlib's list, or one that mmdeploy exported"
        raise WeightsError(f"{name} cannot be read by onnxruntime ({first_sentence(error)}); {fix}") from error
    if accelerator == "gpu" and "CUDAExecutionProvider" not in tool.session.get_providers():
        raise UserError(f"estimator.accelerator=gpu: onnxruntime cannot use this GPU, see its message; {ON_CPU}")
    return tool


def device_of_onnx(accelerator: str) -> str:
    """rtmlib's name of the device; a UserError where onnxruntime was built without it."""
    from onnxruntime import get_available_providers

    able = "CUDAExecutionProvider" in get_available_providers()
    if accelerator == "gpu" and not able:
        swap = "pip uninstall onnxruntime, pip install onnxruntime-gpu"
        raise UserError(f"estimator.accelerator=gpu: this onnxruntime computes on the CPU alone; {swap}, {ON_CPU}")
    return "cuda" if able and accelerator != "cpu" else "cpu"


def set_input_size(tool: Any, wanted: Sequence[int] | None, name: str, key: str) -> None:
    """Gives rtmlib's tool the input size of its file; where that leaves it open the ``wanted`` one (height, width), or
    the usual one of the tool."""
    shape = tool.session.get_inputs()[0].shape
    fixed = [side for side in shape[2:] if isinstance(side, int)]
    if len(shape) != 4 or (isinstance(shape[1], int) and shape[1] != 3):
        raise WeightsError(f"{name} reads inputs of the shape {shape}; expected pictures [N, 3, height, width]")
    if len(fixed) == 2:
        if wanted is not None and list(wanted) != fixed:
            fix = "leave it out"
            raise WeightsError(f"estimator.{key}={list(wanted)}: {name} reads pictures of {fixed}; {fix}")
        wanted = fixed
    if wanted is not None:
        height, width = wanted
        tool.model_input_size = (width, height) if type(tool).__name__ in WIDTH_FIRST else (height, width)


def local_onnx(place: str, key: str) -> Path:
    """The file that a place means, which is fetched from the Hub or downloaded by rtmlib where it is not here."""
    if on_hub(place):
        hub = HubPlace.of(place)
        if not hub.inside.endswith(".onnx"):
            raise UserError(f"estimator.{key}={place} names no ONNX file; expected hub:OWNER/NAME/FILE.onnx")
        return fetched(hub, expected="a file that ends in .onnx")[0]
    if place.startswith("https://"):
        from rtmlib.tools.file import download_checkpoint

        try:
            return Path(download_checkpoint(place))
        except Exception as error:  # of the connection, the archive, or the disk
            by_hand = f"fetch it elsewhere, unpack it, and set estimator.{key}=FILE.onnx"
            raise UserError(f"rtmlib could not download {place} ({first_sentence(error)}); {by_hand}") from error
    file = Path(place).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"estimator.{key}={place}: no such file; expected an ONNX file")
    return file


def imported_rtmlib() -> Any:
    """The library; raises ImportError with the line that installs it."""
    try:
        import onnxruntime  # noqa: F401
        import rtmlib
    except ImportError as error:
        raise ImportError(f"estimator=rtmlib needs rtmlib and onnxruntime ({error}): {INSTALL_PHOTOS}") from error
    return rtmlib
