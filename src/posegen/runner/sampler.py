"""The one sampler: same noise, same schedule, same guidance rule for every method."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from posegen.adapters.base import Adapter, State
from posegen.backbones.base import Backbone
from posegen.data.base import PoseBatch


class Sampler:
    """Guided sampling with a diffusers scheduler.

    The initial noise comes from each image's own generator, so every method starts an image from the same latents, whatever the batch or the device.
    All branches of guidance run as one batch.

    Args:
        scheduler: name of a diffusers scheduler class; its noise process is the backbone's.
        steps: number of denoising steps.
        guidance: guidance scale; 1 samples without guidance.
        eta: noise added per step, for schedulers that take it (0: deterministic).
        negative_prompt: what the guidance points away from.
        batch: images per batch.
    """

    def __init__(
        self, scheduler: str = "DDIMScheduler", steps: int = 20, guidance: float = 2.0, eta: float = 0.0, negative_prompt: str = "", batch: int = 50
    ) -> None:
        self.scheduler, self.steps, self.guidance, self.eta, self.negative_prompt, self.batch = scheduler, steps, guidance, eta, negative_prompt, batch

    @torch.inference_mode()
    def __call__(self, adapter: Adapter, batch: PoseBatch) -> Tensor:
        """Images ``[B, 3, H, W]`` in [-1, 1]."""
        backbone: Backbone = adapter.backbone  # type: ignore[assignment]
        return backbone.from_latents(self.latents(adapter, backbone, batch)).clamp(-1, 1)

    def latents(self, adapter: Adapter, backbone: Backbone, batch: PoseBatch) -> Tensor:
        """Denoised latents ``[B, c, h, w]``."""
        scheduler = self.build(backbone)
        weights, states = zip(*adapter.branches(adapter.encode(batch), self.guidance), strict=True)
        state = State.cat(states)
        latents = batch.randn("latents", backbone.latent_shape(batch.size)).to(state.text.device) * scheduler.init_noise_sigma
        extra: dict[str, Any] = {"eta": self.eta} if self.scheduler == "DDIMScheduler" else {}
        if self.eta:
            extra["generator"] = batch.generators("steps")
        for timestep in scheduler.timesteps:
            repeated = scheduler.scale_model_input(latents, timestep).repeat(len(weights), 1, 1, 1)
            timesteps = timestep.repeat(len(repeated)).to(latents.device)
            prediction = backbone.predict(repeated, timesteps, state.text, adapter.inject(state, repeated, timesteps))
            guided = sum(w * p for w, p in zip(weights, prediction.float().chunk(len(weights)), strict=True))
            latents = scheduler.step(guided, timestep, latents, **extra).prev_sample
        return latents

    def build(self, backbone: Backbone) -> Any:
        """The diffusers scheduler, set to ``steps``."""
        import diffusers

        scheduler = getattr(diffusers, self.scheduler).from_config(backbone.scheduler_config)
        scheduler.set_timesteps(self.steps)
        return scheduler
