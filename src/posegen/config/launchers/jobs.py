"""The jobs of launchers: their cells, what is known about them, and how a cell learns that its process has died."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from posegen.errors import UserError
from posegen.io.atomic import read_json, read_json_or_empty, write_json

#: Launchers that compute on this machine: Hydra's, those of joblib and submitit, posegen's.
HERE = ("BasicLauncher", "JoblibLauncher", "LocalLauncher")
JOBS_FILE = ".jobs.json"  # of a cell: share -> its last job


class CellDied(UserError):
    """The process of a cell ended without a result."""


@contextmanager
def sweep_config(launcher: Any, overrides: Sequence[str]) -> Iterator[DictConfig]:
    """The configuration of a launcher's job, which ``HydraConfig`` has within the block."""
    before = HydraConfig.instance().cfg
    cfg = launcher.hydra_context.config_loader.load_sweep_config(launcher.config, list(overrides))
    HydraConfig.instance().set_config(cfg)
    try:
        yield cfg
    finally:
        HydraConfig.instance().cfg = before


def record_failure(cell: Path | None, reason: str) -> None:
    """Writes into ``status.json`` of a cell why its process ended, which it could not do itself."""
    status = (cell or Path()) / "status.json"
    if cell and status.is_file() and (known := read_json(status)).get("state") == "running":
        write_json(status, {**known, "state": "failed", "reason": reason})


def submitted(cell: Path) -> str:
    """What is known about the last jobs of a cell, for its table; empty where there were none."""
    jobs = [job for job in read_json_or_empty(cell / JOBS_FILE).values() if isinstance(job, dict)]
    return "; ".join(job.get("reason") or f"job {job.get('job')} was submitted, log: {job.get('log')}" for job in jobs)


def is_remote(config: DictConfig) -> bool:
    """Whether the launcher of a configuration computes on other machines."""
    return str(config.hydra.launcher.get("_target_")).rpartition(".")[2] not in HERE
