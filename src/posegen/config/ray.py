"""``hydra/launcher=ray``: a Ray task per cell, with the GPUs and CPUs that the cell asks for.

Ray's plugin for Hydra raises the first task that Ray gives up, and the others are lost. Here its cell fails with the
reason, and the sweep goes on.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra_plugins.hydra_ray_launcher import ray_launcher
from omegaconf import DictConfig, OmegaConf, open_dict

from posegen.config.launcher import CellDied, record_failure, sweep_config
from posegen.errors import UserError


class RayLauncher(ray_launcher.RayLauncher):
    """The plugin's launcher, with resources for each cell and an end for each cell."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        import ray  # takes a second

        setup_globals()
        assert self.config is not None
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        join(OmegaConf.to_container(self.ray_cfg.init, resolve=True))
        variables = {name: value for name, value in os.environ.items() if name.startswith("POSEGEN_")}
        cells: list[Path | None] = []
        jobs: list[tuple[dict[str, Any], DictConfig]] = []
        for number, words in enumerate(job_overrides, initial_job_idx):
            with sweep_config(self, words) as config:
                cells.append(Path(cell) if (cell := OmegaConf.select(config, "paths.cell")) else None)
                jobs.append((resources(config), config))
            with open_dict(config):
                config.hydra.job.id, config.hydra.job.num = f"ray_{number}", number
        tell_waiting(
            [needed for needed, _ in jobs], alone=not (self.ray_cfg.init.address or "RAY_ADDRESS" in os.environ)
        )
        tasks, state = [], Singleton.get_state()
        try:
            for needed, config in jobs:
                arguments = (self.hydra_context, config, self.task_function, state)
                tasks.append(ray.remote(**needed)(run_there).remote(os.getcwd(), variables, *arguments))
            return [result(*each) for each in zip(tasks, job_overrides, cells, strict=True)]
        except BaseException:  # Ctrl-C
            for task in tasks:
                ray.cancel(task, force=True)
            raise


def join(init: Any) -> None:
    """Joins the cluster at ``init["address"]``, or starts a Ray on this machine, which ends with this process."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # of a Ray that starts here
    try:
        if not ray.is_initialized():
            ray.init(**init)
    except (ConnectionError, ValueError, TypeError) as error:
        given = f"hydra.launcher.ray.init.address={init.get('address')}"
        fix = "start a cluster with ray start --head, or leave the address out for a Ray on this machine"
        raise UserError(f"{given}: {' '.join(str(error).split())}; {fix}") from error


def resources(cfg: DictConfig) -> dict[str, Any]:
    """The arguments of ``ray.remote`` for a cell: those that are null follow from its settings and the cluster."""

    def setting(key: str, default: Any) -> Any:
        return OmegaConf.select(cfg, key, default=default)

    found: Any = OmegaConf.to_container(cfg.hydra.launcher.ray.remote, resolve=True)
    devices, machines = setting("trainer.devices", 1), setting("trainer.num_nodes", 1)
    if not isinstance(devices, int) or devices < 1 or machines != 1:
        wrong = f"trainer.devices={devices} and trainer.num_nodes={machines}"
        raise UserError(f"{wrong}: hydra/launcher=ray needs a number of devices, on one machine for each cell")
    there, accelerator = most(), setting("trainer.accelerator", "auto")
    if found.get("num_gpus") is None:
        without = accelerator == "cpu" or (accelerator == "auto" and not there["num_gpus"])
        found["num_gpus"] = 0 if without else devices
    if found.get("num_cpus") is None:
        wanted = devices * setting("budget.threads", 1) + setting("compute.workers", 0)
        found["num_cpus"] = min(wanted, there["num_cpus"] or wanted)
    return found


def most() -> dict[str, int]:
    """The most that a machine of the cluster has of each resource."""
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    names = {"num_cpus": "CPU", "num_gpus": "GPU"}
    return {key: int(max((each.get(name, 0) for each in machines), default=0)) for key, name in names.items()}


def tell_waiting(needed: Sequence[Mapping[str, Any]], alone: bool) -> None:
    """Says which cells wait for a machine that the cluster does not have yet; a UserError where none can join."""
    for name, has in most().items():
        if (wanted := max((each[name] for each in needed), default=0)) > has:
            lack = f"hydra.launcher.ray.remote.{name}={wanted} for a cell, and no machine of the Ray cluster has more than {has}"
            if alone:
                raise UserError(
                    f"{lack}; give a smaller number, or the address of a larger cluster as hydra.launcher.ray.init.address"
                )
            print(f"{lack}: it waits until one joins", flush=True)


def run_there(folder: str, variables: Mapping[str, str], *job: Any) -> JobReturn:
    """A cell in a process of Ray, which has neither the working folder nor the environment of the command."""
    from hydra_plugins.hydra_ray_launcher._launcher_util import _run_job  # imports ray

    os.chdir(folder)
    os.environ.update(variables)
    return _run_job(*job)


def result(task: Any, words: Sequence[str], cell: Path | None) -> JobReturn:
    """What a task returned; a failed job, and the reason in the cell, where Ray gave it up."""
    import ray

    try:
        return ray.get(task)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        why = f"{type(cause).__name__}: {' '.join(str(cause).split())}"
        died = CellDied(f"Ray gave this cell up ({why}); the same command tries it again")
        record_failure(cell, str(died))
        print(f"{' '.join(words)}: {died}", flush=True)
        return JobReturn(overrides=words, status=JobStatus.FAILED, _return_value=died)
