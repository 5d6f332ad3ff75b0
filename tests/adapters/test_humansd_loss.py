"""HumanSD's heatmap-guided losses, with teachers that return what they are told to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from posegen.adapters.base import State
from posegen.adapters.humansd import HumanSD
from posegen.backbones.base import Step
from posegen.backbones.text import Text
from posegen.metrics.estimators.higherhrnet import HeadShape, HigherHRNet
from posegen.metrics.estimators.hrnet import Stage
from tests.adapters.cases import SD1, backbone_of

SEEN, UNSEEN = 1.0, 0.0


class Teacher:
    """Finds in every image the joints that ``answer`` says, and remembers the images."""

    def __init__(self, answer: Callable[[Tensor], Tensor]) -> None:
        self.answer, self.images, self.raw = answer, [], []

    def heatmaps(self, images: Tensor) -> Tensor:
        self.images.append(images)
        return self.answer(images)

    def raw_heatmaps(self, inputs: Tensor) -> Tensor:
        self.raw.append(inputs)
        return self.answer(inputs)


def step_of(adapter: HumanSD, kind: str = "epsilon") -> Step:
    """A step of a backbone at Stable Diffusion's noise process, at timesteps where it matters what is predicted."""
    draw = torch.Generator().manual_seed(3)
    clean, noise, error = (torch.randn(2, 4, 4, 8, generator=draw) for _ in range(3))
    timesteps = torch.tensor([100, 600])
    backbone: Any = adapter.backbone
    noisy, target = (
        backbone.process.add_noise(clean, noise, timesteps),
        backbone.process.target(clean, noise, timesteps),
    )
    return Step((target + 0.3 * error).requires_grad_(), target, noisy, clean, noise, timesteps)


def attached(**settings: Any) -> HumanSD:
    torch.manual_seed(0)
    adapter = HumanSD(**settings)
    adapter.attach(backbone_of(SD1))
    return adapter


STATE = State(Text(torch.zeros(2, 1, 1)), Text(torch.zeros(2, 1, 1)))
BATCH: Any = SimpleNamespace(generators=lambda purpose: [torch.Generator().manual_seed(i) for i in range(2)])


def test_the_reference_weight_is_the_encoded_count_of_unseen_joints_in_the_decoded_error() -> None:
    heatmaps = torch.rand(2, 17, 16, 32, generator=torch.Generator().manual_seed(0))
    teacher = Teacher(lambda images: heatmaps)
    adapter = attached(loss_kind="heatmap_reference", teacher=teacher, threshold=0.3, loss_weight=0.5)
    step, backbone = step_of(adapter), cast(Any, adapter.backbone)
    weight = adapter.reference_weight(step, BATCH)
    (image,) = teacher.raw
    assert torch.allclose(
        image, (backbone.from_latents(step.prediction - step.target) / 2 + 0.5).clamp(0, 1), atol=1e-6
    )
    assert not teacher.images, "the image goes to the network as it is"
    count = (heatmaps <= 0.3).sum(1, keepdim=True).float().repeat(1, 3, 1, 1)
    enlarged = torch.nn.functional.interpolate(count, (32, 64), mode="bicubic")
    assert torch.allclose(weight, backbone.to_latents(enlarged, BATCH.generators("")), atol=1e-5)
    losses = adapter.loss(step, STATE, BATCH)
    assert torch.allclose(losses["loss"], ((step.prediction - step.target).square() * (1 + 0.5 * weight)).mean())


@pytest.mark.parametrize("kind", ["heatmap_reference", "heatmap_corrected"])
def test_higherhrnet_teaches_and_learns_nothing(kind: str) -> None:
    torch.manual_seed(0)
    stages = [Stage(1, (1,) * (i + 1), tuple(8 * 2**j for j in range(i + 1))) for i in range(4)]
    teacher = HigherHRNet(stages, 8, HeadShape(filters=(8,), blocks=1))
    teacher = teacher.fill(teacher.state_dict(), "itself")
    adapter = attached(loss_kind=kind, teacher=teacher, threshold=0.0)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    losses = adapter.loss(step_of(adapter), STATE, BATCH)
    assert losses["loss"].isfinite() and losses["loss"] != losses["plain"]
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())


@pytest.mark.parametrize("kind", ["heatmap_reference", "heatmap_corrected"])
def test_the_weight_has_no_gradient_and_the_error_has(kind: str) -> None:
    adapter = attached(loss_kind=kind, teacher=Teacher(lambda images: images.new_full((2, 17, 16, 32), SEEN)))
    step = step_of(adapter)
    adapter.loss(step, STATE, BATCH)["loss"].backward()
    assert step.prediction.grad is not None and step.prediction.grad.any()
    assert all(p.grad is None for p in adapter.backbone.parameters())  # type: ignore[union-attr]


def test_the_corrected_weight_is_the_share_of_a_cell_with_joints_in_the_predicted_image() -> None:
    def left(images: Tensor) -> Tensor:
        heatmaps = torch.full((2, 17, 8, 16), UNSEEN)
        heatmaps[:, 3, :, :4] = SEEN
        heatmaps[:, 5, :4, 4:6] = SEEN
        return heatmaps

    teacher = Teacher(left)
    adapter = attached(loss_kind="heatmap_corrected", teacher=teacher, loss_weight=0.5)
    step = step_of(adapter)
    weight = adapter.corrected_weight(step)
    assert weight.shape == (2, 1, 4, 8)
    assert (
        weight[:, 0, :, :2].eq(1).all()
        and weight[:, 0, :2, 2].eq(1).all()
        and not weight[:, 0, :, 3:].any()
        and not weight[:, 0, 2:, 2].any()
    )
    error = (step.prediction - step.target).square()
    losses = adapter.loss(step, STATE, BATCH)
    assert torch.allclose(losses["loss"], (error * (1 + 0.5 * weight)).mean()) and torch.allclose(
        losses["plain"], error.mean()
    )
    backbone: Any = adapter.backbone
    assert torch.allclose(
        teacher.images[0],
        backbone.from_latents(backbone.process.clean(step.noisy, step.prediction, step.timesteps)).clamp(-1, 1),
        atol=1e-5,
    )


def test_a_teacher_that_sees_nothing_leaves_the_plain_loss() -> None:
    adapter = attached(
        loss_kind="heatmap_corrected", teacher=Teacher(lambda images: images.new_full((2, 17, 8, 16), UNSEEN))
    )
    losses = adapter.loss(step_of(adapter), STATE, BATCH)
    assert losses["loss"] == losses["plain"]


def test_a_missing_teacher_is_said_in_training_and_not_missed_in_sampling() -> None:
    adapter = attached(loss_kind="heatmap_corrected")
    with pytest.raises(ValueError, match="needs a pose estimator: adapter.teacher"):
        adapter.loss(step_of(adapter), STATE, BATCH)
    with pytest.raises(ValueError, match="expected one of plain, heatmap_reference, heatmap_corrected"):
        HumanSD(loss_kind="heatmap")  # type: ignore[arg-type]


def test_the_teacher_is_neither_trained_nor_saved(tmp_path: Path) -> None:
    adapter = attached(teacher=torch.nn.Linear(1, 1))
    assert not adapter.state_dict() and not list(adapter.parameters())


def test_a_unet_that_was_widened_already_is_not_widened_again() -> None:
    backbone = backbone_of(SD1)
    backbone.widen(4)
    before = backbone.unet.conv_in
    with pytest.raises(ValueError, match="takes 8 channels, not the 4 of the latents"):
        backbone.widen(4)
    assert backbone.unet.conv_in is before
