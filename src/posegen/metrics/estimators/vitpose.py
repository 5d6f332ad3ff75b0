"""ViTPose (Xu et al. 2022, arXiv:2204.12484) on photographs, by transformers' own classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from posegen.data.base import to_uint8
from posegen.io.hub import HubPlace, fetched, first_sentence, on_hub
from posegen.io.weights import WeightsError
from posegen.metrics.base import Estimator, Poses
from posegen.metrics.estimators.any_skeleton import found_people, skeleton_of
from posegen.ranges import AtLeastZero, ZeroToOne

MODEL_FILES = ("config.json", "preprocessor_config.json", "model", "pytorch_model")


class VitPose(nn.Module, Estimator):
    """An estimator that runs a ``VitPoseForPoseEstimation`` of transformers on the boxes of a detector.

    Models are named by their folder, or as ``hub:owner/name[@revision]``; each brings its image processor.

    Args:
        path: the model that finds joints, 17 or 133.
        detector_path: any model of transformers for object detection that knows the class ``person``; None takes the
            whole image for one person.
        dataset_index: of the data set whose expert a model with several (ViTPose++) asks, from 0; COCO is 0.
        detector_threshold: least score of a box.
        score_threshold: least score of a person, the score of the box times the mean score of COCO's 17 joints.

    Raises ValueError where a folder holds something else, or does not fit the other settings.
    """

    any_size = True

    def __init__(
        self,
        path: str | Path,
        detector_path: str | Path | None,
        dataset_index: AtLeastZero | None = None,
        detector_threshold: ZeroToOne = 0.3,
        score_threshold: ZeroToOne = 0.0,
    ) -> None:
        from transformers import AutoModelForObjectDetection, VitPoseForPoseEstimation

        super().__init__()
        self.detector_threshold, self.score_threshold = detector_threshold, score_threshold
        name = f"estimator.path={path}"
        self.model, self.processor = pretrained(VitPoseForPoseEstimation, path, name)
        self.topology = skeleton_of(self.model.config.num_labels, name)
        experts = self.model.config.backbone_config.num_experts
        if experts > 1 and not 0 <= (-1 if dataset_index is None else dataset_index) < experts:
            need = f"{name} has {experts} experts, one for each data set; expected 0 to {experts - 1}, 0 is COCO"
            raise ValueError(f"estimator.dataset_index={dataset_index}: {need}")
        self.expert = dataset_index if experts > 1 else None
        self.detector: Any = None
        self.preparing: Any = None
        if detector_path is not None:
            finder = f"estimator.detector_path={detector_path}"
            self.detector, self.preparing = pretrained(AutoModelForObjectDetection, detector_path, finder)
            classes = {str(label).lower(): i for i, label in self.detector.config.id2label.items()}
            if "person" not in classes:
                listed = ", ".join(list(classes)[:5])
                raise ValueError(f"{finder} knows no class person, but {listed}; choose a detector of COCO's classes")
            self.person = int(classes["person"])

    @torch.no_grad()
    def estimate(self, images: Tensor) -> list[Poses]:
        """The people in images ``[B, 3, H, W]`` in [-1, 1]; all crops of a batch in one pass."""
        pictures = list(to_uint8(images))
        found = self.boxes(pictures, images.device)
        boxes = [[*rows] for rows, _ in found]
        nobody = np.zeros((0, len(self.topology), 2))
        points, heights = [nobody] * len(pictures), [nobody[..., 0]] * len(pictures)
        if any(boxes):
            inputs = self.processor(pictures, boxes=boxes, input_data_format="channels_last", return_tensors="pt")
            pixels = inputs["pixel_values"].to(images.device)
            expert = None if self.expert is None else torch.full((len(pixels),), self.expert, device=images.device)
            outputs = self.model(pixels, dataset_index=expert)
            for i, people in enumerate(self.processor.post_process_pose_estimation(outputs, boxes=boxes)):
                if people:
                    points[i] = torch.stack([person["keypoints"] for person in people]).numpy()
                    heights[i] = torch.stack([person["scores"] for person in people]).numpy()
        facts = zip(points, heights, found, strict=True)
        return [found_people(p, h, self.topology, self.score_threshold, trust) for p, h, (_, trust) in facts]

    def boxes(self, pictures: list[np.ndarray], device: torch.device) -> list[tuple[list[list[float]], np.ndarray]]:
        """Boxes (left, top, width, height) of people in pictures ``[H, W, 3] uint8``, and their scores."""
        sizes = [picture.shape[:2] for picture in pictures]
        if self.detector is None:
            return [([[0.0, 0.0, float(width), float(height)]], np.ones(1)) for height, width in sizes]
        inputs = self.preparing(pictures, input_data_format="channels_last", return_tensors="pt").to(device)
        outputs, least = self.detector(**inputs), self.detector_threshold
        rows = []
        for found in self.preparing.post_process_object_detection(outputs, threshold=least, target_sizes=sizes):
            people = found["labels"] == self.person
            corners, scores = found["boxes"][people].cpu(), found["scores"][people].cpu().numpy()
            rows.append((torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1).tolist(), scores))
        return rows


def pretrained(kind: Any, place: str | Path, name: str) -> tuple[nn.Module, Any]:
    """A frozen model of transformers with its image processor; ``name`` is for messages. No code of the folder runs.

    Raises WeightsError where the folder is missing, damaged or another model's."""
    from transformers import AutoImageProcessor

    folder = Path(place).expanduser()
    if on_hub(place):
        folder, _ = fetched(HubPlace.of(str(place)), MODEL_FILES, expected="a model of transformers")
    if not (folder / "config.json").is_file():
        fix = f"name a folder of transformers' {kind.__name__}, or hub:OWNER/NAME"
        raise WeightsError(f"{name} is no model folder (no config.json); {fix}")
    try:
        safe = {"local_files_only": True, "trust_remote_code": False}  # else transformers asks whether to run it
        model, report = kind.from_pretrained(folder, output_loading_info=True, dtype=torch.float32, **safe)
        processor = AutoImageProcessor.from_pretrained(folder, **safe)
    except Exception as error:  # transformers raises many kinds, by damage and version
        fix = "copy its folder again, or choose another"
        raise WeightsError(f"{name} cannot be read as {kind.__name__} ({first_sentence(error)}); {fix}") from error
    if lacking := sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}):
        fix = f"expected the weights of {kind.__name__}"
        raise WeightsError(f"{name} lacks {len(lacking)} weights ({', '.join(lacking[:3])}); {fix}")
    return model.eval().requires_grad_(False), processor
