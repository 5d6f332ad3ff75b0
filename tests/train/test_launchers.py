"""Whoever runs the cells, and whatever the scheduler does to them: the same bytes, but for the costs."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from posegen.cli import main
from posegen.config import resolvers
from posegen.config.launchers.jobs import JOBS_FILE
from posegen.io.atomic import read_json, write_json
from posegen.report.rows import state_of

STEPS = ["budget.steps=12", "callbacks.checkpoint.every=1"]


def options(world: list[str], output: Path, *more: str) -> list[str]:
    tiny = [o for o in world if not o.startswith(("budget.steps", "callbacks.checkpoint.every", "progress"))]
    return ["benchmark", "benchmark=smoke", "adapter=controlnet,none", f"paths.output={output}", *tiny, *STEPS, *more]


def results(output: Path) -> list[object]:
    """The table without its costs, and the records and features of each cell."""
    study = output / "benchmark/smoke"
    with (study / "table.csv").open(newline="") as file:
        rows = [{k: v for k, v in row.items() if not k.startswith("cost_")} for row in csv.DictReader(file)]
    cells = [study / cell["folder"] for cell in read_json(study / "cells.json")["cells"]]
    return [rows, *((cell / name).read_bytes() for cell in cells for name in ("records.csv", "features.npz"))]


@pytest.fixture(scope="module")
def serial(world: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cells one after the other, undisturbed."""
    output = tmp_path_factory.mktemp("serial")
    assert main(options(world, output, "hydra/launcher=serial")) == 0
    return output


@contextmanager
def running(words: list[str]) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(
        [sys.executable, "-m", "posegen.cli", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def training(output: Path, process: subprocess.Popen) -> tuple[int, Path]:
    """Waits until a cell has a checkpoint; the process that works on it, and its folder."""
    deadline = time.monotonic() + 180
    while process.poll() is None and time.monotonic() < deadline:
        for checkpoint in output.rglob("last.ckpt"):
            return read_json(checkpoint.parent / "status.json")["pid"], checkpoint.parent
        time.sleep(0.01)
    pytest.fail(f"nothing was trained: {process.communicate(timeout=10)[0]}")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["local", "submitit_local"])
def test_every_launcher_makes_the_same_bytes(launcher: str, world: list[str], serial: Path, tmp_path: Path) -> None:
    assert main(options(world, tmp_path, f"hydra/launcher={launcher}")) == 0
    assert results(tmp_path) == results(serial)


@pytest.mark.slow
def test_a_killed_worker_is_healed_by_the_same_command(world: list[str], serial: Path, tmp_path: Path) -> None:
    command = options(world, tmp_path, "hydra/launcher=local", "hydra.launcher.n_jobs=2")
    with running(command) as process:
        worker, cell = training(tmp_path, process)
        assert worker != process.pid
        os.kill(worker, signal.SIGKILL)
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 1 and "tries again what failed" in said
    status = read_json(cell / "status.json")
    assert status["state"] == "failed" and "was killed by SIGKILL" in status["reason"]
    assert not (cell / "records.csv").exists()
    assert main(command) == 0
    assert results(tmp_path) == results(serial)


@pytest.mark.slow
def test_a_preempted_job_queues_again_and_continues(world: list[str], serial: Path, tmp_path: Path) -> None:
    """SIGUSR2 is what submitit has Slurm send before it takes a machine away; its local executor requeues as Slurm
    does."""
    with running(options(world, tmp_path, "hydra/launcher=submitit_local")) as process:
        job, _ = training(tmp_path, process)
        os.kill(job, signal.SIGUSR2)
        said, _ = process.communicate(timeout=180)
        assert process.returncode == 0, said
    assert any("Requeued job" in log.read_text() for log in tmp_path.rglob("*_log.*"))
    assert results(tmp_path) == results(serial)


@pytest.mark.slow
def test_a_terminated_training_keeps_its_last_step(world: list[str], tmp_path: Path) -> None:
    tiny = [o for o in world if not o.startswith("trainer.")]
    words = ["train", *tiny, "budget.steps=200", "callbacks.checkpoint.every=190", "progress=file"]
    with running([*words, f"paths.output={tmp_path / 'ended'}"]) as process:
        deadline = time.monotonic() + 120
        while not list(tmp_path.rglob("progress.json")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, said
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    assert 0 < torch.load(checkpoint, weights_only=True)["global_step"] < 190
    assert read_json(checkpoint.parent / "status.json")["state"] == "running"
    assert all(main([*words, f"paths.output={tmp_path / name}"]) == 0 for name in ("ended", "whole"))
    ended, whole = (
        [file.read_bytes() for file in sorted((tmp_path / name).rglob("*.safetensors"))] for name in ("ended", "whole")
    )
    assert ended == whole


def test_one_cell_per_gpu_or_as_many_as_the_cores_have_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert [resolvers.at_once(threads) for threads in (1, 16)] == [2, 2]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert [resolvers.at_once(threads) for threads in (1, 3, 16)] == [8, 2, 1]


def test_a_cell_keeps_the_precision_that_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert resolvers.auto_precision("auto", str(tmp_path)) == "bf16-mixed"
    begun = {"identity": {"trainer": {"precision": "32-true"}}}
    for state, precision in {"running": "32-true", "finished": "32-true", "failed": "bf16-mixed"}.items():
        write_json(tmp_path / "status.json", {**begun, "state": state})
        assert resolvers.auto_precision("auto", str(tmp_path)) == precision
    (tmp_path / "last.ckpt").touch()  # it failed after something was computed
    assert resolvers.auto_precision("auto", str(tmp_path)) == "32-true"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert resolvers.auto_precision("auto") == "32-true"


def test_a_table_knows_cells_of_other_machines_and_the_jobs_of_others(tmp_path: Path) -> None:
    assert state_of(tmp_path, "here") == {"state": "missing", "reason": "never started"}
    jobs = {"0 of 2": {"job": "7_0", "log": "7.err"}, "1 of 2": {"job": "7_1", "reason": "job 7_1 was cancelled"}}
    write_json(tmp_path / JOBS_FILE, jobs)
    assert state_of(tmp_path, "here")["reason"] == "job 7_0 was submitted, log: 7.err; job 7_1 was cancelled"
    write_json(tmp_path / "status.json", {"hash": "there", "identity": {}, "state": "failed", "reason": "why"})
    assert state_of(tmp_path, "here")["state"] == "other settings"
    assert state_of(tmp_path, "here", "there")["reason"] == "why"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trainer=ddp"], "the machine that submits jobs would count its own GPUs; give trainer.devices=N"),
        (["hydra.launcher.gpus_per_node=null"], 'Could not detect "srun", are you indeed on a slurm cluster?'),
    ],
)
def test_slurm_is_not_asked_for_what_it_cannot_know(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    command = ["train", "-m", "seed=0,1", f"paths.output={tmp_path}", "hydra/launcher=slurm", *words]
    assert main(command) == 1
    assert message in capsys.readouterr().err
