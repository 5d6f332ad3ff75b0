"""mmpose's models as judges: what surrounds them (colours, coordinates, boxes, weights) is checked with networks whose
answer is known."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from posegen.metrics.base import Estimator, Poses
from posegen.metrics.estimators import mmpose as estimator
from posegen.metrics.estimators.mmpose import INSTALL, MMPose, boxes_around, read_config, stand_ins

BODY = "body_2d_keypoint"
TOP_DOWN = f"{BODY}/topdown_heatmap/coco/td-hm_hrnet-w32_8xb64-210e_coco-256x192.py"
BOTTOM_UP = f"{BODY}/associative_embedding/coco/ae_hrnet-w32_8xb24-300e_coco-512x512.py"
RTMPOSE = f"{BODY}/rtmpose/humanart/rtmpose-t_8xb256-420e_humanart-256x192.py"
SPOT = (40, 70)  # x, y of what the networks below look for


def test_without_mmpose_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mmpose.apis", raising=False)
    monkeypatch.setitem(sys.modules, "mmpose", None)
    with pytest.raises(ImportError, match=r"estimator=mmpose needs mmpose 1\.3 .*: pip install 'posegen\[mmpose\]'"):
        MMPose("config.py", None)


def test_boxes_have_a_margin_and_leave_joints_out_that_were_not_seen() -> None:
    keypoints = np.zeros((1, 17, 3))
    keypoints[0, :2] = [[10, 20, 0.9], [30, 60, 0.9]]
    assert boxes_around(keypoints).tolist() == [[6, 16, 34, 64]]


def test_stand_ins_leave_when_they_are_no_longer_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pycocotools")
    own = object()
    monkeypatch.setitem(sys.modules, "mmdet", own)
    before = dict(sys.modules)
    with pytest.raises(RuntimeError, match="inside"), stand_ins():
        from mmdet.utils import reduce_mean

        assert reduce_mean(3) == 3 and sys.modules["mmdet"] is not own
        raise RuntimeError("inside")
    assert sys.modules["mmdet"] is own
    assert {"mmdet.utils", "mmcv.ops", "xtcocotools", "xtcocotools.coco"} & sys.modules.keys() == {
        "xtcocotools",
        "xtcocotools.coco",
        "mmcv.ops",
    } & before.keys()


# The real package.


@pytest.fixture(scope="module")
def offline() -> Any:
    pytest.importorskip("mmpose", reason=f"mmpose is not installed: {INSTALL}")
    with pytest.MonkeyPatch.context() as patch:

        def refuse(*_: Any) -> None:
            raise AssertionError("a model asked for the network")

        patch.setattr(socket, "getaddrinfo", refuse)
        yield


@pytest.fixture(scope="module")
def top_down(offline: Any) -> MMPose:
    return seeing_red(MMPose(TOP_DOWN, None))


@pytest.fixture(scope="module")
def bottom_up(offline: Any) -> MMPose:
    return seeing_red(MMPose(BOTTOM_UP, None))


class Red(nn.Module):
    """A trunk that finds red: at a quarter of the size, in the first of 32 channels, the others are empty."""

    def forward(self, inputs: Tensor) -> tuple[Tensor]:
        red, green, blue = nn.functional.avg_pool2d(inputs, 4).unbind(1)
        return (torch.stack([red - green.maximum(blue), *[torch.zeros_like(red)] * 31], 1).clamp(0, 4) / 4,)


def seeing_red(made: MMPose) -> MMPose:
    """All joints are where it is red."""
    made.model.backbone = Red()
    last = made.model.head.final_layer
    with torch.no_grad():
        last.weight.zero_()
        last.weight[:17, 0] = 1.0
        last.bias.zero_()
    return made


def image(
    *spots: tuple[int, int], colour: tuple[int, int, int] = (1, -1, -1), size: tuple[int, int] = (128, 96)
) -> Tensor:
    """Black, with spots of a colour that fade outwards ``[1, 3, H, W]``."""
    made = torch.zeros(3, *size)
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    for spot in spots:
        made += (
            (torch.tensor(colour) + 1)[:, None, None] / 2 * torch.exp(-((x - spot[0]) ** 2 + (y - spot[1]) ** 2) / 50)
        )
    return 2 * made[None].clamp(0, 1) - 1


@pytest.mark.parametrize("kind", ["top_down", "bottom_up"])
def test_what_is_red_is_found_where_it_is(kind: str, request: pytest.FixtureRequest) -> None:
    made = request.getfixturevalue(kind)
    assert made.top_down == (kind == "top_down")
    first, second = made.estimate(torch.cat([image(SPOT), image((60, 30))]))
    for found, spot in ((first, SPOT), (second, (60, 30))):
        assert len(found) >= 1 and found.keypoints.shape[1:] == (17, 3) and found.keypoints.dtype == np.float32
        assert np.abs(found.keypoints[0, :, :2] - spot).max() < 1.5
        assert (np.diff(found.scores) <= 0).all() and 0.1 < found.scores[0] <= 1
    blue = made.estimate(image(SPOT, colour=(-1, -1, 1)))[0]
    assert not len(blue) or blue.scores[0] < 0.1 * first.scores[0]


def test_a_finder_tells_a_top_down_model_where_people_are(top_down: MMPose, monkeypatch: pytest.MonkeyPatch) -> None:
    class Finder(Estimator):
        def estimate(self, images: Tensor) -> list[Poses]:
            people = np.zeros((3, 17, 3), np.float32)
            people[0, :2], people[1, :2] = [[30, 60, 1], [50, 80, 1]], [[50, 20, 1], [70, 40, 1]]
            return [Poses(people, np.array([0.5, 1.0, 1.0], np.float32))] + [
                Poses(people[:0], np.zeros(0, np.float32))
            ] * (len(images) - 1)

    plain = top_down.estimate(image((60, 30)))[0]
    monkeypatch.setattr(top_down, "finder", Finder())
    found, nobody = top_down.estimate(torch.cat([image(SPOT, (60, 30)), image()]))
    assert len(nobody) == 0 and len(found) == 2  # of the third person no joint is seen
    assert np.abs(found.keypoints[0, :, :2] - (60, 30)).max() < 2 and np.abs(found.keypoints[1, :, :2] - SPOT).max() < 2
    assert found.scores[1] == pytest.approx(0.5 * found.scores[0], rel=0.2) and len(plain) == 1


def test_a_finder_is_of_no_use_to_a_bottom_up_model(offline: Any) -> None:
    with pytest.raises(ValueError, match=r"estimator\.finder is of no use: .* is bottom-up"):
        MMPose(BOTTOM_UP, None, finder=object())  # type: ignore[arg-type]


def test_people_of_a_low_score_are_left_out(top_down: MMPose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top_down, "score_threshold", 0.05)
    assert [len(found) for found in top_down.estimate(torch.cat([image(SPOT), image()]))] == [1, 0]


def test_a_model_without_features_says_so(top_down: MMPose) -> None:
    assert top_down.examine(image(SPOT)).features is None
    with pytest.raises(TypeError, match="MMPose has no heatmaps"):
        top_down.heatmaps(image(SPOT))


def test_weights_are_read_without_what_lies_beside_them(offline: Any, tmp_path: Path) -> None:
    """As mmpose writes them, with objects of its own in ``meta``; a tensor that is missing or of another model is
    named."""
    torch.manual_seed(0)
    first = MMPose(RTMPOSE, None)
    state = first.model.state_dict()
    beside = {"meta": {"seed": np.float64(1.0), "dataset_meta": {"sigmas": np.ones(17, np.float32)}}}
    torch.save({**beside, "state_dict": {**state, "loss.extra": torch.zeros(1)}}, tmp_path / "rtmpose.pth")
    torch.manual_seed(1)
    second, third = MMPose(RTMPOSE, tmp_path / "rtmpose.pth"), MMPose(RTMPOSE, None)
    given = image(SPOT)
    expected = first.estimate(given)[0].keypoints
    np.testing.assert_array_equal(second.estimate(given)[0].keypoints, expected)
    assert not np.array_equal(third.estimate(given)[0].keypoints, expected)
    assert not any(p.requires_grad for p in second.parameters()) and not second.training
    torch.save(
        {"state_dict": {key: value for key, value in state.items() if not key.startswith("head.cls_x")}},
        tmp_path / "part.pth",
    )
    with pytest.raises(
        ValueError,
        match=r"part\.pth are not those of the config's model \(1 tensors differ: head\.cls_x\.weight is missing\)",
    ):
        MMPose(RTMPOSE, tmp_path / "part.pth")
    with pytest.raises(ValueError, match=r"none\.pth: no such file"):
        MMPose(RTMPOSE, tmp_path / "none.pth")


def test_a_checkpoint_that_would_have_to_be_run_is_refused_with_the_way_out(offline: Any, tmp_path: Path) -> None:
    """mmengine's training logs are pickled as calls; the restricted reader makes none."""
    from mmengine.logging import HistoryBuffer

    torch.save(
        {"message_hub": {"loss": HistoryBuffer([1.0], [1])}, "state_dict": MMPose(RTMPOSE, None).model.state_dict()},
        tmp_path / "epoch_1.pth",
    )
    with pytest.raises(
        ValueError, match=r"epoch_1\.pth.*asks to run .*nothing in it was run.*save the model's state_dict alone"
    ):
        MMPose(RTMPOSE, tmp_path / "epoch_1.pth")


def test_what_training_would_start_from_is_forgotten_wherever_it_stands(offline: Any, tmp_path: Path) -> None:
    """mmpose's own loader forgets it at the backbone alone; elsewhere it would be fetched."""
    (tmp_path / "own.py").write_text(
        "start = dict(type='Pretrained', checkpoint='https://example.org/a.pth')\n"
        "model = dict(type='A', init_cfg=start, necks=[dict(init_cfg=start), dict(init_cfg=dict(type='Normal'))])\n"
        "test_dataloader = dict(dataset=dict(pipeline=[]))\n"
    )
    assert read_config(tmp_path / "own.py").model == {"type": "A", "necks": [{}, {"init_cfg": {"type": "Normal"}}]}
    assert "Pretrained" not in str(read_config(TOP_DOWN).model)


def test_configs_that_cannot_be_used_are_named(offline: Any, tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"estimator\.config=none\.py: no such file, neither here nor below .*configs"
    ):
        MMPose("none.py", None)
    (tmp_path / "own.py").write_text("model = dict(type='Nothing')\n")
    with pytest.raises(ValueError, match=r"own\.py is no config of a pose estimator of mmpose 1\.x \(AttributeError"):
        MMPose(tmp_path / "own.py", None)
    (tmp_path / "own.py").write_text(
        "model = dict(type='Nothing', backbone=dict())\ntest_dataloader = dict(dataset=dict(pipeline=[]))\n"
    )
    with pytest.raises(
        ValueError, match=r"its model cannot be built here \(KeyError: .*Nothing is not in the .*choose another"
    ):
        MMPose(tmp_path / "own.py", None)
    with pytest.raises(
        ValueError, match=r"knows 14 joints without COCO's nose, left_eye.*choose a model of COCO's 17 joints"
    ):
        MMPose(f"{BODY}/topdown_heatmap/crowdpose/td-hm_hrnet-w32_8xb64-210e_crowdpose-256x192.py", None)


def test_the_yaml_names_the_class(offline: Any) -> None:
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    cfg = OmegaConf.load(Path(__file__).parents[3] / "conf/estimator/mmpose.yaml")
    made = instantiate(OmegaConf.merge(cfg, {"config": RTMPOSE, "weights": None}), _convert_="all")
    assert isinstance(made, estimator.MMPose) and made.top_down and len(made.estimate(image(SPOT))) == 1
