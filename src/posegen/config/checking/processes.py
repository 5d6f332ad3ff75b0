"""What the processes that train a cell together need: equal shares of a batch, devices, machines that know each other,
and a start that the trainer asks for. Asks neither Slurm nor torch's launcher, but their variables."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from posegen.config import nodes
from posegen.config.checking.arguments import class_of
from posegen.config.launchers.jobs import is_remote
from posegen.config.problems import Problem
from posegen.config.resolvers import gpus
from posegen.errors import UserError

#: What torchrun tells each of its processes.
TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Started:
    """This process as one of several that torchrun or srun started with the same command."""

    by: str
    rank: int
    local: int  # rank on its machine
    size: int  # of all machines
    machines: int

    @classmethod
    def read(cls) -> Started | None:
        """From the variables of torchrun, or of a step of Slurm; None where this process was started alone."""
        env = os.environ
        if all(name in env for name in TORCHRUN) and (size := int(env["WORLD_SIZE"])) > 1:
            machines = size // int(env.get("LOCAL_WORLD_SIZE", size))
            return cls("torchrun", int(env["RANK"]), int(env["LOCAL_RANK"]), size, machines)
        if (size := int(env.get("SLURM_STEP_NUM_TASKS", 1))) > 1:
            machines = int(env.get("SLURM_STEP_NUM_NODES", 1))
            return cls("srun", int(env["SLURM_PROCID"]), int(env["SLURM_LOCALID"]), size, machines)
        return None

    def trains_one_cell(self, devices: int, machines: int) -> bool:
        """Whether there is a process for each device. Tasks of srun may also be cells of their own, or one per machine,
        which starts the others."""
        if self.by == "srun" and self.size == self.machines:
            return False
        return self.size == devices * machines > 1

    def problem(self, devices: int, machines: int, verb: str, sweep: bool) -> str | None:
        """Why a verb cannot run with this start; None where it can."""
        started = f"{self.by} started {self.size} processes"
        alone = "posegen starts one process per device itself"
        fix = f"leave {self.by} out: {alone}"
        if self.by == "srun":
            fix = f"ask for one task per machine, --ntasks-per-node=1: {alone}"
            if not (self.trains_one_cell(devices, machines) or machines > 1):
                return None  # cells of their own
            if self.size == self.machines == machines:
                return None
        if verb != "train" or sweep:
            return f"{started}, which can train one cell together (posegen train without -m) and nothing else; {fix}"
        if self.size == devices * machines:
            return None
        there = f"{started} on {self.machines} machine{'s' * (self.machines > 1)}"
        asks = f"trainer.devices={devices} and trainer.num_nodes={machines} ask for {devices * machines}"
        share = self.size // self.machines
        right = f"trainer=ddp trainer.devices={share}" + f" trainer.num_nodes={self.machines}" * (self.machines > 1)
        return f"{there}, and {asks}; set {right}, or {fix}"


def process_problems(cfg: DictConfig, verb: str) -> list[Problem]:
    """What keeps the processes of a cell from working together; where the launcher sends cells to other machines, these
    find out which devices they have and who they are."""
    trainer, optim, hydra = cfg.get("trainer") or {}, cfg.get("optim") or {}, HydraConfig.get()
    if "devices" not in trainer or "batch" not in optim:
        return []
    devices, machines = trainer["devices"], trainer.get("nodes", trainer.get("num_nodes", 1))
    if shared := shared_batch_problem(optim["batch"], optim.get("accumulate", 1), devices, machines):
        return [shared]
    started, devices = Started.read(), gpus() if devices in ("auto", -1) else devices
    if started and (text := started.problem(devices, machines, verb, hydra.mode == RunMode.MULTIRUN)):
        return [Problem("", text)]
    found, launcher, whole = undividable(cfg), str(nodes.target_path(hydra.launcher)), HydraConfig.instance().cfg
    if verb in ("train", "benchmark") and whole is not None and is_remote(whole):  # type: ignore[arg-type]
        if "${gpus:}" in str(nodes.raw_value(cfg, "trainer.devices")):
            text = "counts the GPUs of this machine, and the launcher computes on others; give the number of theirs"
            found.append(Problem("trainer.devices", text, devices))
    elif verb in ("train", "benchmark") and devices * machines > 1:
        accelerator = trainer.get("accelerator", "auto")
        if text := lacking_gpus(devices, accelerator, launcher.endswith("posegen_launcher.LocalLauncher")):
            found.append(Problem("", text))
        elif machines > 1 and not (started and started.trains_one_cell(devices, machines)):
            try:
                node_rank()
            except UserError as error:
                found.append(Problem("", str(error)))
    return found


def undividable(cfg: DictConfig) -> list[Problem]:
    """What trains and ``trainer=fsdp`` cannot divide among devices, as far as the classes tell."""
    strategy = cfg.trainer.get("strategy")
    if not nodes.has_target(strategy) or not str(nodes.target_path(strategy)).endswith(".ModelParallelStrategy"):
        return []
    if cfg.optim.get("optimizer") == "muon":
        text = "works on whole matrices, which trainer=fsdp divides; use trainer=ddp or optim.optimizer=adamw"
        return [Problem("optim.optimizer", text, "muon")]
    for group in ("task", "adapter"):
        if not getattr(class_of(cfg, group), "divisible", True):
            why = "trainer=fsdp divides the U-Net, but other parts train outside of it; use trainer=ddp"
            own = " (a method that trains the U-Net alone says so: divisible = True in its class)"
            return [Problem(group, why + own * (group == "adapter"), HydraConfig.get().runtime.choices.get(group))]
    return []


def lacking_gpus(wanted: int, accelerator: str, workers: bool = False) -> str | None:
    """Why ``trainer.devices`` are more than this process has, or each of the ``workers`` of hydra/launcher=local, with
    the ways out; None where they are not."""
    torch: Any = sys.modules.get("torch")  # it is loaded with Lightning's Trainer, whose arguments are checked
    if accelerator == "cpu" or torch is None:
        return None
    count, visible = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    found = min(count, 1) if workers else count
    if found >= wanted:
        return None
    whose = "each worker of hydra/launcher=local" if workers else "this process"
    why = (
        "" if visible is None else f"CUDA_VISIBLE_DEVICES={visible}, which hydra/launcher=local sets for its workers; "
    )
    limit = f" ({why}hydra/launcher=serial leaves them all)" if why or workers else ""
    sees = f"with trainer.accelerator={accelerator}, but {whose} sees {found} GPUs{limit}"
    fix = f"set trainer.devices={max(1, found)}, or trainer.accelerator=cpu for so many processes on the CPU"
    return f"trainer.devices={wanted} {sees}; {fix}"


def node_rank() -> int:
    """Which of several machines this is, by the variables of Lightning, torchrun, Slurm and Kubeflow; a UserError where
    none says it, or where one machine runs the program several times."""
    env = os.environ
    if env.get("SLURM_LOCALID", "0") != "0":
        started = "Slurm started several tasks on this machine; posegen starts one process per device itself"
        raise UserError(f"{started}: use --ntasks-per-node=1")
    kubeflow = ("RANK",) if "WORLD_SIZE" in env and "LOCAL_RANK" not in env else ()
    rank = next((env[name] for name in ("NODE_RANK", "GROUP_RANK", "SLURM_NODEID", *kubeflow) if name in env), None)
    if rank is None or not ("SLURM_JOB_ID" in env or {"MASTER_ADDR", "MASTER_PORT"} <= env.keys()):
        unsaid = "which of them this one is" if rank is None else "where the first of them is"
        each = "NODE_RANK=0, 1, ... and the MASTER_ADDR and MASTER_PORT of the first"
        fix = f"use hydra/launcher=slurm, or run the same command on each machine with {each}"
        raise UserError(f"trainer.num_nodes is more than 1, and nothing says {unsaid}; {fix}")
    return int(rank)


def shared_batch_problem(batch: Any, accumulate: Any, devices: Any, machines: Any = 1) -> Problem | None:
    """Why so many processes cannot take equal shares of every batch; None where they can."""
    devices = gpus() if devices in ("auto", -1) else devices
    for key, value in {"devices": devices, "num_nodes": machines}.items():
        if not isinstance(value, int) or value < 1:
            auto = ", or auto for all GPUs" if key == "devices" else ""
            return Problem(f"trainer.{key}", f"expected a number of {key}, 1 or more{auto}", value)
    if not all(isinstance(value, int) and value > 0 for value in (batch, accumulate)):
        return None  # reported as a value of another kind
    if batch % accumulate:
        return Problem("optim.batch", f"is not divisible by optim.accumulate={accumulate}", batch)
    processes = devices * machines
    if batch // accumulate % processes:
        among = f"trainer.devices={devices}" + (f" on trainer.num_nodes={machines}" if machines > 1 else "")
        parts = f"in optim.accumulate={accumulate} parts of {batch // accumulate} images cannot be shared equally by "
        fix = f"{processes} processes ({among}); it must be a multiple of {accumulate * processes}"
        return Problem("optim.batch", parts + fix, batch)
    return None
