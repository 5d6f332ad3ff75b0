"""Noise processes agree with diffusers' schedulers, and their parts with one another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from posegen.backbones.loading.single_file import SCHEDULER
from posegen.backbones.mannequin import SCHEDULER as COSINE
from posegen.backbones.process import FlowMatching, NoiseProcess, VariancePreserving, noise_process
from posegen.io.weights import WeightsError

FLOW: dict[str, Any] = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
PROCESSES = [noise_process(SCHEDULER), noise_process(COSINE), noise_process(FLOW)]
EACH = pytest.mark.parametrize("process", PROCESSES, ids=["epsilon", "v", "flow"])


def latents() -> tuple[torch.Tensor, torch.Tensor]:
    clean, noise = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    return clean, noise


@EACH
def test_the_right_prediction_gives_the_clean_latents(process: NoiseProcess) -> None:
    clean, noise = latents()
    t = process.sample_times(torch.tensor([0.02, 0.4, 0.9]))
    noisy = process.add_noise(clean, noise, t)
    assert torch.allclose(process.clean(noisy, process.target(clean, noise, t), t), clean, atol=1e-4)


@EACH
def test_times_run_from_clean_to_noise(process: NoiseProcess) -> None:
    t = process.sample_times(torch.linspace(0, 0.999, 7))
    fraction, snr, power = process.fraction(t), process.snr(t), process.power(t)
    assert (fraction.diff() > 0).all() and fraction[0] == 0 and 0.99 < fraction[-1] <= 1
    assert (snr.diff() < 0).all() and (power.diff() < 0).all()
    signal, sigma = process.levels(t)
    assert torch.allclose(power, signal.square()) and torch.allclose(snr[1:], (signal / sigma)[1:].square())


@pytest.mark.parametrize("config", [SCHEDULER, COSINE], ids=["epsilon", "v"])
def test_variance_preserving_noise_is_that_of_diffusers(config: dict[str, Any]) -> None:
    process, scheduler, (clean, noise) = noise_process(config), DDIMScheduler.from_config(config), latents()
    assert isinstance(process, VariancePreserving) and process.length == 1000
    t = torch.tensor([0, 400, 990])
    assert torch.allclose(process.add_noise(clean, noise, t), scheduler.add_noise(clean, noise, t), atol=1e-6)
    assert torch.equal(process.power(t), scheduler.alphas_cumprod[t])
    assert torch.equal(process.power(t + 0.3), process.power(t)), "times between two steps are those of the nearest"
    wanted = noise if process.prediction_type == "epsilon" else scheduler.get_velocity(clean, noise, t)
    assert torch.allclose(process.target(clean, noise, t), wanted, atol=1e-6)


def test_flow_matching_is_that_of_diffusers() -> None:
    process, scheduler, (clean, noise) = (
        noise_process(FLOW),
        FlowMatchEulerDiscreteScheduler.from_config(FLOW),
        latents(),
    )
    assert isinstance(process, FlowMatching)
    t = scheduler.timesteps[[0, 500, 998]]
    assert torch.allclose(process.add_noise(clean, noise, t), scheduler.scale_noise(clean, t, noise), atol=1e-6)
    assert torch.equal(process.target(clean, noise, t), noise - clean)
    uniform = torch.arange(1000, 0, -1) / 1000
    assert torch.allclose(process.sample_times(uniform), scheduler.timesteps, atol=1e-3)


def test_one_euler_step_with_the_right_velocity_reaches_the_next_level() -> None:
    process, (clean, noise) = noise_process(FLOW), latents()
    scheduler = process.scheduler()
    scheduler.set_timesteps(4)
    first, second = scheduler.timesteps[:2]
    noisy = process.add_noise(clean, noise, first.expand(3))
    made = scheduler.step(process.target(clean, noise, first), first, noisy).prev_sample
    assert torch.allclose(made, process.add_noise(clean, noise, second.expand(3)), atol=1e-5)


def test_a_process_builds_its_own_schedulers_alone() -> None:
    assert type(noise_process(SCHEDULER).scheduler("PNDMScheduler")).__name__ == "PNDMScheduler"
    assert type(noise_process(FLOW).scheduler()).__name__ == "FlowMatchEulerDiscreteScheduler"
    for process, name in ((PROCESSES[0], "FlowMatchEulerDiscreteScheduler"), (PROCESSES[2], "DDIMScheduler")):
        with pytest.raises(ValueError, match=f"sampler.scheduler={name} does not fit the backbone"):
            process.scheduler(name)
    with pytest.raises(ValueError, match="sampler.scheduler is 'DDIM'; expected a scheduler of diffusers"):
        PROCESSES[0].scheduler("DDIM")
    with pytest.raises(WeightsError, match="prediction_type 'sample'; expected epsilon or v_prediction"):
        noise_process({**SCHEDULER, "prediction_type": "sample"})
