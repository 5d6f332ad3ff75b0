"""``hydra/launcher=ray``: a Ray task per cell, with the GPUs and CPUs that the cell asks for.

Ray's own plugin for Hydra raises the first task that Ray gives up, and the others are lost. Here its cell fails with
the reason, and the sweep goes on.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra_plugins.hydra_joblib_launcher.joblib_launcher import JoblibLauncher
from omegaconf import DictConfig, OmegaConf

from posegen.config.launchers.jobs import CellDied, record_failure, sweep_config
from posegen.errors import UserError


class RayLauncher(JoblibLauncher):
    """Runs each cell in a process of Ray, on a machine that has room for it; ``ray`` has the arguments of ``ray.init``
    and, for each cell, of ``ray.remote``."""

    def __init__(self, ray: DictConfig) -> None:
        super().__init__()
        self.ray = ray

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        setup_globals()
        assert self.config is not None
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        ray = joined(OmegaConf.to_container(self.ray.init, resolve=True))
        cells: list[Path | None] = []
        needed: list[dict[str, Any]] = []
        for words in job_overrides:
            with sweep_config(self, words) as config:
                cells.append(Path(cell) if (cell := OmegaConf.select(config, "paths.cell")) else None)
                needed.append(resources(config, most(ray)))
        tell_waiting(needed, most(ray), alone=not (self.ray.init.address or "RAY_ADDRESS" in os.environ))
        variables = {name: value for name, value in os.environ.items() if name.startswith("POSEGEN_")}
        given = (self.hydra_context, self.config, self.task_function, Singleton.get_state())
        tasks = [
            ray.remote(**each)(run_there).remote(os.getcwd(), variables, number, list(words), *given)
            for number, (words, each) in enumerate(zip(job_overrides, needed, strict=True), initial_job_idx)
        ]
        try:
            return [result(ray, *each) for each in zip(tasks, job_overrides, cells, strict=True)]
        except BaseException:  # Ctrl-C
            for task in tasks:
                ray.cancel(task, force=True)
            raise


def joined(init: Any) -> Any:
    """The package, once it has joined the cluster at ``init["address"]``, or started a Ray on this machine, which ends
    with this process."""
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UserError("hydra/launcher=ray needs the extra: pip install 'posegen[ray]'") from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # of a Ray that starts here
    try:
        if not ray.is_initialized():
            ray.init(**init)
    except (ConnectionError, ValueError, TypeError) as error:
        given = f"hydra.launcher.ray.init.address={init.get('address')}"
        fix = "start a cluster with ray start --head, or leave the address out for a Ray on this machine"
        raise UserError(f"{given}: {' '.join(str(error).split())}; {fix}") from error
    return ray


def resources(cfg: DictConfig, has: Mapping[str, int]) -> dict[str, Any]:
    """The arguments of ``ray.remote`` for a cell. Those that are null follow from its settings and from the most that a
    machine ``has``."""

    def setting(key: str, default: Any) -> Any:
        return OmegaConf.select(cfg, key, default=default)

    found: Any = OmegaConf.to_container(cfg.hydra.launcher.ray.remote, resolve=True)
    devices, machines = setting("trainer.devices", 1), setting("trainer.num_nodes", 1)
    if not isinstance(devices, int) or devices < 1 or machines != 1:
        wrong = f"trainer.devices={devices} and trainer.num_nodes={machines}"
        raise UserError(f"{wrong}: hydra/launcher=ray needs a number of devices, on one machine for each cell")
    accelerator = setting("trainer.accelerator", "auto")
    if found.get("num_gpus") is None:
        without = accelerator == "cpu" or (accelerator == "auto" and not has["num_gpus"])
        found["num_gpus"] = 0 if without else devices
    if found.get("num_cpus") is None:
        wanted = devices * setting("budget.threads", 1) + setting("compute.workers", 0)
        found["num_cpus"] = min(wanted, has["num_cpus"] or wanted)
    return found


def most(ray: Any) -> dict[str, int]:
    """The most that a machine of the cluster has of each resource."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    names = {"num_cpus": "CPU", "num_gpus": "GPU"}
    return {key: int(max((each.get(name, 0) for each in machines), default=0)) for key, name in names.items()}


def tell_waiting(needed: Sequence[Mapping[str, Any]], has: Mapping[str, int], alone: bool) -> None:
    """Says which cells wait for a machine that the cluster does not have yet; a UserError where none can join."""
    for name, there in has.items():
        if (wanted := max((each[name] for each in needed), default=0)) > there:
            lack = f"a cell asks for {name}={wanted}, and no machine of the Ray cluster has more than {there}"
            if alone:
                fix = f"give a smaller hydra.launcher.ray.remote.{name}, or a cluster's hydra.launcher.ray.init.address"
                raise UserError(f"{lack}; {fix}")
            print(f"{lack}: it waits until one joins", flush=True)


def run_there(folder: str, variables: Mapping[str, str], *job: Any) -> JobReturn:
    """A cell in a process of Ray, which has neither the working folder nor the environment of the command."""
    from hydra_plugins.hydra_joblib_launcher._core import execute_job  # imports joblib

    os.chdir(folder)
    os.environ.update(variables)
    return execute_job(*job)


def result(ray: Any, task: Any, words: Sequence[str], cell: Path | None) -> JobReturn:
    """What a task returned; a failed job, and the reason in the cell, where Ray gave it up."""
    try:
        return ray.get(task)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        why = f"{type(cause).__name__}: {' '.join(str(cause).split())}"
        died = CellDied(f"Ray gave this cell up ({why}); the same command tries it again")
        record_failure(cell, str(died))
        print(f"{' '.join(words)}: {died}", flush=True)
        return JobReturn(overrides=words, status=JobStatus.FAILED, _return_value=died)
