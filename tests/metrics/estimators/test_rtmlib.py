"""The estimator finds what rtmlib finds, for each kind of network and any number of people; files that do not fit are
refused in one sentence."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from posegen.data.base import to_tensor
from posegen.errors import UserError
from posegen.io.weights import WeightsError
from posegen.metrics.base import INSTALL_PHOTOS, Poses
from posegen.metrics.estimators.rtmlib import RTMLib
from posegen.poses.topology import BEGIN_AS_COCO, WHOLE_BODY_133
from tests.hub_server import Repository, connect, serving
from tests.metrics.estimators.bright_cells import picture

rtmlib = pytest.importorskip("rtmlib", reason=f"rtmlib is not installed: {INSTALL_PHOTOS}")
pytest.importorskip("onnx")

from tests.metrics.estimators import onnx_models as models  # noqa: E402

SIZES = ((64, 64), (97, 41), (256, 200))


def found(estimator: RTMLib, *images: np.ndarray) -> list[Poses]:
    return estimator.estimate(torch.stack([to_tensor(image) for image in images]))


def ordered(points: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """rtmlib's answer as people ``[N, joints, 3]``, best body first."""
    scores = scores.clip(0, 1)
    order = np.argsort(-scores[:, :17].astype(np.float32).mean(1), kind="stable")
    return np.concatenate([points, scores[..., None]], -1)[order].astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("onnx")


@pytest.mark.parametrize(("kind", "joints"), [("RTMPose", 17), ("RTMPose", 133), ("RTMPose", 26), ("ViTPose", 17)])
def test_top_down_networks_with_a_detector(folder: Path, kind: str, joints: int) -> None:
    export = models.simcc if kind == "RTMPose" else models.heatmaps
    pose, detector = export(folder / f"{kind}{joints}.onnx", joints), models.detector(folder / "detector.onnx")
    estimator = RTMLib(pose, detector)
    tool = getattr(rtmlib, kind)(str(pose), model_input_size=(48, 64))
    finder = rtmlib.YOLOX(str(detector), model_input_size=(64, 64))
    counts = []
    for size in SIZES:
        for people in (0, 1, 10):
            image = picture(people, size, seed=people)
            [poses] = found(estimator, image)
            boxes = finder(image[..., ::-1])
            counts.append(len(poses))
            assert len(poses) == len(boxes)
            if not len(boxes):
                assert poses.keypoints.shape == (0, 17, 3) and poses.whole is None
                continue
            expected = ordered(*tool(np.ascontiguousarray(image[..., ::-1]), bboxes=boxes))
            assert np.array_equal(poses.keypoints, expected[:, :17])
            assert np.allclose(poses.scores, expected[:, :17, 2].mean(1))
            if joints == 17:
                assert poses.whole is None
            else:
                assert poses.whole is not None and np.array_equal(poses.whole.keypoints, expected)
                assert poses.whole.topology is (WHOLE_BODY_133 if joints == 133 else BEGIN_AS_COCO[26])
    assert 0 in counts and 1 in counts and 10 in counts


def test_a_batch_is_the_same_as_its_pictures_alone(folder: Path) -> None:
    estimator = RTMLib(models.simcc(folder / "b.onnx", 133), models.detector(folder / "detector.onnx"))
    images = [picture(n, (80, 60), seed=n) for n in (3, 0, 10)]
    for together, image in zip(found(estimator, *images), images, strict=True):
        [alone] = found(estimator, image)
        assert np.array_equal(together.keypoints, alone.keypoints) and np.array_equal(together.scores, alone.scores)


def test_one_stage_networks_find_the_people_themselves(folder: Path) -> None:
    file = models.rtmo(folder / "rtmo.onnx")
    estimator, tool = RTMLib(file), rtmlib.RTMO(str(file), model_input_size=(64, 64))
    counts = []
    for size in SIZES:
        for people in (0, 1, 10):
            image = picture(people, size, seed=people)
            [poses] = found(estimator, image)
            points, scores = tool(image[..., ::-1])
            counts.append(len(poses))
            if not scores.any():
                assert len(poses) == 0 and len(scores) == 1, "rtmlib answers one person of zeros"
            else:
                assert len(poses) == len(scores) and np.array_equal(poses.keypoints, ordered(points, scores))
    assert 0 in counts and 1 in counts and max(counts) > 5


@pytest.mark.parametrize("kind", ["YOLOX", "RTMDet", "RFDETR"])
def test_each_detector_of_rtmlib(folder: Path, kind: Any) -> None:
    pose = models.simcc(folder / "p.onnx", 17)
    exports: dict[str, Callable[[Path], Path]] = {
        "YOLOX": models.plain_detector,
        "RTMDet": lambda file: models.detector(file, mean=116, deviation=57),
        "RFDETR": models.transformer_detector,
    }
    file = exports[kind](folder / f"{kind}.onnx")
    estimator = RTMLib(pose, file, detector=kind, score_threshold=0.0)
    tool, finder = rtmlib.RTMPose(str(pose), (48, 64)), getattr(rtmlib, kind)(str(file), (64, 64))
    counts = []
    for people in (0, 4, 9):
        image = picture(people, (90, 70), seed=people)
        boxes = finder(image[..., ::-1])
        counts.append(len(boxes))
        [poses] = found(estimator, image)
        assert len(poses) == len(boxes)
        if len(boxes):
            assert np.array_equal(poses.keypoints, ordered(*tool(np.ascontiguousarray(image[..., ::-1]), boxes)))
    assert max(counts) > 1


def test_of_a_detector_of_many_classes_people_alone_count(folder: Path) -> None:
    pose, file = models.simcc(folder / "p.onnx", 17), models.plain_detector(folder / "many.onnx", classes=5)
    finder = rtmlib.YOLOX(str(file), (64, 64), det_mode="multiclass")
    image = picture(5, (70, 90))
    boxes, classes = finder(image[..., ::-1])
    [poses] = found(RTMLib(pose, file), image)
    assert 0 < len(poses) == (classes == 0).sum() < len(boxes)


def test_without_a_detector_the_picture_is_one_person(folder: Path) -> None:
    pose = models.simcc(folder / "p.onnx", 17)
    image = picture(0, (50, 90))
    expected = ordered(*rtmlib.RTMPose(str(pose), (48, 64))(np.ascontiguousarray(image[..., ::-1])))
    [poses] = found(RTMLib(pose), image)
    assert len(poses) == 1 and np.array_equal(poses.keypoints, expected)
    assert len(found(RTMLib(pose, score_threshold=float(poses.scores[0]) + 0.01), image)[0]) == 0


def test_input_sizes_that_files_leave_open(folder: Path) -> None:
    pose, open_size = models.simcc(folder / "p.onnx", 17), models.detector(folder / "open.onnx", opened=True)
    image = picture(2)
    assert len(found(RTMLib(pose, open_size, detector_size=[64, 64]), image)[0]) == 2
    with pytest.raises(
        WeightsError, match=r"estimator.size=\[32, 32\]: estimator.path=.*p.onnx reads pictures of \[64, 48\]"
    ):
        RTMLib(pose, size=[32, 32])
    with pytest.raises(WeightsError, match=r"estimator.detector_path fails on a picture \("):
        found(RTMLib(pose, open_size), image)  # 640 x 640 by rtmlib


def test_files_that_do_not_fit_are_named(folder: Path) -> None:
    pose, detector = models.simcc(folder / "p.onnx", 17), models.detector(folder / "detector.onnx")
    whole = pose.read_bytes()
    damaged = {"cut.onnx": whole[: len(whole) // 2], "empty.onnx": b"", "text.onnx": b"<html>not found</html>"}
    for name, content in damaged.items():
        (folder / name).write_bytes(content)
        with pytest.raises(
            WeightsError, match=rf"estimator.path=.*{name} cannot be read by onnxruntime \(.*\); expected"
        ):
            RTMLib(folder / name)
        with pytest.raises(WeightsError, match=rf"estimator.detector_path=.*{name} cannot be read by onnxruntime"):
            RTMLib(pose, folder / name)
    with pytest.raises(WeightsError, match=r"detector.onnx has the outputs \[\[1, 16, 5\]\], as no pose network"):
        RTMLib(detector)
    with pytest.raises(WeightsError, match=r"estimator.detector_path=.*p.onnx has the outputs .* as no detector"):
        RTMLib(pose, pose)
    with pytest.raises(WeightsError, match=r"finds 21 joints; expected a model of people with 17 \(COCO-17\), 23"):
        RTMLib(models.simcc(folder / "hand.onnx", 21))
    with pytest.raises(ValueError, match="finds the people itself; leave estimator.detector_path out"):
        RTMLib(models.rtmo(folder / "rtmo.onnx"), detector)
    with pytest.raises(FileNotFoundError, match="estimator.path=missing.onnx: no such file"):
        RTMLib("missing.onnx")
    with pytest.raises(UserError, match="names no ONNX file; expected hub:OWNER/NAME/FILE.onnx"):
        RTMLib("hub:owner/name")


def test_what_is_not_finite_is_no_joint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    estimator = RTMLib(models.simcc(folder / "p.onnx", 17))
    points, heights = np.ones((2, 17, 2)), np.full((2, 17), 7.5)
    points[0, 3], heights[1] = np.nan, np.nan
    monkeypatch.setattr(estimator, "pose", lambda image: (points, heights))
    [poses] = found(estimator, picture(0))
    assert len(poses) == 1 and poses.keypoints[0, 3].tolist() == [0, 0, 0], "nobody is without any joint"
    assert poses.keypoints[0, 0].tolist() == [1, 1, 1] and poses.scores[0] == np.float32(16 / 17)


def test_default_models_are_those_of_rtmlib_and_say_what_to_do_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    fix = r"\(.*\); fetch it elsewhere, unpack it, and set estimator.path=FILE.onnx"
    with pytest.raises(UserError, match=f"rtmlib could not download https://.*{fix}"):
        RTMLib()
    assert f'Downloading: "{rtmlib.Wholebody.MODE["balanced"]["pose"]}"' in capfd.readouterr().err
    small = rtmlib.Body.MODE["lightweight"]
    models.simcc(tmp_path / "hub" / "checkpoints" / f"{Path(small['pose']).stem}.onnx", 17, height=256, width=192)
    with pytest.raises(UserError, match="set estimator.detector_path=FILE.onnx"):
        RTMLib(solution="Body", mode="lightweight")
    assert f'Downloading: "{small["det"]}"' in capfd.readouterr().err


def test_a_gpu_that_onnxruntime_lacks(folder: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has a GPU")
    with pytest.raises(UserError, match="estimator.accelerator=gpu: this onnxruntime computes on the CPU alone; pip"):
        RTMLib(models.simcc(folder / "p.onnx", 17), accelerator="gpu")


@pytest.mark.parametrize("module", ["rtmlib", "onnxruntime"])
def test_without_the_extra_the_error_names_it(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ImportError, match=r"estimator=rtmlib needs rtmlib and onnxruntime .*: pip install 'posegen\[photos\]'"
    ):
        RTMLib("x.onnx")


def test_files_on_the_hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"pose": models.simcc(folder / "p.onnx", 17), "det": models.detector(folder / "detector.onnx")}
    with serving() as hub:
        connect(monkeypatch, hub, tmp_path / "hub")
        repository = hub.repositories["owner/onnx"] = Repository()
        commit = repository.commit({f"{name}/end2end.onnx": file.read_bytes() for name, file in files.items()})
        repository.commit({"README.md": b"the networks are gone"})
        places = [f"hub:owner/onnx/{name}/end2end.onnx@{commit}" for name in files]
        image = picture(3)
        [fetched], [local] = found(RTMLib(*places), image), found(RTMLib(*files.values()), image)
        assert len(local) == 3 and np.array_equal(fetched.keypoints, local.keypoints)
        with pytest.raises(UserError, match="hub:owner/onnx/pose/end2end.onnx"):
            RTMLib("hub:owner/onnx/pose/end2end.onnx")
