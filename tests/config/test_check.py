"""``posegen check``: everything that is wrong with a configuration, at once, before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import pytest
from omegaconf import OmegaConf

from posegen import cli
from posegen.config.app import Command
from posegen.config.checking.annotations import mismatches
from posegen.config.checking.arguments import argument_problems
from posegen.config.checking.check import require_valid
from posegen.config.checking.processes import shared_batch_problem
from posegen.config.checking.settings import settings
from posegen.config.compose import composed
from posegen.errors import UserError


def problems(*overrides: str, verb: str = "train", multirun: bool = False) -> list[str]:
    words = ["out=out", *overrides, *(["-m"] if multirun else [])]
    return [str(problem) for problem in Command.read(verb, words).check()[0]]


def test_a_right_configuration_has_no_problems(tree: Path) -> None:
    assert problems() == []
    assert (
        problems(
            "adapter=reference/real",
            "adapter.strength=2",
            "+adapter.channels=[8,16]",
            "+adapter.style=humansd",
            "+adapter.hint={a: 1}",
        )
        == []
    )


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        # Names that Hydra lets pass behind a +.
        ("+adapter.chanels=3", "adapter.chanels=3: Method takes no such argument; did you mean channels?"),
        ("+data.train.sise=3", "data.train.sise=3: Data takes no such argument; did you mean size?"),
        ("+data.test.sise=3", "data.test.sise=3: Data.cached takes no such argument; did you mean size?"),
        (
            "+optim.bach=3",
            "optim.bach=3: no such key; did you mean batch? available: batch, decay, lr (conf/optim/adamw.yaml)",
        ),
        ("++sed=3", "sed=3: no such group or key; did you mean seed?"),
        ("+adapter.recipes.small.rate=1", "adapter.recipes.small.rate: no such setting in optim"),
        # Values of the wrong type.
        ("adapter.strength=high", "adapter.strength=high: expected a number (conf/adapter/method.yaml)"),
        ("+adapter.style=opnpose", "adapter.style=opnpose: expected one of openpose, humansd; did you mean openpose?"),
        ("+adapter.channels=[8,x]", "adapter.channels.1=x: expected an integer"),
        ("+adapter.size=[8]", "adapter.size=[8]: expected one more value"),
        ("+adapter.layers=1.5", "adapter.layers=1.5: expected an integer or null"),
        ("+adapter.hint={a: b}", "adapter.hint.a=b: expected an integer"),
        ("+adapter.hint=3", "adapter.hint=3: expected a mapping or null"),
        ("+adapter.drawing={_target_: world.Data, split: a}", None),
        (
            "+adapter.drawing={_target_: world.Drawing, style: x}",
            "adapter.drawing.style=x: expected one of openpose, humansd",
        ),
        ("+backbone.faithful=1", "backbone.faithful=1: expected true or false"),
        ("optim.batch=many", "optim.batch=many: expected an integer from 1 to 10000000"),
        ("fail=true", None),
        ("optim.lr=0.1", None),
        ("optim.lr=fast", "optim.lr=fast: expected a number above 0 and of at most 1000, or null"),
        ("optim.lr=-1", "optim.lr=-1: expected a number above 0 and of at most 1000, or null"),
        # Values that are missing or lead nowhere.
        ("adapter.strength=???", "adapter.strength=???: a value is missing; give one with adapter.strength=VALUE"),
        ("adapter.strength=${nothing.here}", "Interpolation key 'nothing.here' not found"),
        ("~data.train.split", "data.train.split: Data needs this argument; give it with +data.train.split=VALUE"),
        (
            "backbone.path=/no/such/folder",
            "backbone.path=/no/such/folder: no such file or folder (conf/backbone/small.yaml)",
        ),
        ("backbone.path=hub:owner/name", None),
        # Classes that do not exist.
        ("adapter._target_=world.Methd", "did you mean world.Method?"),
        ("adapter._target_=wrld.Method", "adapter._target_=wrld.Method: cannot be imported"),
        # Choices that exclude each other.
        (
            "adapter=prior",
            "backbone: PosePrior generates poses, Backbone images; choose another adapter= or backbone=",
        ),
        # Free-form mappings stay free.
        ("+labels.anything=1", None),
    ],
)
def test_one_problem(tree: Path, override: str, expected: str | None) -> None:
    found = problems(override)
    assert len(found) == (expected is not None), found
    assert expected is None or expected in found[0]


def test_all_problems_are_told_at_once(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "out=out",
        "adapter=methd",
        "optim.bach=3",
        "+adapter.chanels=3",
        "backbone.path=/no",
        "hydra/launcher=bsic",
    ]
    assert cli.main(["check", "train", *words]) == 1
    message = capsys.readouterr().err
    assert message.startswith("5 problems:")
    assert all(
        name in message
        for name in ("adapter=methd", "optim.bach", "adapter.chanels", "backbone.path", "hydra/launcher=bsic")
    )


def test_mistakes_in_files_are_found(tree: Path) -> None:
    found = problems("experiment=careless")
    assert [line.partition(":")[0] for line in found] == ["optim.bach=16", "sed=1"]


def test_missing_value_of_the_verb_is_named(tree: Path) -> None:
    assert [p.key for p in Command("train").check()[0]] == ["out"]


def test_image_size_must_fit_the_latent_factor(tree: Path) -> None:
    (tree / "weights" / "vae").mkdir(parents=True)
    (tree / "weights" / "vae" / "config.json").write_text(json.dumps({"block_out_channels": [8, 8, 8, 8]}))
    assert problems("backbone.path=weights", "+data.train.size=64") == []
    assert (
        "expected a multiple of the backbone's latent factor 8, such as 56"
        in problems("backbone.path=weights", "+data.train.size=60")[0]
    )


def test_every_cell_of_a_sweep_is_checked(tree: Path) -> None:
    words = ["out=out", "adapter=method,prior", "seed=0,1,2", "optim.batch=8,many", "-m"]
    found, count = Command.read("train", words).check()
    assert [p.key for p in found] == ["optim.batch", "backbone"] or [p.key for p in found] == [
        "backbone",
        "optim.batch",
    ]
    assert count == 2 + 2 + 1  # every pair of options, every further value once


def test_a_benchmarks_own_sweep_is_checked(tree: Path) -> None:
    assert "PosePrior generates poses" in problems(verb="benchmark")[0]
    assert problems("adapter=method", verb="benchmark") == []


def test_the_verb_says_what_is_fine_and_what_is_not(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "out=out"]) == 0
    assert capsys.readouterr().out == "posegen train: the configuration is fine\n"
    assert cli.main(["check", "tran", "out=out"]) == 1
    assert "did you mean train?" in capsys.readouterr().err


def test_a_running_verb_refuses_all_problems_in_one_error(tree: Path) -> None:
    words = ("out=out", "+adapter.chanels=3", "backbone.path=/no")
    with composed("train", words) as cfg, pytest.raises(UserError, match="2 problems") as error:
        require_valid(cfg)
    assert "chanels" in str(error.value)


class Colour(Enum):
    red = 1


class Unknown:
    pass


@pytest.mark.parametrize(
    ("value", "annotation", "fits"),
    [
        (1, float, True),
        (True, int, False),
        (1.0, int, False),
        (1, bool, False),
        (None, int | None, True),
        (None, int, False),
        ("a", Path, True),
        (1, str, False),
        ("a", str | Path | None, True),
        ([1, 2], tuple[int, ...], True),
        ([1, 2], Sequence[str], False),
        ([1, "a"], tuple[int, str], True),
        ("abc", Sequence[str], False),
        ({"a": 1}, Mapping[str, int], True),
        ({"a": "b"}, dict[str, int], False),
        ("b", Literal["a", "b"], True),
        (1, Literal["a", "b"], False),
        ("red", Colour, True),
        ("blue", Colour, False),
        ("anything", Any, True),
        ({"_target_": "x"}, Unknown, True),
        ("plain", Unknown, True),
    ],
)
def test_values_are_compared_with_annotations(value: Any, annotation: Any, fits: bool) -> None:
    assert (not list(mismatches(value, annotation))) == fits


@pytest.mark.parametrize(
    ("node", "found"),
    [
        ({"_target_": "Trainer", "fast_dev_run": True, "limit_train_batches": 2, "max_time": "00:01:00:00"}, []),
        (
            {"_target_": "Trainer", "limit_train_batch": 2},
            ["takes no such argument; did you mean limit_train_batches?"],
        ),
        ({"_target_": "Trainer", "max_epochs": 3.5}, ["x.max_epochs=3.5: expected an integer or null"]),
        ({"_target_": "Trainer", "precision": "bf16-mixd"}, ["did you mean bf16-mixed?"]),
        ({"_target_": "loggers.CSVLogger", "save_dir": "logs"}, []),
        ({"_target_": "loggers.CSVLogger"}, ["x.save_dir: CSVLogger needs this argument"]),
        ({"_target_": "loggers.CSVLogger", "_partial_": True}, []),
        ({"_target_": "loggers.WandbLogger", "notes": "for wandb.init", "offline": 3}, ["expected true or false"]),
        ({"_target_": "callbacks.EarlyStopping", "monitor": "loss", "patience": "long"}, ["expected an integer"]),
        ({"_target_": "callbacks.LearningRateMonitor", "logging_interval": "stp"}, ["did you mean step?"]),
    ],
)
def test_lightnings_classes_are_checked_like_ours(node: dict[str, Any], found: list[str]) -> None:
    node["_target_"] = f"lightning.pytorch.{node['_target_']}"
    cfg = OmegaConf.create({"x": node})
    values = [problem for setting in settings(cfg) for problem in setting.problems()]
    problems = [str(problem) for problem in (*argument_problems("x", cfg.x), *values)]
    assert len(problems) == len(found) and all(part in text for part, text in zip(found, problems, strict=True))


@pytest.mark.parametrize(
    ("numbers", "found"),
    [
        ((8, 2, 4, 1), None),
        ((8, 2, "auto", 1), None),
        ((8, 3, 1, 1), "optim.batch=8: is not divisible by optim.accumulate=3"),
        ((8, 1, 3, 2), "by 6 processes (trainer.devices=3 on trainer.num_nodes=2); it must be a multiple of 6"),
        ((8, 1, 0, 1), "trainer.devices=0: expected a number of devices, 1 or more, or auto for all GPUs"),
    ],
)
def test_processes_take_equal_shares_of_a_batch(
    numbers: tuple[Any, ...], found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    problem = shared_batch_problem(*numbers)
    assert (problem is None) if found is None else found in str(problem)


def test_a_transfer_needs_a_method_that_reads_a_source() -> None:
    found = [str(problem) for problem in Command.read("transfer", ["adapter=controlnet"]).check()[0]]
    assert len(found) == 1 and found[0].startswith("adapter=controlnet: reads no picture to take clothes from")


# The configurations that posegen ships.


@pytest.mark.parametrize("verb", ["train", "sample", "evaluate"])
def test_shipped_verbs_compose_and_have_no_unknown_names(verb: str) -> None:
    found = [p for p in Command(verb).check()[0] if p.expected != "no such file or folder"]
    assert found == []


def test_shipped_experiments_have_no_problems() -> None:
    from posegen.config.groups import groups

    for name in groups().get("experiment", {}):
        assert Command.read("train", [f"experiment={name}"]).check()[0] == [], name


@pytest.mark.slow
def test_shipped_benchmarks_have_no_problems() -> None:
    from posegen.config.groups import groups

    for name in groups()["benchmark"]:
        found = [
            p
            for p in Command.read("benchmark", [f"benchmark={name}"]).check()[0]
            if not p.expected.startswith("no such file or folder")
        ]
        assert [p for p in found if p.value != "???"] == [], name  # what the user gives: where data and weights lie


def test_the_schema_knows_the_choices_of_the_code() -> None:
    from posegen.config import schema
    from posegen.runner import precision, progress

    trainer = get_type_hints(schema.TrainerKeys, include_extras=True)
    assert set(get_args(trainer["precision"])) == set(precision.PRECISIONS)
    assert get_args(get_type_hints(schema.ComputeKeys)["checkpointing"]) == precision.CHECKPOINTING
    assert schema.ProgressMode == progress.Mode


# What the run would refuse, at the check.


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("adapter=controlnet trainer=fsdp trainer.devices=2", "adapter=controlnet: trainer=fsdp divides the U-Net, but other parts train outside of it; use trainer=ddp"),
        ("adapter=humansd trainer=fsdp trainer.devices=2", None),
        ("adapter=humansd trainer=fsdp trainer.devices=2 optim.optimizer=muon", "optim.optimizer=muon: works on whole matrices"),
        ("adapter=humansd trainer=ddp trainer.num_nodes=2", "trainer.num_nodes is more than 1, and nothing says which of them this one is; use hydra/launcher=slurm"),
        ("-m adapter=humansd trainer=ddp trainer.devices=2 trainer.num_nodes=2 hydra/launcher=slurm", None),
        ("adapter=humansd trainer.devices=3", "cannot be shared equally by 3 processes"),
        ("trainer.devices=2 trainer.accelerator=auto", "trainer.devices=2 with trainer.accelerator=auto, but this process sees 0 GPUs"),
        ("-m trainer.devices=2 trainer.accelerator=auto hydra/launcher=slurm", None),
        ("-m trainer=ddp hydra/launcher=slurm", "trainer.devices=1: counts the GPUs of this machine, and the launcher computes on others; give the number of theirs"),
    ],
)  # fmt: skip
def test_what_processes_cannot_do_together(words: str, found: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NODE_RANK", "GROUP_RANK", "RANK", "SLURM_NODEID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    problems, _ = Command.read("train", ["trainer.accelerator=cpu", *words.split()]).check()
    assert (
        problems == [] if found is None else [str(p).startswith(found) or found in str(p) for p in problems] == [True]
    )
