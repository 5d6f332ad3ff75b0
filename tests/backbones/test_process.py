"""Noise processes agree with diffusers' schedulers, and their parts with one another."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from scipy.optimize import brentq

from posegen.backbones.loading.single_file import SCHEDULER
from posegen.backbones.mannequin import COSINE_SCHEDULER as COSINE
from posegen.backbones.process import Density, FlowMatching, NoiseProcess, VariancePreserving, noise_process
from posegen.errors import UserError
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


DYNAMIC = {**FLOW, "use_dynamic_shifting": True}


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_a_dynamic_shift_grows_with_the_image_in_training_as_in_sampling(kind: str) -> None:
    process = noise_process({**DYNAMIC, "time_shift_type": kind})
    scheduler = process.scheduler()
    process.set_steps(scheduler, 1024, 10)
    expected = FlowMatchEulerDiscreteScheduler.from_config(process.config)
    expected.set_timesteps(10, mu=calculate_shift(1024))
    assert torch.equal(scheduler.timesteps, expected.timesteps)
    u = torch.from_numpy(np.linspace(1, 1e-3, 10)).float()
    assert torch.allclose(process.sample_times(u, 1024), scheduler.timesteps, rtol=1e-4)
    assert (process.sample_times(u, 4096) >= process.sample_times(u, 1024)).all()
    assert torch.equal(process.sample_times(u), process.length * u), "a size that nobody knows shifts nothing"
    process.set_steps(scheduler, 4096, sigmas=[1.0, 0.5])
    assert scheduler.timesteps[1] > 500


def test_even_levels_are_those_of_flux() -> None:
    process = FlowMatching(DYNAMIC, even=True)
    scheduler, expected = process.scheduler(), FlowMatchEulerDiscreteScheduler.from_config(DYNAMIC)
    process.set_steps(scheduler, 256, 4)
    expected.set_timesteps(sigmas=np.linspace(1, 1 / 4, 4), mu=calculate_shift(256))
    assert torch.equal(scheduler.timesteps, expected.timesteps)
    heun = FlowMatching({**FLOW, "shift": 1.0}, even=True).scheduler("FlowMatchHeunDiscreteScheduler")
    FlowMatching(FLOW, even=True).set_steps(heun, 256, 4)
    assert len(heun.timesteps) == 7, "which takes a number of steps alone"
    with pytest.raises(UserError, match="velocity with a shift that grows with the image; choose .* sampler=flow"):
        process.scheduler("FlowMatchHeunDiscreteScheduler")


@pytest.mark.parametrize("density", get_args(Density))
def test_densities_are_those_of_the_paper(density: Any) -> None:
    """Esser et al. 2024, section 3.1: the share of times below a level."""
    times = FlowMatching({**FLOW, "shift": 1.0}, density).sample_times(torch.linspace(0, 1, 10001)[:-1]) / 1000
    assert times.min() >= 0 and times.max() <= 1 and (times.diff() >= 0).all()
    below = (times < 0.25).float().mean()
    cosmap = 2 / np.pi * np.arctan(1 / 3)  # the integral of 2 / (pi - 2 pi t + 2 pi t^2), by its inverse
    normal = float(torch.special.ndtr(torch.tensor(0.25).logit()))
    found = {"uniform": 0.25, "cosmap": cosmap, "logit_normal": normal}
    if density == "mode":  # its inverse has no closed form
        found["mode"] = brentq(lambda u: u - 1.29 * (np.sin(np.pi * u / 2) ** 2 - u) - 0.25, 0, 0.5)
    assert below == pytest.approx(found[density], abs=2e-4)


def test_an_unknown_density_is_refused() -> None:
    with pytest.raises(UserError, match="backbone.density is 'lognormal'; expected one of uniform, logit_normal, mode"):
        FlowMatching(FLOW, "lognormal")  # type: ignore[arg-type]


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
