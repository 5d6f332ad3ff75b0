"""``hydra/launcher=slurm``: the jobs of submitit's launcher, one per cell, in which no cell gets lost.

What is known about a job lies beside its cell, in ``.jobs.json``. So another command finds jobs that wait or run, and
tables find the reason of those that ended without a result. Nothing of it needs Slurm's accounting.
"""

from __future__ import annotations

import getpass
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra_plugins.hydra_submitit_launcher import submitit_launcher
from omegaconf import OmegaConf

from posegen.config.launchers.jobs import JOBS_FILE, record_failure, sweep_config
from posegen.errors import UserError
from posegen.io.atomic import read_json_or_empty, write_json

LATE = 20.0  # seconds in which the result of a job that has ended appears on a shared disk


class SlurmLauncher(submitit_launcher.SlurmLauncher):
    """Queues what is neither finished nor queued, and with ``wait`` collects all; other parameters are submitit's."""

    def __init__(self, wait: bool = True, **params: Any) -> None:
        super().__init__(**params)
        self.wait = wait

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        assert self.config is not None
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        self.require_gpu_count()
        cells = [Share.of(self, words) for words in job_overrides]
        alive, jobs, new = living() or {}, {}, []
        finished = [i for i, cell in enumerate(cells) if cell.finished]
        for i, cell in enumerate(cells):
            if i not in finished and (job := cell.known.get("job")) in alive:
                jobs[i] = Job(job, self.params["submitit_folder"])
                print(f"job {job} ({alive[job]}) has {cell.folder}, log: {jobs[i].log}", flush=True)
            elif i not in finished:
                new.append(i)
        for i, job in zip(new, self.submit([job_overrides[i] for i in new], initial_job_idx), strict=True):
            jobs[i] = Job(job, self.params["submitit_folder"])
            cells[i].note(job=job, log=str(jobs[i].log), reason="")
            print(
                f"job {job} submitted for {cells[i].folder or ' '.join(job_overrides[i])}, log: {jobs[i].log}",
                flush=True,
            )
        returns = {i: self.here(job_overrides[i], initial_job_idx + i) for i in finished}
        if jobs and not self.wait:
            print("the jobs run on; the same command collects their results", flush=True)
            raise SystemExit(0)
        try:
            returns |= {i: self.ended(jobs[i], cells[i], job_overrides[i]) for i in self.collect(jobs)}
        except KeyboardInterrupt:
            ids = " ".join(dict.fromkeys(job.id.partition("_")[0] for job in jobs.values()))
            print(f"\nthe jobs run on; the same command collects their results, scancel {ids} ends them", flush=True)
            raise
        return [returns[i] for i in range(len(cells))]

    def require_gpu_count(self) -> None:
        """Refuses to ask Slurm for as many GPUs as the submitting machine has."""
        trainer, launcher = self.config.get("trainer"), self.config.hydra.launcher  # type: ignore[union-attr]
        if trainer is None or not OmegaConf.is_interpolation(launcher, "gpus_per_node"):
            return
        if OmegaConf.is_interpolation(trainer, "devices") or trainer.get("devices") in ("auto", -1):
            counted = "trainer.devices is not given, and the machine that submits jobs would count its own GPUs"
            raise UserError(f"{counted}; give trainer.devices=N, or hydra.launcher.gpus_per_node=N (null: none)")

    def submit(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[str]:
        """Queues jobs; their numbers."""
        if not job_overrides:
            return []
        from submitit import SlurmExecutor
        from submitit.core.utils import FailedJobError

        given = {name: value for name, value in self.params.items() if value is not None}
        folder, timeouts = given.pop("submitit_folder"), given.pop("max_num_timeout")
        count, state = range(first, first + len(job_overrides)), Singleton.get_state()
        each = [
            (list(words), "hydra.sweep.dir", i, str(i), state) for i, words in zip(count, job_overrides, strict=True)
        ]
        try:
            executor = SlurmExecutor(folder, max_num_timeout=timeouts)
            executor.update_parameters(**executor._convert_parameters(given))
            return [job.job_id for job in executor.map_array(self, *zip(*each, strict=True))]
        except (FailedJobError, RuntimeError, ValueError) as error:  # of sbatch, without srun, of a parameter's name
            raise UserError(f"hydra/launcher=slurm: {' '.join(str(error).strip().splitlines()[-2:])}") from error

    def here(self, words: Sequence[str], index: int) -> JobReturn:
        """What a finished cell has to say needs no job."""
        launcher = BasicLauncher()
        launcher.setup(hydra_context=self.hydra_context, task_function=self.task_function, config=self.config)  # type: ignore[arg-type]
        return launcher.launch([words], index)[0]

    def collect(self, jobs: Mapping[int, Job]) -> Sequence[int]:
        """Waits until all jobs have ended."""
        left, since, asked = dict(jobs), time.monotonic(), 0.0
        gone: dict[int, float] = {}  # since when Slurm lists a job no more
        while left:
            now = time.monotonic()
            if now - asked > min(30.0, 1.0 + (now - since) / 20) and (alive := living()) is not None:
                asked = now
                gone = {i: gone.get(i, now) for i, job in left.items() if job.id not in alive}
            left = {i: job for i, job in left.items() if not job.result and now - gone.get(i, now) < LATE}
            time.sleep(0.5 if left else 0.0)
        return list(jobs)

    def ended(self, job: Job, cell: Share, words: Sequence[str]) -> JobReturn:
        if not (result := job.result):
            log = f"log: {job.log}" if job.log.exists() else "it never began"
            reason = f"job {job.id} ended without a result: {why_ended(job.id)} ({log})"
        else:
            from submitit.core.utils import pickle_load

            outcome, found = pickle_load(result)
            if outcome == "success":
                return found
            last = found.strip().splitlines()[-1]
            reason = f"job {job.id} failed: {last} (log: {job.log})"
        cell.note(reason=reason)
        record_failure(cell.folder, reason)
        print(f"{cell.folder or ' '.join(words)}: {reason}", flush=True)
        error = UserError(f"{reason}; the same command tries it again")
        return JobReturn(overrides=list(words), status=JobStatus.FAILED, _return_value=error)


class Share:
    """A cell, or the share of it that a job computes; ``folder`` is None where a verb has no cells."""

    def __init__(self, folder: Path | None, share: str) -> None:
        self.folder, self.share = folder, share

    @classmethod
    def of(cls, launcher: Any, words: Sequence[str]) -> Share:
        with sweep_config(launcher, words) as cfg:
            cell = OmegaConf.select(cfg, "paths.cell")
            return cls(Path(cell) if cell else None, f"{cfg.get('shard', 0)} of {cfg.get('shards', 1)}")

    @property
    def finished(self) -> bool:
        return self.folder is not None and read_json_or_empty(self.folder / "status.json").get("state") == "finished"

    @property
    def known(self) -> dict[str, str]:
        found = read_json_or_empty(self.folder / JOBS_FILE) if self.folder else {}
        return found.get(self.share) or {}

    def note(self, **facts: str) -> None:
        if self.folder is not None:
            found = read_json_or_empty(self.folder / JOBS_FILE)
            write_json(self.folder / JOBS_FILE, {**found, self.share: {**self.known, **facts}})


class Job:
    """A job of submitit, by its number and the pattern of its folder."""

    def __init__(self, number: str, folder: str) -> None:
        from submitit.core.utils import JobPaths

        self.id, self.paths = number, JobPaths(folder, job_id=number, task_id=0)

    @property
    def log(self) -> Path:
        return self.paths.stderr

    @property
    def result(self) -> Path | None:
        """The file of its result, None where there is none yet; a shared disk is asked for the folder's content."""
        path = self.paths.result_pickle
        return path if path.parent.is_dir() and path.name in {each.name for each in path.parent.iterdir()} else None


def slurm(*words: str) -> str | None:
    """What a command of Slurm prints, None where it fails."""
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def living() -> dict[str, str] | None:
    """The user's jobs that wait or run -> their state; None where Slurm does not answer."""
    said = slurm("squeue", "--noheader", "--array", "--user", getpass.getuser(), "--format=%i %T")
    return None if said is None else dict(line.split(maxsplit=1) for line in said.splitlines())


def why_ended(job: str) -> str:
    """How Slurm says that a job ended, from its memory of minutes, else from its accounting."""
    said = slurm("scontrol", "--oneliner", "show", "job", job)
    facts = dict(word.partition("=")[::2] for word in (said or "").split())
    if state := facts.get("JobState"):
        reason = facts.get("Reason", "None")
        return f"{state}, {reason}" if reason != "None" else f"{state}, exit code {facts.get('ExitCode')}"
    said = slurm("sacct", "--allocations", "--noheader", "--parsable2", "--format=State,ExitCode", "--jobs", job)
    return said.splitlines()[0].replace("|", ", exit code ") if said else "cancelled, or forgotten by Slurm"
