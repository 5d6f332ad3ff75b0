"""The sampler of `PoseGuidedPipeline`: given noise and scheduler, a control scale, and a callback after every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from posegen.adapters.base import Adapter, State
from posegen.backbones.base import Backbone, Injection
from posegen.data.base import PoseBatch
from posegen.runner.sampler import After, Sampler


@dataclass(frozen=True, eq=False)
class NoisyBatch(PoseBatch):
    """A batch whose initial noise ``[B, c, h, w]`` may be given."""

    noise: Tensor | None = None

    def randn(self, purpose: str, shape: Sequence[int]) -> Tensor:
        return self.noise if self.noise is not None and purpose == "latents" else super().randn(purpose, shape)


class PipelineSampler(Sampler):
    """The sampler with a given scheduler, a progress bar and networks of any precision; steps in single precision."""

    def __init__(
        self,
        scheduler: Any,
        steps: int,
        guidance: float,
        eta: float,
        skip: int,
        bar: Mapping[str, Any],
        control_scale: float = 1.0,
        on_step: Callable[[int], None] | None = None,
    ) -> None:
        super().__init__(type(scheduler).__name__, steps, guidance, eta, skip=skip)
        self.given, self.bar, self.control_scale, self.on_step = scheduler, bar, control_scale, on_step

    def unset(self, backbone: Backbone) -> Any:
        return type(self.given).from_config(self.given.config)

    def latents(self, adapter: Adapter, backbone: Backbone, batch: PoseBatch, after: After | None = None) -> Tensor:
        return super().latents(adapter, backbone, batch, after).to(next(backbone.parameters()).dtype)

    def denoising(
        self, adapter: Adapter, backbone: Backbone, batch: PoseBatch, after: After | None = None
    ) -> Iterator[Tensor]:
        from tqdm.auto import tqdm

        steps, bar = super().denoising(adapter, backbone, batch, after), {"total": self.steps - self.skip, **self.bar}
        for done, latents in enumerate(tqdm(steps, **bar), 1):
            if self.on_step is not None:
                self.on_step(done)
            yield latents

    def guided(
        self, adapter: Adapter, batch: PoseBatch, weights: Sequence[float], state: State, latents: Tensor, t: Tensor
    ) -> Tensor:
        method: Any = adapter if self.control_scale == 1 else Scaled(adapter, self.control_scale)
        return super().guided(method, batch, weights, state, latents.to(state.text.tokens.dtype), t)


@dataclass(frozen=True)
class Scaled:
    """A method as the sampler's passes see it, with its influence multiplied by ``factor``."""

    adapter: Adapter
    factor: float

    @property
    def backbone(self) -> Backbone:
        return self.adapter.backbone

    def inject(self, state: State, latents: Tensor, timesteps: Tensor) -> Injection:
        return self.adapter.inject(state, latents, timesteps).scaled(self.factor)
