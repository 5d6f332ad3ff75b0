"""How a method computes: where, in which precision, memory layout and compilation. None of it names a method."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from posegen.runner.errors import UserError

PRECISIONS = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
#: What is compiled. Larger pieces take minutes to compile, and hooks on them, through which features are injected, would be frozen into the code.
REPEATED = ("BasicTransformerBlock",)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The context of a precision in Lightning's names.

    Raises:
        UserError: it is none that `posegen profile` knows.
    """
    if precision not in PRECISIONS:
        raise UserError(f"trainer.precision={precision} cannot be profiled; expected auto or one of {', '.join(PRECISIONS)}")
    dtype = PRECISIONS[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def arrange(adapter: nn.Module, backbone: Any, channels_last: bool = False, compile: bool = False, checkpointing: bool = False) -> None:
    """Applies what ``trainer`` says about the way of computing.

    Args:
        channels_last: lay feature maps out pixel by pixel, which convolutions on tensor cores and in oneDNN prefer.
        compile: compile the transformer blocks when they first run.
        checkpointing: keep only the inputs of blocks for the backward pass and compute the rest again.
    """
    if channels_last:
        adapter.to(memory_format=torch.channels_last)
        backbone.to(memory_format=torch.channels_last)
    for module in (*networks(adapter, backbone),):
        if compile and type(module).__name__ in REPEATED:
            module.compile()
        if checkpointing and getattr(module, "_supports_gradient_checkpointing", False):
            module.enable_gradient_checkpointing()


def networks(adapter: nn.Module, backbone: Any) -> Iterator[nn.Module]:
    """All modules that a step runs: those of the U-Net and of the adapter."""
    yield from backbone.unet.modules()
    yield from adapter.modules()
