"""What configurations may ask for in ``${...}``.

Registered on import, so every process that composes or runs a configuration imports this module.

| Resolver | Value |
|---|---|
| ``${asset:NAME}`` | the path of something shipped inside the package |
| ``${gpus:}`` | the number of GPUs that this process may use, at least 1 |
| ``${gpu:}`` | the GPU of this worker process; the same for all cells that the worker runs |
| ``${at_once:THREADS}`` | the number of cells that this machine computes at once |
| ``${within:FOLDER,NAME}`` | the path of NAME in FOLDER, null where there is none |
| ``${row:OPTION,PATH}`` | the name of a cell's method |
| ``${cell_folder:}`` | the folder of a cell |
| ``${cache_folder:}`` | the folder of caches |
| ``${auto_precision:ACCELERATOR,CELL}`` | that of a begun cell, else bf16-mixed where the hardware has it, or 32-true |
| ``${processes:DEVICES,NODES}`` | the number of processes that train a cell together |
| ``${job_gpus:DEVICES,ACCELERATOR}`` | the GPUs that a job asks each machine for; null with ``cpu`` |
"""

from __future__ import annotations

import multiprocessing
import os
from contextlib import suppress
from pathlib import Path

from omegaconf import OmegaConf

from posegen.config.cell_folder import cell_folder, untouched
from posegen.io.atomic import read_json_or_empty
from posegen.io.cache_folder import cache_folder
from posegen.io.cores import cores

AUTO_PRECISIONS = ("bf16-mixed", "32-true")  # what `auto_precision` may say


def asset(name: str) -> str:  # for instance mannequin-v1/backbone
    return str(Path(__file__).resolve().parents[1] / "assets" / name)


def visible_gpus() -> list[str]:
    """The GPUs that this process may use; asks neither torch nor the driver."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(i) for i, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]
    return [name.strip() for name in visible.split(",") if name.strip()]


def gpus() -> int:
    return max(1, len(visible_gpus()))


def at_once(threads: int) -> int:
    """One cell per GPU, or as many as the cores have room for with so many threads each."""
    return len(visible_gpus()) or max(1, cores() // threads)


def gpu() -> str:
    """One of a pool of `gpus` workers takes one GPU."""
    number = multiprocessing.current_process().name.rpartition("-")[2]  # of a worker of hydra/launcher=local: cell-1
    index = (int(number) - 1) % gpus() if number.isdigit() else 0
    visible = visible_gpus()
    return visible[index] if visible else str(index)


def within(folder: str | None, name: str) -> str | None:
    place = None if folder is None else Path(folder) / name
    return str(place) if place is not None and place.exists() else None


def method_row(option: str, path: str | None) -> str:
    """The option; an option ``folder`` is named after its folder, too, so that a sweep can have several."""
    return f"{option}/{Path(path).name}" if path and option.rpartition("/")[2] == "folder" else option


def auto_precision(accelerator: str, cell: str | None = None) -> str:
    status = read_json_or_empty(Path(cell) / "status.json") if cell else {}
    with suppress(KeyError, TypeError):  # damaged; the cell says so
        begun = status["state"] != "failed" or not untouched(Path(str(cell)))
        if begun and (known := status["identity"]["trainer"]["precision"]) in AUTO_PRECISIONS:
            return known
    if accelerator != "cpu" and visible_gpus():
        return "bf16-mixed"
    info = Path("/proc/cpuinfo")
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT").upper()  # of what torch's kernels use
    allowed = limit in ("DEFAULT", "ALL") or any(name in limit for name in ("BF16", "FP16", "AMX", "AVX10"))
    has_bf16 = allowed and info.is_file() and any(flag in info.read_text() for flag in ("avx512_bf16", "amx_bf16"))
    return "bf16-mixed" if has_bf16 else "32-true"


def processes(devices: int | str, nodes: int) -> int:
    return (gpus() if devices in ("auto", -1) else int(devices)) * nodes


def job_gpus(devices: int | str, accelerator: str) -> int | str | None:
    return None if accelerator == "cpu" else devices


for resolver in (asset, gpus, at_once, gpu, within, auto_precision, processes, job_gpus, cell_folder):
    OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)
OmegaConf.register_new_resolver("row", method_row, replace=True)
OmegaConf.register_new_resolver("cache_folder", lambda: str(cache_folder()), replace=True)
