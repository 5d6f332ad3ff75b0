"""A real Slurm: the same bytes as in one process, whatever it does to the jobs."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from posegen.cli import main
from posegen.config.resolvers import auto_precision
from posegen.io.atomic import read_json, read_json_or_empty
from tests.slurm_cluster import Cluster, cluster, missing
from tests.train.test_launch import assert_close
from tests.train.test_launchers import results

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.xdist_group("slurm"),
]

SLURM = [
    "hydra/launcher=slurm",
    "hydra.launcher.gpus_per_node=null",
    "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.mem_gb=1",
]
LEAVE = "hydra.launcher.wait=false"
#: A training of 40 steps that takes 20 seconds of little work, and of itself writes no checkpoint.
LONG = ["budget.steps=40", "callbacks.checkpoint.every=1000", "+callbacks.slow={_target_:slow_steps.Slow}"]
CPU = ["trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.log_every_n_steps=1"]
SLOW_STEPS = """
import time
from lightning.pytorch import Callback
class Slow(Callback):
    def on_train_batch_start(self, *_):
        time.sleep(0.5)
"""


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes, by names that lead to this machine."""
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "slow_steps.py").write_text(SLOW_STEPS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "cluster/slurm.conf"))
        patch.setenv("PYTHONPATH", str(folder))
        patch.syspath_prepend(folder)
        with cluster(folder / "cluster", (socket.gethostname().split(".")[0], "localhost")) as found:
            yield found


@pytest.fixture
def slurm(two_nodes: Cluster) -> Iterator[Cluster]:
    """Without jobs of other tests."""
    yield two_nodes
    two_nodes("scancel", "--me")
    two_nodes.wait(lambda: not two_nodes.jobs())


def benchmark(world: list[str], output: Path, *more: str) -> list[str]:
    return ["benchmark", "benchmark=smoke", "adapter=controlnet,none", *world, f"paths.output={output}", *more]


def train(world: list[str], output: Path, *more: str) -> list[str]:
    kept = [word for word in world if word.partition("=")[0] not in {w.partition("=")[0] for w in more}]
    return ["train", "-m", *kept, f"paths.output={output}", *more]


def leave(words: list[str]) -> None:
    """Submits the jobs of a command, which does not wait for them."""
    with pytest.raises(SystemExit) as left:
        main([*words, LEAVE])
    assert left.value.code == 0


def cell_of(output: Path) -> Path:
    (status,) = output.rglob("seed*/status.json")
    return status.parent


def training(slurm: Cluster, output: Path, job: str) -> None:
    """Waits until a job has made some steps of its training."""
    slurm.wait(lambda: [file for file in output.rglob("progress.json") if read_json_or_empty(file).get("done")])
    assert slurm.jobs()[job] == "RUNNING"


def weights(output: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted(output.rglob("method/*.safetensors"))]


@pytest.fixture(scope="module")
def serial(world: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("serial")
    assert main(benchmark(world, output, "hydra/launcher=serial")) == 0
    return output


@pytest.fixture(scope="module")
def whole(world: list[str], two_nodes: Cluster, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The weights of an undisturbed long training."""
    output = tmp_path_factory.mktemp("whole")
    assert main(train(world, output, *LONG, "hydra/launcher=serial", "progress=none")) == 0
    return weights(output)


def test_a_benchmark_is_that_of_one_process(
    slurm: Cluster, world: list[str], serial: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever decides the precision differs between the machine that submits and the nodes; submitted, left, and
    collected by the same command, which queues nothing twice, and nothing that is finished."""
    here = auto_precision("cpu")
    kinds = {"32-true": "CUDA_VISIBLE_DEVICES=0", "bf16-mixed": "ONEDNN_MAX_CPU_ISA=AVX2"}
    other = [*SLURM, f"hydra.launcher.setup=['export {kinds[here]}']"]
    leave(benchmark(world, tmp_path, *other))
    said, jobs = capfd.readouterr().out, sorted(slurm.jobs())
    assert len(jobs) == 2 and all(f"job {job} submitted for" in said and f"{job}_0_log.err" in said for job in jobs)
    assert all(f"job {job} was submitted, log: " in said.partition("table: ")[2] for job in jobs)
    assert main(benchmark(world, tmp_path, *other)) == 0
    said = capfd.readouterr().out
    assert "submitted" not in said and all(f"job {job} (" in said for job in jobs)
    cells = [read_json(file) for file in (tmp_path / "benchmark/smoke").rglob("seed*/status.json")]
    assert {cell["identity"]["trainer"]["precision"] for cell in cells} == {*kinds} - {here}
    assert main(benchmark(world, tmp_path, *other)) == 0
    assert "submitted" not in capfd.readouterr().out and not slurm.jobs()
    # The table of a submitting machine of the nodes' kind, byte for byte.
    same = tmp_path / "same"
    assert main(benchmark(world, same, *SLURM)) == 0
    assert results(same) == results(serial)


def test_a_sharded_array_is_one_evaluation(slurm: Cluster, world: list[str], tmp_path: Path) -> None:
    words = ["evaluate", "-m", *world, "adapter=none"]
    assert main([*words, f"paths.output={tmp_path / 'one'}", "hydra/launcher=serial"]) == 0
    assert main([*words, f"paths.output={tmp_path / 'two'}", "shards=2", "shard=range(2)", *SLURM]) == 0
    one, two = (cell_of(tmp_path / name) for name in ("one", "two"))
    for name in ("records.csv", "features.npz"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_a_notice_writes_a_checkpoint_and_queues_again(
    slurm: Cluster, world: list[str], whole: list[bytes], tmp_path: Path
) -> None:
    """Then a plain cancellation does as much, and the same command continues."""
    words = train(world, tmp_path, *LONG, *SLURM, "progress=file", "compute.workers=1")
    leave(words)
    (job,) = slurm.jobs()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background is deaf to it
    threading.Timer(5.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    assert main(words) == 130  # Ctrl-C leaves, too
    signal.signal(signal.SIGINT, before)
    training(slurm, tmp_path, job)
    slurm("scancel", "--signal=USR2", job)
    slurm.wait(lambda: slurm.jobs()[job] == "PENDING")
    saved = torch.load(cell_of(tmp_path) / "last.ckpt", weights_only=True)["global_step"]
    assert 0 < saved < 40
    (cell_of(tmp_path) / "progress.json").unlink()
    slurm("scontrol", "update", f"jobid={job}", "StartTime=now")
    training(slurm, tmp_path, job)
    slurm("scancel", job)
    slurm.wait(lambda: not slurm.jobs())
    again = torch.load(cell_of(tmp_path) / "last.ckpt", weights_only=True)["global_step"]
    assert saved < again < 40
    assert main(words) == 0
    assert weights(tmp_path) == whole


def test_a_run_longer_than_its_time_limit_ends(
    slurm: Cluster, world: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Slurm gives its notice at some time in the 35 seconds before the minute is over."""
    steps = ["budget.steps=130", *LONG[1:]]
    limit = ["hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=5"]
    words = train(world, tmp_path, *steps, *SLURM, *limit, "progress=none")
    leave(words)
    (job,) = slurm.jobs()
    slurm.wait(lambda: list(tmp_path.rglob("last.ckpt")) and slurm.jobs()[job] == "PENDING")
    assert 0 < torch.load(cell_of(tmp_path) / "last.ckpt", weights_only=True)["global_step"] < 130
    done = threading.Event()

    def start_now() -> None:
        while not done.wait(1.0):
            if slurm.jobs().get(job) == "PENDING":
                slurm("scontrol", "update", f"jobid={job}", "StartTime=now")

    helper = threading.Thread(target=start_now)
    helper.start()
    try:
        assert main(words) == 0
    finally:
        done.set()
        helper.join()
    assert read_json(cell_of(tmp_path) / "status.json")["state"] == "finished"


@pytest.mark.parametrize("sharing", [["trainer.devices=2"], ["trainer.devices=1", "trainer.num_nodes=2"]])
def test_two_processes_follow_the_curve_of_one(
    sharing: list[str], slurm: Cluster, world: list[str], alone: Path, tmp_path: Path
) -> None:
    words = [*CPU, "adapter=controlnet", "trainer=ddp", *sharing]
    assert main(train(world, tmp_path, *words, *SLURM)) == 0
    assert_close(tmp_path, alone, "controlnet")


@pytest.fixture(scope="module")
def alone(world: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("alone")
    assert main(train(world, output, *CPU, "adapter=controlnet", "hydra/launcher=serial")) == 0
    return output


def test_two_processes_hear_the_notice(slurm: Cluster, world: list[str], tmp_path: Path) -> None:
    sharing = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"]
    words = train(world, tmp_path, *LONG, *sharing, *SLURM, "progress=file")
    leave(words)
    (job,) = slurm.jobs()
    training(slurm, tmp_path, job)
    slurm("scancel", "--signal=USR2", job)
    slurm.wait(lambda: slurm.jobs()[job] == "PENDING")
    assert 0 < torch.load(cell_of(tmp_path) / "last.ckpt", weights_only=True)["global_step"] < 40
    slurm("scontrol", "update", f"jobid={job}", "StartTime=now")
    assert main(words) == 0
    assert read_json(cell_of(tmp_path) / "status.json")["state"] == "finished"


def test_jobs_that_die_end_in_the_table(slurm: Cluster, world: list[str], tmp_path: Path) -> None:
    """One is cancelled before it starts, one killed while it trains, one finishes; nobody waits for ever."""
    kept = [
        word
        for word in world
        if word.partition("=")[0] not in ("budget.steps", "callbacks.checkpoint.every", "progress")
    ]
    words = ["benchmark", "benchmark=smoke", "adapter=controlnet", "seed=0,1,2", *kept, *LONG, *SLURM]
    words += [f"paths.output={tmp_path}", "hydra.launcher.array_parallelism=2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "posegen.cli", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        slurm.wait(lambda: len(slurm.jobs()) == 3)
        killed, _, waiting = sorted(slurm.jobs())
        slurm("scancel", waiting)
        slurm.wait(lambda: list(tmp_path.rglob("seed0/progress.json")))
        training(slurm, tmp_path, killed)
        (cell,) = tmp_path.rglob("seed0/progress.json")
        os.kill(read_json(cell.parent / "status.json")["pid"], signal.SIGKILL)
        said, _ = process.communicate(timeout=300)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 1 and "Traceback" not in said, said
    table: dict[str, Any] = {file.parent.name: read_json(file) for file in tmp_path.rglob("seed*/status.json")}
    assert (
        table["seed0"]["state"] == "failed"
        and f"job {killed} ended without a result: FAILED" in table["seed0"]["reason"]
    )
    assert table["seed1"]["state"] == "finished"
    died = (
        rf"job {waiting} ended without a result: (cancelled, or forgotten by Slurm|CANCELLED, \w+) \(it never began\)"
    )
    assert re.search(died, said.rpartition("missing: ")[2]), said  # Slurm forgets a job some time after its end
