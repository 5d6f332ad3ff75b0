"""Tuning by Optuna: a study per method with an equal budget, repeated exactly by the same command."""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path

import pytest
from omegaconf import DictConfig

from posegen.cli import main
from posegen.config import groups as listing
from posegen.config.app import Command
from posegen.errors import UserError
from posegen.io.atomic import read_json
from posegen.runner.components import Components
from posegen.train.live import objective_column
from tests.tiny import configured

CONF = listing.conf_dir()
SWEEP = [
    "-m",
    "hydra/sweeper=optuna",
    "hydra.sweeper.trials=6",
    "adapter=method,reference/real",
    "optim.decay=tag(log,interval(1e-4,1.0))",
]


def hill(cfg: DictConfig) -> float | None:
    """Highest at a decay of 0.01; that of real images at 1."""
    if cfg.fail == "user" and cfg.optim.decay > 0.01:
        raise ValueError("too large")
    return None if cfg.fail == "bug" else -abs(math.log10(cfg.optim.decay) + (2 if cfg.adapter.strength else 0))


def run_hill(*words: str) -> int:
    return Command.read("train", words).run(hill)


@pytest.fixture
def sweepers(tree: Path) -> Path:
    (tree / "conf" / "hydra").mkdir()
    (tree / "conf" / "hydra" / "sweeper").symlink_to(CONF / "hydra" / "sweeper")
    return tree


def tuned(folder: Path) -> list[dict[str, str]]:
    with (folder / "tuned.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_method_tunes_its_own_with_the_same_number_of_trials(
    sweepers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_hill("out=out", *SWEEP) == 0
    rows = tuned(sweepers / "runs")
    assert [row["study"] for row in rows] == ["adapter=method"] * 6 + ["adapter=reference/real"] * 6
    assert [row["trial"] for row in rows] == [str(i) for i in range(6)] * 2
    for study, peak in {"adapter=method": -2, "adapter=reference/real": 0}.items():
        own = [row for row in rows if row["study"] == study]
        (best,) = [row for row in own if row["best"] == "1"]
        assert float(best["objective"]) == max(float(row["objective"]) for row in own)
        assert all(float(row["objective"]) == -abs(math.log10(float(row["optim.decay"])) - peak) for row in own)
    names = ("method", "reference/real")
    firsts = [[row["optim.decay"] for row in rows if row["study"] == f"adapter={name}"] for name in names]
    assert firsts[0][:4] == firsts[1][:4] and firsts[0] != firsts[1]  # from the fifth on, trials follow what was found
    assert "adapter=reference/real: after 6 of 6 trials optim.decay=" in capsys.readouterr().out
    before = (sweepers / "runs/tuned.csv").read_bytes()
    assert run_hill("out=out", *SWEEP) == 0
    assert (sweepers / "runs/tuned.csv").read_bytes() == before


def test_a_failed_trial_leaves_the_others(sweepers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_hill("out=out", "fail=user", *SWEEP) == 1
    assert "too large" in capsys.readouterr().err
    rows = tuned(sweepers / "runs")
    assert len(rows) == 12 and {row["objective"] == "" for row in rows} == {True, False}
    assert all((row["objective"] == "") == (float(row["optim.decay"]) > 0.01) for row in rows)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optim.decay=0.1"], "nothing is tuned"),
        (["optim.decay=tag(log,interval(0.0,1.0))"], r"optim.decay=tag(log,interval(0.0,1.0))"),
        (["fail=bug"], "set objective=headline"),
        (["hydra.sweeper.trials=0"], "hydra.sweeper.trials=0"),
    ],
)
def test_what_cannot_be_tuned_is_said(
    words: list[str], message: str, sweepers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_hill("out=out", *SWEEP, *words) == 1
    assert message in capsys.readouterr().err


def test_learning_rates_are_tuned_on_the_validation_split(
    world: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = [o for o in world if not o.startswith("budget.steps")] + ["budget.steps=2", "validation.images=8"]
    words = [
        "train",
        "experiment=tune",
        "adapter=controlnet,humansd",
        "hydra/launcher=serial",
        "hydra.sweeper.trials=2",
        "objective=count_error",
    ]
    assert main([*words, *budget, f"paths.output={tmp_path}"]) == 0
    rows = tuned(tmp_path / "tune")
    answers = [read_json(file) for file in sorted(tmp_path.rglob("objective.json"))]
    assert len(rows) == len(answers) == 4 and len({row["optim.lr"] for row in rows}) == 2
    assert sorted(float(row["objective"]) for row in rows) == sorted(answer["objective"] for answer in answers)
    assert all(answer["column"] == "count_error" and answer["images"] == 8 for answer in answers)
    assert all(answer["objective"] == -answer["value"] < 0 for answer in answers)  # fewer errors are better
    before = (tmp_path / "tune/tuned.csv").read_bytes()
    monkeypatch.setattr("posegen.train.loop.fit", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr("posegen.train.live.judge_validation", lambda *_: pytest.fail("judged again"))
    assert main([*words, *budget, f"paths.output={tmp_path}"]) == 0
    assert (tmp_path / "tune/tuned.csv").read_bytes() == before


def test_the_objective_is_a_column_of_the_protocol(world: list[str]) -> None:
    with configured("train", *world, "objective=headline") as cfg:
        assert objective_column(cfg, Components(cfg)) == "PCK@0.1"
    with configured("train", *world, "objective=FID") as cfg, pytest.raises(UserError, match="no column FID"):
        objective_column(cfg, Components(cfg))
    with (
        configured("train", "experiment=mannequin_judge", "objective=headline") as cfg,
        pytest.raises(UserError, match="set objective=null"),
    ):
        objective_column(cfg, Components(cfg))


def test_without_optuna_the_command_that_installs_it_is_named(
    sweepers: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert run_hill("out=out", *SWEEP) == 1
    assert "hydra/sweeper=optuna needs the extra: pip install 'posegen[optuna]'" in capsys.readouterr().err
