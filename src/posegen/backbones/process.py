"""Noise processes: noisy latents, prediction targets and timesteps of a backbone."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, get_args

import diffusers
import numpy as np
import torch
from torch import Tensor

from posegen.errors import UserError
from posegen.io.weights import WeightsError

Density: TypeAlias = Literal["uniform", "logit_normal", "mode", "cosmap"]
MODE_SCALE = 1.29  # the s of the mode density in Stable Diffusion 3's experiments

#: The samplers of diffusers for variance-preserving processes. Its own list of compatible ones, ``compatibles``, leaves
#: five out, and has EDMEulerScheduler, whose networks are scaled in another way.
VARIANCE_PRESERVING = frozenset(
    f"{name}Scheduler"
    for name in (
        "DDIM", "DDIMParallel", "DDPM", "DDPMParallel", "DEISMultistep", "DPMSolverMultistep", "DPMSolverSDE",
        "DPMSolverSinglestep", "EulerAncestralDiscrete", "EulerDiscrete", "HeunDiscrete", "KDPM2AncestralDiscrete",
        "KDPM2Discrete", "LCM", "LMSDiscrete", "PNDM", "SASolver", "TCD", "UniPCMultistep",
    )
)  # fmt: skip


def scheduler_class(name: str) -> type:
    """The scheduler class of diffusers; a UserError where there is none of that name, or a package of it is missing."""
    cls = getattr(diffusers, name, None)
    try:
        usable = isinstance(cls, type) and hasattr(cls, "set_timesteps")
    except ImportError as error:  # diffusers' stand-in for a class without its package
        raise UserError(f"sampler.scheduler is {name!r}: {str(error).strip()}") from error
    if not usable:
        expected = "expected a scheduler of diffusers, for instance DDIMScheduler or FlowMatchEulerDiscreteScheduler"
        raise UserError(f"sampler.scheduler is {name!r}; {expected}")
    return cls  # type: ignore[return-value]


class NoiseProcess(ABC):
    """The noise process of a backbone, for latents ``[B, c, h, w]`` and timesteps ``t [B]`` of diffusers."""

    config: dict[str, Any]  # configuration of a diffusers scheduler
    prediction_type: str  # the network's output, ``epsilon``, ``v_prediction`` or ``velocity``
    length: int  # timestep of pure noise, 1000 in most models
    default_scheduler: str  # name of the diffusers scheduler that belongs to the process
    sampler: str  # the option of the group ``sampler`` with that scheduler

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = dict(config)

    @abstractmethod
    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(signal, sigma) ``[B]``: noisy latents are ``signal * clean + sigma * noise``."""

    @abstractmethod
    def sample_times(self, u: Tensor, tokens: int | None = None) -> Tensor:
        """Uniform numbers ``[B]`` in [0, 1) to the timesteps of a training step, on images of so many ``tokens``."""

    @abstractmethod
    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The right prediction."""

    @abstractmethod
    def clean(self, noisy: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """The clean latents that a prediction stands for."""

    @abstractmethod
    def accepts(self, scheduler: type) -> bool:
        """Whether a scheduler class of diffusers samples from this process."""

    def add_noise(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        signal, sigma = self._maps(t)
        return signal * clean + sigma * noise

    def power(self, t: Tensor) -> Tensor:
        """``[B]`` power of the signal."""
        return self.levels(t)[0].square()

    def snr(self, t: Tensor) -> Tensor:
        """``[B]`` power of the signal over that of the noise."""
        signal, sigma = self.levels(t)
        return (signal / sigma).square()

    def fraction(self, t: Tensor) -> Tensor:
        """``[B]`` position in the process, from 0 (clean) to 1 (pure noise)."""
        return t / self.length

    def scheduler(self, name: str | None = None) -> Any:
        """A diffusers scheduler of class ``name``, or the default one; a UserError where it is unknown or unfit."""
        name = name or self.default_scheduler
        cls = scheduler_class(name)
        if not self.accepts(cls):
            fix = f"choose for instance {self.default_scheduler}, with sampler={self.sampler}"
            raise UserError(f"sampler.scheduler={name} does not fit the backbone, which {self.predicts}; {fix}")
        return cls.from_config(self.config)  # type: ignore[attr-defined]

    @property
    def predicts(self) -> str:
        """What the network does, as part of a sentence."""
        return f"predicts {self.prediction_type}"

    def set_steps(self, scheduler: Any, tokens: int, steps: int | None = None, **given: Any) -> None:
        """Sets a scheduler to so many steps, or to ``timesteps=`` or ``sigmas=``, for images of so many ``tokens``."""
        scheduler.set_timesteps(steps, **given)

    def require(self, scheduler: Any) -> None:
        """Raises a UserError for a scheduler of another process, or for another prediction of the network."""
        name, predicts = type(scheduler).__name__, scheduler.config.get("prediction_type", self.prediction_type)
        if not self.accepts(type(scheduler)) or predicts != self.prediction_type:
            of_another = f" for {predicts}" if predicts != self.prediction_type else ""
            misfit = f"does not fit the backbone, which {self.predicts}"
            fix = f"take for instance diffusers.{self.default_scheduler}.from_config(pipe.scheduler.config)"
            raise UserError(f"{name}{of_another} {misfit}; {fix}")

    def _maps(self, t: Tensor) -> tuple[Tensor, Tensor]:
        signal, sigma = self.levels(t)
        return signal.view(-1, 1, 1, 1), sigma.view(-1, 1, 1, 1)


class VariancePreserving(NoiseProcess):
    """Noisy latents are sqrt(a) clean + sqrt(1 - a) noise, with a = ``alphas_cumprod[t]`` (Ho et al. 2020, equation 4).

    The network predicts the noise, or v = sqrt(a) noise - sqrt(1 - a) clean (Salimans & Ho 2022, equation 13)."""

    default_scheduler, sampler = "DDIMScheduler", "ddim"

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        schedule = diffusers.DDIMScheduler.from_config(self.config)
        self.prediction_type = schedule.config.prediction_type
        if self.prediction_type not in ("epsilon", "v_prediction"):
            has = f"its scheduler has prediction_type {self.prediction_type!r}"
            raise WeightsError(f"{has}; expected epsilon or v_prediction")
        self.alphas_cumprod: Tensor = schedule.alphas_cumprod.float()
        self.length = len(self.alphas_cumprod)
        self._on: dict[torch.device, Tensor] = {}

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        a = self.power(t)
        return a.sqrt(), (1 - a).sqrt()

    def snr(self, t: Tensor) -> Tensor:
        a = self.power(t)
        return a / (1 - a)

    def sample_times(self, u: Tensor, tokens: int | None = None) -> Tensor:
        return (u * self.length).long()

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        if self.prediction_type == "epsilon":
            return noise
        signal, sigma = self._maps(t)
        return signal * noise - sigma * clean

    def clean(self, noisy: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        signal, sigma = self._maps(t)
        if self.prediction_type == "epsilon":
            return (noisy - sigma * prediction) / signal
        return signal * noisy - sigma * prediction

    def accepts(self, scheduler: type) -> bool:
        if scheduler.__module__.startswith("diffusers."):
            return scheduler.__name__ in VARIANCE_PRESERVING
        return not scheduler.__name__.startswith("FlowMatch")  # somebody's own class

    def power(self, t: Tensor) -> Tensor:
        """``alphas_cumprod`` at the nearest whole timesteps; some schedulers place steps between two."""
        if t.device not in self._on:
            self._on[t.device] = self.alphas_cumprod.to(t.device)
        return self._on[t.device][t.round().long()]


class FlowMatching(NoiseProcess):
    """Noisy latents are (1 - s) clean + s noise, s = t / T; the network predicts noise - clean (Lipman et al. 2023).

    Training times are s = shift u / (1 + (shift - 1) u) (Esser et al. 2024, section 5.3.2), for u of a ``density``:
    uniform, or one of section 3.1: logit_normal, mode, cosmap. Where the scheduler's configuration has
    ``use_dynamic_shifting``, the shift grows with the image, in training as in sampling. Sampling takes the scheduler's
    steps, or, with ``even``, levels from 1 to 1 / steps before the shift, as FLUX does."""

    default_scheduler, sampler = "FlowMatchEulerDiscreteScheduler", "flow"
    prediction_type = "velocity"

    def __init__(self, config: Mapping[str, Any], density: Density = "uniform", even: bool = False) -> None:
        super().__init__(config)
        if density not in get_args(Density):
            raise UserError(f"backbone.density is {density!r}; expected one of {', '.join(get_args(Density))}")
        self.density, self.even = density, even
        self.schedule = diffusers.FlowMatchEulerDiscreteScheduler.from_config(self.config).config
        self.length = self.schedule.num_train_timesteps

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        sigma = self.fraction(t)
        return 1 - sigma, sigma

    def shift(self, tokens: int | None = None) -> float:
        """The shift for images of so many tokens; None: of any size, for which a dynamic shift is none."""
        if not self.schedule.use_dynamic_shifting:
            return self.schedule.shift
        if tokens is None:
            return 1.0
        mu = dynamic_shift(self.schedule, tokens)
        return mu if self.schedule.time_shift_type == "linear" else math.exp(mu)

    def sample_times(self, u: Tensor, tokens: int | None = None) -> Tensor:
        u, shift = dense(u, self.density), self.shift(tokens)
        return self.length * shift * u / (1 + (shift - 1) * u)

    def set_steps(self, scheduler: Any, tokens: int, steps: int | None = None, **given: Any) -> None:
        known = inspect.signature(scheduler.set_timesteps).parameters
        if steps is not None and self.even and "sigmas" in known:
            given, steps = {"sigmas": np.linspace(1, 1 / steps, steps)}, None
        if scheduler.config.get("use_dynamic_shifting"):
            given = {**given, "mu": dynamic_shift(scheduler.config, tokens)}
        super().set_steps(scheduler, tokens, steps, **given)

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return noise - clean

    def clean(self, noisy: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        return noisy - self._maps(t)[1] * prediction

    @property
    def predicts(self) -> str:
        return f"{super().predicts}{' with a shift that grows with the image' * self.schedule.use_dynamic_shifting}"

    def accepts(self, scheduler: type) -> bool:
        shifts = "mu" in inspect.signature(scheduler.set_timesteps).parameters  # type: ignore[attr-defined]
        return scheduler.__name__.startswith("FlowMatch") and (shifts or not self.schedule.use_dynamic_shifting)


def dense(u: Tensor, density: Density) -> Tensor:
    """Uniform numbers ``[B]`` in [0, 1) to numbers of a density in [0, 1) (Esser et al. 2024, section 3.1)."""
    if density == "logit_normal":
        return torch.special.ndtri(u.double().clamp(1e-6, 1 - 1e-6)).sigmoid().to(u)
    if density == "mode":
        return u - MODE_SCALE * ((math.pi / 2 * u).sin().square() - u)
    return 1 - 1 / ((math.pi / 2 * u).tan() + 1) if density == "cosmap" else u


def dynamic_shift(config: Mapping[str, Any], tokens: int) -> float:
    """The ``mu`` of a scheduler with this configuration for images of so many tokens, linear in their number."""
    few, many = config["base_image_seq_len"], config["max_image_seq_len"]
    least, most = config["base_shift"], config["max_shift"]
    return least + (most - least) * (tokens - few) / (many - few)


def noise_process(config: Mapping[str, Any], density: Density = "uniform", even: bool = False) -> NoiseProcess:
    """The process that a diffusers scheduler's configuration describes; the rest is for `FlowMatching`."""
    flow = str(config.get("_class_name", "")).startswith("FlowMatch")
    return FlowMatching(config, density, even) if flow else VariancePreserving(config)
