"""Where the time of a phase goes: by the kind of computation, and beside the rate at which the device multiplies matrices."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import torch

#: Kind -> what is in the names of its operators (CPU) or kernels (GPU); the first kind that matches has it.
KINDS = {
    "attention": r"scaled_dot_product|flash|fmha|sdpa|efficient_attention|softmax",
    "convolution": r"conv|fprop|dgrad|wgrad",
    "matrix product": r"gemm|gemv|mm\b|linear|matmul|cutlass|nvjet|cublas",
    "optimiser": r"foreach|multi_tensor|adam",
    "normalisation": r"norm|rowwisemoments",
    "copy": r"copy|memcpy|memset|\bcat\b|catarray|transpose|nchwtonhwc|nhwctonchw|clone|contiguous|index|gather|pad",
}
REST, IDLE = "pointwise and other", "idle"
SHARES = (*KINDS, REST, IDLE)
SIDES = {"cuda": 8192, "cpu": 1024}  # of the matrices


def kind_of(name: str) -> str:
    """The kind of an operator or kernel by its name; elementwise kernels and what the compiler fused of them are the rest."""
    lowered = name.lower()
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, lowered)), REST)


def breakdown(run: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """Shares of the time of ``run()`` by kind. What no operator accounts for, the time of Python and of waiting, is ``idle``; the shares sum to 1.

    On a GPU its kernels count, on a CPU the operators' own time.
    """
    from torch.profiler import ProfilerActivity, profile

    gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as profiler:
        start = time.perf_counter()
        run()
        if gpu:
            torch.cuda.synchronize(device)
        wall = 1e6 * (time.perf_counter() - start)
    spent = dict.fromkeys(SHARES, 0.0)
    for event in profiler.key_averages():
        on_gpu = event.device_type == torch.autograd.DeviceType.CUDA
        if on_gpu == gpu and (gpu or event.key.startswith("aten::")):
            spent[kind_of(event.key)] += event.self_device_time_total if gpu else event.self_cpu_time_total
    busy = sum(spent.values())
    spent[IDLE] = max(0.0, wall - busy)
    total = busy + spent[IDLE]
    return {kind: value / total for kind, value in spent.items()}


def matrix_rate(clock: Callable[[], float], device: torch.device, dtype: torch.dtype, repeats: int = 10) -> float:
    """FLOP/s of a product of large square matrices, the best of ``repeats``: what the device can do, measured rather than looked up.

    Args:
        clock: seconds, of the same kind as those that it will be compared with.
    """
    side = SIDES.get(device.type, SIDES["cpu"])
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(repeats + 1):  # the first is a warm-up that is never the best
        start = clock()
        a @ b
        best = min(best, clock() - start)
    return 2 * side**3 / best


def said(shares: dict[str, float]) -> str:
    """The shares in words, the largest first; it is the bottleneck."""
    largest = sorted(shares.items(), key=lambda item: -item[1])
    return ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in largest if share >= 0.01)
