import json

import numpy as np
import pytest
import torch

from posegen.data.base import Sample
from posegen.metrics.estimators.bottom_up import keep_distinct, peak_gaussians, peaks, snapped_to_peaks
from posegen.metrics.estimators.mannequin import (
    STYLES,
    MannequinJudge,
    cells_to_pixels,
    judge_targets,
    pixels_to_cells,
    regress,
    torso_centres,
)
from posegen.metrics.estimators.mannequin_transformer import MannequinTransformerJudge, positions
from posegen.poses.topology import COCO_SIGMAS

SMALL = (8, 16, 16, 24)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def judge(**config) -> MannequinJudge:
    torch.manual_seed(0)
    return MannequinJudge(SMALL, **config).eval()


def transformer(**config) -> MannequinTransformerJudge:
    torch.manual_seed(0)
    return MannequinTransformerJudge(24, layers=2, heads=2, stem=8, **config).eval()


BOTH = pytest.mark.parametrize("make", [judge, transformer])


def people(images: int) -> torch.Tensor:
    """``[B, 2, 17, 3]`` random keypoints around two places."""
    generator = torch.Generator().manual_seed(0)
    points = (
        torch.rand(images, 2, 17, 2, generator=generator) * 16 - 8 + torch.tensor([[18.0, 30.0], [45.0, 34.0]])[:, None]
    )
    return torch.cat([points, torch.full((images, 2, 17, 1), 2.0)], -1)


def perfect_outputs(keypoints: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a faultless network says of 64 x 64 images."""
    cells = pixels_to_cells(keypoints[..., :2])
    centres, _ = torso_centres(cells, keypoints[..., 2] > 0)
    heat, centre = (
        torch.stack([peak_gaussians(p, (32, 32), 1.0) for p in points.unbind(1)]).amax(0)
        for points in (cells, centres[:, :, None])
    )
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    grid = torch.stack([x, y], -1) * 2 + 0.5
    nearest = (grid[None, :, :, None] - centres[:, None, None]).square().sum(-1).argmin(-1)
    owner = torch.take_along_dim(cells[:, None, None], nearest[..., None, None, None], 3)[:, :, :, 0]
    offset = ((owner - grid[None, :, :, None]) / 8).flatten(3).permute(0, 3, 1, 2)
    return {"heat": heat.logit(1e-6), "centre": centre.logit(1e-6), "offset": offset}


def test_decodes_perfect_outputs_exactly():
    keypoints = people(8)
    for found, truth in zip(judge()._decode(perfect_outputs(keypoints)), keypoints.numpy(), strict=True):
        assert len(found) == 2 and (np.diff(found.scores) <= 0).all()
        order = found.keypoints[:, :, 0].mean(1).argsort()
        assert np.abs(found.keypoints[order, :, :2] - truth[:, :, :2]).max() < 1e-2
        assert found.keypoints[..., 2].min() > 0.7


def test_a_keypoint_without_heat_keeps_its_guess_and_a_low_score():
    keypoints = people(4)
    out = perfect_outputs(keypoints)
    out["heat"][:, 3] = -20
    for found, truth in zip(judge()._decode(out), keypoints.numpy(), strict=True):
        order = found.keypoints[:, :, 0].mean(1).argsort()
        assert np.abs(found.keypoints[order, 3, :2] - truth[:, 3, :2]).max() < 1e-2
        assert found.keypoints[:, 3, 2].max() < 1e-3


def test_peaks_are_subcell_exact():
    points = torch.rand(50, 2, dtype=torch.float64) * 20 + 5
    places, heights = peaks(peak_gaussians(points, (32, 32), 1.2), 2)
    assert (places[:, 0] - points).abs().max() < 1e-6
    assert (heights[:, 0] > 0.7).all() and (heights[:, 1] < 1e-6).all()


def test_snap_prefers_the_near_peak_to_the_high_one():
    heat = torch.maximum(
        0.5 * peak_gaussians(torch.tensor([10.0, 10.0]), (32, 32), 1.0),
        peak_gaussians(torch.tensor([28.0, 28.0]), (32, 32), 1.0),
    )
    guess = torch.linspace(6, 16, 17)[:, None].expand(-1, 2).clone()
    guess[0] = torch.tensor([11.0, 9.0])
    places, scores = snapped_to_peaks(guess[None, None], heat.expand(1, 17, -1, -1))
    assert places[0, 0, 0] == pytest.approx([10.0, 10.0], abs=1e-3) and scores[0, 0, 0] == pytest.approx(0.5)


def test_duplicates_are_dropped_but_neighbours_stay():
    pose = people(1)[:, :1, :, :2]
    three = torch.cat([pose, pose + 0.5, pose + 12], 1)
    keep = keep_distinct(three, torch.tensor([[0.9, 0.8, 0.7]]), torch.tensor(COCO_SIGMAS, dtype=torch.float32), 0.3)
    assert keep.tolist() == [[True, False, True]]


def test_score_threshold_and_calibration():
    model = judge()
    images, out = torch.zeros(4, 3, 64, 64), perfect_outputs(people(4))
    out["centre"][:, :, :, 16:] -= 3  # the right person is unsure
    model.forward = lambda images: out
    model.config["score_threshold"] = 0.0
    unsure, sure = (np.stack([p.scores[:2] for p in model.estimate(images)]) @ pick for pick in np.eye(2)[::-1])
    assert model.calibrate([(images, [2] * 4)])["count_error"] == 0
    assert model.config["score_threshold"] < unsure.min()
    assert model.calibrate([(images, [1] * 4)])["count_error"] == 0
    middle = np.sqrt(unsure.max() * sure.min())
    assert model.config["score_threshold"] == pytest.approx(middle, rel=0.1), (
        "as far from missing people as from inventing them"
    )
    assert [len(p) for p in model.estimate(images)] == [1] * 4


def sample(count: int = 2, style: str = "photo") -> Sample:
    keypoints = people(1)[0, :count].numpy()
    image = np.full((64, 64, 3), 40 * (1 + STYLES.index(style)) if style in STYLES else 0, np.uint8)
    return Sample(
        f"test/{style}",
        "",
        keypoints,
        np.full(count, 200.0),
        image,
        (64, 64),
        {"style": style, "scene": "park", "count": count},
    )


def test_targets():
    made = judge_targets([sample(2), sample(0), sample(1, "sketch")])
    assert made["keypoints"].shape == (3, 2, 17, 3) and made["areas"].shape == (3, 2)
    assert (made["keypoints"][1] == 0).all()
    assert {name: v.tolist() for name, v in made["attributes"].items()} == {
        "style": [0, 0, 2],
        "scene": [0, 0, 0],
        "count": [2, 0, 1],
    }
    with pytest.raises(ValueError, match=r"test/oil has the style 'oil'.*photo"):
        judge_targets([sample(1, "oil")])


def test_the_loss_is_least_at_the_truth():
    model, made = judge(), judge_targets([sample()])
    out = perfect_outputs(made["keypoints"]) | {"attributes": torch.zeros(1, 14)}
    model.forward = lambda images: out
    images = torch.zeros(1, 3, 64, 64)
    best = model.loss(images, **made)
    assert best["offset"] < 1e-3
    for shift in (1.0, -1.0):
        moved = made | {"keypoints": made["keypoints"] + torch.tensor([shift, 0, 0])}
        worse = model.loss(images, **moved)
        assert all(worse[name] > best[name] for name in ("heat", "centre", "offset"))


def test_hidden_keypoints_are_trained_and_unlabelled_ones_suppressed():
    model, made = judge(), judge_targets([sample(1)])
    made["keypoints"][0, 0, 0, 2], made["keypoints"][0, 0, 1, 2] = 1, 0
    logits = torch.zeros(1, 17, 32, 32, requires_grad=True)
    cells = pixels_to_cells(made["keypoints"][..., :2])
    model._map_loss(logits, cells, made["keypoints"][..., 2] > 0).backward()
    x, y = cells[0, 0, :2].round().long().unbind(-1)
    pull = -logits.grad[0, [0, 1], y, x]
    assert pull[0] > 0 > pull[1]


@pytest.mark.parametrize(
    "make", [lambda: MannequinJudge((16, 24, 32, 32)), lambda: MannequinTransformerJudge(32, 2, 2, 16)]
)
def test_learns(make):
    """A few steps on four images must find their people and attributes."""
    torch.manual_seed(0)
    model = make().train()
    samples = [sample(count, style) for count, style in ((1, "photo"), (2, "cartoon"), (1, "sketch"), (2, "shadow"))]
    images = torch.full((4, 3, 64, 64), -1.0)
    for i, s in enumerate(samples):  # each keypoint is a dot whose colour says which one it is
        images[i] += (i + 1) * 0.1
        for p in s.keypoints:
            for k, (x, y, _) in enumerate(p):
                images[i] += (
                    peak_gaussians(torch.tensor([float(x), float(y)]), (64, 64), 1.0)
                    * torch.tensor([k % 3, k // 3 % 3, k // 9])[:, None, None]
                )
    optimiser = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=50)
    made = model.targets(samples)
    losses = []
    for _ in range(50):
        optimiser.zero_grad()
        losses.append(model.loss(images, **made)["loss"])
        losses[-1].backward()
        optimiser.step()
        schedule.step()
    assert losses[-1] < 0.5 * losses[0]
    findings = model.eval().examine(images)
    assert [a["style"] for a in findings.attributes] == list(STYLES)
    for s, poses in zip(samples, findings.poses, strict=True):
        distance = np.linalg.norm(poses.keypoints[:, None, :, :2] - s.keypoints[None, ..., :2], axis=-1)
        assert np.median(distance.min(0)) < 3


@BOTH
@pytest.mark.parametrize("size", [(64, 64), (72, 104), (128, 128)])
def test_any_multiple_of_eight(size, make):
    images = torch.zeros(2, 3, *size)
    model = make(score_threshold=0.0)
    assert model.heatmaps(images).shape == (2, 17, size[0] // 2, size[1] // 2)
    findings = model.examine(images)
    assert findings.features.shape == (2, SMALL[-1]) and len(findings.poses) == 2
    assert findings.attributes == model.attributes(images)
    assert np.allclose(findings.features, model.features(images).detach().numpy(), atol=1e-6)
    for once, again in zip(findings.poses, model.estimate(images), strict=True):
        assert np.array_equal(once.keypoints, again.keypoints)


@BOTH
def test_differentiable_teacher(make):
    images = torch.rand(1, 3, 64, 64, requires_grad=True)
    model = make().requires_grad_(False)
    (model.features(images).sum() + model.heatmaps(images).sum()).backward()
    assert images.grad.abs().sum() > 0


def test_pixel_conventions():
    """Cell i covers pixels 2i and 2i + 1."""
    assert pixels_to_cells(torch.tensor([0.5, 2.5])).tolist() == [0, 1]
    assert cells_to_pixels(pixels_to_cells(torch.tensor([3.2]))).item() == pytest.approx(3.2)
    field = torch.zeros(1, 34, 16, 16)
    assert regress(field, torch.tensor([[[10.5, 4.5]]]))[0, 0, 0].tolist() == [10.5, 4.5]


def test_size():
    assert 0.5e6 < sum(p.numel() for p in MannequinJudge().parameters()) < 3e6


def test_places_of_tokens_matter():
    """The same person elsewhere must not look the same to a network of tokens without places."""
    table = positions(8, 12, 24)
    assert table.shape == (96, 24) and len(torch.unique((table * 1e4).round(), dim=0)) == 96


@BOTH
def test_save_and_load(tmp_path, make):
    model = make(score_threshold=0.07)
    model.stem[1].running_mean.normal_()
    model.save(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert loaded.config == model.config and next(loaded.parameters()).dtype == torch.float32
    images = torch.rand(1, 3, 64, 64)
    assert torch.allclose(loaded.heatmaps(images), model.heatmaps(images), atol=1e-2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    before = (tmp_path / "model.safetensors").read_bytes()
    loaded.save(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_damaged_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        MannequinJudge.from_pretrained(tmp_path)
    judge().save(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    complete = weights.read_bytes()
    weights.write_bytes(complete[: len(complete) // 2])
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read.*copy it again"):
        MannequinJudge.from_pretrained(tmp_path)
    weights.write_bytes(complete)
    config.write_text(json.dumps(judge().config | {"widths": [8, 16, 16, 32]}))
    with pytest.raises(ValueError, match=r"does not fit.* is \[.*, not \["):
        MannequinJudge.from_pretrained(tmp_path)
    config.write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not a readable json file"):
        MannequinJudge.from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        MannequinJudge.from_pretrained(tmp_path)
