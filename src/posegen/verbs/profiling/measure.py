"""Measurements. Each runs in a process of its own, so that peaks of memory belong to it alone."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from posegen.errors import UserError
from posegen.runner.precision import PRECISIONS, device_of
from posegen.verbs.profiling.breakdown import breakdown, matrix_rate
from posegen.verbs.profiling.sides import Phase, Plain, Side

Result = TypeVar("Result")
Facts = dict[str, Any]


def alone(function: Callable[..., Result], *arguments: Any) -> Result:
    """``function(*arguments)`` in a fresh process.

    Raises:
        UserError: the process was killed.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            what = f"{function.__name__}{arguments[1:]}"
            raise UserError(
                f"the process that ran {what} was killed, most likely for want of memory; lower size= or batch="
            ) from error


def measure_phase(config: Facts, phase: Phase) -> Facts:
    """Time, peak memory and FLOPs of a phase, where the time goes, the device's own rate, and the numbers of parameters.

    One repetition counts the FLOPs, uncompiled, since nothing inside compiled code is counted; it is the first warm-up. The last one is taken apart.
    """
    cfg = OmegaConf.create(config)
    side = Side(cfg, cfg.warmup + cfg.repeats + 2)
    clock, repetitions = Clock(side.device), side.run(phase)
    with FlopCounterMode(display=False) as counter, torch.compiler.set_stance("force_eager"):
        tick(side, phase, repetitions, clock)
    for _ in range(cfg.warmup if cfg.compute.compile else cfg.warmup - 1):
        tick(side, phase, repetitions, clock)
    seconds = [tick(side, phase, repetitions, clock)[0] for _ in range(cfg.repeats)]
    memory = peak_memory_mb(side.device)
    shares = breakdown(lambda: tick(side, phase, repetitions, clock), side.device)
    dtype = PRECISIONS.get(side.precision) or torch.float32
    rates = {"flops": counter.get_total_flops() or None, "matrix_rate": matrix_rate(clock, side.device, dtype)}
    return {"seconds": seconds, "memory_mb": memory, "shares": shares, **rates, **parameters(side)}


def device_name(cfg: DictConfig) -> str:
    """What a configuration computes on."""
    device = device_of(cfg.trainer.accelerator)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{cfg.budget.threads} CPU thread(s)"


def measure_memory(config: Facts, plain: bool) -> float:
    """Peak memory of a training step of one side, in MiB."""
    cfg = OmegaConf.create(config)
    side = Plain(cfg, 1) if plain else Side(cfg, 1)
    tick(side, "train", side.run("train"), Clock(side.device))
    return peak_memory_mb(side.device)


def compare_sides(config: Facts, phases: list[Phase]) -> Facts:
    """Seconds of both sides in turn, on the same weights and batch, and the largest difference of what they compute."""
    cfg = OmegaConf.create(config)
    ours = Side(cfg, cfg.warmup + cfg.repeats)
    sides = (ours, Plain(cfg, ours.steps, like=ours))
    clock, found = Clock(ours.device), {}
    for phase in phases:
        runs = [side.run(phase) for side in sides]
        seconds: dict[str, list[float]] = {side.title: [] for side in sides}
        difference = 0.0
        for i in range(cfg.warmup + cfg.repeats):
            made = []
            for side, repetitions in zip(sides, runs, strict=True):
                spent, result = tick(side, phase, repetitions, clock)
                made.append(result.float())
                if i >= cfg.warmup:
                    seconds[side.title].append(spent)
            if phase == "sample":  # training steps update the shared weights in between
                difference = max(difference, (made[0] - made[1]).abs().max().item())
        found[phase] = {"seconds": seconds, "difference": difference if phase == "sample" else None}
    return {"phases": found, "notes": {side.title: side.notes for side in sides}, **parameters(ours)}


def tick(side: Side, phase: Phase, repetitions: Iterator[Tensor], clock: Clock) -> tuple[float, Tensor]:
    """(seconds, result) of the next repetition."""
    with side.running(phase):
        start = clock()
        result = next(repetitions)
        return clock() - start, result


class Clock:
    """Seconds: of processor time where one CPU thread computes, since other programs disturb that least, and else of wall time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.kind = "processor" if device.type == "cpu" and torch.get_num_threads() == 1 else "wall"

    def __call__(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.process_time() if self.kind == "processor" else time.perf_counter()


def peak_memory_mb(device: torch.device) -> float:
    """The high-water mark of this process in MiB: what torch allocated on a GPU, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.is_file():  # the usual call would count the parent process up to the moment it started this one
        return (
            next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 2**10
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def parameters(side: Side) -> Facts:
    """Numbers of parameters: of the U-Net, of the adapter, and of those how many train."""
    modules = (side.backbone.unet, side.adapter)
    counts = [sum(p.numel() for p in module.parameters()) for module in modules]
    trained = sum(p.numel() for module in modules for p in module.parameters() if p.requires_grad)
    return {"unet_parameters": counts[0], "adapter_parameters": counts[1], "trained_parameters": trained}
