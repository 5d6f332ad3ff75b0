"""Several processes that train one cell together, one per device.

Lightning starts such processes by running the command line again; within a sweep that would run the whole sweep again, and a worker of joblib or submitit has
no command line of its own. So the process that works on a cell starts them itself: it hands each the cell's resolved configuration, watches them, and is done
when they are. Nothing of their process group remains in it, and the next cell starts afresh. Of them only the first, rank 0, writes anything into the cell.

The batch of a step, its order, noise and timesteps are functions of (seed, step, image), so they are the same for any number of processes: each takes an equal
share of every batch, and the mean of their gradients is the gradient of the whole.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from posegen.config.resolvers import gpus
from posegen.errors import UserError
from posegen.io.atomic import read_json, write_json

STRATEGIES = ("ddp", "fsdp")


@dataclass(frozen=True)
class Crew:
    """The processes of a cell, seen from one of them.

    Attributes:
        devices: processes on each machine.
        nodes: machines.
        node: which of them this one is.
        local: which process of this machine this one is; None for the one that starts them.
        strategy: one of `STRATEGIES`.
    """

    devices: int = 1
    nodes: int = 1
    node: int = 0
    local: int | None = None
    strategy: str = "ddp"

    @classmethod
    def of(cls, cfg: DictConfig) -> Crew:
        """What ``trainer`` asks for, here.

        Raises:
            UserError: see `planned`; or nobody says which of several machines this is.
        """
        crew = cls.planned(cfg)
        return replace(crew, node=node_rank()) if crew.nodes > 1 else crew

    @classmethod
    def planned(cls, cfg: DictConfig) -> Crew:
        """What ``trainer`` asks for, wherever it will be.

        Raises:
            UserError: it is impossible, or the batch cannot be divided among so many.
        """
        t, nodes = cfg.trainer, cfg.trainer.get("nodes", 1)
        devices = gpus() if t.devices in ("auto", -1) else t.devices
        for key, value in {"devices": devices, "nodes": nodes}.items():
            if not isinstance(value, int) or value < 1:
                raise UserError(
                    f"trainer.{key}={value} is no number of {key}; expected 1 or more"
                    + (", or auto for all GPUs" if key == "devices" else "")
                )
        strategy = t.get("strategy", "ddp")
        if strategy not in STRATEGIES:
            raise UserError(f"trainer.strategy={strategy} is unknown; expected one of {', '.join(STRATEGIES)}")
        crew = cls(devices, nodes, strategy=strategy)
        crew.require_shares(cfg)
        return crew

    @property
    def size(self) -> int:
        return self.devices * self.nodes

    @property
    def divides(self) -> bool:
        """Whether each process holds a part of the weights only."""
        return self.size > 1 and self.strategy == "fsdp"

    @property
    def rank(self) -> int:
        return self.node * self.devices + (self.local or 0)

    def require_shares(self, cfg: DictConfig) -> None:
        """Refuses a batch that so many cannot share equally."""
        batch, parts = cfg.optim.batch, cfg.optim.accumulate
        if batch % parts:
            raise UserError(f"optim.batch={batch} is not divisible by optim.accumulate={parts}")
        if batch // parts % self.size:
            among = f"trainer.devices={self.devices}" + (f" on trainer.nodes={self.nodes}" if self.nodes > 1 else "")
            raise UserError(
                f"optim.batch={batch} in optim.accumulate={parts} parts of {batch // parts} images cannot be shared equally by {self.size} processes "
                f"({among}); optim.batch must be a multiple of {parts * self.size}"
            )

    def require_normalisable(self, task: Any, cfg: DictConfig) -> None:
        """Refuses batch statistics that would be those of a share: torch puts them together on GPUs alone."""
        from torch import nn

        from posegen.runner.devices import device_of

        trained = {name.rpartition(".")[0] for name, p in task.named_parameters() if p.requires_grad}
        normed = [
            name
            for name, module in task.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and name in trained
        ]
        if self.size > 1 and normed and device_of(cfg.trainer.accelerator).type == "cpu":
            raise UserError(
                f"adapter={cfg.method} normalises over the batch ({len(normed)} times, first in {normed[0]}), and processes on the CPU cannot share its "
                "statistics; train it with trainer.devices=1 or on GPUs"
            )

    def lightning(self, accelerator: str) -> dict[str, Any]:
        """Lightning's arguments for this process; it never starts others, and leaves Slurm's signals to the launcher."""
        from lightning.pytorch.plugins.environments import LightningEnvironment

        alone: dict[str, Any] = {"devices": 1, "plugins": [LightningEnvironment()]}
        if self.size == 1:
            return alone
        return {
            **alone,
            "devices": self.devices,
            "num_nodes": self.nodes,
            "strategy": self._strategy(accelerator),
            "sync_batchnorm": accelerator != "cpu",
        }

    def _strategy(self, accelerator: str) -> Any:
        from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

        backend = "gloo" if accelerator == "cpu" else None
        if self.strategy == "ddp":
            return DDPStrategy(
                find_unused_parameters=True, process_group_backend=backend
            )  # which parts take part in a step is a method's own business
        return ModelParallelStrategy(self.size, 1, save_distributed_checkpoint=False, process_group_backend=backend)


def require_gpus(wanted: int, accelerator: str) -> None:
    """Refuses more devices than there are.

    Raises:
        UserError: names how many this process sees, and the ways out.
    """
    import torch

    found = torch.cuda.device_count()
    if found < wanted:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        limit = (
            ""
            if seen is None
            else f" (CUDA_VISIBLE_DEVICES={seen}, which hydra/launcher=local sets for its workers; hydra/launcher=serial leaves them all)"
        )
        raise UserError(
            f"trainer.devices={wanted} with trainer.accelerator={accelerator}, but this process sees {found} GPUs{limit}; "
            f"set trainer.devices={max(1, found)}, or trainer.accelerator=cpu for so many processes on the CPU"
        )


# Several machines.


def node_rank() -> int:
    """Which of several machines this is: from NODE_RANK, else from Slurm.

    Raises:
        UserError: nobody says, or one machine runs the program several times.
    """
    if os.environ.get("SLURM_LOCALID", "0") != "0":
        raise UserError(
            "Slurm started several tasks on this machine; posegen starts one process per device itself: use --ntasks-per-node=1"
        )
    rank = os.environ.get("NODE_RANK", os.environ.get("SLURM_NODEID"))
    if rank is None:
        raise UserError(
            "trainer.nodes is more than 1, and nothing says which of them this one is; use hydra/launcher=slurm, or run the same command on each machine with "
            "NODE_RANK=0, 1, ... and the MASTER_ADDR and MASTER_PORT of the first"
        )
    return int(rank)


def meeting_point(crew: Crew) -> tuple[str, int]:
    """(host, port) at which the processes meet.

    Raises:
        UserError: there are several machines, and nothing says where.
    """
    if crew.nodes == 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return "127.0.0.1", free.getsockname()[1]
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if listed := os.environ.get("SLURM_JOB_NODELIST"):
        from lightning.pytorch.plugins.environments import SLURMEnvironment

        address = address or SLURMEnvironment.resolve_root_node_address(listed)
        port = port or str(15000 + int(os.environ["SLURM_JOB_ID"]) % 10000)
    if not address or not port:
        raise UserError(
            "trainer.nodes is more than 1 outside of Slurm; set MASTER_ADDR and MASTER_PORT to a host and a free port of the first machine"
        )
    return address, int(port)


# The process that starts the others.


def train_together(cfg: DictConfig, folder: Path, crew: Crew) -> None:
    """Trains a cell with one process per device of this machine, and waits for them.

    Raises:
        UserError: what one of them says that the user can mend.
        RuntimeError: one of them failed otherwise; its last words are in the message, all of them in ``folder/ranks``.
    """
    if cfg.trainer.accelerator != "cpu":
        require_gpus(crew.devices, cfg.trainer.accelerator)
    host, port = meeting_point(crew)
    logs = folder / "ranks"
    logs.mkdir(parents=True, exist_ok=True)
    job = json.dumps({"config": OmegaConf.to_container(cfg, resolve=True), "folder": str(folder), "crew": asdict(crew)})
    with ending_on_signals(), ExitStack() as stack:
        members: dict[int, subprocess.Popen] = {}
        stack.callback(lambda: end(members.values()))
        for local in range(crew.devices):
            rank = crew.node * crew.devices + local
            (logs / f"{rank}.json").unlink(missing_ok=True)
            log = stack.enter_context((logs / f"{rank}.log").open("w"))
            members[rank] = subprocess.Popen(
                [sys.executable, "-m", "posegen.train.launch"],
                env={**os.environ, **surroundings(cfg, crew, local, host, port)},
                stdin=subprocess.PIPE,
                stdout=None if rank == 0 else log,
                stderr=log if rank else None,
                start_new_session=True,  # Ctrl-C and the scheduler's signals are for this process, which ends them
            )
            members[rank].stdin.write(job.encode())  # type: ignore[union-attr]
            members[rank].stdin.close()  # type: ignore[union-attr]
        watch(members, logs)
    if crew.node == 0:
        shutil.rmtree(logs, ignore_errors=True)


def surroundings(cfg: DictConfig, crew: Crew, local: int, host: str, port: int) -> dict[str, str]:
    """Environment variables of one process, in torch's names."""
    return {
        "MASTER_ADDR": host,
        "MASTER_PORT": str(port),
        "NODE_RANK": str(crew.node),
        "LOCAL_RANK": str(local),
        "WORLD_SIZE": str(crew.size),
        "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),  # no advice about DDP's settings
        "OMP_NUM_THREADS": str(cfg.trainer.threads),
        "PYTHONPATH": os.pathsep.join(
            entry or os.getcwd() for entry in sys.path
        ),  # methods of other packages are found there
    }


def watch(members: Mapping[int, subprocess.Popen], logs: Path) -> None:
    """Waits until all processes have ended well.

    Raises:
        UserError: see `train_together`.
        RuntimeError: see `train_together`.
    """
    while any(member.poll() is None for member in members.values()):
        if any(member.poll() for member in members.values()):
            time.sleep(0.5)  # the others follow, the first to fail knows why
            break
        time.sleep(0.1)
    failed = {rank: member.returncode for rank, member in members.items() if member.poll()}
    if not failed:
        return
    reports = sorted(
        (logs / f"{rank}.json" for rank in failed if (logs / f"{rank}.json").is_file()),
        key=lambda file: file.stat().st_mtime_ns,
    )
    if not reports:
        rank, code = next(iter(failed.items()))
        raise RuntimeError(
            f"the process of rank {rank} ended with code {code} and left no reason; the same command continues from the last checkpoint"
        )
    report = read_json(reports[0])
    if report["mendable"]:
        raise UserError(report["message"])
    raise RuntimeError(f"the process of rank {reports[0].stem} failed: {report['message']}\n{report['traceback']}")


def end(members: Any) -> None:
    """Ends what still runs; checkpoints are written atomically, so nothing is lost but the steps since the last."""
    for member in members:
        if member.poll() is None:
            member.kill()
        member.wait()


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """Within the context, SIGTERM ends this process as an exception, so that what it started is ended too."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) not in (
        signal.SIG_DFL,
        None,
    ):
        yield  # a launcher handles it
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# The processes that are started.


def main() -> int:
    """One process of a crew: reads its job from standard input, rebuilds the cell from it, and trains."""
    import traceback

    parent = os.getppid()
    job = json.load(sys.stdin)
    folder, crew = Path(job["folder"]), replace(Crew(**job["crew"]), local=int(os.environ["LOCAL_RANK"]))
    end_with(parent)
    try:
        work(OmegaConf.create(job["config"]), folder, crew)
    except Exception as error:
        report = {
            "mendable": isinstance(error, UserError),
            "message": str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}",
        }
        write_json(folder / "ranks" / f"{crew.rank}.json", {**report, "traceback": traceback.format_exc()})
        sys.stderr.flush()
        os._exit(1)  # at once: destructors of the process group would wait for the others
    return 0


def work(cfg: DictConfig, folder: Path, crew: Crew) -> None:
    import torch

    from posegen.runner.components import Parts
    from posegen.train.loop import fit_here, prepare_threads

    prepare_threads(cfg)
    fit_here(Parts(cfg), folder, crew)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def end_with(parent: int) -> None:
    """Ends this process when the one that started it has died, however that happened."""

    def watching() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watching, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
