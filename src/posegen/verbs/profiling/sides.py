"""The two sides of a comparison: a method as this project runs it, and the same method in the plain form of its released program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from functools import cached_property
from typing import Any, Literal

import torch
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from posegen.adapters.base import Adapter, Official, State
from posegen.backbones.base import Backbone
from posegen.data.base import PoseBatch
from posegen.errors import UserError
from posegen.runner.batches import Needs, collate
from posegen.runner.components import Parts
from posegen.runner.precision import autocast, device_of, keeping, networks, precision
from posegen.runner.sampler import Sampler, predicted, weighted
from posegen.train.loop import build_task
from posegen.train.tasks import Task
from posegen.verbs.profiling.figures import Figures

Phase = Literal["forward", "train", "sample"]
DECODER = ("up_blocks.", "conv_norm_out.", "conv_out.")  # of diffusers' U-Net


class Side:
    """A method on its backbone with a batch, ready to run.

    Args:
        cfg: a resolved configuration of ``posegen profile``.
        steps: denoising steps of the sampler's loop.
        parts: the method and its backbone, where they exist already.
    """

    title = "posegen"

    def __init__(self, cfg: DictConfig, steps: int, parts: Parts | None = None) -> None:
        torch.set_num_threads(cfg.budget.threads)
        self.cfg, self.steps = cfg, steps
        self.device, self.precision = device_of(cfg.trainer.accelerator), precision(cfg.trainer.precision)
        self.parts = parts or Parts(cfg)
        self.adapter: Adapter = self.parts.adapter
        self.backbone: Backbone = self.parts.backbone
        self.adapter.to(self.device)
        self.backbone.to(self.device)
        self.batch = self.made_batch()

    @torch.no_grad()
    def made_batch(self) -> PoseBatch:
        """Everything that a method may read, with latents and text states as training caches them."""
        count, needs = self.cfg.batch, Needs(frozenset({"images", *self.adapter.reads}), self.adapter.hint)
        batch = collate(Figures(count, self.cfg.size), range(count), needs, self.cfg.seed).to(self.device)
        latents = batch.randn("clean", self.backbone.latent_shape(batch.size)).to(self.device)
        return replace(
            batch,
            latents=latents,
            source_latents=latents.flip(0) if "source_latents" in self.adapter.reads else None,
            text=self.backbone.encode_text(list(batch.prompts)),
            negative_text=self.backbone.encode_text([self.cfg.sampler.negative_prompt]),
        )

    @cached_property
    def task(self) -> Task:
        return build_task(self.parts).to(self.device)

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        return self.ready_optimizer()

    def ready_optimizer(self) -> torch.optim.Optimizer:
        """The task's optimiser with its state in place, so that the first step needs the memory that every step needs."""
        optimizer = self.task.configure_optimizers()["optimizer"]
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
        return optimizer

    @cached_property
    def sampler(self) -> Sampler:
        return self.sampler_class(**self.sampler_settings)

    sampler_class: type[Sampler] = Sampler

    @property
    def sampler_settings(self) -> dict[str, Any]:
        own: Any = OmegaConf.to_container(self.cfg.sampler)
        return {**{k: v for k, v in own.items() if k != "_target_"}, "steps": self.steps, "skip": 0}

    @contextmanager
    def running(self, phase: Phase) -> Iterator[None]:
        """The state of torch in which a phase runs."""
        self.adapter.train(phase == "train")
        with ExitStack() as stack:
            if phase != "train":
                stack.enter_context(torch.inference_mode())
            stack.enter_context(autocast(self.precision, self.device))
            yield

    def run(self, phase: Phase) -> Iterator[Tensor]:
        """What a phase computes, one repetition after the other; every `next` must stand in `running`."""
        return {"forward": self.forward, "train": self.train, "sample": self.sample}[phase]()

    def forward(self) -> Iterator[Tensor]:
        """Predictions ``[B, c, h, w]`` of single passes without guidance; the conditions are encoded before the first."""
        state, noisy = self.adapter.encode(self.batch), self.batch.latents
        assert noisy is not None
        timesteps = self.backbone.process.sample_times(torch.full((len(noisy),), 0.5, device=self.device))
        while True:
            yield self.backbone.predict(noisy, timesteps, state.text, self.adapter.inject(state, noisy, timesteps))

    def train(self) -> Iterator[Tensor]:
        """Losses of training steps: loss, gradients, and the optimiser's update."""
        return self.training_steps(self.optimizer)  # which is made now: it takes what trains here, outside of `running`

    def training_steps(self, optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
        while True:
            loss = self.task.losses(self.batch)["loss"]
            loss.backward()
            optimizer.step()
            self.task.zero_grad()
            yield loss.detach()

    def sample(self) -> Iterator[Tensor]:
        """Latents after every step of the sampler."""
        return self.sampler.denoising(self.adapter, self.backbone, self.batch)

    @property
    def notes(self) -> list[str]:
        """What this side does."""
        return [
            "conditions are encoded once per image",
            "all branches of guidance run as one batch",
            "attention is fused (scaled_dot_product_attention)",
            "the method's layers as configured",
            "gradients of what trains, and of nothing else",
        ]


class PlainSampler(Sampler):
    """Guidance as a released program computes it; the weighted sum is the same."""

    official: Official = Official()

    def guided(
        self,
        adapter: Adapter,
        batch: PoseBatch,
        weights: Sequence[float],
        state: State,
        latents: Tensor,
        timestep: Tensor,
    ) -> Tensor:
        branches = [self.branch(adapter, batch, state, len(weights), i) for i in range(len(weights))]
        passes = branches if self.official.guidance == "sequential" else [State.cat(branches)]
        predictions = [
            predicted(adapter, own, latents.repeat(len(own) // len(latents), 1, 1, 1), timestep) for own in passes
        ]
        return weighted(torch.cat(predictions), weights)

    def branch(self, adapter: Adapter, batch: PoseBatch, state: State, count: int, index: int) -> State:
        """The state of one branch of ``count``, encoded again or cut out of ``state``."""
        if self.official.encodes_every_pass:
            return adapter.branches(adapter.encode(batch), self.guidance)[index][1]
        conditions = {name: value.chunk(count)[index] for name, value in state.conditions.items()}
        return State(state.text.chunk(count)[index], state.null_text.chunk(count)[index], conditions)


class Plain(Side):
    """The same values at the cost of the released program, see `Official`.

    Args:
        cfg: as for `Side`.
        steps: as for `Side`.
        like: a side whose weights are shared; without one the weights are this side's own.
    """

    title = "plain"
    sampler_class = PlainSampler

    def __init__(self, cfg: DictConfig, steps: int, like: Side | None = None) -> None:
        self.official, self.like = official_of(cfg), like
        own: Any = OmegaConf.merge(cfg, {"adapter": dict(self.official.settings)})
        super().__init__(own, steps, parts_like(like, own) if like else None)
        self.sampler.official = self.official  # type: ignore[attr-defined]

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        return self.like.optimizer if self.like else self.ready_optimizer()

    @contextmanager
    def running(self, phase: Phase) -> Iterator[None]:
        with super().running(phase), keeping(*networks(self.adapter, self.backbone)), ExitStack() as stack:
            if self.official.unfused_attention:
                stack.enter_context(unfused(*networks(self.adapter, self.backbone)))
            if self.official.decoder_gradients and phase == "train":
                stack.enter_context(training_decoder(self.backbone.unet))
            yield

    @property
    def notes(self) -> list[str]:
        o = self.official
        settings = ", ".join(f"{k}={v}" for k, v in o.settings.items())
        return [
            f"conditions are encoded {'in every pass' if o.encodes_every_pass else 'once per image'}",
            "one pass per branch of guidance"
            if o.guidance == "sequential"
            else "all branches of guidance run as one batch",
            "attention holds the matrix of all weights (AttnProcessor)"
            if o.unfused_attention
            else "attention is fused",
            f"the method's layers with {settings}" if settings else "the method's layers as configured",
            "gradients of the frozen decoder, too"
            if o.decoder_gradients
            else "gradients of what trains, and of nothing else",
        ]


def official_of(cfg: DictConfig) -> Official:
    """What the released program does: what the method's class says, changed by ``official``.

    Raises:
        UserError: ``official`` has a key of no meaning.
    """
    changes: Any = OmegaConf.to_container(cfg.official) if cfg.official else {}
    known = [f.name for f in fields(Official)]
    if unknown := changes.keys() - set(known):
        raise UserError(
            f"official.{min(unknown)} is no part of a released program; expected some of {', '.join(known)}"
        )
    cls: Any = get_class(cfg.adapter._target_)
    return replace(cls.official, **changes)


def parts_like(side: Side, cfg: DictConfig) -> Parts:
    """The parts of another configuration of the method on the same backbone with the same weights; those of ``side`` where it is the same configuration."""
    if cfg == side.cfg:
        return side.parts
    parts = Parts(cfg)
    parts.backbone = side.backbone
    share(side.adapter, parts.adapter)
    return parts


def share(source: nn.Module, target: nn.Module) -> None:
    """Makes ``target`` use the parameters and buffers of ``source``.

    Raises:
        UserError: they have other ones, so that the two cannot be compared.
    """
    modules: Mapping[str, nn.Module] = dict(source.named_modules())
    if [(k, v.shape) for k, v in source.state_dict().items()] != [(k, v.shape) for k, v in target.state_dict().items()]:
        raise UserError(
            f"official.settings of {type(target).__name__} change its weights; name only settings that compute the same from the same weights"
        )
    for name, module in target.named_modules():
        for own, theirs in (
            (module._parameters, modules.get(name, module)._parameters),
            (module._buffers, modules.get(name, module)._buffers),
        ):
            own.update({key: theirs[key] for key in own if key in theirs})


@contextmanager
def unfused(*modules: nn.Module) -> Iterator[None]:
    """Within the context, fused attention runs in its plain form; processors of a method's own are left alone."""
    from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0

    fused = [
        (m, m.processor) for m in modules if isinstance(m, Attention) and isinstance(m.processor, AttnProcessor2_0)
    ]
    for module, _ in fused:
        module.set_processor(AttnProcessor())
    try:
        yield
    finally:
        for module, processor in fused:
            module.set_processor(processor)


@contextmanager
def training_decoder(unet: nn.Module) -> Iterator[None]:
    """Within the context, gradients of a frozen U-Net's decoder are computed."""
    frozen = [p for name, p in unet.named_parameters() if name.startswith(DECODER) and not p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
