"""Real trainings on a tiny world: what is saved, and that an interrupted run ends at the same weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from posegen.cli import main
from posegen.config.resolvers import auto_precision
from posegen.errors import UserError
from posegen.runner.cell import Cell
from posegen.runner.components import Components
from posegen.train.loop import fit
from posegen.verbs.train import main as train
from tests.tiny import configured


def trained(world: list[str], folder: Path, *overrides: str) -> dict[str, torch.Tensor]:
    """Trains one cell and returns the exported weights."""
    with configured("train", *world, f"paths.output={folder}", *overrides) as cfg:
        train(cfg)
        return weights(Cell.of(cfg).folder)


def weights(cell: Path) -> dict[str, torch.Tensor]:
    files = sorted((cell / "method").rglob("*.safetensors"))
    return {f"{file.parent.name}.{key}": value for file in files for key, value in load_file(file).items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Stop(Exception):
    """The power goes out."""


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Ends the process's training in the middle of step ``after``."""
    from posegen.train.tasks import Task

    step = Task.training_step

    def failing(self: Task, batch: object, index: int) -> torch.Tensor:
        if self.trainer.global_step == after:
            raise Stop
        return step(self, batch, index)

    monkeypatch.setattr(Task, "training_step", failing)


@pytest.mark.parametrize("adapter", ["controlnet", "humansd"])
def test_an_interrupted_run_ends_at_the_same_weights_bit_for_bit(
    adapter: str, world: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [f"adapter={adapter}", "optim.accumulate=2", "trainer.log_every_n_steps=1"]
    whole = trained(world, tmp_path / "whole", *options)
    with monkeypatch.context() as patch:
        interrupt(patch, after=3)
        with pytest.raises(Stop):
            trained(world, tmp_path / "broken", *options)
    resumed = trained(world, tmp_path / "broken", *options)
    assert equal(whole, resumed)
    assert {p.name for p in (tmp_path / "broken").rglob("metrics*.csv")} == {"metrics.csv", "metrics-1.csv"}
    assert not equal(whole, trained(world, tmp_path / "other", *options, "seed=1"))


def test_checkpoints_hold_only_what_trains(world: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch, after=3)
    with pytest.raises(Stop):
        trained(world, tmp_path, "adapter=controlnet")
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    state = torch.load(checkpoint, weights_only=True)
    assert state["global_step"] == 2
    assert state["state_dict"] and all(key.startswith("adapter.") for key in state["state_dict"])


def test_accumulation_gives_the_gradient_of_the_whole_batch(world: list[str], tmp_path: Path) -> None:
    at_once = trained(world, tmp_path / "a", "adapter=controlnet", "budget.steps=1", "optim.warmup=0")
    in_parts = trained(
        world, tmp_path / "b", "adapter=controlnet", "budget.steps=1", "optim.warmup=0", "optim.accumulate=4"
    )
    start = trained(
        world, tmp_path / "start", "adapter=controlnet", "budget.steps=1", "optim.warmup=0", "optim.lr=1e-12"
    )
    moved, apart = (
        torch.cat([(a[k] - b[k]).flatten() for k in a]).norm() for a, b in ((at_once, start), (at_once, in_parts))
    )
    assert (
        moved > 0 and apart < 0.2 * moved
    )  # not zero: AdamW's first step is of full length also where a gradient is all rounding


def test_training_changes_weights_and_the_average_lags_behind(world: list[str], tmp_path: Path) -> None:
    raw = trained(world, tmp_path / "raw", "adapter=controlnet", "budget.ema=0")
    averaged = trained(world, tmp_path / "ema", "adapter=controlnet", "budget.ema=0.9")
    start = trained(world, tmp_path / "start", "adapter=controlnet", "budget.steps=1", "optim.lr=1e-12")
    moved = {k for k in raw if not torch.equal(raw[k], start[k])}
    assert moved and not equal(raw, averaged)


def test_a_method_is_trained_with_official_quirks_where_its_yaml_says_so(world: list[str], tmp_path: Path) -> None:
    from posegen.runner.method_folder import read_about

    for adapter, faithful in (("stable_pose", False), ("ablation/stable_pose_faithful", True)):
        with configured("train", *world, f"adapter={adapter}", f"paths.output={tmp_path}", "budget.steps=1") as cfg:
            train(cfg)
            assert read_about(Cell.of(cfg).folder / "method")["faithful"] is faithful


def test_a_method_without_weights_is_a_finished_cell(world: list[str], tmp_path: Path) -> None:
    with configured("train", *world, "adapter=none", f"paths.output={tmp_path}") as cfg:
        train(cfg)
        assert Cell.of(cfg).finished()


def test_the_second_time_nothing_is_computed_whatever_the_logger(
    world: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(world, tmp_path, "adapter=controlnet")
    monkeypatch.setattr("posegen.train.loop.fit", lambda *_: pytest.fail("trained again"))
    trained(world, tmp_path, "adapter=controlnet", "logger=tensorboard")


def test_a_damaged_checkpoint_names_the_file_and_the_fix(world: list[str], tmp_path: Path) -> None:
    with configured("train", *world, "adapter=controlnet", f"paths.output={tmp_path}") as cfg:
        folder = Cell.of(cfg).folder
        folder.mkdir(parents=True)
        (folder / "last.ckpt").write_bytes(b"PK\x03\x04 cut off")
        with pytest.raises(UserError, match=r"last\.ckpt.*delete it"):
            fit(Components(cfg), folder)


def test_an_indivisible_batch_is_refused(world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *world, "optim.accumulate=3", f"paths.output={tmp_path}"]) == 1
    assert "optim.accumulate=3" in capsys.readouterr().err and not list(tmp_path.rglob("status.json"))


def test_live_pose_accuracy_leaves_the_training_alone(world: list[str], tmp_path: Path) -> None:
    plain = trained(world, tmp_path / "plain", "adapter=controlnet")
    watched = trained(world, tmp_path / "watched", "adapter=controlnet", "validation.every=2", "validation.images=4")
    assert equal(plain, watched)
    assert len(list((tmp_path / "watched").rglob("live-*.png"))) == 3
    (curves,) = (tmp_path / "watched").rglob("metrics.csv")
    assert "live/PCK@0.1" in curves.read_text()


def test_the_way_of_computing_changes_no_more_than_rounding(world: list[str], tmp_path: Path) -> None:
    ways = {
        "plain": [],
        "other": ["compute.channels_last=true", "compute.checkpointing=blocks"],
        "light": ["compute.checkpointing=feedforward"],
    }
    made = {
        name: trained(world, tmp_path / name, "adapter=controlnet", "trainer.log_every_n_steps=1", *options)
        for name, options in ways.items()
    }
    assert equal(made["plain"], made["light"])
    assert made["plain"].keys() == made["other"].keys() and not equal(
        made["plain"], made["other"]
    )  # the sums of a convolution have another order
    curves = [pd.read_csv(next((tmp_path / name).rglob("metrics.csv")))["train/loss"] for name in ("plain", "other")]
    np.testing.assert_allclose(*curves, rtol=1e-3)


def test_encodings_do_not_depend_on_the_way_of_computing(world: list[str]) -> None:
    with configured("train", *world) as usual, configured("train", *world, "compute.channels_last=true") as other:
        keys = []
        for cfg in (usual, other):
            components = Components(cfg)
            assert components.adapter.backbone is components.backbone
            keys.append([components.backbone.encoding_key(of) for of in ("latents", "text")])
    assert keys[0] == keys[1]


def test_a_cell_is_of_the_precision_that_was_found(world: list[str], tmp_path: Path) -> None:
    with configured("train", *world, f"paths.output={tmp_path}") as cfg:
        assert Cell.of(cfg).identity["trainer"]["precision"] == auto_precision("auto")
