"""Keeping a picture while the rest is sampled: the noise level of every step, the mask in latents, and the pixels at
the end."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from posegen.adapters.none import NoAdapter
from posegen.backbones.base import Injection
from posegen.backbones.loading.single_file import vae_of
from posegen.backbones.stable_diffusion import StableDiffusion
from posegen.backbones.text import Text
from posegen.data.base import PoseBatch
from posegen.runner.sampler import Sampler
from posegen.runner.user_requests.inpainting import Kept, pasted, reduced
from posegen.runner.user_requests.pipeline_sampler import NoisyBatch
from tests.adapters.cases import backbone_of
from tests.adapters.test_dnaf import MANNEQUIN


class Oracle(StableDiffusion):
    """Predicts the noise of ``clean`` exactly, whatever it is asked."""

    clean: Tensor

    def predict(self, latents: Tensor, timesteps: Tensor, text: Text, injection: Injection) -> Tensor:
        signal, sigma = (level.view(-1, 1, 1, 1) for level in self.process.levels(timesteps))
        return self.process.target(self.clean, (latents - signal * self.clean) / sigma, timesteps)


def method(linear: bool = True) -> NoAdapter:
    parts = backbone_of(MANNEQUIN, vae_of((32,) * 3, 1)).parts
    parts.scheduler |= {
        "skip_prk_steps": linear,
        "set_alpha_to_one": True,
        "clip_sample": False,
        "timestep_spacing": "leading",
    }
    torch.manual_seed(0)  # without `linear` PNDM starts with Runge and Kutta's steps
    adapter = NoAdapter()
    adapter.attach(Oracle.from_parts(parts))
    return adapter


def batch(images: int = 2) -> PoseBatch:
    draw = torch.Generator().manual_seed(3)
    text = Text(torch.randn(images, 5, 32, generator=draw))
    pictures = torch.rand(images, 3, 32, 32, generator=draw) * 2 - 1
    return PoseBatch(
        [str(i) for i in range(images)],
        [""] * images,
        [np.zeros((0, 17, 3))] * images,
        (32, 32),
        images=pictures,
        text=text,
        negative_text=text[:1],
    )


def half() -> Tensor:
    mask = torch.zeros(2, 32, 32, dtype=torch.bool)
    mask[0, :, :16], mask[1, 8:12, 20:24] = True, True
    return mask


def trajectory(adapter: NoAdapter, sampler: Sampler, start: Tensor, after: Callable | None = None) -> Tensor:
    """The latents after every step from ``start``."""
    pose = NoisyBatch(**vars(batch()), noise=start)
    return torch.stack(list(sampler.denoising(adapter, adapter.backbone, pose, after)))


@pytest.mark.parametrize(
    ("scheduler", "linear"), [("DDIMScheduler", True), ("PNDMScheduler", True), ("PNDMScheduler", False)]
)
def test_what_is_kept_has_the_noise_of_the_next_step(scheduler: str, linear: bool) -> None:
    """Where the model predicts the noise of the picture exactly, keeping the picture changes nothing; the level of the
    step before would."""
    adapter, pose, sampler = method(linear), batch(), Sampler(scheduler, steps=20, guidance=1.0)
    kept = Kept.of(adapter.backbone, pose, half())
    adapter.backbone.clean = kept.clean
    first = sampler.build(adapter.backbone).timesteps[:1].long()
    start = adapter.backbone.process.add_noise(kept.clean, kept.noise, first.expand(2))
    alone, levels = trajectory(adapter, sampler, start), []

    def blended(latents: Tensor, noised: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        levels.append(noised(torch.zeros_like(latents), torch.ones_like(latents))[0, 0, 0, 0].item())
        return kept(latents, noised)

    together = trajectory(adapter, sampler, start, blended)
    assert (alone - together).abs().max() < 1e-3
    assert levels == sorted(levels, reverse=True) and levels[-1] == 0 < levels[-2] < 1
    assert torch.allclose(together[-1], kept.clean, atol=1e-3)
    before: list[Callable] = [lambda clean, noise: noise]

    def late(latents: Tensor, noised: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        before.append(noised)
        return kept(latents, before[-2])

    assert (alone - trajectory(adapter, sampler, start, late)).abs().max() > 0.1


@pytest.mark.parametrize(
    "scheduler", ["DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"]
)
def test_at_the_end_the_rest_is_the_pictures_own(scheduler: str) -> None:
    adapter, pose = method(), batch()
    kept = Kept.of(adapter.backbone, pose, half())
    adapter.backbone.clean = torch.zeros_like(kept.clean)
    made = Sampler(scheduler, steps=5, guidance=1.0).latents(adapter, adapter.backbone, pose, kept)
    outside = ~kept.anew.expand_as(made)
    assert torch.equal(made[outside], kept.clean[outside]) and not torch.allclose(
        made[~outside], kept.clean[~outside], atol=1e-2
    )


def test_a_cell_counts_where_any_of_its_pixels_does() -> None:
    mask = torch.zeros(1, 12, 16, dtype=torch.bool)
    mask[0, 5, 7] = True
    assert reduced(mask, 4).nonzero().tolist() == [[0, 0, 1, 1]]
    assert (
        reduced(mask, 4, dilate=1).sum() == 9
        and reduced(mask, 4, dilate=1)[0, 0, :3, :3].all()
        and reduced(mask, 4, dilate=9).all()
    )


@pytest.mark.parametrize("soft", [0, 3])
@pytest.mark.parametrize("size", [(40, 30), (16, 24)])
def test_acceptance_10_pixels_outside_the_mask_are_the_pictures_own(soft: int, size: tuple[int, int]) -> None:
    dice = np.random.default_rng(0)
    picture, made = dice.integers(0, 256, (40, 30, 3), np.uint8), dice.integers(0, 256, (*size, 3), np.uint8)
    mask = np.zeros((40, 30), bool)
    mask[10:30, 5:] = True
    result = pasted(picture, mask, made, soft)
    assert np.array_equal(result[~mask], picture[~mask]) and result.dtype == np.uint8
    if size == (40, 30):
        deep = np.zeros_like(mask)
        deep[10 + soft : 30 - soft, 5 + soft :] = True  # the picture's own edge is none of the mask's
        assert np.array_equal(result[deep], made[deep])
        border = result[20, 5].astype(int) - picture[20, 5], made[20, 5].astype(int) - picture[20, 5]
        assert np.abs(border[0] - border[1] / (soft + 1)).max() <= 0.51
