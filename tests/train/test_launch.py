"""Several processes train one cell: they see the same batches as one, end near the same weights, and can be continued
by any number of them."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from posegen.cli import main
from posegen.errors import UserError
from posegen.io.atomic import read_json
from posegen.runner.batches import Needs
from posegen.runner.cell import identity
from posegen.runner.components import Components
from posegen.train.launch import Processes, meeting_point, node_rank, require_gpus
from posegen.train.training_batches import EpochBatches, Share, training_loader
from tests.tiny import configured

#: Two processes add the same numbers in another order; fp32, so that this is all that differs.
CPU = ["trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.log_every_n_steps=1"]
CLOSE = {"rtol": 1e-4}


StartedBy: TypeAlias = Callable[[dict[str, object]], None]


@pytest.fixture
def started_by(monkeypatch: pytest.MonkeyPatch) -> StartedBy:
    """Sets the variables of a launcher, and no others."""

    def start(variables: dict[str, object]) -> None:
        for name in {*TORCHRUN, *SRUN, "NODE_RANK", "GROUP_RANK"}:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))

    return start


def test_the_shares_of_a_batch_are_the_batch(world: list[str]) -> None:
    with configured("train", *world) as cfg:
        data = Components(cfg).data("train")
        data.prepare()

        def steps(rank: int, count: int) -> list[tuple[list[str], torch.Tensor]]:
            batches = EpochBatches(len(data), 8, seed=3, start=(0, 1), share=Share(rank, count))
            loader = training_loader(data, Needs(), batches)
            return [(list(batch.ids), batch.randn("noise", (2,))) for batch in loader]

        whole = steps(0, 1)
        assert len(whole) == 2  # of three batches the first was seen
        for count in (2, 4):
            parts = [steps(rank, count) for rank in range(count)]
            for step, (ids, noise) in enumerate(whole):
                assert [i for part in parts for i in part[step][0]] == ids
                assert torch.equal(torch.cat([part[step][1] for part in parts]), noise)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["trainer.devices=3"],
            r"optim.batch=4: .* shared equally by 3 processes \(trainer.devices=3\); it must be a multiple of 3",
        ),
        (["trainer.devices=2", "optim.accumulate=4"], "must be a multiple of 8"),
        (["trainer.devices=2", "trainer.num_nodes=3"], "trainer.devices=2 on trainer.num_nodes=3"),
        (["trainer.devices=0"], "trainer.devices=0: expected an integer from 1"),
        (["trainer.num_nodes=0"], "trainer.num_nodes=0: expected an integer from 1"),
    ],
)
def test_what_cannot_be_shared_is_refused(
    overrides: list[str], message: str, world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *world, f"paths.output={tmp_path}", *overrides]) == 1
    assert re.search(message, capsys.readouterr().err)


def test_devices_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with pytest.raises(
        UserError,
        match=r"trainer.devices=64 .* sees \d+ GPUs \(CUDA_VISIBLE_DEVICES=1, .*hydra/launcher=serial.* set trainer.devices=1",
    ):
        require_gpus(64, "gpu")


def test_machines_learn_who_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        *["NODE_RANK", "GROUP_RANK", "RANK", "MASTER_ADDR", "MASTER_PORT"],
        *filter(re.compile("SLURM_").match, os.environ),
    ):
        monkeypatch.delenv(name, raising=False)
    for ask in (node_rank, lambda: meeting_point(2)):
        with pytest.raises(UserError, match="MASTER_ADDR"):
            ask()
    monkeypatch.setenv("SLURM_NODEID", "1")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "gpu[07-09,12]")
    monkeypatch.setenv("SLURM_JOB_ID", "123456")
    assert node_rank() == 1
    assert meeting_point(2) == ("gpu07", 15000 + 3456)
    monkeypatch.setenv("SLURM_STEP_NODELIST", "gpu12")  # a step on some machines of the job
    monkeypatch.setenv("SLURM_STEP_ID", "1")
    assert meeting_point(2) == ("gpu12", 15000 + 3556)
    monkeypatch.setenv("SLURM_LOCALID", "1")
    with pytest.raises(UserError, match="ntasks-per-node=1"):
        node_rank()


TORCHRUN = {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "h", "MASTER_PORT": 1}
SRUN = {
    "SLURM_JOB_ID": 7,
    "SLURM_STEP_NUM_TASKS": 2,
    "SLURM_STEP_NUM_NODES": 1,
    "SLURM_PROCID": 1,
    "SLURM_LOCALID": 1,
    "SLURM_NODEID": 0,
}
MACHINES = SRUN | {"SLURM_STEP_NUM_NODES": 2, "SLURM_LOCALID": 0, "SLURM_NODEID": 1}


@pytest.mark.parametrize(
    ("variables", "devices", "nodes", "rank"),
    [
        (TORCHRUN, 2, 1, 1),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": 1, "LOCAL_RANK": 0}, 1, 2, 1),
        (SRUN, 2, 1, 1),
        (SRUN, 1, 1, None),  # a cell per task
        (SRUN, 4, 1, None),
        (MACHINES, 1, 2, None),  # a task per machine, which starts a process per device
        (MACHINES, 4, 2, None),
        (SRUN | {"SLURM_STEP_NUM_TASKS": 4, "SLURM_STEP_NUM_NODES": 2, "SLURM_PROCID": 3}, 2, 2, 3),
        ({"RANK": 3, "LOCAL_RANK": 3, "SLURM_PROCID": 3}, 2, 1, None),
    ],
)
def test_processes_that_others_started_know_their_rank(
    variables: dict[str, object], devices: int, nodes: int, rank: int | None, started_by: StartedBy
) -> None:
    started_by(variables)
    trainer = {"devices": devices, "num_nodes": nodes}
    group = Processes.of(OmegaConf.create({"trainer": trainer}))
    assert (group.started.rank if group.started else None) == rank
    assert group.first == (rank is None and (nodes == 1 or "SLURM_NODEID" not in variables))


@pytest.mark.parametrize(
    ("variables", "command", "message"),
    [
        (TORCHRUN, "train", "torchrun started 2 processes on 1 machine, and trainer.devices=1 and trainer.num_nodes=1 ask for 1; set trainer=ddp trainer.devices=2, or leave torchrun out"),
        (TORCHRUN, "train trainer.devices=4", "ask for 4; set trainer=ddp trainer.devices=2"),
        (TORCHRUN, "train -m seed=0,1 trainer.devices=2", "posegen train without -m"),
        (TORCHRUN, "benchmark trainer.devices=2 hydra/launcher=serial", "leave torchrun out"),
        (SRUN, "train trainer.devices=2 trainer.num_nodes=2", "srun started 2 processes on 1 machine, .* ask for 4; set trainer=ddp trainer.devices=2, or ask for one task per machine, --ntasks-per-node=1"),
        (MACHINES, "train trainer.num_nodes=4", "set trainer=ddp trainer.devices=1 trainer.num_nodes=2"),
        (SRUN, "train -m seed=0,1 trainer.devices=2", "posegen train without -m"),
    ],
)  # fmt: skip
def test_a_start_that_the_trainer_does_not_ask_for_is_refused_at_once(
    variables: dict[str, object], command: str, message: str, started_by: StartedBy, world: list[str], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    started_by(variables)
    verb, *words = command.split()
    assert main([verb, *words, *world, *CPU, f"paths.output={tmp_path}"]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.rglob("status.json"))


def test_tasks_of_srun_with_a_cell_each_run_alone(world: list[str], tmp_path: Path, started_by: StartedBy) -> None:
    started_by(SRUN)
    assert main(["train", *world, *CPU, f"paths.output={tmp_path}", "budget.steps=1"]) == 0
    assert list(tmp_path.rglob("metrics.csv"))


def test_a_cell_is_the_same_whoever_computes_it(world: list[str]) -> None:
    cells = {}
    for name, overrides in {
        "alone": [],
        "default": ["trainer=default"],
        "many": ["trainer=fsdp", "trainer.devices=4", "trainer.num_nodes=2"],
        "smoke": ["trainer=smoke"],
    }.items():
        with configured("train", *world, *overrides) as cfg:
            cells[name] = (identity(cfg), cfg.paths.cell)
    assert cells["alone"] == cells["default"] == cells["many"]
    assert cells["smoke"][1] != cells["alone"][1]


# Real processes: each takes several seconds to start.


def cell(output: Path, method: str) -> Path:
    (status,) = (output / "train" / method).rglob("status.json")
    return status.parent


def curve(output: Path, method: str) -> pd.Series:
    return pd.read_csv(cell(output, method) / "curves" / "metrics.csv").set_index("step")["train/loss"].dropna()


def weights(output: Path, method: str) -> torch.Tensor:
    files = sorted((cell(output, method) / "method").rglob("*.safetensors"))
    return torch.cat([value.flatten() for file in files for _, value in sorted(load_file(file).items())])


def command(world: list[str], output: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "posegen.cli", "train", *world, *CPU, f"paths.output={output}", *overrides]


@pytest.fixture(scope="module")
def alone(world: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cells that one process trained."""
    output = tmp_path_factory.mktemp("alone")
    assert (
        main(
            ["train", "-m", *world, *CPU, f"paths.output={output}", "adapter=controlnet,humansd", "optim.accumulate=2"]
        )
        == 0
    )
    return output


def assert_close(output: Path, alone: Path, method: str) -> None:
    """The same curve, and weights that are apart by little of what training moved them (AdamW's first steps are of full
    length for gradients of rounding)."""
    np.testing.assert_allclose(curve(output, method), curve(alone, method).loc[curve(output, method).index], **CLOSE)
    assert (weights(output, method) - weights(alone, method)).abs().mean() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["serial", "local", "submitit_local"])
def test_a_sweep_of_two_processes_each_follows_the_curve_of_one(
    launcher: str, world: list[str], alone: Path, tmp_path: Path
) -> None:
    launching = [f"hydra/launcher={launcher}", *(["hydra.launcher.n_jobs=2"] if launcher == "local" else [])]
    sharing = [
        "adapter=controlnet,humansd",
        "optim.accumulate=2",
        "trainer=ddp",
        "trainer.devices=2",
        "validation.every=3",
        "validation.images=4",
        *(["compute.workers=1"] if launcher == "serial" else []),  # whose processes load encodings, too
    ]
    assert main(["train", "-m", *world, *CPU, f"paths.output={tmp_path}", *sharing, *launching]) == 0
    for method in ("controlnet", "humansd"):
        assert_close(tmp_path, alone, method)
        assert (
            read_json(cell(tmp_path, method) / "status.json")["hash"]
            == read_json(cell(alone, method) / "status.json")["hash"]
        )
        assert {p.name for p in cell(tmp_path, method).glob("live/*")} == {"live-0000003.png", "live-0000006.png"}
        assert not (cell(tmp_path, method) / "ranks").exists()
    assert len(list(tmp_path.rglob("status.json"))) == 2  # no second sweep beside the first


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_killed_with_two_processes_and_continued_with_one(
    strategy: str, world: list[str], alone: Path, tmp_path: Path
) -> None:
    options = ["adapter=humansd", "optim.accumulate=2", "callbacks.checkpoint.every=1"]
    running = subprocess.Popen(
        command(world, tmp_path, *options, f"trainer={strategy}", "trainer.devices=2"), stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (saved := list(tmp_path.rglob("last.ckpt"))) and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert saved and not list(tmp_path.rglob("method"))
    assert main([*command(world, tmp_path, *options)[3:]]) == 0
    assert curve(tmp_path, "humansd").index[0] > 0  # it was continued
    assert_close(tmp_path, alone, "humansd")


@pytest.mark.slow
def test_a_finished_share_by_full_sharding_has_whole_weights(world: list[str], alone: Path, tmp_path: Path) -> None:
    assert (
        main(
            [
                *command(world, tmp_path, "adapter=humansd", "optim.accumulate=2", "trainer=fsdp", "trainer.devices=2")[
                    3:
                ]
            ]
        )
        == 0
    )
    assert_close(tmp_path, alone, "humansd")


@pytest.mark.slow
def test_what_a_process_cannot_do_is_the_cells_error(
    world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command(world, tmp_path, "adapter=grpose", "trainer.devices=2")[3:]]) == 1
    assert "adapter=grpose normalises over the batch" in capsys.readouterr().err
    assert read_json(cell(tmp_path, "grpose") / "status.json")["state"] == "failed"


@pytest.mark.slow
def test_a_benchmark_trains_with_two_processes_and_judges_once(world: list[str], tmp_path: Path) -> None:
    tiny = [o for o in world if not o.startswith(("budget.steps", "progress"))]
    words = [
        "benchmark",
        "benchmark=smoke",
        "adapter=controlnet,none",
        *tiny,
        *CPU,
        "budget.steps=4",
        "hydra/launcher=serial",
    ]
    outputs = {name: tmp_path / name for name in ("two", "one")}
    for name, sharing in {"two": ["trainer=ddp", "trainer.devices=2"], "one": []}.items():
        assert main([*words, *sharing, f"paths.output={outputs[name]}"]) == 0
    one, two = (
        {c["method"]: c for c in read_json(output / "benchmark/smoke/cells.json")["cells"]}
        for output in outputs.values()
    )
    assert one == two  # the same cells at the same places
    for method in one:
        records = [
            pd.read_csv(output / "benchmark/smoke" / one[method]["folder"] / "records.csv")["id"]
            for output in outputs.values()
        ]
        assert list(records[0]) == list(records[1]) and len(records[0]) == 6


@pytest.mark.slow
def test_two_machines(world: list[str], alone: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["adapter=controlnet", "optim.accumulate=2", "trainer=ddp", "trainer.devices=1", "trainer.num_nodes=2"]
    machines = [
        subprocess.Popen(
            command(world, tmp_path, *options),
            env={**os.environ, "NODE_RANK": str(node), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            stderr=subprocess.PIPE,
        )
        for node in range(2)
    ]
    for machine in machines:
        _, said = machine.communicate(timeout=180)
        assert machine.returncode == 0, said.decode()[-2000:]
    assert_close(tmp_path, alone, "controlnet")
    assert len(list(tmp_path.rglob("metrics*.csv"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("method", ["controlnet", "humansd"])
def test_torchrun(method: str, world: list[str], alone: Path, tmp_path: Path) -> None:
    options = [f"adapter={method}", "optim.accumulate=2", "trainer=ddp", "trainer.devices=2"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "posegen.cli"]
    words = command(world, tmp_path, *options)
    subprocess.run([sys.executable, *torchrun, *words[3:]], check=True, timeout=300)
    assert_close(tmp_path, alone, method)
    assert len(list(tmp_path.rglob("metrics*.csv"))) == 1
    at_once = tmp_path / "at once"
    assert main([*command(world, at_once, *options)[3:]]) == 0  # the processes that posegen starts
    assert torch.equal(weights(at_once, method), weights(tmp_path, method))


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [(0, 0), (0, 1)])
def test_two_tasks_of_srun(seeds: tuple[int, int], world: list[str], alone: Path, tmp_path: Path) -> None:
    """With the variables of Slurm; tasks of different cells are told apart."""
    options = ["adapter=controlnet", "optim.accumulate=2", "trainer=ddp", "trainer.devices=2"]
    job = {"SLURM_JOB_ID": os.getpid(), "SLURM_STEP_NODELIST": "localhost"}
    tasks = [
        subprocess.Popen(
            command(world, tmp_path, *options, f"seed={seed}"),
            env={
                **os.environ,
                **{k: str(v) for k, v in {**SRUN, **job, "SLURM_PROCID": i, "SLURM_LOCALID": i}.items()},
            },
            stderr=subprocess.PIPE,
        )
        for i, seed in enumerate(seeds)
    ]
    for task in tasks:
        _, said = task.communicate(timeout=180)
        assert task.returncode == int(seeds == (0, 1)), said.decode()[-2000:]
        assert ("give all of them the same command" in said.decode()) == (seeds == (0, 1))
    if seeds == (0, 0):
        assert_close(tmp_path, alone, "controlnet")


@pytest.mark.slow
def test_a_cell_of_one_device_is_whole_whatever_ranks_the_environment_has(world: list[str], tmp_path: Path) -> None:
    """Lightning reads them when it is imported."""
    ranks = dict.fromkeys(("RANK", "LOCAL_RANK", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "NODE_RANK"), "3")
    files: list[set[str]] = []
    for name, environment in (("without", {}), ("with", ranks)):
        words = command(world, tmp_path / name, "budget.steps=2", "callbacks.live=null", "logger=tensorboard")
        subprocess.run(words, check=True, env={**os.environ, **environment}, timeout=180)
        found = {p.relative_to(tmp_path / name).as_posix() for p in (tmp_path / name).rglob("*") if p.is_file()}
        files.append({re.sub(r"tfevents.*", "tfevents", path) for path in found})
    assert files[0] == files[1] and any("metrics.csv" in path for path in files[0])
