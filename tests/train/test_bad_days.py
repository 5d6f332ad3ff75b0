"""What goes wrong in a training: it diverges, its files are damaged, somebody's code ends the process. Every way out
that a message names is taken."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from safetensors.torch import load_file, save_file

from posegen.cli import main
from posegen.data.mannequin.dataset import MannequinData
from posegen.errors import UserError
from posegen.io.atomic import read_json, write_json
from tests.train.test_train import Stop, equal, interrupt, trained, weights


def stop_iteration() -> None:
    raise StopIteration


def interrupted() -> None:
    raise KeyboardInterrupt


class Ends(Callback):
    """A third party's callback that ends the process, or the training, in one step of the cells with a seed."""

    ways: Any = {
        "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "leave": lambda: os._exit(0),
        "exit": lambda: sys.exit(0),
        "interrupt": interrupted,
        "stop": stop_iteration,
        "ctrl-c": lambda: os.kill(os.getpid(), signal.SIGINT),
        "terminate": lambda: os.kill(os.getpid(), signal.SIGTERM),
    }

    def __init__(self, way: str, step: int = 3, once: str | None = None, seed: int = 0, at: int = 0) -> None:
        self.way, self.step, self.once, self.here = way, step, once, seed == at

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self.here and trainer.global_step == self.step and not (self.once and Path(self.once).exists()):
            if self.once:
                Path(self.once).touch()
            self.ways[self.way]()


class Spoils(Callback):
    """A third party's callback that makes a weight infinite."""

    def on_train_batch_end(self, trainer: Trainer, module: Any, *_: Any) -> None:
        if trainer.global_step == 3:
            next(p for p in module.parameters() if p.requires_grad).data[...] = torch.inf


class Empties(MannequinData):
    """A third party's data set that takes an image for the end."""

    def __getitem__(self, index: int) -> Any:
        if index == 7:
            raise StopIteration
        return super().__getitem__(index)


class Refuses(MannequinData):
    """A data set whose user must mend something."""

    def __getitem__(self, index: int) -> Any:
        raise UserError("image 7 is missing; get it again")


def calling(way: str, **arguments: str) -> str:
    given = "".join(f", {key}: {value}" for key, value in arguments.items())
    return f"+callbacks.ends={{_target_: tests.train.test_bad_days.Ends, way: {way}{given}}}"


SPOILS = "+callbacks.spoils={_target_: tests.train.test_bad_days.Spoils}"


def cell_of(output: Path) -> Path:
    (status,) = output.rglob("status.json")
    return status.parent


def test_a_training_that_diverges_fails_and_names_the_step_and_a_way_out(
    world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", *world, f"paths.output={tmp_path / 'a'}", "trainer.log_every_n_steps=1000"]
    assert main([*words, SPOILS]) == 1
    said, cell = capsys.readouterr().err, cell_of(tmp_path / "a")
    assert "training stopped at step 4: " in said and "tensors of the weights are not finite" in said, said
    assert re.search(r"\(learning rate [\d.e-]+\)", said)
    status = read_json(cell / "status.json")
    assert status["state"] == "failed" and status["reason"] in said
    saved = torch.load(cell / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2 and all(bool(v.isfinite().all()) for v in saved["state_dict"].values())
    way = re.search(r"with the same words and (\S+ \S+) starts from its weights", said)
    assert way is not None
    assert main([*words, *shlex.split(way[1])]) == 0
    start = [f"checkpoint={cell}", "optim.lr=1e-12", "budget.ema=0", "budget.steps=1"]
    assert main([*words, *start, f"paths.output={tmp_path / 'b'}"]) == 0
    for value in weights(cell_of(tmp_path / "b")).values():
        near = (torch.allclose(value, each) for each in saved["state_dict"].values() if each.shape == value.shape)
        assert any(near)


def test_a_loss_that_is_not_a_number_ends_the_training_at_the_next_log(
    world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", *world, f"paths.output={tmp_path}", "optim.lr=1000", "callbacks.checkpoint.every=100"]
    for _ in range(2):  # the same command tries again, and fails alike
        assert main([*words, "trainer.log_every_n_steps=1"]) == 1
        said = capsys.readouterr().err
        assert re.search(r"training stopped at step [1-6]: the loss is (nan|inf)", said)
        assert "No checkpoint was written before" in said
    assert not list(tmp_path.rglob("method"))


def test_a_cell_that_was_called_finished_with_weights_that_are_not_numbers_is_found(
    world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = trained(world, tmp_path)
    words, cell = ["train", *world, f"paths.output={tmp_path}"], cell_of(tmp_path)
    for file in (cell / "method").rglob("*.safetensors"):
        save_file({name: torch.full_like(value, torch.nan) for name, value in load_file(file).items()}, file)
    assert main(["sample", *world, f"paths.output={tmp_path / 'other'}", f"checkpoint={cell}"]) == 1
    assert "holds NaN" in capsys.readouterr().err
    assert main(words) == 1
    assert "The same command again sets it aside" in capsys.readouterr().err
    assert read_json(cell / "status.json")["state"] == "failed"
    assert main(words) == 0
    assert (cell / "method.damaged").is_dir() and equal(weights(cell), before)


def cut(file: Path) -> None:
    start = file.read_bytes()[:1000]
    file.unlink()  # tensors of another file may still lie in it
    file.write_bytes(start)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x40
    file.write_bytes(content)


def spoil(file: Path) -> None:
    state = torch.load(file, weights_only=True)
    next(iter(state["state_dict"].values()))[...] = torch.nan
    torch.save(state, file)


@pytest.mark.parametrize(
    "damage", [cut, flip, spoil, lambda file: torch.save({}, file), lambda file: file.write_bytes(b"")]
)
def test_a_damaged_checkpoint_is_set_aside_and_the_training_done_again(
    damage: Any, world: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, after=3)
        with pytest.raises(Stop):
            trained(world, tmp_path)
    cell = cell_of(tmp_path)
    damage(cell / "last.ckpt")
    assert main(["train", *world, f"paths.output={tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert str(cell / "last.ckpt") in said and "set aside" in said
    assert (cell / "last.ckpt.damaged").is_file() and list((cell / "method").rglob("*.safetensors"))


@pytest.mark.parametrize("damage", [cut, Path.unlink])
def test_damaged_weights_of_an_unfinished_cell_are_set_aside_with_what_came_from_them(
    damage: Any, world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = trained(world, tmp_path)
    cell = cell_of(tmp_path)
    damage(next((cell / "method").rglob("*.safetensors")))
    (cell / "samples").mkdir()
    write_json(cell / "status.json", {**read_json(cell / "status.json"), "state": "running"})
    assert main(["train", *world, f"paths.output={tmp_path}"]) == 0
    assert "set aside" in capsys.readouterr().out
    assert equal(weights(cell), before) and (cell / "samples.damaged").is_dir() and not (cell / "samples").exists()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([calling("exit")], "RuntimeError: a method, data set or callback called sys.exit(0)"),
        ([calling("interrupt")], "RuntimeError: a method, data set or callback raised KeyboardInterrupt"),
        ([calling("stop")], "RuntimeError: a callback or method raised StopIteration in batch 3"),
        (
            ["data.train._target_=tests.train.test_bad_days.Empties"],
            "RuntimeError: the data set mannequin raised StopIteration for images",
        ),
        (
            ["data.train._target_=tests.train.test_bad_days.Refuses", "compute.workers=1"],
            "image 7 is missing; get it again",
        ),
    ],
    ids=["exit", "interrupt", "stop", "data", "worker"],
)
def test_code_of_others_cannot_end_a_training_as_finished(
    words: list[str], reason: str, world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *world, f"paths.output={tmp_path}", *words]) == 1
    status = read_json(cell_of(tmp_path) / "status.json")
    assert status["state"] == "failed" and status["reason"].startswith(reason)
    said = capsys.readouterr().err
    assert reason in said and ("Traceback" in said) == reason.startswith("RuntimeError")


@pytest.fixture
def heard() -> Iterator[None]:
    """Ctrl-C counts, which a shell turns off for what it starts in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize(("way", "step"), [("ctrl-c", 2), ("terminate", 3)])
def test_a_stopped_training_says_what_it_keeps_and_the_same_command_continues_it(
    way: str, step: int, world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", *world, f"paths.output={tmp_path}", calling(way, once=str(tmp_path / "flag"))]
    try:
        assert main(words) == 130
    except SystemExit as stop:
        assert stop.code == 128 + signal.SIGTERM
    cell, said = cell_of(tmp_path), capsys.readouterr().out
    assert f"stopped: {cell} keeps the checkpoint of step {step}" in said
    assert said.rstrip().endswith("; the same command again continues it")
    assert read_json(cell / "status.json")["state"] == "running"
    assert main(words) == 0
    shutil.copytree(cell, tmp_path / "stopped")
    shutil.rmtree(cell)
    assert main(words) == 0
    assert equal(weights(tmp_path / "stopped"), weights(cell)) and not list(cell.rglob(".*tmp"))


@pytest.mark.slow
@pytest.mark.parametrize(("way", "reason"), [("kill", "was killed by SIGKILL (9)"), ("leave", "exit code 0")])
def test_a_worker_that_dies_takes_no_other_cell_with_it(
    way: str, reason: str, world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dies = calling(way, seed="${seed}", at="1", once=str(tmp_path / "flag"))
    sweep = ["-m", "seed=0,1,2,3", "hydra/launcher=local", "hydra.launcher.n_jobs=2", f"paths.output={tmp_path}"]
    assert main(["train", *world, *sweep, dies]) == 1
    assert reason in capsys.readouterr().err
    states = {path.parent.name: read_json(path) for path in tmp_path.rglob("status.json")}
    assert {seed: each["state"] for seed, each in states.items()} == {
        **dict.fromkeys(("seed0", "seed2", "seed3"), "finished"),
        "seed1": "failed",
    }
    assert reason in states["seed1"]["reason"]
    assert main(["train", *world, *sweep, dies]) == 0
