"""HigherHRNet: its names, timm's HRNet as an independent witness of the trunk, and the reference case of its maps where it is at hand."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from posegen.metrics.estimators.higherhrnet import MEAN, MIRRORED, STD, HeadShape, HigherHRNet, fitted
from posegen.metrics.estimators.hrnet import HRNet, Stage
from posegen.parity.case import Case
from posegen.parity.compare import compare
from posegen.poses.topology import COCO_NAMES
from tests.adapters.cases import full_size, reference

SMALL = tuple(Stage(1, (1,) * (i + 1), tuple(8 * 2**j for j in range(i + 1))) for i in range(4))


@pytest.fixture(scope="module")
def network() -> HigherHRNet:
    torch.manual_seed(0)
    made = HigherHRNet(SMALL, 16, HeadShape(filters=(8,), blocks=1))
    with torch.no_grad():
        for _ in range(3):
            made(torch.randn(4, 3, 64, 64))  # running statistics of its own
    return made.fill(made.state_dict(), "itself")


def images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_full_size_keys() -> None:
    facts, keys = full_size("higherhrnet_w48_keys.json")
    with torch.device("meta"):
        network = HigherHRNet()
    assert {key: value.shape for key, value in network.state_dict().items()} == {key: value.shape for key, value in keys.items()}
    assert sum(p.numel() for p in network.parameters()) == facts["total_parameters"] == 63_827_139


def test_the_reference_maps() -> None:
    case = Case.read(reference("higherhrnet_small"))
    mids = [line for line in compare(case) if line.output.startswith("mid.")]
    assert {line.output for line in mids} == {f"mid.{name}" for name in case.mids}
    assert all(line.ok for line in mids), "\n".join(map(str, mids))


def test_the_trunk_is_timms() -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("hrnet_w18_small", features_only=True, feature_location="", out_indices=(1,)).eval()
    widths = (16, 32, 64, 128)
    ours = HRNet([Stage(1, (1,), (32,)), *(Stage(1, (2,) * n, widths[:n]) for n in (2, 3, 4))]).eval()
    weights = theirs.state_dict()
    assert ours.load_state_dict(weights, strict=False).missing_keys == []
    assert {key.rsplit(".fuse_layers", 1)[0] for key in weights.keys() - ours.state_dict().keys()} == {"stage4.0"}  # towards the coarser branches
    with torch.no_grad():
        x = images(1, 3, 64, 96)
        assert torch.allclose(ours(x), theirs(x)[0], atol=1e-5)


def test_heatmaps_are_those_of_normalised_images_and_differentiable(network: HigherHRNet) -> None:
    x = images(2, 3, 64, 96).requires_grad_()
    heatmaps = network.heatmaps(x)
    assert heatmaps.shape == (2, 17, 32, 48)
    normalised = torch.stack([(x[:, i] * 0.5 + 0.5 - MEAN[i]) / STD[i] for i in range(3)], 1)
    assert torch.allclose(heatmaps, network.raw_heatmaps(normalised), atol=1e-5)
    assert not torch.allclose(heatmaps, network.raw_heatmaps(x), atol=1e-2)
    heatmaps.sum().backward()
    assert x.grad is not None and x.grad.any() and all(p.grad is None for p in network.parameters())


def test_the_flip_test_does_not_tell_left_from_right(network: HigherHRNet) -> None:
    other = {"left": "right", "right": "left"}
    swapped = [COCO_NAMES.index("_".join(other.get(part, part) for part in name.split("_"))) for name in COCO_NAMES]
    assert list(MIRRORED) == swapped
    x = images(1, 3, 32, 64)
    with torch.no_grad():
        (heatmaps, tags), (mirrored, mirrored_tags) = network.flip_tested(x), network.flip_tested(x.flip(-1))
    assert torch.allclose(mirrored.flip(-1)[:, swapped], heatmaps, atol=1e-5)
    assert tags.shape == (1, 17, 16, 32, 2) and torch.allclose(mirrored_tags.flip(-2)[:, swapped].flip(-1), tags, atol=1e-5)


def test_images_are_fitted_to_multiples_of_64() -> None:
    image = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    assert np.array_equal(fitted(image), image)
    wide, tall = fitted(image[:72, :96], 64), fitted(image[:96, :72], 64)
    assert wide.shape == (64, 128, 3) and tall.shape == (128, 64, 3)
    assert wide[:, 86:].max() == 0 and wide[:, 80].max() > 0 and np.array_equal(wide[0, 0], image[0, 0])


def test_what_it_cannot_do_is_said(network: HigherHRNet) -> None:
    with pytest.raises(TypeError, match="finds no people; judge with another estimator="):
        network.estimate(images(1, 3, 64, 64))
    with pytest.raises(ValueError, match=r"images of \(48, 64\); choose sides that are multiples of 32"):
        network.heatmaps(images(1, 3, 48, 64))
    with pytest.raises(ValueError, match="HRNet's stages have \\[1, 3\\] branches"):
        HRNet([SMALL[0], SMALL[2]])


def test_weights_are_read_safely_and_checked(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with torch.device("meta"):
        shape = HigherHRNet.from_width(4)
    tensors = {key: torch.zeros(value.shape, dtype=value.dtype) for key, value in shape.state_dict().items()}
    torch.save({"meta": {"epoch": 3}, "state_dict": tensors}, tmp_path / "mmpose.pth")
    save_file(tensors, tmp_path / "plain.safetensors")
    for name in ("mmpose.pth", "plain.safetensors"):
        read = HigherHRNet.from_pretrained(tmp_path / name, width=4)
        assert not read.training and not any(p.requires_grad for p in read.parameters()) and not read.backbone.conv1.weight.any()
    with pytest.raises(FileNotFoundError, match=r"nowhere.pth is missing; estimator.path expects"):
        HigherHRNet.from_pretrained(tmp_path / "nowhere.pth")
    with pytest.raises(ValueError, match=r"mmpose.pth does not hold this HigherHRNet \(\d+ tensors differ: .*; check the width"):
        HigherHRNet.from_pretrained(tmp_path / "mmpose.pth", width=8)
    (tmp_path / "cut.pth").write_bytes((tmp_path / "mmpose.pth").read_bytes()[:1000])
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    for name in ("cut.pth", "evil.pth"):
        with pytest.raises(ValueError, match=f"{name} cannot be read as weights"):
            HigherHRNet.from_pretrained(tmp_path / name)
    assert not (tmp_path / "ran").exists()


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)
