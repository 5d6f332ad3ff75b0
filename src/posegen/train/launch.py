"""Several processes that train one cell together, one per device.

Lightning starts such processes by running the command line again, which would run a whole sweep again, and which
workers of joblib or submitit lack. So torch's launcher starts them with the cell's resolved configuration. Only the
first, rank 0, writes into the cell.

The batch of a step, its order, noise and timesteps are functions of (seed, step, image), the same for any number of
processes: each takes an equal share of every batch, and the mean of their gradients is the gradient of the whole.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.core.utils import env_override
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins.environments import SLURMEnvironment
from omegaconf import DictConfig, OmegaConf
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher import LaunchConfig, elastic_launch

from posegen.config.checking.processes import Started, lacking_gpus, node_rank
from posegen.config.resolvers import processes
from posegen.errors import UserError
from posegen.io.start_method import known_start_method
from posegen.train.notice import Notice, unheard_by_children


@dataclass(frozen=True)
class Processes:
    """The processes of a cell, as one machine sees them."""

    devices: int = 1  # processes on each machine
    nodes: int = 1  # machines
    node: int = 0  # which of them this one is
    started: Started | None = None  # where torchrun or srun has started all of them

    @classmethod
    def of(cls, cfg: DictConfig) -> Processes:
        """The processes that ``trainer`` asks for; a UserError where nothing says which of several machines this is."""
        devices, nodes, started = processes(cfg.trainer.devices, 1), cfg.trainer.num_nodes, Started.read()
        if started and started.trains_one_cell(devices, nodes):
            return cls(devices, nodes, started.rank // devices, started)
        return cls(devices, nodes, node_rank() if nodes > 1 else 0)

    @property
    def size(self) -> int:
        return self.devices * self.nodes

    @property
    def first(self) -> bool:
        """Whether this process does everything but its share of the training, which is all that others do."""
        return not (self.node if self.started is None else self.started.rank)


def require_gpus(wanted: int, accelerator: str) -> None:
    """Raises a UserError where this process sees fewer devices, with the ways out."""
    if text := lacking_gpus(wanted, accelerator):
        raise UserError(text)


def meeting_point(parties: int) -> tuple[str, int]:
    """(host, port) at which several machines, or processes that srun started, meet; a UserError where they know
    none."""
    if parties == 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return "127.0.0.1", free.getsockname()[1]
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if listed := os.environ.get("SLURM_STEP_NODELIST", os.environ.get("SLURM_JOB_NODELIST")):
        address = address or SLURMEnvironment.resolve_root_node_address(listed)
        step = int(os.environ.get("SLURM_STEP_ID", 0))  # steps of a job may share a machine
        port = port or str(15000 + (int(os.environ["SLURM_JOB_ID"]) + 100 * step) % 10000)
    if not address or not port:
        fix = "set MASTER_ADDR and MASTER_PORT to a host and a free port of the first machine"
        raise UserError(f"trainer.num_nodes is more than 1 outside of Slurm; {fix}")
    return address, int(port)


def run_together(work: Callable[[dict[str, Any], Path], None], cfg: DictConfig, folder: Path, group: Processes) -> None:
    """Runs ``work(config, folder)`` in one process per device of this machine, and waits for them.

    ``work`` is a module's function under torch's `record`; it gets the resolved configuration as plain values. A
    UserError of a process is raised here; if one fails otherwise, it is a RuntimeError with the process's traceback.
    """
    require_gpus(group.devices, cfg.trainer.accelerator)
    host, port = meeting_point(group.nodes)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # no advice about DDP's settings
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # failures are reported below
    meeting: dict[str, Any] = {"rdzv_backend": "static", "rdzv_endpoint": f"{host}:{port}", "run_id": "posegen"}
    meeting["rdzv_configs"] = {"rank": group.node, "timeout": 600}
    how: dict[str, Any] = {"max_restarts": 0, "monitor_interval": 0.1, "start_method": "spawn"}
    settings = LaunchConfig(group.nodes, group.nodes, group.devices, **meeting, **how)
    try:
        alone = env_override({"TORCHELASTIC_USE_AGENT_STORE": "False"})  # of a torchrun around this process
        with alone, signal_handlers_restored(), known_start_method(), notice_passed_on():
            elastic_launch(settings, work)(OmegaConf.to_container(cfg, resolve=True), folder)
    except SignalException as ended:
        raise SystemExit(128 + ended.sigval) from ended
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        left: Any = failure.message if isinstance(failure.message, dict) else {"message": str(failure.message)}
        kind, _, text = left["message"].partition(": ")
        if kind == UserError.__name__:
            raise UserError(text) from error
        traceback = left.get("extraInfo", {}).get("py_callstack", "")
        raise RuntimeError(f"the process of rank {rank} failed: {left['message']}\n{traceback}") from error


@contextmanager
def joined(group: Processes) -> Iterator[None]:
    """The variables by which torch's processes meet, in one that torchrun or srun started; the group ends with the
    block."""
    assert group.started is not None
    host, port = meeting_point(group.size)
    names: dict[str, Any] = {"RANK": group.started.rank, "LOCAL_RANK": group.started.local, "WORLD_SIZE": group.size}
    names |= {"MASTER_ADDR": host, "MASTER_PORT": port}
    with env_override({name: str(value) for name, value in names.items()}):
        yield
        end_group()


def end_group() -> None:
    """Waits for the other processes of the group, if there is one, and leaves it."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


class SameCell(Callback):
    """Refuses processes that were started together with commands for different cells: their gradients would mix."""

    def __init__(self, cell: Any) -> None:
        self.cell = str(cell)

    def setup(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        cells: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(cells, self.cell)
        if others := set(cells) - {self.cell}:
            found = f"this process trains {self.cell}, and one that was started with it {min(others)}"
            raise UserError(f"{found}; give all of them the same command, or start each cell by itself")


@contextmanager
def notice_passed_on() -> Iterator[None]:
    """Tells the processes of a cell about a scheduler's notice, as SIGTERM, and obeys it when they have ended."""
    notice = Notice()

    def tell() -> None:
        for process in multiprocessing.active_children():
            process.terminate()

    with unheard_by_children():
        notice.listen(tell)
        try:
            yield
        finally:
            notice.restore()
            if notice.came:
                notice.obey()


@contextmanager
def signal_handlers_restored() -> Iterator[None]:
    """torch's launcher replaces handlers, to end what it started, and leaves them so."""
    names = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")  # Windows has not all of them
    before = {number: signal.getsignal(number) for name in names if (number := getattr(signal, name, None))}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
