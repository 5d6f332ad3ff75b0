"""``hydra/launcher=ray``: what a cell asks for, and sweeps on a Ray of two machines (both are this one)."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from posegen.cli import main
from posegen.config.app import run_verb
from posegen.config.launchers.ray import joined, resources, tell_waiting
from posegen.config.verb_files import Verb
from posegen.errors import UserError
from posegen.io.atomic import read_json
from tests.train.test_launchers import options, results, running, training


def asked(gpus: int = 4, **trainer: Any) -> dict[str, Any]:
    remote = trainer.pop("remote", {"num_gpus": None, "num_cpus": None, "max_retries": 3})
    values = {
        "hydra": {"launcher": {"ray": {"remote": remote}}},
        "trainer": {"devices": 1, "num_nodes": 1, "accelerator": "auto", **trainer},
        "budget": {"threads": 2},
        "compute": {"workers": 3},
    }
    return resources(OmegaConf.create(values), {"num_cpus": 6, "num_gpus": gpus})


def test_a_cell_asks_for_what_it_uses() -> None:
    assert asked() == {"num_gpus": 1, "num_cpus": 5, "max_retries": 3}
    assert asked(devices=2) == {"num_gpus": 2, "num_cpus": 6, "max_retries": 3}  # a machine has no more
    assert asked(devices=2, accelerator="cpu")["num_gpus"] == asked(gpus=0)["num_gpus"] == 0
    assert asked(gpus=0, accelerator="gpu")["num_gpus"] == 1
    assert asked(remote={"num_gpus": 0.5, "num_cpus": 1}) == {"num_gpus": 0.5, "num_cpus": 1}
    for wrong in ({"devices": "auto"}, {"num_nodes": 2}):
        with pytest.raises(UserError, match="ray needs a number of devices, on one machine"):
            asked(**wrong)


def test_what_no_machine_has_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    has = {"num_cpus": 6, "num_gpus": 0}
    tell_waiting([asked(gpus=0)], has, alone=True)
    needed = [asked(gpus=0), asked(gpus=0, accelerator="gpu")]
    with pytest.raises(
        UserError, match="num_gpus=1, and no machine of the Ray cluster has more than 0; give a smaller"
    ):
        tell_waiting(needed, has, alone=True)
    tell_waiting(needed, has, alone=False)
    assert "it waits until one joins" in capsys.readouterr().out


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'posegen\[ray\]'"):
        joined({})


# On a cluster.


@pytest.fixture(scope="module")
def cluster() -> Iterator[list[str]]:
    """The overrides that send cells to a Ray of two machines, each with two processors and, as it is told, two GPUs."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'posegen[ray]'")
    from ray.cluster_utils import Cluster

    before = {name: os.environ.get(name) for name in ("RAY_USAGE_STATS_ENABLED", "RAY_AUTH_MODE")}
    os.environ.update({"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"})
    # Ray replaces 127.0.0.1 by the machine's address in the network.
    has = {"num_cpus": 2, "num_gpus": 2, "node_ip_address": "127.0.0.2", "object_store_memory": 80 << 20}
    started = Cluster(initialize_head=True, head_node_args={**has, "include_dashboard": False})
    started.add_node(**has)
    here = "+hydra.launcher.ray.init._node_ip_address=127.0.0.2"
    yield ["hydra/launcher=ray", f"hydra.launcher.ray.init.address={started.address}", here]
    import ray

    ray.shutdown()
    started.shutdown()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(scope="module")
def serial(world: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("serial")
    assert main(options(world, output, "hydra/launcher=serial")) == 0
    return output


@pytest.mark.slow
def test_each_cell_sees_the_gpus_that_it_asked_for(cluster: list[str], world: list[str], tmp_path: Path) -> None:
    def note(cfg: DictConfig) -> None:
        import os
        from pathlib import Path

        (Path(cfg.paths.output) / f"{cfg.trainer.devices}-{cfg.seed}").write_text(os.environ["CUDA_VISIBLE_DEVICES"])

    for devices in (1, 2):
        asked = [f"trainer.devices={devices}", "trainer.accelerator=gpu", f"paths.output={tmp_path}"]
        assert run_verb(Verb("train"), ["-m", "seed=0,1,2", *world, *cluster, *asked], note) == 0
    seen = {path.name: path.read_text() for path in tmp_path.iterdir() if path.is_file()}
    assert len(seen) == 6 and {seen[f"1-{seed}"] for seed in range(3)} <= {"0", "1"}
    assert {seen[f"2-{seed}"] for seed in range(3)} == {"0,1"}


@pytest.mark.slow
def test_a_sweep_has_the_bytes_of_one_process(
    cluster: list[str], world: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with a folder that the command names from where it stands."""
    monkeypatch.chdir(tmp_path)
    for output, launcher in {"there": cluster, "here": ["hydra/launcher=serial"]}.items():
        words = ["train", "-m", *world, "seed=0,1", "budget.steps=2", "trainer.accelerator=cpu", *launcher]
        assert main([*words, f"paths.output={output}"]) == 0
    there, here = (
        {p.relative_to(name).as_posix(): p.read_bytes() for p in Path(name).rglob("method/**/*") if p.is_file()}
        for name in ("there", "here")
    )
    assert len(there) == 6 and there == here


@pytest.mark.slow
def test_cells_whose_process_dies_end_in_the_table_or_are_tried_again(
    cluster: list[str], world: list[str], serial: Path, tmp_path: Path
) -> None:
    words = options(world, tmp_path, "trainer.accelerator=cpu", *cluster)
    killed = worker = 0
    for retries in (0, 3):
        with running([*words, f"hydra.launcher.ray.remote.max_retries={retries}"]) as process:
            while worker == killed:
                worker, cell = training(tmp_path, process)
            killed = worker
            assert worker != process.pid
            os.kill(worker, signal.SIGKILL)
            said, _ = process.communicate(timeout=400)
        status = read_json(cell / "status.json")
        if retries:
            assert process.returncode == 0, said
        else:
            assert process.returncode == 1 and "Ray gave this cell up (" in said
            assert status["state"] == "failed" and "Ray gave this cell up (" in status["reason"]
    assert results(tmp_path) == results(serial)
