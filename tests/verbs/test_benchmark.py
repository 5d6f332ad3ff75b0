"""The benchmark as a user runs it: one line, a table; interrupted, broken and extended."""

from __future__ import annotations

import csv
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from posegen.cli import main
from posegen.io.atomic import read_json, write_json

METHODS = ["controlnet", "humansd", "none", "reference/real", "reference/reconstruction", "reference/same_caption"]


def options(world: list[str], output: Path, *more: str) -> list[str]:
    """The smoke benchmark on the tiny world, its cells one after the other in this process."""
    tiny = [o for o in world if not o.startswith(("progress", "budget.steps"))]
    return [
        "benchmark",
        "benchmark=smoke",
        "hydra/launcher=basic",
        f"paths.output={output}",
        *tiny,
        "budget.steps=4",
        *more,
    ]


def rows(output: Path, name: str = "smoke") -> dict[str, dict[str, str]]:
    with (output / "benchmark" / name / "table.csv").open(newline="") as file:
        return {row["method"]: row for row in csv.DictReader(file)}


def without_costs(output: Path) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if not k.startswith("cost_")} for row in rows(output).values()]


@pytest.fixture(scope="module")
def finished(world: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    output = tmp_path_factory.mktemp("finished")
    assert main(options(world, output)) == 0
    return output


def test_one_line_ends_in_a_table(finished: Path) -> None:
    table = rows(finished)
    assert list(table) == METHODS
    assert all(row["state"] == "finished" and row["n_images"] == "6" for row in table.values())
    assert (
        float(table["controlnet"]["cost_trained_parameters"]) > 0
        and float(table["humansd"]["cost_train_images_per_s"]) > 0
    )
    assert "smoke run" in (finished / "benchmark/smoke/table.md").read_text()
    assert {"table.md", "table.tex", "table.csv", "table.html", "cells.json"} <= {
        p.name for p in (finished / "benchmark/smoke").iterdir()
    }


def test_every_method_starts_an_image_from_the_same_noise(finished: Path) -> None:
    """Untrained or barely trained methods change little, so their pictures are near those of the backbone alone, and
    unlike another image's."""
    import numpy as np

    from posegen.runner.images import picture, read_png

    cells = {
        c["method"]: finished / "benchmark/smoke" / c["folder"]
        for c in read_json(finished / "benchmark/smoke/cells.json")["cells"]
    }
    of = {
        m: [read_png(picture(cells[m] / "samples", i)).astype(float) for i in range(2)] for m in ("none", "controlnet")
    }
    assert np.abs(of["none"][0] - of["controlnet"][0]).mean() < np.abs(of["none"][0] - of["none"][1]).mean()


def test_the_same_line_again_computes_nothing(
    finished: Path, world: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for stage in ("runner.generate.Generation.run", "train.loop.fit", "runner.judge.Judging.run"):
        monkeypatch.setattr(f"posegen.{stage}", lambda *_: pytest.fail("computed again"))
    before = (finished / "benchmark/smoke/table.csv").read_bytes()
    assert main(options(world, finished, "logger=tensorboard")) == 0
    assert (finished / "benchmark/smoke/table.csv").read_bytes() == before


def test_given_weights_are_judged_and_nothing_is_trained(
    finished: Path,
    world: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cells = {
        c["method"]: finished / "benchmark/smoke" / c["folder"]
        for c in read_json(finished / "benchmark/smoke/cells.json")["cells"]
    }
    shutil.copytree(cells["controlnet"] / "method", tmp_path / "weights/controlnet")
    monkeypatch.setattr("posegen.train.loop.fit", lambda *_: pytest.fail("trained"))
    more = ["adapter=controlnet,none", f"weights={tmp_path / 'weights'}"]
    assert main(options(world, tmp_path / "outputs", *more)) == 0
    (records,) = (tmp_path / "outputs/benchmark/smoke/controlnet").rglob("seed0/records.csv")
    assert records.read_bytes() == (cells["controlnet"] / "records.csv").read_bytes()
    assert main(options(world, tmp_path / "none", "adapter=humansd", more[1])) == 1
    assert "holds no method folder humansd; make it with posegen convert adapter=humansd" in capsys.readouterr().err


@pytest.mark.slow
def test_any_sharding_gives_the_same_bytes(world: list[str], tmp_path: Path) -> None:
    made = []
    for name, sharing in {
        "one": [],
        "two": ["shards=2", "shard=1,0"],
        "three": ["shards=3", "shard=range(3)", "hydra/launcher=local"],
    }.items():
        more = ["sampler.batch=2", "adapter=controlnet,none", f"paths.cache={tmp_path / name / 'cache'}", *sharing]
        assert main(options(world, tmp_path / name, *more)) == 0
        cells = {
            c["method"]: tmp_path / name / "benchmark/smoke" / c["folder"]
            for c in read_json(tmp_path / name / "benchmark/smoke/cells.json")["cells"]
        }
        records = [
            cells[m] / file
            for m in cells
            for file in ("records.csv", "features.npz", "reference/records.csv", "samples/000005.png")
        ]
        assert len(cells) == 2 and not list((tmp_path / name).rglob("batches"))
        made.append(([file.read_bytes() for file in records], without_costs(tmp_path / name)))
    assert made[0] == made[1] == made[2]


def test_a_share_alone_leaves_the_cell_to_the_others(
    world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = ["sampler.batch=2", "adapter=none", "shards=3"]
    assert main(options(world, tmp_path, *one, "shard=1")) == 1
    assert "interrupted" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.rglob("samples/*.png")) == ["000002.png", "000003.png"]
    assert (
        main(options(world, tmp_path, "sampler.batch=2", "adapter=none")) == 0
    )  # whoever comes without a share does what is missing
    assert main(options(world, tmp_path, *one, "shard=3")) == 1
    assert "shard=3 of shards=3" in capsys.readouterr().err


def test_a_failed_cell_leaves_the_others_and_its_reason(
    finished: Path,
    world: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from posegen.adapters.humansd import HumanSD

    with monkeypatch.context() as patch:
        patch.setattr(HumanSD, "inject", lambda *_: 1 / 0)
        assert main(options(world, tmp_path)) == 1
    table = rows(tmp_path)
    assert table["humansd"]["state"] == "failed" and "division by zero" in table["humansd"]["reason"]
    assert [m for m, row in table.items() if row["state"] == "finished"] == [m for m in METHODS if m != "humansd"]
    assert "division by zero" in capsys.readouterr().out
    assert main(options(world, tmp_path)) == 0
    assert without_costs(tmp_path) == without_costs(finished)


def test_other_settings_at_the_same_place_are_refused_before_anything_runs(
    finished: Path, world: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A cell as another version of a yaml made it: the folder is the same, the identity is not."""
    before = (finished / "benchmark/smoke/table.csv").read_bytes()
    status = sorted(finished.rglob("status.json"))[0]
    text = status.read_text()
    record = read_json(status)
    record["identity"]["optim"]["warmup"] = 99
    try:
        write_json(status, {**record, "hash": "another"})
        assert main(options(world, finished)) == 1
    finally:
        status.write_text(text)
    assert "optim.warmup: 99 there" in capsys.readouterr().err
    assert (finished / "benchmark/smoke/table.csv").read_bytes() == before


def test_a_misspelt_key_stops_the_benchmark_with_one_error(
    world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(options(world, tmp_path, "+sampler.guidence=3")) == 1
    assert "guidance" in capsys.readouterr().err
    assert not (tmp_path / "benchmark").exists()


@pytest.mark.slow
def test_killed_at_random_moments_the_table_is_the_same(finished: Path, world: list[str], tmp_path: Path) -> None:
    """kill -9 five times, two cells at a time, then once to the end: the same bytes but for the costs."""
    command = [
        sys.executable,
        "-m",
        "posegen.cli",
        *[o for o in options(world, tmp_path) if not o.startswith("hydra/launcher")],
        "hydra.launcher.n_jobs=2",
    ]
    dice = random.Random(0)
    for _ in range(5):
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(dice.uniform(8, 30))
        running.send_signal(signal.SIGKILL)
        running.wait()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert without_costs(tmp_path) == without_costs(finished)
