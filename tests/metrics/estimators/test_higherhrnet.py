"""HigherHRNet: its names, timm's HRNet as an independent witness of the trunk, the people it finds, and the reference
case where it is at hand."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hydra.utils import instantiate
from safetensors.torch import save_file

from posegen.config.compose import composed
from posegen.data.base import to_tensor
from posegen.metrics.estimators.bottom_up import peak_gaussians
from posegen.metrics.estimators.higherhrnet import MEAN, STD, HeadShape, HigherHRNet, fitted
from posegen.metrics.estimators.hrnet import HRNet, Stage
from posegen.parity.case import Case
from posegen.parity.compare import compare
from posegen.parity.higherhrnet import image_of, network_of
from posegen.poses.topology import COCO_FLIP, COCO_NAMES
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
    assert {key: value.shape for key, value in network.state_dict().items()} == {
        key: value.shape for key, value in keys.items()
    }
    assert sum(p.numel() for p in network.parameters()) == facts["total_parameters"] == 63_827_139


def test_the_reference_maps_and_people() -> None:
    case = Case.read(reference("higherhrnet_small"))
    lines = compare(case).lines
    assert {line.output for line in lines} == {f"mid.{name}" for name in case.mids} | set(case.expected)
    assert all(line.ok for line in lines), "\n".join(map(str, lines))


def test_the_reference_image_to_people() -> None:
    case = Case.read(reference("higherhrnet_small"))
    network, image = network_of(case), to_tensor(image_of(case))
    first, second = network.estimate(torch.stack([image, image]))
    for found in (first, second):
        assert np.abs(found.keypoints - case.expected["keypoints"].numpy()).max() < 0.05
        assert np.allclose(found.scores, case.expected["scores"].numpy(), atol=1e-4)


def test_the_trunk_is_timms() -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("hrnet_w18_small", features_only=True, feature_location="", out_indices=(1,)).eval()
    widths = (16, 32, 64, 128)
    ours = HRNet([Stage(1, (1,), (32,)), *(Stage(1, (2,) * n, widths[:n]) for n in (2, 3, 4))]).eval()
    weights = theirs.state_dict()
    assert ours.load_state_dict(weights, strict=False).missing_keys == []
    assert {key.rsplit(".fuse_layers", 1)[0] for key in weights.keys() - ours.state_dict().keys()} == {
        "stage4.0"
    }  # towards the coarser branches
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
    assert list(COCO_FLIP) == swapped
    x = images(1, 3, 32, 64)
    with torch.no_grad():
        (heatmaps, tags), (mirrored, mirrored_tags) = network.flip_tested(x), network.flip_tested(x.flip(-1))
    assert torch.allclose(mirrored.flip(-1)[:, swapped], heatmaps, atol=1e-5)
    assert tags.shape == (1, 17, 16, 32, 2) and torch.allclose(
        mirrored_tags.flip(-2)[:, swapped].flip(-1), tags, atol=1e-5
    )


def test_images_are_fitted_to_multiples_of_64() -> None:
    image = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    assert np.array_equal(fitted(image), image)
    wide, tall = fitted(image[:72, :96], 64), fitted(image[:96, :72], 64)
    assert wide.shape == (64, 128, 3) and tall.shape == (128, 64, 3)
    assert wide[:, 86:].max() == 0 and wide[:, 80].max() > 0 and np.array_equal(wide[0, 0], image[0, 0])


class Seeing(HigherHRNet):
    """Has the maps of given people instead of a network, and notes what it was given."""

    def __init__(self, people: torch.Tensor, heights: torch.Tensor | tuple[float, ...], **options: object) -> None:
        super().__init__(SMALL, 8, HeadShape(filters=(8,), blocks=1), size=64, **options)
        self.people, self.given = people, []
        self.heights = heights if isinstance(heights, torch.Tensor) else torch.tensor(heights)[:, None].expand(-1, 17)

    def forward(self, inputs: torch.Tensor) -> list[torch.Tensor]:
        self.given.append(inputs)
        size = (inputs.shape[-2] // 2, inputs.shape[-1] // 2)
        each = peak_gaussians(self.people, size, 1.5) * self.heights[..., None, None]
        heat, tags = each.amax(0), 5.0 * each.argmax(0)
        maps = torch.cat([heat, tags])[None].expand(len(inputs), -1, -1, -1)
        return [maps, maps[:, :17]]


def people_on(size: tuple[int, int]) -> torch.Tensor:
    """Two people ``[2, 17, 2]`` on maps of ``size``."""
    offsets = (torch.rand(17, 2, generator=torch.Generator().manual_seed(2)) - 0.5) * (size[0] - 6)
    return offsets + torch.tensor([[size[1] * 0.3, size[0] * 0.5], [size[1] * 0.6, size[0] * 0.5]])[:, None]


def test_people_are_found_in_pixels_of_the_image() -> None:
    people = people_on((32, 64))
    heights = torch.tensor([[0.5], [0.9]]).repeat(1, 17)
    heights[:, 0] = torch.tensor([0.8, 0.6])  # the poorer person is begun first
    network = Seeing(people, heights, flip_test=False)
    found = network.estimate(torch.zeros(3, 3, 72, 96))
    assert len(network.given) == 1 and network.given[0].shape == (3, 3, 64, 128)
    for poses in found:
        assert len(poses) == 2 and poses.scores[0] > 0.8 > poses.scores[1], "the better one first"
        assert np.abs(poses.keypoints[::-1, :, :2] - people.numpy() * [71 * 127 / 63 / 63, 71 / 31]).max() < 0.1
    assert network.estimate(torch.zeros(0, 3, 72, 96)) == []


def test_images_of_the_networks_size_are_not_touched() -> None:
    network = Seeing(people_on((32, 32)), (0.9, 0.0))
    x = images(2, 3, 64, 64)
    network.estimate(x)
    (given,) = network.given
    assert torch.equal(given, network.normalised(torch.cat([x, x.flip(-1)]))), "plain and mirrored in one pass"


def test_options() -> None:
    people = people_on((32, 32))
    x = images(1, 3, 64, 64)
    assert [
        len(Seeing(people, (0.5, 0.9), flip_test=False, score_threshold=t).estimate(x)[0]) for t in (0.0, 0.6, 0.95)
    ] == [2, 1, 0]
    near = people.clone()
    near[1] = near[0] + 4
    assert [len(Seeing(near, (0.5, 0.9), flip_test=False, nms_threshold=t).estimate(x)[0]) for t in (1.0, 0.1)] == [
        2,
        1,
    ]
    swapped = Seeing(people, (0.5, 0.9), channel_order="bgr")
    assert torch.equal(swapped.normalised(x), Seeing(people, (0.5, 0.9)).normalised(x.flip(1)))
    with pytest.raises(ValueError, match=r"estimator.channel_order=gbr is unknown; expected rgb, or bgr"):
        Seeing(people, (0.5, 0.9), channel_order="gbr")


def test_a_network_finds_the_same_in_a_batch_and_has_no_features(network: HigherHRNet) -> None:
    x = images(2, 3, 64, 96)
    network.size = 64
    together, alone = network.estimate(x), [network.estimate(image[None])[0] for image in x]
    assert [len(p) for p in together] == [len(p) for p in alone]
    assert network.examine(x).features is None


def test_what_it_cannot_do_is_said(network: HigherHRNet) -> None:
    with pytest.raises(ValueError, match=r"images of \(48, 64\); choose sides that are multiples of 32"):
        network.heatmaps(images(1, 3, 48, 64))
    with pytest.raises(ValueError, match="HRNet's stages have \\[1, 3\\] branches"):
        HRNet([SMALL[0], SMALL[2]])
    with pytest.raises(ValueError, match="not finite"):
        network.estimate(torch.full((1, 3, 64, 64), torch.nan))


class Config:
    """Stands for an object of mmpose's that its files hold beside the weights."""

    def __init__(self) -> None:
        self.model = {"type": "AssociativeEmbedding"}


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def narrow() -> HigherHRNet:
    torch.manual_seed(0)
    return HigherHRNet.from_width(8).eval()


@pytest.mark.parametrize("name", ["mmpose.pth", "plain.safetensors"])
def test_an_official_file_comes_back(tmp_path: Path, narrow: HigherHRNet, name: str) -> None:
    tensors = dict(narrow.state_dict())
    if name.endswith(".pth"):
        meta = {"epoch": 300, "config": Config(), "losses": np.ones(3), "mmpose_version": "0.29.0"}
        torch.save({"meta": meta, "state_dict": tensors, "optimizer": {"step": 1}}, tmp_path / name)
    else:
        save_file(tensors, tmp_path / name)
    words = (
        "estimator=higherhrnet",
        f"estimator.path={tmp_path / name}",
        "estimator.width=8",
        "estimator.size=64",
        "estimator.score_threshold=0.3",
    )
    with composed("annotate", words) as cfg:
        read = instantiate(cfg.estimator, _convert_="all")
    assert not read.training and not any(p.requires_grad for p in read.parameters())
    assert (read.size, read.score_threshold, read.nms_threshold, read.flip_test, read.channel_order) == (
        64,
        0.3,
        1.0,
        True,
        "rgb",
    )
    x = images(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(read.heatmaps(x), narrow.heatmaps(x))
    assert {key.split(".")[0] for key in tensors} == {"backbone", "keypoint_head"}


def test_other_files_are_refused_by_name(tmp_path: Path, narrow: HigherHRNet) -> None:
    file = tmp_path / "mmpose.pth"
    torch.save({"state_dict": narrow.state_dict()}, file)
    with pytest.raises(FileNotFoundError, match=r"nowhere.pth is missing; estimator.path expects"):
        HigherHRNet.from_pretrained(tmp_path / "nowhere.pth")
    with pytest.raises(
        ValueError, match=r"mmpose.pth does not hold this HigherHRNet \(\d+ tensors differ: .*; check the width"
    ):
        HigherHRNet.from_pretrained(file, width=16)
    (tmp_path / "cut.pth").write_bytes(file.read_bytes()[:1000])
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    torch.save({"state_dict": narrow.state_dict(), "meta": Evil(tmp_path / "ran")}, tmp_path / "hidden.pth")
    for name in ("cut.pth", "evil.pth", "hidden.pth"):
        with pytest.raises(ValueError, match=f"{name}: cannot be read as weights .*nothing in it was run"):
            HigherHRNet.from_pretrained(tmp_path / name, width=8)
    assert not (tmp_path / "ran").exists()
