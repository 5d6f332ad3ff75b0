"""What configurations may ask for in ``${...}``; registered on import, so every process that composes or runs a configuration imports this module."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

from omegaconf import OmegaConf

from posegen.config.cell_folder import cell_folder
from posegen.io.hashes import value_hash


def asset(name: str) -> str:
    """``${asset:mannequin-v1/backbone}``: the path of something shipped inside the package."""
    return str(Path(__file__).resolve().parents[1] / "assets" / name)


def visible_gpus() -> list[str]:
    """The GPUs that this process may use; asks neither torch nor the driver."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(i) for i, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]
    return [name.strip() for name in visible.split(",") if name.strip()]


def gpus() -> int:
    """``${gpus:}``: how many GPUs this process may use, at least 1."""
    return max(1, len(visible_gpus()))


def at_once(threads: int) -> int:
    """``${at_once:THREADS}``: how many cells this machine computes at once: one per GPU, or as many as its cores have room for with so many threads each."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return len(visible_gpus()) or max(1, cores // threads)


def gpu() -> str:
    """``${gpu:}``: the GPU of this worker process of a pool as large as `gpus`; the same for all cells the worker runs."""
    number = multiprocessing.current_process().name.rpartition("-")[2]  # loky counts its workers from 1: LokyProcess-1
    index = (int(number) - 1) % gpus() if number.isdigit() else 0
    visible = visible_gpus()
    return visible[index] if visible else str(index)


def within(folder: str | None, name: str) -> str | None:
    """``${within:FOLDER,NAME}``: what lies in a folder under a name, null where nothing does."""
    place = None if folder is None else Path(folder) / name
    return str(place) if place is not None and place.exists() else None


OmegaConf.register_new_resolver("within", within, replace=True)


def row(option: str, path: str | None) -> str:
    """``${row:OPTION,PATH}``: the name of a cell's method; an option ``folder`` is named after its folder, too, so that a sweep can have several."""
    return f"{option}/{Path(path).name}" if path and option.rpartition("/")[2] == "folder" else option


OmegaConf.register_new_resolver("asset", asset, replace=True)
OmegaConf.register_new_resolver("gpus", gpus, replace=True)
OmegaConf.register_new_resolver("at_once", at_once, replace=True)
OmegaConf.register_new_resolver("gpu", gpu, replace=True)
OmegaConf.register_new_resolver("row", row, replace=True)


def auto_precision(accelerator: str) -> str:
    """``${auto_precision:ACCELERATOR}``: bf16 where the hardware computes in it, else fp32, in Lightning's names."""
    if accelerator != "cpu" and visible_gpus():
        return "bf16-mixed"
    info = Path("/proc/cpuinfo")
    has_bf16 = info.is_file() and any(flag in info.read_text() for flag in ("avx512_bf16", "amx_bf16"))
    return "bf16-mixed" if has_bf16 else "32-true"


def processes(devices: int | str, nodes: int) -> int:
    """``${processes:DEVICES,NODES}``: how many processes train a cell together."""
    return (gpus() if devices in ("auto", -1) else int(devices)) * nodes


def run_id(folder: str, seed: int) -> str:
    """``${run_id:FOLDER,SEED}``: the id of a cell's W&B run, the same whenever the cell is resumed."""
    return value_hash([folder, seed])


for resolver in (auto_precision, processes, run_id, cell_folder):
    OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)
