"""Weights divided among devices (``trainer=fsdp``), and put together again.

What is divided keeps its names and becomes a `DTensor`; gradients, optimiser and average are divided with it. Files
hold whole tensors: a checkpoint can be continued on another number of devices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from posegen.errors import UserError


def divide_weights(task: nn.Module, unet: nn.Module | None, mesh: Any) -> None:
    """Divides the U-Net of a task among the devices of ``mesh``; a UserError where something outside of it trains."""
    inside = set() if unet is None else set(map(id, unet.parameters()))
    outside = [name for name, p in task.named_parameters() if p.requires_grad and id(p) not in inside]
    if outside or unet is None:
        strays = f"{len(outside)} tensors train outside of it ({', '.join(outside[:3])}, ...)"
        raise UserError(f"trainer=fsdp divides the U-Net, but {strays}; use trainer=ddp")
    for stage in (*unet.down_blocks, *unet.up_blocks):  # gathered one after the other, used, and given up again
        fully_shard(stage, mesh=mesh)
    fully_shard(unet, mesh=mesh)


def whole(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values on the CPU, with divided ones put together; all processes must ask at the same time."""
    return {name: value.full_tensor().cpu() if isinstance(value, DTensor) else value for name, value in values.items()}


def divided_like(value: Tensor, model: Tensor) -> Tensor:
    """A tensor on the device of another one of its shape, and divided as that is."""
    if isinstance(model, DTensor) and not isinstance(value, DTensor):
        return distribute_tensor(value.to(model.device), model.device_mesh, model.placements)
    return value.to(model.device)
