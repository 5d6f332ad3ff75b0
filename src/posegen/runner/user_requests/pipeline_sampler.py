"""The sampler of `PoseGuidedPipeline`: the one sampler under the further arguments of diffusers' pipelines."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from posegen.adapters.base import Adapter, State
from posegen.backbones.base import Backbone, Injection
from posegen.data.base import PoseBatch
from posegen.errors import UserError
from posegen.runner.sampler import After, Sampler
from posegen.runner.user_requests.pipeline_arguments import number_between, whole_number

POOLED = "pooled_prompt_embeds"


@dataclass(frozen=True, eq=False)
class NoisyBatch(PoseBatch):
    """A batch whose initial noise ``[B, c, h, w]`` may be given."""

    noise: Tensor | None = None

    def randn(self, purpose: str, shape: Sequence[int]) -> Tensor:
        return self.noise if self.noise is not None and purpose == "latents" else super().randn(purpose, shape)


@dataclass(frozen=True)
class CallOptions:
    """Arguments of one call that the sampler follows; they mean what they mean in diffusers."""

    steps: int
    eta: float
    timesteps: Sequence[int] | None = None
    sigmas: Sequence[float] | None = None
    guidance_rescale: float = 0.0
    control_scale: float = 1.0  # ``controlnet_conditioning_scale``
    control_start: float = 0.0  # ``control_guidance_start``
    control_end: float = 1.0
    callback: Callable[[Any, int, Any, dict[str, Any]], Any] | None = None  # ``callback_on_step_end``
    callback_inputs: Sequence[str] = ("latents",)

    @classmethod
    def read(cls, pipe: Any, **given: Any) -> CallOptions:
        """The arguments of a call, checked against the scheduler and the backbone of the pipeline."""
        scheduler, usual = pipe.scheduler, pipe.sampler
        pipe.backbone.process.require(scheduler)
        for name in ("timesteps", "sigmas"):
            if given[name] is not None and name not in inspect.signature(scheduler.set_timesteps).parameters:
                raise UserError(f"{type(scheduler).__name__} takes no {name}; give num_inference_steps")
        if given["timesteps"] is not None and given["sigmas"] is not None:
            raise UserError("timesteps and sigmas are both given; give one of them")
        callback = given["callback_on_step_end"]
        inputs = getattr(callback, "tensor_inputs", given["callback_on_step_end_tensor_inputs"])
        offered = [*pipe._callback_tensor_inputs, *([POOLED] if pipe.backbone.pooled_dim else [])]
        if unknown := [name for name in inputs if name not in offered]:
            known = f"expected some of {', '.join(offered)}"
            raise UserError(f"callback_on_step_end_tensor_inputs has {unknown[0]!r}; {known}")
        steps, eta = given["num_inference_steps"], given["eta"]
        strength = ", 1 for the strength that the method was trained with"
        scale = "controlnet_conditioning_scale"
        return cls(
            steps=whole_number("num_inference_steps", usual.steps if steps is None else steps),
            eta=number_between("eta", usual.eta if eta is None else eta, 0, 1),
            timesteps=given["timesteps"],
            sigmas=given["sigmas"],
            guidance_rescale=number_between("guidance_rescale", given["guidance_rescale"], 0, 1),
            control_scale=number_between(scale, given[scale], 0, meaning=strength),
            control_start=number_between("control_guidance_start", given["control_guidance_start"], 0, 1),
            control_end=number_between("control_guidance_end", given["control_guidance_end"], 0, 1),
            callback=callback,
            callback_inputs=inputs,
        )


class PipelineSampler(Sampler):
    """Samples as a pipeline of diffusers does, with its scheduler, progress bar and callbacks.

    The networks may have any precision; the steps are in single precision. A callback may change the latents, the text
    embeddings and ``pipe._guidance_scale``, and may set ``pipe._interrupt``."""

    def __init__(self, pipe: Any, options: CallOptions, skip: int) -> None:
        given = options.timesteps is not None or options.sigmas is not None
        super().__init__(None, options.steps, pipe.effective_guidance, options.eta, skip=0 if given else skip)
        self.pipe, self.options, self.scheduler = pipe, options, type(pipe.scheduler).__name__

    def unset(self, backbone: Backbone) -> Any:
        return type(self.pipe.scheduler).from_config(self.pipe.scheduler.config)

    def given_steps(self) -> dict[str, Any]:
        given = {"timesteps": self.options.timesteps, "sigmas": self.options.sigmas}
        return {name: value for name, value in given.items() if value is not None} or super().given_steps()

    def latents(self, adapter: Adapter, backbone: Backbone, batch: PoseBatch, after: After | None = None) -> Tensor:
        return super().latents(adapter, backbone, batch, after).to(next(backbone.parameters()).dtype)

    def denoising(
        self, adapter: Adapter, backbone: Backbone, batch: PoseBatch, after: After | None = None
    ) -> Iterator[Tensor]:
        scheduler = self.build(backbone, batch.size)
        self.schedule, self.done = scheduler.timesteps[self.skip * scheduler.order :], 0
        self.pipe._num_timesteps = len(self.schedule)
        with self.pipe.progress_bar(total=len(self.schedule)) as bar:
            for latents in super().denoising(adapter, backbone, batch, self.stepped):
                bar.update()
                yield latents
                if self.pipe.interrupt:
                    break

    def passes(self, adapter: Adapter, encoded: State) -> tuple[Sequence[float], State]:
        self.adapter, self.encoded, self.current = adapter, encoded, super().passes(adapter, encoded)
        return self.current

    def guided(
        self, adapter: Adapter, batch: PoseBatch, weights: Sequence[float], state: State, latents: Tensor, t: Tensor
    ) -> Tensor:
        weights, state = self.current  # as the last callback left them
        influence: Any = adapter if (scale := self.control_scale()) == 1 else Scaled(adapter, scale)
        return super().guided(influence, batch, weights, state, latents.to(state.text.tokens.dtype), t)

    def control_scale(self) -> float:
        """The strength of the method in the coming step."""
        start, end = self.done / len(self.schedule), (self.done + 1) / len(self.schedule)
        inside = start >= self.options.control_start and end <= self.options.control_end
        return self.options.control_scale if inside else 0.0

    def combined(self, predictions: Tensor, weights: Sequence[float]) -> Tensor:
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

        made = super().combined(predictions, weights)
        if not self.options.guidance_rescale or len(weights) == 1:
            return made
        conditional = predictions.float().chunk(len(weights))[0]
        return rescale_noise_cfg(made, conditional, self.options.guidance_rescale)

    def stepped(self, latents: Tensor, _noised: Any) -> Tensor:
        """The latents after a step and its callback."""
        step, self.done = self.done, self.done + 1
        if self.options.callback is None:
            return latents
        text, null, both = self.encoded.text, self.encoded.null_text, self.guidance > 1
        embeddings = {
            name: torch.cat([getattr(null, part), states]) if both else states  # diffusers' order
            for name, part in (("prompt_embeds", "tokens"), (POOLED, "pooled"))
            if (states := getattr(text, part)) is not None
        }
        tensors = {"latents": latents, "negative_prompt_embeds": null.tokens, **embeddings}
        offered = {name: tensors[name] for name in self.options.callback_inputs}
        returned = self.options.callback(self.pipe, step, self.schedule[step], offered) or {}
        given = {name: returned[name] for name, old in embeddings.items() if returned.get(name, old) is not old}
        if given or self.pipe.effective_guidance != self.guidance:
            self.guidance = self.pipe.effective_guidance
            self.passes(self.adapter, self.with_embeddings(given))
        return returned.get("latents", latents)

    def with_embeddings(self, given: Mapping[str, Tensor]) -> State:
        """The encoded batch with other text states: those of the prompts, or of the negative ones and the prompts."""
        count, state = len(self.encoded), self.encoded
        for name, states in given.items():
            part = "pooled" if name == POOLED else "tokens"
            both = states.chunk(2) if len(states) == 2 * count else (getattr(state.null_text, part), states)
            if len(both[1]) != count:
                rows = f"{name} with {len(states)} rows for {count} images"
                raise UserError(f"callback_on_step_end returned {rows}; expected a row per image, or two with guidance")
            null, text = (
                replace(old, **{part: new}) for old, new in zip((state.null_text, state.text), both, strict=True)
            )
            state = replace(state, text=text, null_text=null)
        return state


@dataclass(frozen=True)
class Scaled:
    """A method as the sampler's passes see it, with its influence multiplied by ``factor``."""

    adapter: Adapter
    factor: float

    @property
    def backbone(self) -> Backbone:
        return self.adapter.backbone

    def inject(self, state: State, latents: Tensor, timesteps: Tensor) -> Injection:
        if not self.factor and "latents" not in self.adapter.places:
            return Injection()  # nothing of it would be left
        return self.adapter.inject(state, latents, timesteps).scaled(self.factor)


@contextmanager
def attention_arguments(network: torch.nn.Module, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Within the context every pass of the U-Net has these ``cross_attention_kwargs``, besides those of the method.

    Transformers call them ``joint_attention_kwargs``."""
    joint = "joint_attention_kwargs" in inspect.signature(network.forward).parameters
    name = "joint_attention_kwargs" if joint else "cross_attention_kwargs"

    def added(_module: torch.nn.Module, inputs: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return inputs, {**named, name: {**arguments, **(named.get(name) or {})}}

    hook = network.register_forward_pre_hook(added, with_kwargs=True) if arguments else None
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()
