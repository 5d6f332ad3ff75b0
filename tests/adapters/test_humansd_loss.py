"""HumanSD's heatmap-guided losses, with teachers that return what they are told to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from posegen.adapters.base import State
from posegen.adapters.humansd import HumanSD, widen
from posegen.backbones import ldm_keys as ldm
from posegen.backbones.base import Geometry, Step
from posegen.backbones.single_file import unet_of, vae_of
from tests.adapters.cases import SD1, Case, backbone_of

SEEN, UNSEEN = 1.0, 0.0


class Teacher:
    """Finds in every image the joints that ``answer`` says, and remembers the images."""

    def __init__(self, answer: Callable[[Tensor], Tensor]) -> None:
        self.answer, self.images = answer, []

    def heatmaps(self, images: Tensor) -> Tensor:
        self.images.append(images)
        return self.answer(images)


def step_of(adapter: HumanSD, kind: str = "epsilon") -> Step:
    """A step of a backbone at Stable Diffusion's noise process, at timesteps where it matters what is predicted."""
    draw = torch.Generator().manual_seed(3)
    clean, noise, error = (torch.randn(2, 4, 4, 8, generator=draw) for _ in range(3))
    timesteps = torch.tensor([100, 600])
    backbone: Any = adapter.backbone
    noisy, target = backbone.add_noise(clean, noise, timesteps), backbone.target(clean, noise, timesteps)
    return Step((target + 0.3 * error).requires_grad_(), target, noisy, clean, noise, timesteps)


def attached(**settings: Any) -> HumanSD:
    torch.manual_seed(0)
    adapter = HumanSD(**settings)
    adapter.attach(backbone_of(SD1))
    return adapter


STATE = State(torch.zeros(2, 1, 1), torch.zeros(2, 1, 1))
BATCH: Any = SimpleNamespace(generators=lambda purpose: [torch.Generator().manual_seed(i) for i in range(2)])


def test_the_reference_loss_is_that_of_the_official_program_given_its_heatmaps(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case.read("humansd_full")
    config, given = case.facts["config"], case.io
    vae = vae_of(tuple(config["ddconfig"]["ch"] * m for m in config["ddconfig"]["ch_mult"]), config["ddconfig"]["num_res_blocks"], config["embed_dim"])
    vae.load_state_dict(ldm.vae_tensors(ldm.below(case.weights, ldm.VAE), ldm.vae_table(len(vae.config.block_out_channels), 1)).tensors)
    teacher = Teacher(lambda images: given["mid.heatmaps"])
    adapter = HumanSD(loss_kind="heatmap_reference", teacher=teacher, threshold=config["estimate_thresh"], loss_weight=config["pose_loss_weight"])
    adapter.attach(backbone_of(Geometry.from_ldm(config["unet_config"]), vae))
    step = Step(given["mid.eps_loss"], given["in.noise"], given["mid.x_noisy"], given["in.x_start"], given["in.noise"], given["in.t_loss"].long())
    rows = iter([*given["in.posterior_noise"]] * 2)
    monkeypatch.setattr(torch, "randn", lambda *_, **__: next(rows))
    weight = adapter.reference_weight(step, BATCH)
    case.check("difference_image", teacher.images[0])
    case.check("weight_latent", weight)
    case.check("loss_weight", 1 + adapter.loss_weight * weight)
    losses = adapter.loss(step, STATE, BATCH)
    case.check("loss", losses["loss"])
    case.check("loss_plain_mse", losses["plain"])


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
    assert weight[:, 0, :, :2].eq(1).all() and weight[:, 0, :2, 2].eq(1).all() and not weight[:, 0, :, 3:].any() and not weight[:, 0, 2:, 2].any()
    error = (step.prediction - step.target).square()
    losses = adapter.loss(step, STATE, BATCH)
    assert torch.allclose(losses["loss"], (error * (1 + 0.5 * weight)).mean()) and torch.allclose(losses["plain"], error.mean())
    backbone: Any = adapter.backbone
    assert torch.allclose(teacher.images[0], backbone.from_latents(backbone.predict_clean(step)).clamp(-1, 1), atol=1e-5)


def test_a_teacher_that_sees_nothing_leaves_the_plain_loss() -> None:
    adapter = attached(loss_kind="heatmap_corrected", teacher=Teacher(lambda images: images.new_full((2, 17, 8, 16), UNSEEN)))
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
    unet = unet_of(SD1)
    widen(unet, 4)
    assert unet.conv_in.weight.shape[1] == unet.config.in_channels == 8 and not unet.conv_in.weight[:, 4:].any()
    with pytest.raises(ValueError, match="takes 8 channels, not the 4 of the latents"):
        widen(unet, 4)
