"""What a method costs: time, memory and FLOPs of a pass, a training step and a sampling step, and shares of time."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from posegen.adapters.base import Adapter
from posegen.backbones.base import Backbone
from posegen.data.base import PoseBatch, PoseData, Sample
from posegen.errors import UserError
from posegen.runner.batches import Needs, collate
from posegen.runner.components import Components
from posegen.runner.precision import PRECISIONS, autocast, device_of
from posegen.runner.progress import metal_memory_mb, resident_peak_mb
from posegen.runner.sampler import Sampler
from posegen.train.loop import build_task
from posegen.train.recipe import recipe_of
from posegen.train.tasks import Task

Phase = Literal["forward", "train", "sample"]
Result = TypeVar("Result")

#: A standing person, COCO order, x and y as shares of the canvas.
STANDING_PERSON = (
    (0.50, 0.14), (0.52, 0.12), (0.48, 0.12), (0.55, 0.13), (0.45, 0.13), (0.60, 0.28), (0.40, 0.27), (0.66, 0.43),
    (0.33, 0.42), (0.70, 0.57), (0.29, 0.56), (0.57, 0.55), (0.43, 0.55), (0.59, 0.74), (0.42, 0.73), (0.60, 0.93),
    (0.40, 0.92),
)  # fmt: skip

#: Kind -> part of the names of its operators (CPU) or kernels (GPU); the first kind that matches counts.
KERNEL_KINDS = {
    "attention": r"scaled_dot_product|flash|fmha|sdpa|efficient_attention|softmax",
    "convolution": r"conv|fprop|dgrad|wgrad",
    "matrix product": r"gemm|gemv|mm\b|linear|matmul|cutlass|nvjet|cublas",
    "optimiser": r"foreach|multi_tensor|adam",
    "normalisation": r"norm|rowwisemoments",
    "copy": r"copy|memcpy|memset|\bcat\b|catarray|transpose|nchwtonhwc|nhwctonchw|clone|contiguous|index|gather|pad",
}
SHARES = (*KERNEL_KINDS, "pointwise and other", "idle")


class SyntheticPeople(PoseData):
    """``count`` images of noise, ``size`` x ``size`` pixels, with one person each; costs do not depend on content."""

    name, split = "figures", "profile"

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, (size, size)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        rng, side = np.random.default_rng(index), self.size[0]
        joints = (np.array(STANDING_PERSON) + rng.uniform(-0.03, 0.03, (17, 2))) * side
        keypoints = np.concatenate([joints, np.full((17, 1), 2.0)], 1).astype(np.float32)[None]
        image, area = rng.integers(0, 256, (side, side, 3), np.uint8), np.array([0.2 * side * side], np.float32)
        return Sample(f"profile/{index:06}", f"a photo of person {index}", keypoints, area, image, self.size)

    def twin(self, index: int) -> Sample:
        return self[index]

    def source_of(self, index: int, visit: int = 0) -> Sample:
        return self[self.count + index]

    @property
    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "count": self.count, "size": list(self.size)}


class MeasuredMethod:
    """A method with its backbone and a batch, of a resolved configuration of ``posegen profile``."""

    def __init__(self, cfg: DictConfig, steps: int, components: Components | None = None) -> None:
        torch.set_num_threads(cfg.budget.threads)
        self.cfg, self.steps, self.components = cfg, steps, components or Components(cfg)  # steps: of the sampler
        self.device, self.precision = device_of(cfg.trainer.accelerator), cfg.trainer.precision
        self.adapter: Adapter = self.components.adapter.to(self.device)
        self.backbone: Backbone = self.components.backbone.to(self.device)
        self.batch = self._batch()

    @torch.no_grad()
    def _batch(self) -> PoseBatch:
        """Everything that a method may read, with latents and text states as training caches them."""
        count, needs = self.cfg.batch, Needs(frozenset({"images", *self.adapter.reads}), self.adapter.hint)
        people = SyntheticPeople(count, self.cfg.size)
        batch = collate(people, range(count), needs, self.cfg.seed).to(self.device)
        latents = batch.randn("clean", self.backbone.latent_shape(batch.size)).to(self.device)
        source = latents.flip(0) if "source_latents" in self.adapter.reads else None
        captions = (list(batch.prompts), [self.cfg.sampler.negative_prompt])
        text, negative = map(self.backbone.encode_text, captions)
        return replace(batch, latents=latents, source_latents=source, text=text, negative_text=negative)

    @cached_property
    def task(self) -> Task:
        task = build_task(self.components).to(self.device)
        task.recipe = recipe_of(self.components, int(self.cfg.budget.steps))  # else it asks a Trainer for the steps
        return task

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """The task's optimiser with its state in place, so that the first step needs the memory of every step."""
        optimizer = self.task.configure_optimizers()["optimizer"]
        for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
            (0 * parameter).sum().backward()  # a gradient of zeros
        optimizer.step()
        optimizer.zero_grad()
        return optimizer

    sampler_class: type[Sampler] = Sampler

    @cached_property
    def sampler(self) -> Sampler:
        settings: Any = {key: value for key, value in self.cfg.sampler.items() if key != "_target_"}
        return self.sampler_class(**{**settings, "steps": self.steps, "skip": 0})

    @contextmanager
    def running(self, phase: Phase) -> Iterator[None]:
        """The state of torch in which a phase runs."""
        self.adapter.train(phase == "train")
        with torch.set_grad_enabled(phase == "train"), autocast(self.precision, self.device):
            yield

    def run(self, phase: Phase) -> Iterator[Tensor]:
        """The results of a phase, one repetition after the other; every ``next`` must stand in `running`: predictions
        ``[B, c, h, w]`` without guidance, losses of training steps with update, or latents after a sampler's step."""
        if phase == "train":
            return self.training_steps(self.optimizer)  # built here, outside of `running`: it takes what trains
        return self.passes() if phase == "forward" else self.sampler.denoising(self.adapter, self.backbone, self.batch)

    def passes(self) -> Iterator[Tensor]:
        state, noisy = self.adapter.encode(self.batch), self.batch.latents
        assert noisy is not None
        timesteps = self.backbone.process.sample_times(torch.full((len(noisy),), 0.5, device=self.device))
        while True:
            yield self.backbone.predict(noisy, timesteps, state.text, self.adapter.inject(state, noisy, timesteps))

    def training_steps(self, optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
        while True:
            loss = self.task.losses(self.batch)["loss"]
            self.task.backward(loss)
            optimizer.step()
            self.task.zero_grad()
            yield loss.detach()

    def parameters(self) -> dict[str, int]:
        """How many the U-Net and the adapter have, and how many of those train."""
        unet, adapter = list(self.backbone.network.parameters()), list(self.adapter.parameters())
        counted = {"unet": unet, "adapter": adapter, "trained": [p for p in (*unet, *adapter) if p.requires_grad]}
        return {f"{name}_parameters": sum(p.numel() for p in some) for name, some in counted.items()}


class Clock:
    """Seconds: processor time where one CPU thread computes, which other programs disturb least, else wall time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.kind = "processor" if device.type == "cpu" and torch.get_num_threads() == 1 else "wall"

    def __call__(self) -> float:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return time.process_time() if self.kind == "processor" else time.perf_counter()


def measure_phase(config: dict[str, Any], phase: Phase, components: Components | None = None) -> dict[str, Any]:
    """Time, peak memory, FLOPs, shares of time, largest kernel and parameters of a phase, and the device's matrix rate.

    One repetition counts the FLOPs, uncompiled, since nothing inside compiled code is counted; it is the first warm-up.
    The last one is taken apart.
    """
    cfg = OmegaConf.create(config)
    method = MeasuredMethod(cfg, cfg.warmup + cfg.repeats + 2, components)
    clock, repetitions = Clock(method.device), method.run(phase)
    with FlopCounterMode(display=False) as counter, torch.compiler.set_stance("force_eager"):
        timed_step(method, phase, repetitions, clock)
    for _ in range(cfg.warmup if cfg.compute.compile else cfg.warmup - 1):
        timed_step(method, phase, repetitions, clock)
    seconds = [timed_step(method, phase, repetitions, clock)[0] for _ in range(cfg.repeats)]
    memory = process_peak_mb(method.device)
    kernels, wall = kernel_times(lambda: timed_step(method, phase, repetitions, clock), method.device)
    rate = matrix_rate(clock, method.device, PRECISIONS.get(method.precision) or torch.float32)
    facts = {"seconds": seconds, "memory_mb": memory, "shares": time_shares(kernels, wall), "matrix_rate": rate}
    facts["largest_kernel"] = max(kernels, key=lambda name: kernels[name])
    return {**facts, "flops": counter.get_total_flops() or None, **method.parameters()}


def timed_step(method: MeasuredMethod, phase: Phase, steps: Iterator[Tensor], clock: Clock) -> tuple[float, Tensor]:
    """(seconds, result) of the next repetition."""
    with method.running(phase):
        start = clock()
        result = next(steps)
        return clock() - start, result


def kernel_times(run: Callable[[], Any], device: torch.device) -> tuple[dict[str, float], float]:
    """(microseconds in each operator, on a GPU in each kernel; microseconds in all) of ``run()``."""
    gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as profiler:
        start = time.perf_counter()
        run()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        wall = 1e6 * (time.perf_counter() - start)
    spent: dict[str, float] = {}
    for event in profiler.key_averages():
        on_gpu = event.device_type == torch.autograd.DeviceType.CUDA  # on a CPU the operators' own time counts
        if on_gpu == gpu and (gpu or event.key.startswith(("aten::", "mkldnn::"))):
            spent[event.key] = event.self_device_time_total if gpu else event.self_cpu_time_total
    return spent, wall


def time_shares(kernels: dict[str, float], wall: float) -> dict[str, float]:
    """Shares of the time by kind of computation, which sum to 1; ``idle`` is Python's and waiting."""
    spent = dict.fromkeys(SHARES, 0.0)
    for name, microseconds in kernels.items():
        spent[kernel_kind(name)] += microseconds
    busy = sum(spent.values())
    spent["idle"] = max(0.0, wall - busy)
    return {kind: value / (busy + spent["idle"]) for kind, value in spent.items()}


def kernel_kind(name: str) -> str:
    """The kind of an operator or kernel by its name; elementwise kernels, fused ones too, are the rest."""
    matching = (kind for kind, pattern in KERNEL_KINDS.items() if re.search(pattern, name.lower()))
    return next(matching, "pointwise and other")


def matrix_rate(clock: Callable[[], float], device: torch.device, dtype: torch.dtype, repeats: int = 10) -> float:
    """FLOP/s of a product of large square matrices, the best of ``repeats``: the device's rate, measured."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    times = []
    for _ in range(repeats + 1):  # the first is a warm-up that is never the best
        start = clock()
        a @ b
        times.append(clock() - start)
    return 2 * side**3 / min(times)


def process_peak_mb(device: torch.device) -> float:
    """The high-water mark of this process in MiB: what torch allocated on a GPU, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if device.type == "mps":
        return metal_memory_mb()
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would count the parent process up to the moment it started this one
        return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) / 2**10  # type: ignore[index]
    return resident_peak_mb()


def in_fresh_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """``function(*arguments)`` in a process of its own, so that peaks of memory belong to it alone."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            what = f"the process that ran {function.__name__}{arguments[1:]} was killed"
            raise UserError(f"{what}, most likely for want of memory; lower size= or batch=") from error
