"""The memory of a training step on its device, counted by running it with tensors that have no content.

    python experiments/profile/memory.py adapter=controlnet backbone=sd15 backbone.path=null backbone.initialise=random
    python experiments/profile/memory.py presets

The first prints what each measure saves beside the released program; it takes the overrides of ``posegen profile``, and
``resident=true`` also does the steps and measures their processes, which needs the memory. The second prints what every
method needs with every preset of ``trainer``, the table of the documentation.

Torch's fake tensors have a size and no content: the step runs as it is, with the CPU's operators, in seconds, and every
byte that lives at once is counted. Not counted is what is no tensor: Python, the driver, workspaces inside of
operators, fragmentation.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).parents[2]))

from experiments.profile.against_official import Official, PlainMethod, official_of
from posegen.config.compose import composed
from posegen.train.profiling import Clock, MeasuredMethod, in_fresh_process, process_peak_mb, timed_step

MIB, GIB = 2**20, 2**30


class LiveBytes(TorchDispatchMode):
    """Within the context, counts the bytes of tensors that are allocated there and not yet freed.

    ``read`` are the memories that operators were given.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()
        self.read: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.nonzero.default:  # of tensors without content everything is
            return torch.arange(len(args[0])).view(-1, 1)
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1
        result = func(*args, **(kwargs or {}))
        given = {memory(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        self.read |= given
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and memory(tensor) not in given | self.known:
                self.add(tensor.untyped_storage())
        return result

    def add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self.known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.remove, key, size)

    def remove(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def memory(tensor: Tensor) -> int:
    """Which memory a tensor shows."""
    return tensor.untyped_storage()._cdata


def bytes_of(tensors: Iterable[Any]) -> int:
    """The bytes of some tensors; those that share their memory count once."""
    return sum({memory(t): t.untyped_storage().nbytes() for t in tensors if isinstance(t, Tensor)}.values())


def weights_of(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


@contextmanager
def without_content() -> Iterator[None]:
    """Within the context, tensors have a size, a type and a device, which need not exist, and no content."""
    numbers = patch.object(FakeTensor, "tolist", lambda tensor: [1] * tensor.numel())  # where content decides
    with FakeTensorMode(allow_non_fake_inputs=True), patch.object(nn.Module, "to", moved), numbers:
        yield


def moved(module: nn.Module, *to: Any, **how: Any) -> nn.Module:
    """`torch.nn.Module.to`, which cannot exchange tensors without content."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and (new := parameter.to(*to, **how)) is not parameter:
                part._parameters[name] = nn.Parameter(new, parameter.requires_grad)
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else buffer.to(*to, **how)
    return module


def counted(config: dict[str, Any], official: Official | None = None, foreach: bool | None = None) -> dict[str, int]:
    """Bytes of a training step by what they are for, and their ``peak`` on the device.

    Args:
        config: a resolved configuration of ``posegen profile``.
        official: the program whose step it is, which keeps everything on the device; None: posegen's.
        foreach: as of torch's AdamW; on GPUs it is the default, which needs room for all updates at once.
    """
    cfg = OmegaConf.create(config)
    with without_content():
        method = PlainMethod(cfg, 1, official) if official else MeasuredMethod(cfg, 1)
        task, optimizer = method.task, method.optimizer
        for group in optimizer.param_groups if foreach else ():
            group["foreach"] = True
        trained = [p for p in task.parameters() if p.requires_grad]
        encoders = [tensor for part in method.backbone.encoders for tensor in weights_of(part)]
        states = [value for state in optimizer.state.values() for value in tree_leaves(state)]
        with LiveBytes() as live, method.running("train"):
            for _ in range(min(2, cfg.optim.accumulate)):  # the second pass finds the gradients of the first
                task.backward(task.losses(method.batch)["loss"])
            optimizer.step()
        found = {"encoders": bytes_of(encoders), "trained": bytes_of(trained), "optimiser": bytes_of(states)}
        found["frozen"] = bytes_of(weights_of(task)) - found["encoders"] - found["trained"]
        found["step"] = live.peak
        for part in () if official else method.backbone.encoders:
            if live.read.isdisjoint(map(memory, part.parameters())):  # it waits in the CPU's memory
                found["encoders"] -= bytes_of(weights_of(part))
    return {**found, "peak": sum(found.values())}


def resident(config: dict[str, Any], official: Official | None = None) -> float:
    """Peak resident memory in MiB of a process that does such a step; posegen's without the encoders."""
    cfg = OmegaConf.create(config)
    method = PlainMethod(cfg, 1, official) if official else MeasuredMethod(cfg, 1)
    for part in () if official else method.backbone.encoders:
        part.to("meta")
    timed_step(method, "train", method.run("train"), Clock(method.device))
    return process_peak_mb(method.device)


def resolved(*words: str) -> dict[str, Any]:
    """The configuration of ``posegen profile`` with these overrides."""
    with composed("profile", words) as cfg:
        config: Any = OmegaConf.to_container(cfg, resolve=True)
        return config


#: What is done about memory, each with all before it: its name, and the overrides.
MEASURES = {
    "encoders off the device": (),
    "gradients freed in the backward pass": ("optim.in_backward=true", "optim.clip=null"),
    "activations of blocks computed again": ("compute.checkpointing=blocks",),
    "the same with clipping, in two backward passes": ("optim.clip=1.0",),
}


def compare(words: Sequence[str]) -> None:
    """Prints the peak of the released program, and of posegen with more and more measures.

    Counts are the same every time; ``resident=true`` measures both sides ``repeats`` times in turns, the medians.
    """
    really, words = "resident=true" in words, [word for word in words if not word.startswith("resident=")]
    config, so_far = resolved(*words), list(words)
    official = official_of(config["method"])
    plain = counted(config, official)["peak"]

    def show(name: str, mib: float, beside: float) -> None:
        print(f"{name:<52}{mib:>8,.0f} MiB {mib / beside:>6.2f}", flush=True)

    show("the released program", plain / MIB, plain / MIB)
    show("posegen, everything on the device", (counted(config)["peak"] + encoder_bytes(config)) / MIB, plain / MIB)
    for name, more in MEASURES.items():
        so_far += more
        show(f"  {name}", counted(resolved(*so_far))["peak"] / MIB, plain / MIB)
    print(f"{config['method']} on {config['backbone_name']}, {config['size']} px, batch {config['batch']}, ", end="")
    print(f"{config['trainer']['precision']}; bytes of tensors, counted")
    if really:
        least = resolved(*words, *(word for more in list(MEASURES.values())[:3] for word in more))
        peaks: list[list[float]] = [[], []]
        for _ in range(config["repeats"]):
            peaks[0].append(in_fresh_process(resident, config, official))
            peaks[1].append(in_fresh_process(resident, least))
        theirs, ours = map(median, peaks)
        show("resident: the released program", theirs, theirs)
        show("resident: posegen with the first three", ours, theirs)


def encoder_bytes(config: dict[str, Any]) -> int:
    """Of the text encoder and the autoencoder."""
    with without_content():
        encoders = MeasuredMethod(OmegaConf.create(config), 1).backbone.encoders
        return bytes_of(tensor for part in encoders for tensor in weights_of(part))


METHODS = ("t2i_adapter", "controlnet", "stable_pose", "grpose", "dnaf", "humansd")
PRESETS = {"gpu_12gb": 12, "gpu_24gb": 24, "gpu_80gb": 80}  # of ``trainer`` -> GiB
BACKBONES = {"sd15": 512, "sd21": 768}  # -> pixels
DATA = {"dnaf": ("data=mannequin_pairs",)}  # it needs a second image of a person
DRIVER, SPARE = 0.6, 1.08  # GiB of CUDA's context, and room for fragmentation and workspaces: estimates


def preset_bytes(method: str, backbone: str, preset: str, *more: str) -> int:
    """The peak of a training step with a preset, with the average of the weights."""
    words = (f"adapter={method}", f"backbone={backbone}", "backbone.path=null", "backbone.initialise=random", *more)
    words = (*words, f"size={BACKBONES[backbone]}", *DATA.get(method, ()))
    with composed("train", (f"trainer={preset}",)) as cfg:  # posegen profile has other defaults
        batch = cfg.optim.batch // cfg.optim.accumulate
        changed = f"compute.checkpointing={cfg.compute.checkpointing}", f"optim.accumulate={cfg.optim.accumulate}"
        foreach = not cfg.optim.fused
        words = (*words, *changed, f"trainer.precision={cfg.trainer.precision}", f"batch={batch}")
    found = counted(resolved(*words), foreach=foreach)
    return found["peak"] + found["trained"]  # the average


def print_presets(more: Sequence[str]) -> None:
    """Prints a row for each method: GiB on the device for each backbone and preset; in brackets what does not fit."""
    cells = [(backbone, preset) for backbone in BACKBONES for preset in PRESETS]
    print(f"| method | {' | '.join(f'{b}, {BACKBONES[b]} px, {p}' for b, p in cells)} |\n|---{'|---:' * len(cells)}|")
    for method in METHODS:
        row = []
        for backbone, preset in cells:
            need = DRIVER + SPARE * preset_bytes(method, backbone, preset, *more) / GIB
            row.append(f"{need:.1f}" if need <= PRESETS[preset] else f"({need:.1f})")
        print(f"| {method} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["presets"]:
        print_presets(sys.argv[2:])
    else:
        compare(sys.argv[1:])
