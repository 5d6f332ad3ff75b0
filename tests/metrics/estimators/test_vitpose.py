"""The estimator finds what transformers' own classes find, one after the other; models that do not fit are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrImageProcessor,
    RTDetrResNetConfig,
    VitPoseBackboneConfig,
    VitPoseConfig,
    VitPoseForPoseEstimation,
    VitPoseImageProcessor,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessor,
)

from posegen.data.base import to_tensor
from posegen.io.weights import WeightsError
from posegen.metrics.base import Poses
from posegen.metrics.estimators.vitpose import VitPose
from posegen.poses.topology import WHOLE_BODY_133

LABELS = {0: "cat", 1: "person"}


@torch.no_grad()
def randomised(model: nn.Module, spread: float) -> None:
    """With weights that are not near 0, so that the answers differ."""
    for weights in model.parameters():
        weights.copy_(spread * torch.randn_like(weights))


def pose_model(folder: Path, joints: int = 17, experts: int = 1) -> Path:
    torch.manual_seed(joints + experts)
    sizes = {"image_size": [64, 48], "patch_size": [16, 16], "hidden_size": 16, "num_attention_heads": 2}
    backbone = VitPoseBackboneConfig(
        **sizes, num_hidden_layers=2, num_experts=experts, part_features=4, out_indices=[2], mlp_ratio=2
    )
    model = VitPoseForPoseEstimation(VitPoseConfig(backbone_config=backbone, num_labels=joints, scale_factor=4))
    randomised(model.backbone, 0.5)
    randomised(model.head, 0.03)
    model.save_pretrained(folder)
    VitPoseImageProcessor(size={"height": 64, "width": 48}).save_pretrained(folder)
    return folder


def yolos(folder: Path, labels: dict[int, str] = LABELS) -> Path:
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = YolosConfig(**sizes, image_size=[64, 64], num_detection_tokens=12, id2label=labels)
    model = YolosForObjectDetection(config)
    randomised(model, 1.0)
    model.save_pretrained(folder)
    YolosImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    return folder


def rt_detr(folder: Path) -> Path:
    torch.manual_seed(4)
    resnet = RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1] * 4,
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = RTDetrConfig(
        backbone_config=resnet, encoder_hidden_dim=16, encoder_in_channels=[8, 16, 16], encoder_ffn_dim=16, d_model=16,
        decoder_in_channels=[16] * 3, decoder_ffn_dim=16, decoder_layers=1, num_queries=10, encoder_attention_heads=2,
        decoder_attention_heads=2, id2label=LABELS, num_denoising=0,
    )  # fmt: skip
    model = RTDetrForObjectDetection(config)
    randomised(model.model.decoder, 0.5)
    model.save_pretrained(folder)
    RTDetrImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def pictures(size: tuple[int, int], count: int = 3) -> list[np.ndarray]:
    return list(np.random.default_rng(sum(size)).integers(0, 256, (count, *size, 3), dtype=np.uint8))


def found(estimator: VitPose, images: list[np.ndarray]) -> list[Poses]:
    return estimator.estimate(torch.stack([to_tensor(image) for image in images]))


@torch.no_grad()
def expected(
    pose: Path, detector: tuple[type, type, Path], image: np.ndarray, least: float, expert: int | None
) -> list:
    """(keypoints, scores, score of the box) of each person, by transformers' classes as its documentation calls them."""
    finder, preparing = detector[0].from_pretrained(detector[2]).eval(), detector[1].from_pretrained(detector[2])
    outputs = finder(**preparing(images=image, return_tensors="pt"))
    [boxes] = preparing.post_process_object_detection(outputs, threshold=least, target_sizes=[image.shape[:2]])
    people = boxes["labels"] == 1
    corners, trust = boxes["boxes"][people].numpy(), boxes["scores"][people].numpy()
    if not len(corners):
        return []
    corners[:, 2:] -= corners[:, :2]
    model, processor = (
        VitPoseForPoseEstimation.from_pretrained(pose).eval(),
        VitPoseImageProcessor.from_pretrained(pose),
    )
    inputs = processor(image, boxes=[corners.tolist()], return_tensors="pt")
    index = None if expert is None else torch.tensor([expert] * len(corners))
    [results] = processor.post_process_pose_estimation(model(**inputs, dataset_index=index), boxes=[corners.tolist()])
    facts = zip(results, trust, strict=True)
    return [(person["keypoints"].numpy(), person["scores"].numpy().clip(0, 1), score) for person, score in facts]


@pytest.mark.parametrize(("finder", "joints", "experts"), [("yolos", 17, 1), ("rt_detr", 133, 1), ("rt_detr", 17, 3)])
def test_the_answer_is_that_of_transformers(tmp_path: Path, joints: int, experts: int, finder: str) -> None:
    pose = pose_model(tmp_path / "pose", joints, experts)
    kinds = (YolosForObjectDetection, YolosImageProcessor, yolos) if finder == "yolos" else (
        RTDetrForObjectDetection, RTDetrImageProcessor, rt_detr
    )  # fmt: skip
    detector, expert = kinds[2](tmp_path / "detector"), 2 if experts > 1 else None
    estimator = VitPose(pose, detector, dataset_index=expert, detector_threshold=0.3)
    counts = []
    for size in ((64, 64), (97, 51)):
        images = pictures(size)
        for poses, image in zip(found(estimator, images), images, strict=True):
            people = expected(pose, (*kinds[:2], detector), image, 0.3, expert)
            people = sorted(people, key=lambda person: -person[1][:17].mean() * person[2])
            counts.append(len(people))
            assert len(poses) == len(people)
            for i, (points, heights, trust) in enumerate(people):
                whole = poses.keypoints[i] if joints == 17 else poses.whole.keypoints[i]  # type: ignore[union-attr]
                assert np.allclose(whole[:, 2], heights, atol=1e-4) and 0 < heights.max() < 1
                assert np.allclose(whole[heights > 0.01, :2], points[heights > 0.01], atol=0.02)
                assert np.isclose(poses.scores[i], heights[:17].mean() * trust, atol=1e-5)
    assert max(counts) > 1
    if joints == 133:
        assert poses.whole is not None and poses.whole.topology is WHOLE_BODY_133


def test_nobody_and_pictures_as_one_person(tmp_path: Path) -> None:
    pose, detector = pose_model(tmp_path / "pose"), yolos(tmp_path / "detector")
    images = pictures((70, 50))
    assert [len(poses) for poses in found(VitPose(pose, detector, detector_threshold=1.0), images)] == [0, 0, 0]
    assert [len(poses) for poses in found(VitPose(pose, None), images)] == [1, 1, 1]


def test_models_that_do_not_fit_are_named(tmp_path: Path) -> None:
    pose, detector = pose_model(tmp_path / "pose"), yolos(tmp_path / "detector")
    with pytest.raises(WeightsError, match=r"estimator.path=nowhere is no model folder \(no config.json\)"):
        VitPose("nowhere", detector)
    with pytest.raises(ValueError, match="knows no class person, but cat, dog"):
        VitPose(pose, yolos(tmp_path / "pets", {0: "cat", 1: "dog"}))
    with pytest.raises(WeightsError, match="estimator.detector_path=.* cannot be read as AutoModelForObjectDetection"):
        VitPose(pose, pose)
    with pytest.raises(WeightsError, match=r"estimator.path=.*detector (lacks|cannot be read as VitPose)"):
        VitPose(detector, detector)
    with pytest.raises(WeightsError, match="estimator.path=.* finds 21 joints; expected a model of people with 17"):
        VitPose(pose_model(tmp_path / "hand", 21), detector)
    several = pose_model(tmp_path / "several", experts=3)
    for index in (None, 3):
        with pytest.raises(ValueError, match=rf"dataset_index={index}: .* has 3 experts.* expected 0 to 2, 0 is COCO"):
            VitPose(several, detector, dataset_index=index)
    whole = (pose / "model.safetensors").read_bytes()
    (pose / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="estimator.path=.* cannot be read as VitPoseForPoseEstimation"):
        VitPose(pose, detector)


def test_no_code_of_a_folder_runs(tmp_path: Path) -> None:
    pose, detector = pose_model(tmp_path / "pose"), yolos(tmp_path / "detector")
    config = json.loads((detector / "config.json").read_text())
    named = {"AutoConfig": "own.Config", "AutoModelForObjectDetection": "own.Detector"}
    (detector / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": named}))
    (detector / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: ...\nclass Detector: ...\n")
    with pytest.raises(WeightsError, match="estimator.detector_path=.* cannot be read as AutoModelForObjectDetection"):
        VitPose(pose, detector)
    assert not (tmp_path / "ran").exists()
