"""Where a training goes on: its last checkpoint if that is whole, else the start; or the weights of another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from safetensors import SafetensorError, safe_open

from posegen.errors import UserError
from posegen.io.atomic import replacing
from posegen.io.weights import first_line, not_finite
from posegen.runner.method_folder import load_into, method_folder, require_finite
from posegen.train.callbacks import CHECKPOINT
from posegen.train.tasks import AdapterTask, Task
from posegen.train.training_batches import Seen

#: What a cell gets after its training, in this order; all of it comes from the trained weights.
AFTER_TRAINING = (
    "method",
    "objective.json",
    "samples",
    "row.json",
    "batches",
    "judged",
    "records.csv",
    "features.npz",
    "judges",
)


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that appear whole in their folder. Lightning's own first lie in the system's temporary folder, where
    those of killed processes stay."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with replacing(Path(path)) as temporary:
            torch.save(checkpoint, temporary)


def saved_place(checkpoint: Path) -> tuple[int, Seen]:
    """(optimiser steps, place in the data) of a checkpoint; the start without one."""
    return place_of(read_checkpoint(checkpoint)) if checkpoint.is_file() else (0, (0, 0))


def place_of(state: dict[str, Any]) -> tuple[int, Seen]:
    seen = state["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"]
    return int(state["global_step"]), (int(state["epoch"]), int(seen))


def read_checkpoint(file: Path, whole: bool = False) -> dict[str, Any]:
    """A checkpoint of Lightning on the CPU, whose tensors are read when they are used; a UserError where it is damaged.

    Args:
        whole: compare the checksums, which torch does not, and require finite weights and averages.
    """
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        place_of(state)
        absent = {"state_dict", "optimizer_states", "lr_schedulers", "callbacks"} - state.keys()
        damaged = ZipFile(file).testzip() if whole else None
        if absent or damaged:
            raise ValueError(f"it has no {', '.join(absent)}" if absent else f"the checksum of {damaged} is wrong")
    except Exception as error:  # torch and zipfile raise many kinds for a damaged file
        fix = "delete it to train this cell from the start"
        raise UserError(f"{file} cannot be read ({first_line(error)}); {fix}") from error
    if whole:
        averages = [each["average"] for each in state["callbacks"].values() if "average" in each]
        for tensors in (state["state_dict"], *averages):
            require_finite(tensors, file)
    return state


def kept_training(folder: Path) -> str:
    """What of an unfinished training is kept, as part of a sentence."""
    try:
        step = saved_place(folder / CHECKPOINT)[0]
    except UserError:
        step = 0
    return f"the checkpoint of step {step} ({folder / CHECKPOINT})" if step else "no checkpoint yet"


def load_start(task: Task, place: Path) -> None:
    """Puts the weights of ``checkpoint=`` into a task: a ``last.ckpt``, a cell or a method folder.

    A UserError where there is none, it is damaged, or it holds another method.
    """
    file = place / CHECKPOINT if (place / CHECKPOINT).is_file() else place
    if not file.is_file():
        if not isinstance(task, AdapterTask) or not place.is_dir():
            expected = f"expected a {CHECKPOINT}, a cell, or a method folder"
            raise UserError(f"checkpoint={place} holds no weights to start from; {expected}")
        return load_into(task.adapter, task.backbone, method_folder(place))
    weights = read_checkpoint(file, whole=True)["state_dict"]
    given, own = ({(name, value.shape) for name, value in each.items()} for each in (weights, task.state_dict()))
    if given != own:
        differ = f"{len(given ^ own)} tensors differ in name or shape"
        raise UserError(f"checkpoint={file} is of other settings ({differ}); choose the adapter and backbone of it")
    task.load_state_dict(weights, strict=False)
    return None


def unusable(method: Path, few: int = 20) -> str:
    """Which file of a method folder is damaged, or has smallest tensors that are not finite, for a training that
    diverged leaves none finite; empty: none."""
    for path in sorted(method.rglob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                sizes = {name: torch.Size(file.get_slice(name).get_shape()).numel() for name in file.keys()}  # noqa: SIM118
                smallest = sorted(sizes, key=sizes.__getitem__)[:few]
                if not_finite({name: file.get_tensor(name) for name in smallest}):
                    return f"{path} holds NaN or infinity: its training diverged"
        except (SafetensorError, OSError) as error:
            return f"{path} is damaged ({first_line(error)})"
    return ""
