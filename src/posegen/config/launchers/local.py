"""``hydra/launcher=local``: cells in worker processes of which each can die without the others.

The joblib launcher has one pool. When one of its workers is killed, for want of memory say, joblib ends all of them,
and the cells that wait never start. Here each worker is a pool by itself: its cell fails with the reason, another
worker takes its place, and the sweep goes on.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra_plugins.hydra_joblib_launcher.joblib_launcher import JoblibLauncher
from omegaconf import OmegaConf

from posegen.config.launchers.jobs import CellDied, record_failure, sweep_config
from posegen.errors import UserError
from posegen.io.atomic import process_lives

#: Environment variables ``<name>_THREADS``: how many threads libraries outside of torch compute with.
THREADS = ("OMP_NUM", "MKL_NUM", "OPENBLAS_NUM", "BLIS_NUM", "VECLIB_MAXIMUM", "NUMBA_NUM", "NUMEXPR_NUM")
PATIENCE = 10.0  # seconds in which workers end by themselves after Ctrl-C, which a terminal sends to them, too


class LocalLauncher(JoblibLauncher):
    """Runs ``n_jobs`` cells at once (-1: one per core), each in a worker process that the next one uses again."""

    def __init__(self, n_jobs: int = -1) -> None:
        super().__init__()
        self.count = n_jobs if n_jobs > 0 else os.cpu_count() or 1
        self.workers: list[Worker] = []

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from hydra_plugins.hydra_joblib_launcher._core import execute_job  # imports joblib

        setup_globals()
        assert self.config is not None
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        self.workers = self.workers or [Worker(number, self.count) for number in range(self.count)]
        free: SimpleQueue[Worker] = SimpleQueue()
        for worker in self.workers:
            free.put(worker)
        state = Singleton.get_state()

        def job(index: int, overrides: Sequence[str]) -> JobReturn:
            worker = free.get()
            try:
                return worker.run(
                    execute_job, index, overrides, self.hydra_context, self.config, self.task_function, state
                )
            except Exception as error:  # of the process; the job returns its own
                print(f"{' '.join(overrides)}: {error}", flush=True)
                return JobReturn(overrides=overrides, status=JobStatus.FAILED, _return_value=error)
            finally:
                free.put(worker)

        threads = ThreadPoolExecutor(self.count)
        jobs = [threads.submit(job, initial_job_idx + i, list(words)) for i, words in enumerate(job_overrides)]
        try:
            returns = [job.result() for job in jobs]
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            wait([job for job in jobs if job.running()], PATIENCE)
            for worker in self.workers:
                worker.end()
            raise
        threads.shutdown()
        for done in returns:
            if isinstance(died := done._return_value, CellDied):
                with sweep_config(self, list(done.overrides or ())) as cfg:
                    cell = OmegaConf.select(cfg, "paths.cell")
                record_failure(Path(cell) if cell else None, str(died))
        return returns


@dataclass
class Worker:
    """One place of a sweep, with the process that works there."""

    number: int
    of: int  # places
    pool: Any = None  # of one process

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """``function(*arguments)`` in the process; `CellDied` where it ends without a result."""
        from joblib.externals.loky import ProcessPoolExecutor
        from joblib.externals.loky.process_executor import BrokenProcessPool

        if self.pool is None:
            share = str(max(1, (os.cpu_count() or 1) // self.of))
            names = (f"{name}_THREADS" for name in THREADS)
            env = {name: share for name in names if name not in os.environ}
            self.pool = ProcessPoolExecutor(1, env=env, initializer=at_place, initargs=(self.number, os.getpid()))
        try:
            return self.pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            self.end()
            raise CellDied(why_died(str(error))) from error
        except SystemExit as stop:
            raise UserError(f"the process of this cell was stopped (exit code {stop.code})") from stop

    def end(self) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=False, kill_workers=True)
            self.pool = None


def why_died(text: str) -> str:
    """The reason in the words of loky's error, which holds ``{SIGKILL(-9)}``."""
    found = re.search(r"\{(\w+)\((-?\d+)\)", text)
    if found is None:
        return f"the process of this cell broke: {' '.join(text.split())}"
    name, number = found.groups()
    how = f"ended without a result (exit code {number})" if name == "EXIT" else f"was killed by {name} ({number[1:]})"
    memory = ", perhaps because the machine ran out of memory" if name == "SIGKILL" else ""
    return f"the process of this cell {how}{memory}; the same command tries it again"


def at_place(number: int, parent: int) -> None:
    """Runs first in a worker: names its place (see `posegen.config.resolvers.gpu`), and ends it with the process that
    started the sweep, so that a killed sweep leaves nothing."""
    multiprocessing.current_process().name = f"cell-{number + 1}"

    def watch() -> None:
        while os.getppid() == parent and process_lives(parent):  # Windows keeps the number of a dead parent
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
