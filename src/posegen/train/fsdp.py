"""Weights divided among devices (``trainer=fsdp``), and put together again.

What is divided keeps its names and counts as `DTensor`: gradients, optimiser and average are divided with it. Files never hold shares: a checkpoint can be
continued on another number of devices, or on one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from posegen.errors import UserError

if TYPE_CHECKING:
    from posegen.train.tasks import Task

#: Parts of a U-Net that are gathered one after the other, used, and given up again.
STAGES = ("down_blocks", "up_blocks")


def divide(task: Task, mesh: Any) -> None:
    """Divides the U-Net of a task among the devices of ``mesh``.

    Raises:
        UserError: something outside of the U-Net trains, or the optimiser works on whole matrices.
    """
    from torch.distributed.fsdp import fully_shard

    unet = getattr(getattr(task, "backbone", None), "unet", None)
    inside = set() if unet is None else set(map(id, unet.parameters()))
    outside = [name for name, p in task.named_parameters() if p.requires_grad and id(p) not in inside]
    if outside or unet is None:
        raise UserError(
            f"trainer=fsdp divides the U-Net, but {len(outside)} tensors train outside of it ({', '.join(outside[:3])}, ...); use trainer=ddp"
        )
    if task.recipe.optimizer == "muon":
        raise UserError(
            "optim.optimizer=muon works on whole matrices, which trainer=fsdp divides; use trainer=ddp or optim.optimizer=adamw"
        )
    for stage in (block for name in STAGES for block in getattr(unet, name)):
        fully_shard(stage, mesh=mesh)
    fully_shard(unet, mesh=mesh)


def whole(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values with divided ones put together on the CPU; all processes must ask at the same time."""
    return {name: value.full_tensor().cpu() if isinstance(value, DTensor) else value for name, value in values.items()}


def as_held(value: Tensor, model: Tensor) -> Tensor:
    """A tensor where, and divided as, another one of its shape is."""
    if isinstance(model, DTensor) and not isinstance(value, DTensor):
        return distribute_tensor(value.to(model.device), model.device_mesh, model.placements)
    return value.to(model.device)
