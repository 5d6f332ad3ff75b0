"""A method in one run beside the plain form in which its released program computes the same values.

    python experiments/profile/against_official.py adapter=controlnet backbone=sd15 backbone.path=null \
        backbone.initialise=random phases=[train,sample] [official.encodes_every_pass=false]

Takes the overrides of ``posegen profile``; ``official.KEY=VALUE`` changes the description of the released program
(`Official`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from posegen.adapters.base import Adapter, State
from posegen.config.compose import composed
from posegen.data.base import PoseBatch
from posegen.errors import UserError
from posegen.io.atomic import write_json, write_text
from posegen.io.tables import csv_text
from posegen.runner.cell import provenance
from posegen.runner.components import Components
from posegen.runner.precision import keeping, networks
from posegen.runner.sampler import Sampler, predicted
from posegen.train.profiling import Clock, MeasuredMethod, Phase, in_fresh_process, process_peak_mb, timed_step
from posegen.verbs.profile import (
    PHASES,
    ProfileRow,
    conditions_note,
    device_name,
    parameters_note,
    phases_of,
    text_table,
    unusual_ways,
)

DECODER = ("up_blocks.", "conv_norm_out.", "conv_out.")  # of diffusers' U-Net


@dataclass(frozen=True)
class Official:
    """How a released program computes the same values at a higher cost.

    Attributes:
        settings: constructor arguments that choose the published form of the method's layers.
        guidance: the branches of guidance run as one ``batched`` pass or as ``sequential`` ones.
        encodes_every_pass: the conditions are computed again in every pass of the sampler instead of once per image.
        decoder_gradients: training computes gradients of the frozen U-Net's decoder, which nobody uses.
        unfused_attention: attention holds the matrix of all weights instead of going through it in blocks.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    guidance: Literal["batched", "sequential"] = "batched"
    encodes_every_pass: bool = False
    decoder_gradients: bool = False
    unfused_attention: bool = True


#: Method -> what its released program does; of the others nothing but unfused attention is known.
PROGRAMS = {
    "controlnet": Official(guidance="sequential", encodes_every_pass=True, decoder_gradients=True),
    "stable_pose": Official(settings={"attention": "dense"}, encodes_every_pass=True, decoder_gradients=True),
    "grpose": Official(settings={"edges": "dense"}, encodes_every_pass=True, decoder_gradients=True),
    "dnaf": Official(unfused_attention=False),  # no program to repeat
}


def official_of(method: str, changes: Mapping[str, Any] | None = None) -> Official:
    """The program of a method, with ``changes``.

    Raises:
        UserError: a change has no meaning.
    """
    known, changes = [f.name for f in fields(Official)], changes or {}
    if unknown := changes.keys() - set(known):
        raise UserError(
            f"official.{min(unknown)} is no part of a released program; expected some of {', '.join(known)}"
        )
    return replace(PROGRAMS.get(method, Official()), **changes)


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
            predicted(adapter, each, latents.repeat(len(each) // len(latents), 1, 1, 1), timestep) for each in passes
        ]
        return self.combined(torch.cat(predictions), weights)

    def branch(self, adapter: Adapter, batch: PoseBatch, state: State, count: int, index: int) -> State:
        """The state of one branch of ``count``, encoded again or cut out of ``state``."""
        if self.official.encodes_every_pass:
            return adapter.branches(adapter.encode(batch), self.guidance)[index][1]
        each = len(state) // count
        return state.rows(slice(index * each, (index + 1) * each))


class PlainMethod(MeasuredMethod):
    """The same values at the cost of the released program.

    Args:
        cfg, steps: as for `MeasuredMethod`.
        official: what the program does.
        like: a measured method whose weights are shared; without one the weights are new.
    """

    sampler_class = PlainSampler

    def __init__(self, cfg: DictConfig, steps: int, official: Official, like: MeasuredMethod | None = None) -> None:
        self.official, self.like = official, like
        changed: Any = OmegaConf.merge(cfg, {"adapter": dict(official.settings)})
        super().__init__(changed, steps, parts_like(like, changed) if like else None)
        self.sampler.official = official  # type: ignore[attr-defined]

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        return self.like.optimizer if self.like else super().optimizer

    @contextmanager
    def running(self, phase: Phase) -> Iterator[None]:
        with super().running(phase), keeping(*networks(self.adapter, self.backbone)), ExitStack() as stack:
            if self.official.unfused_attention:
                stack.enter_context(unfused(*networks(self.adapter, self.backbone)))
            if self.official.decoder_gradients and phase == "train":
                stack.enter_context(training_decoder(self.backbone.unet))
            yield


def parts_like(measured: MeasuredMethod, cfg: DictConfig) -> Components:
    """The components of another configuration of the method on the same backbone with the same weights."""
    if cfg == measured.cfg:
        return measured.components
    components = Components(cfg)
    components.backbone = measured.backbone
    share(measured.adapter, components.adapter)
    return components


def share(source: nn.Module, target: nn.Module) -> None:
    """Makes ``target`` use the parameters and buffers of ``source``.

    Raises:
        UserError: they have other ones, so that the two cannot be compared.
    """
    modules: Mapping[str, nn.Module] = dict(source.named_modules())
    if [(k, v.shape) for k, v in source.state_dict().items()] != [(k, v.shape) for k, v in target.state_dict().items()]:
        raise UserError(
            f"official.settings of {type(target).__name__} change its weights; "
            "name only settings that compute the same from the same weights"
        )
    for name, module in target.named_modules():
        other = modules.get(name, module)
        for mine, theirs in ((module._parameters, other._parameters), (module._buffers, other._buffers)):
            mine.update({key: theirs[key] for key in mine if key in theirs})


@contextmanager
def unfused(*modules: nn.Module) -> Iterator[None]:
    """Within the context fused attention runs in its plain form; a method's own processors are left alone."""
    fused = [m for m in modules if isinstance(m, Attention) and isinstance(m.processor, AttnProcessor2_0)]
    processors = [module.processor for module in fused]
    for module in fused:
        module.set_processor(AttnProcessor())
    try:
        yield
    finally:
        for module, processor in zip(fused, processors, strict=True):
            module.set_processor(processor)


@contextmanager
def training_decoder(unet: nn.Module) -> Iterator[None]:
    """Within the context gradients of a frozen U-Net's decoder are computed."""
    frozen = [p for name, p in unet.named_parameters() if name.startswith(DECODER) and not p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


# Measurements; each runs in a process of its own.


def measure_memory(config: dict[str, Any], official: Official | None) -> float:
    """Peak memory of a training step in MiB, of posegen or of an official program."""
    cfg = OmegaConf.create(config)
    method = PlainMethod(cfg, 1, official) if official else MeasuredMethod(cfg, 1)
    timed_step(method, "train", method.run("train"), Clock(method.device))
    return process_peak_mb(method.device)


def compare_sides(config: dict[str, Any], phases: list[Phase], official: Official) -> dict[str, Any]:
    """Seconds of both sides in turn, on the same weights and batch, and the largest difference of their latents."""
    cfg = OmegaConf.create(config)
    ours = MeasuredMethod(cfg, cfg.warmup + cfg.repeats)
    sides = {"posegen": ours, "plain": PlainMethod(cfg, ours.steps, official, like=ours)}
    clock, seconds, difference = Clock(ours.device), {}, None
    for phase in phases:
        runs = {side: method.run(phase) for side, method in sides.items()}
        seconds[phase] = {side: [] for side in sides}
        for i in range(cfg.warmup + cfg.repeats):
            results = []
            for side, method in sides.items():
                spent, result = timed_step(method, phase, runs[side], clock)
                results.append(result.float())
                if i >= cfg.warmup:
                    seconds[phase][side].append(spent)
            if phase == "sample":  # training steps update the shared weights in between
                difference = max(difference or 0.0, (results[0] - results[1]).abs().max().item())
    return {"seconds": seconds, "difference": difference, **ours.parameters()}


def compared(config: dict[str, Any], phases: Sequence[Phase], official: Official) -> tuple[list[ProfileRow], list[str]]:
    """(one row per phase and one for the memory of training, notes): posegen, the plain form, and their ratio."""
    found = in_fresh_process(compare_sides, config, list(phases), official)
    rows: list[ProfileRow] = []
    for phase, seconds in found["seconds"].items():
        ours, plain = (1000 * min(times) for times in seconds.values())
        name = f"{PHASES[phase]}, ms"
        rows.append(
            {"what": name, "posegen": ours, "plain": plain, "ratio": plain / ours, "ratio of": "plain to posegen"}
        )
    if "train" in phases:
        ours, plain = (in_fresh_process(measure_memory, config, program) for program in (None, official))
        name = "peak training memory, MiB"
        rows.append(
            {"what": name, "posegen": ours, "plain": plain, "ratio": ours / plain, "ratio of": "posegen to plain"}
        )
    notes = ["plain:", *(f"  {f.name}: {getattr(official, f.name)}" for f in fields(official))]
    if found["difference"] is not None:
        notes.append(f"largest difference of the two sides' latents: {found['difference']:.1e}")
    return rows, [*notes, parameters_note(found), conditions_note(config)]


def main(words: Sequence[str]) -> None:
    """Compares, prints a table, and writes it as json and csv."""
    begin = "official."
    changes: Any = OmegaConf.to_container(
        OmegaConf.from_dotlist([word.removeprefix(begin) for word in words if word.startswith(begin)])
    )
    overrides = [word for word in words if not word.startswith(begin)]
    if not any(word.startswith("phases=") for word in overrides):
        overrides.append("phases=[train,sample]")
    with composed("profile", tuple(overrides)) as cfg:
        phases = [phase for phase in phases_of(cfg) if phase != "forward"]
        if not phases:
            raise UserError(f"phases={list(cfg.phases)}: nothing of that can be compared; add sample")
        official = official_of(cfg.method, changes)
        config: Any = OmegaConf.to_container(cfg, resolve=True)
        rows, notes = compared(config, phases, official)
        print("\n".join([*text_table(rows), "", *notes]))
        out = f"{cfg.out}{''.join(f'-{way}' for way in unusual_ways(config))}-compared"
        settings = {
            key: config[key] for key in ("method", "size", "batch", "trainer", "compute", "budget", "optim", "sampler")
        }
        facts = {"rows": rows, "notes": notes, "settings": settings, "device": device_name(cfg), **provenance()}
        write_json(Path(f"{out}.json"), facts)
        write_text(Path(f"{out}.csv"), csv_text(rows[0], (list(row.values()) for row in rows)))
        print(f"\n{out}.json (also .csv)")


if __name__ == "__main__":
    main(sys.argv[1:])
