"""The one sampler: same noise, same schedule, same guidance rule for every method."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from posegen.adapters.base import Adapter, State
from posegen.backbones.base import Backbone
from posegen.backbones.process import scheduler_class
from posegen.data.base import PoseBatch
from posegen.errors import UserError
from posegen.ranges import AtLeastOne, AtLeastZero, NotNegative, ZeroToOne
from posegen.runner.precision import autocast, casting_once

#: Changes the latents after a step, given a function that brings (clean latents, noise) to their noise level.
After = Callable[[Tensor, Callable[[Tensor, Tensor], Tensor]], Tensor]


class Sampler:
    """Guided sampling with a diffusers scheduler.

    The initial noise comes from each image's generator, so every method starts an image from the same latents, whatever
    the batch or the device. All branches of guidance run as one batch.

    Args:
        scheduler: name of a diffusers scheduler class; None: the one that belongs to the backbone's noise process.
        guidance: guidance scale; 1 samples without guidance.
        eta: noise added per step, for schedulers that take it (0: deterministic).
        negative_prompt: guidance points away from it.
        long_prompts: what the text tower cannot read at once is cut, or encoded in chunks, see `encode_prompts`.
        skip: first steps that are left out; the pure noise enters at the next one (1 in HumanSD's official demos).
        precision: of the networks, in Lightning's names; the scheduler and the decoder compute in single precision.
    """

    checkable = True  # the constructor loads nothing, see `posegen.config.checking.check.refused`

    def __init__(
        self,
        scheduler: str | None = "DDIMScheduler",
        steps: Annotated[int, Interval(ge=1, le=1000)] = 20,
        guidance: NotNegative = 2.0,
        eta: ZeroToOne = 0.0,
        negative_prompt: str = "",
        batch: AtLeastOne = 50,
        skip: AtLeastZero = 0,
        precision: str = "32-true",
        long_prompts: Literal["cut", "chunk"] = "cut",
    ) -> None:
        if scheduler is not None:
            scheduler_class(scheduler)
        if skip and not 0 < skip < steps:
            raise ValueError(f"sampler.skip is {skip}; expected 0 or more, and less than sampler.steps ({steps})")
        self.scheduler, self.steps, self.guidance, self.eta = scheduler, steps, guidance, eta
        self.negative_prompt, self.batch, self.skip, self.precision = negative_prompt, batch, skip, precision
        self.long_prompts = long_prompts

    @torch.no_grad()  # unlike in inference mode, autocast may keep its casts, see `casting_once`
    def __call__(self, adapter: Adapter, batch: PoseBatch, after: After | None = None) -> Tensor:
        """Images ``[B, 3, H, W]`` in [-1, 1]; ``after`` may change the latents after every step. A UserError names the
        first of them that is not finite, and since when."""
        images = adapter.backbone.from_latents(self.latents(adapter, adapter.backbone, batch, after))
        require_finite_images(batch.ids, images, f"after decoding; {self.causes()}")
        return images.clamp(-1, 1)

    def latents(self, adapter: Adapter, backbone: Backbone, batch: PoseBatch, after: After | None = None) -> Tensor:
        """Denoised latents ``[B, c, h, w]``, all finite, else a UserError."""
        finite = []  # looked at in the end, so that no step waits for the device
        for latents in self.denoising(adapter, backbone, batch, after):
            finite.append(latents.isfinite().flatten(1).all(1))
        steps = torch.stack(finite).all(1).tolist()
        if not all(steps):
            step = steps.index(False)
            where = f"from step {self.skip + step + 1} of {self.steps} on; {self.causes()}"
            raise not_finite_images(batch.ids, finite[step].tolist(), where)
        return latents

    def causes(self) -> str:
        """Why images may not be finite, as part of a sentence."""
        set_to = f"guidance is {self.guidance}, the precision {self.precision}"
        causes = "weights of a training that diverged, too much guidance, or half precision that overflows"
        return f"{set_to}; likely causes are {causes}: try single precision (trainer.precision=32-true)"

    def denoising(
        self, adapter: Adapter, backbone: Backbone, batch: PoseBatch, after: After | None = None
    ) -> Iterator[Tensor]:
        """The latents ``[B, c, h, w]`` after every step; the conditions are computed before the first."""
        scheduler = self.build(backbone, batch.size)
        weights, state = self.passes(adapter, adapter.encode(batch))
        noise = batch.randn("latents", backbone.latent_shape(batch.size)).to(state.text.tokens.device)
        latents = noise * getattr(scheduler, "init_noise_sigma", 1.0)  # flow matching has none
        accepted = inspect.signature(scheduler.step).parameters
        offered = {"eta": self.eta, "generator": batch.generators("steps")}
        extra = {name: value for name, value in offered.items() if name in accepted}
        schedule = scheduler.timesteps[self.skip * scheduler.order :]  # the scheduler computes with numbers of the host
        following = [*schedule[1:], None]
        scaled = getattr(scheduler, "scale_model_input", lambda latents, timestep: latents)  # flow matching has none
        with casting_once():
            for timestep, now, then in zip(schedule, schedule.to(latents.device), following, strict=True):
                guided = self.guided(adapter, batch, weights, state, scaled(latents, timestep), now)
                latents = scheduler.step(guided, timestep, latents, **extra).prev_sample
                latents = latents if after is None else after(latents, partial(noised, scheduler, then))
                yield latents

    def passes(self, adapter: Adapter, encoded: State) -> tuple[Sequence[float], State]:
        """The branches of guidance: their weights, and their states as one batch."""
        weights, states = zip(*adapter.branches(encoded, self.guidance), strict=True)
        return weights, State.cat(states)

    def guided(
        self, adapter: Adapter, batch: PoseBatch, weights: Sequence[float], state: State, latents: Tensor, t: Tensor
    ) -> Tensor:
        """The weighted sum ``[B, c, h, w]`` of the branches' predictions; ``state`` holds the branches as one batch."""
        with autocast(self.precision, latents.device):
            predictions = predicted(adapter, state, latents.repeat(len(weights), 1, 1, 1), t)
        return self.combined(predictions, weights)

    def combined(self, predictions: Tensor, weights: Sequence[float]) -> Tensor:
        """``[n * B, c, h, w]`` predictions of n branches to their weighted sum."""
        return torch.stack([w * p for w, p in zip(weights, predictions.float().chunk(len(weights)), strict=True)]).sum(
            0
        )

    def build(self, backbone: Backbone, size: tuple[int, int] | None = None) -> Any:
        """The diffusers scheduler, set to ``steps`` for images of a (height, width), by default the backbone's."""
        scheduler = self.unset(backbone)
        backbone.process.set_steps(scheduler, backbone.tokens(size or backbone.usual_size), **self.given_steps())
        if self.skip and hasattr(scheduler, "set_begin_index"):  # schedulers that count their steps
            scheduler.set_begin_index(self.skip * scheduler.order)
        return scheduler

    def given_steps(self) -> dict[str, Any]:
        """What `NoiseProcess.set_steps` takes."""
        return {"steps": self.steps}

    def unset(self, backbone: Backbone) -> Any:
        """The diffusers scheduler, before its steps are set."""
        return backbone.process.scheduler(self.scheduler)


def require_finite_images(ids: Sequence[str], images: Tensor, where: str) -> None:
    """Raises a UserError where some of ``images [B, ...]`` are not finite; files would show them as black."""
    finite = images.isfinite().flatten(1).all(1).tolist()
    if not all(finite):
        raise not_finite_images(ids, finite, where)


def not_finite_images(ids: Sequence[str], finite: Sequence[bool], where: str) -> UserError:
    """The error that names the first image that is not finite, and ``where``."""
    many = f"{finite.count(False)} of {len(finite)} images are not finite (NaN or infinity)"
    return UserError(f"{many}: first {ids[finite.index(False)]}, {where}. Nothing of them is kept")


def predicted(adapter: Adapter, state: State, latents: Tensor, timestep: Tensor) -> Tensor:
    """One pass of the backbone ``[B, c, h, w]`` under the method's influence, at one timestep for the whole batch."""
    timesteps = timestep.expand(len(latents))
    return adapter.backbone.predict(latents, timesteps, state.text, adapter.inject(state, latents, timesteps))


def noised(scheduler: Any, timestep: Tensor | None, clean: Tensor, noise: Tensor) -> Tensor:
    """Clean latents ``[B, c, h, w]`` with the noise of a timestep; None is after the last step, without noise."""
    if timestep is None:
        return clean
    times = timestep.expand(len(clean))
    if hasattr(scheduler, "scale_noise"):  # flow matching
        return scheduler.scale_noise(clean, times, noise)
    return scheduler.add_noise(clean, noise, times)
