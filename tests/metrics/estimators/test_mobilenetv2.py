"""The trunk of mmpose's MobileNetV2: its names and sizes, its files, and what it is for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from posegen.config.compose import composed
from posegen.errors import UserError
from posegen.metrics.estimators.mobilenetv2 import MobileNetV2, divisible
from tests.adapters.cases import reference

NARROW = 0.125


def trunk(seed: int = 0, **config: Any) -> MobileNetV2:
    """A narrow network in evaluation mode with random weights, and statistics that let signals through."""
    torch.manual_seed(seed)
    network = MobileNetV2(**{"widen_factor": NARROW, "size": None, **config}).eval()
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.05, 0.2)
    return network


def official(network: MobileNetV2, prefix: str = "backbone.") -> dict[str, Tensor]:
    """As in a file of mmpose, which has a head as well."""
    return {prefix + key: value for key, value in network.state_dict().items()} | {
        "keypoint_head.final_layer.bias": torch.zeros(34)
    }


def test_full_size_names() -> None:
    keys = json.loads(reference("grpose_keys.json").read_text())["keys"]
    prefix = "mmpose_model.backbone."
    with torch.device("meta"):
        own = MobileNetV2().state_dict()
    assert {key.removeprefix(prefix): shape for key, shape in keys.items() if key.startswith(prefix)} == {
        key: list(v.shape) for key, v in own.items()
    }


def test_size_of_the_published_network() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in MobileNetV2().parameters()) == 2_223_872


def test_widths_are_multiples_of_eight() -> None:
    assert [divisible(width) for width in (32, 12, 20, 3, 33.6, 59, 11)] == [32, 16, 24, 8, 32, 56, 16]
    network = MobileNetV2(0.5)
    assert network.conv1.conv.out_channels == 16 and network.conv2.conv.out_channels == 1280
    assert MobileNetV2(1.5).conv2.conv.out_channels == 1920


def test_feature_maps_of_every_layer() -> None:
    maps = trunk(out_indices=range(8)).feature_maps(torch.zeros(2, 3, 64, 96))
    assert [64 // m.shape[2] for m in maps] == [2, 4, 8, 16, 16, 32, 32, 32] and all(
        m.shape[3] * 2 == m.shape[2] * 3 for m in maps
    )
    assert maps[-1].shape[1] == 1280 and len(trunk().feature_maps(torch.zeros(1, 3, 64, 64))) == 1
    with pytest.raises(ValueError, match=r"out_indices is \[8\]; expected some of the layers 0 to 7"):
        MobileNetV2(out_indices=[8])


def test_shortcuts_are_where_shapes_allow() -> None:
    stages = [trunk().get_submodule(f"layer{i}") for i in range(1, 8)]
    assert [[block.shortcut for block in stage] for stage in stages[1:4]] == [
        [False, True],
        [False, True, True],
        [False] + [True] * 3,
    ]
    block = stages[2][1]
    x = torch.randn(1, block.conv[0].conv.in_channels, 4, 4)
    assert torch.equal(block(x), x + block.conv(x))


def test_images_are_brought_to_the_size_and_units_of_training() -> None:
    network = trunk(size=96)
    white = network.prepared(torch.ones(1, 3, 32, 48))
    assert white.shape == (1, 3, 96, 144)
    assert torch.allclose(
        white[0, :, 0, 0], (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    )
    image = torch.rand(1, 3, 96, 96)
    assert torch.allclose(network.prepared(image * 2 - 1) * network.std + network.mean, image, atol=1e-6)


def test_the_epsilon_of_the_normalisations_matters() -> None:
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    one, other = trunk(), trunk(bn_eps=1e-1)
    assert all(m.eps == 1e-1 for m in other.modules() if isinstance(m, nn.BatchNorm2d))
    assert not torch.allclose(one.features(image), other.features(image), rtol=1e-3)


def test_a_differentiable_teacher() -> None:
    image = (torch.rand(1, 3, 64, 64) * 2 - 1).requires_grad_()
    network = trunk(size=96).requires_grad_(False)
    features = network.features(image)
    assert features.shape == (1, 1280) and torch.allclose(features, network.feature_maps(image)[-1].mean((2, 3)))
    features.sum().backward()
    assert image.grad is not None and image.grad.any()


def test_it_finds_no_people() -> None:
    with pytest.raises(TypeError, match="without a keypoint head.*choose another estimator="):
        trunk().estimate(torch.zeros(1, 3, 64, 64))
    with pytest.raises(TypeError, match="no heatmaps"):
        trunk().heatmaps(torch.zeros(1, 3, 64, 64))


# Files.


@pytest.mark.parametrize("prefix", ["backbone.", "mmpose_model.backbone.", ""])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_come_back_frozen(tmp_path: Path, prefix: str, suffix: str) -> None:
    network, file = trunk(), tmp_path / f"weights{suffix}"
    tensors = official(network, prefix) if prefix else dict(network.state_dict())
    if suffix == ".pth":
        torch.save({"meta": {"epoch": 300}, "state_dict": tensors}, file)
    else:
        save_file(tensors, file)
    again = MobileNetV2.from_file(file, NARROW, size=None)
    assert not again.training and not any(p.requires_grad for p in again.parameters())
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(again.features(image), network.features(image)) and network.features(image).std() > 0.1


def test_another_network_is_named(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save(official(trunk()), file)
    with pytest.raises(
        ValueError, match=r"weights\.pth holds no MobileNetV2 of this size \(.* is \[.*, not \[.*widen_factor"
    ):
        MobileNetV2.from_file(file)
    torch.save(
        {"backbone.conv1.conv.weight": torch.zeros(1)} | {f"backbone.stage.{i}": torch.zeros(1) for i in range(3)},
        file,
    )
    with pytest.raises(ValueError, match=r"tensors differ: .* is missing"):
        MobileNetV2.from_file(file)


class Trap:
    """Runs code where a file that holds it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_files_that_are_no_plain_weights_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth: no such file; expected the weights of an mmpose"):
        MobileNetV2.from_file(tmp_path / "nowhere.pth")
    file, mark = tmp_path / "weights.pth", tmp_path / "mark"
    torch.save({"state_dict": official(trunk()), "meta": Trap(mark)}, file)
    with pytest.raises(ValueError, match=r"weights\.pth: cannot be read as weights.*nothing in it was run"):
        MobileNetV2.from_file(file)
    assert not mark.exists()
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"weights\.pth: cannot be read"):
        MobileNetV2.from_file(file)
    torch.save({"state_dict": {"epoch": 3}}, file)
    with pytest.raises(ValueError, match=r"weights\.pth: it holds no named tensors"):
        MobileNetV2.from_file(file)


def test_the_option_builds_it(tmp_path: Path) -> None:
    from hydra.utils import instantiate

    file = tmp_path / "weights.pth"
    torch.save(official(trunk()), file)
    with composed(
        "train", ("estimator=mobilenetv2", f"estimator.path={file}", f"estimator.widen_factor={NARROW}")
    ) as cfg:
        built = instantiate(cfg.estimator, _convert_="all")
    assert isinstance(built, MobileNetV2) and (built.size, built.out_indices) == (512, (7,))


def test_the_option_wants_a_file() -> None:
    from posegen.config.checking.check import require_valid

    with (
        composed("train", ("estimator=mobilenetv2",)) as cfg,
        pytest.raises(UserError, match=r"estimator\.path"),
    ):
        require_valid(cfg)
