"""What people who sweep read in W&B, in TensorBoard and in any other logger: offline files, read back."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import LightningModule
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from posegen.cli import main
from posegen.report.wandb import image_table, titles
from posegen.runner.components import Components
from posegen.runner.precision import autocast
from posegen.train.live import validation_losses
from posegen.train.logger_runs import run_id
from posegen.train.loop import build_task
from posegen.train.tasks import Task
from posegen.verbs.train import main as train
from tests.tiny import configured
from tests.train.test_train import Stop, equal, interrupt, weights
from tests.wandb_files import OfflineRun, offline_runs

CURVES = ["train/loss", "train/grad_norm", "train/images_per_s", "train/peak_memory_mb", "lr"]
LOSSES = ["val/loss", "val/loss_t125", "val/loss_t375", "val/loss_t625", "val/loss_t875"]
SWEEP = Path(__file__).parents[2] / "experiments/wandb_sweep/sweep.yaml"


def run(verb: str, world: list[str], output: Path, *overrides: str) -> int:
    return main([verb, *world, f"paths.output={output}", "trainer.log_every_n_steps=1", *overrides])


def cell(output: Path, study: str = "train") -> Path:
    (found,) = (output / study).rglob("seed*/status.json")
    return found.parent


def only(folder: Path) -> OfflineRun:
    (found,) = offline_runs(folder).values()
    return found


@pytest.fixture(autouse=True)
def unsilenced(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_SILENT", "WANDB_RUN_ID", "WANDB_SWEEP_ID"):
        monkeypatch.delenv(name, raising=False)


def test_one_run_per_cell_after_a_resume_and_an_evaluation(
    world: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    output, options = tmp_path / "mine", ["logger=wandb", "validation.every=3", "validation.images=3"]
    with monkeypatch.context() as patch:
        interrupt(patch, after=3)
        with pytest.raises(Stop):
            run_raising(world, output, *options)
    interrupted = only(output)
    assert interrupted.exit_codes == [1] and interrupted.values("trainer/global_step")[-1] == 2
    assert run("train", world, output, *options) == 0
    monkeypatch.setattr(rank_zero_only, "rank", 3)  # as Lightning guesses under SLURM_PROCID=3
    assert run("evaluate", world, output, "logger=wandb", "dashboard.images=0") == 0
    found = only(output)  # the same id in every part
    assert found.id == interrupted.id and found.exit_codes == [1, 0, 0]
    assert json.loads((cell(output) / "run.json").read_text())["id"] == found.id

    config = found.config
    assert config["optim"]["lr"] == 3e-3 and config["optim"]["drop_text"] == 0.1 and config["optim"]["steps"] == 6
    assert config["optim"]["batch_per_device"] == 4 and config["optim"]["epochs"] == 1.0
    assert config["trainer"]["precision"] in ("32-true", "bf16-mixed") and config["trainer"]["accelerator"] == "cpu"
    assert config["model"]["trained_parameters"] > 0 and len(config["model"]["backbone_sha256"]) == 64
    assert config["train_images"] == 24 and config["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert config["cell_hash"] == json.loads((cell(output) / "status.json").read_text())["hash"]
    assert config["study"] == "train" and config["evaluation"]["sampler"]["steps"] == 2
    assert found.about is not None and found.about.run_group == "train/controlnet"

    for name in CURVES:
        assert all(isinstance(value, float) and value >= 0 for value in found.values(name)), name
        assert len(found.values(name)) == 7  # 3 steps, and 4 after the checkpoint of step 2
    assert found.values("lr")[0] == pytest.approx(3e-3) and found.values("lr")[-1] < 2e-3
    assert [len(found.values(name)) for name in LOSSES] == [3] * 5
    assert found.values("val/loss")[0] == found.values("val/loss")[1]  # step 3, before and after the interruption
    (captions, *_) = found.values("live/captions")
    assert len(captions) == 3 and "(mannequin/validation/000000; controlnet, step 3)" in captions[0]
    for name in ("train_s", "train_images_per_s", "peak_memory_mb", "trained_parameters", "sample_s_per_image"):
        assert found.summary[f"cost/{name}"] > 0
    assert found.summary["test/count_error_lo"] <= found.summary["test/count_error"] <= 3
    assert found.summary["trainer/global_step"] == 6
    with configured("evaluate", *world, f"paths.output={output}") as cfg:
        components, folder = Components(cfg), cell(output, "evaluate")
        table = image_table(components, folder, components.protocol.read(folder), 2, 6)
    assert re.fullmatch(r".+ \(mannequin/test/00000\d; controlnet, step 6\)", table.data[0][3]._caption)

    # Another evaluation of the same weights is a run of its own.
    assert (
        run("evaluate", world, output, "logger=wandb", "sampler.guidance=3", "study=other", "dashboard.images=0") == 0
    )
    other = only(cell(output, "other"))
    assert other.id != found.id and other.config["study"] == "other" and "evaluation" not in other.config
    assert other.config["optim"]["lr"] == 3e-3

    said = capfd.readouterr()
    assert "wandb:" not in said.err + said.out
    assert said.out.count(f"find {output} -name '*.wandb' -exec wandb sync {{}} +") == 3  # one for each command


def test_ids_of_runs_never_collide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, yours = tmp_path / "mine/train/seed0", tmp_path / "yours/train/seed0"
    first = run_id(mine)
    assert first == run_id(mine) != run_id(yours)
    copy = shutil.copytree(mine, tmp_path / "copy")
    assert run_id(copy) == first  # the same cell, moved
    shutil.rmtree(mine)
    assert run_id(mine) != first  # a deleted cell begins another run
    for damage in ("", "[]", '{"id": "../../elsewhere"}', '{"id": 3}'):
        (mine / "run.json").write_text(damage)
        assert re.fullmatch(r"[0-9a-f]{16}", run_id(mine))
    monkeypatch.setenv("WANDB_RUN_ID", "agents1")
    assert run_id(mine) == "agents1"
    monkeypatch.delenv("WANDB_RUN_ID")
    assert run_id(mine) == "agents1"


def test_titles_of_a_received_cell_are_plain_text() -> None:
    """Hydra would build what a ``_target_`` names, and OmegaConf would look variables up."""
    received = {"name": {"_target_": "os.getcwd"}, "group": "${oc.env:HOME}", "tags": ["a"], "notes": None, "id": "x"}
    assert titles(received) == {"tags": ["a"]}


def run_raising(world: list[str], output: Path, *overrides: str) -> None:
    with configured("train", *world, f"paths.output={output}", "trainer.log_every_n_steps=1", *overrides) as cfg:
        train(cfg)


@pytest.mark.slow
def test_the_line_that_sends_offline_runs_finds_them(
    world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The printed line in a shell, all but the sending, which needs a server."""
    assert run("train", world, tmp_path / "it's mine", "logger=wandb", "budget.steps=1", "validation.every=0") == 0
    line = capsys.readouterr().out.partition("to send all runs: ")[2].strip()
    dry = line.replace("wandb sync", f"{sys.executable} -m wandb sync --dry-run")
    loud = {**os.environ, "WANDB_SILENT": "false"}
    done = subprocess.run(dry, shell=True, capture_output=True, text=True, check=True, env=loud)
    assert "Would sync 1 run" in done.stderr and only(tmp_path).id in done.stderr


def test_an_agent_of_a_sweep_runs_its_command_line(
    world: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``wandb agent`` does it, with the shipped sweep, offline."""
    import wandb

    wandb.teardown()  # the agent starts a process, which reads the variables
    monkeypatch.setenv("WANDB_SWEEP_ID", "s123")
    monkeypatch.setenv("WANDB_RUN_ID", "agents1")
    monkeypatch.setenv("WANDB_PROJECT", "posegen")
    chosen = {"args": {"adapter": {"value": "t2i_adapter"}, "optim.lr": {"value": 0.00123}, "seed": {"value": 0}}}
    settings = yaml.safe_load(SWEEP.read_text())
    assert settings["parameters"].keys() == chosen["args"].keys()
    page = (SWEEP.parents[2] / "docs/track-runs.md").read_text()
    assert settings == yaml.safe_load(page.partition("```yaml\n")[2].partition("```")[0])
    (tmp_path / "chosen.yaml").write_text(yaml.safe_dump({"wandb_version": 1, **chosen["args"]}))
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(tmp_path / "chosen.yaml"))
    values: dict[str, Any] = create_sweep_command_args(chosen)
    words: list[str] = []
    for word in create_sweep_command(settings["command"]):
        words += values[word[2:-1]] if word.startswith("${") else [word]
    assert words[:3] == ["posegen", "train", "adapter=t2i_adapter"] and "optim.lr=0.00123" in words
    few = ["logger.offline=true", "budget.steps=2", "validation.every=2", "validation.images=2"]
    assert run(words[1], [*world, *words[2:]], tmp_path / "out", *few) == 0
    found = only(cell(tmp_path / "out", "wandb_sweep/s123"))
    assert found.id == "agents1" and found.about is not None and found.about.sweep_id == "s123"
    assert found.config["optim"]["lr"] == 0.00123 and found.config["optim.lr"] == 0.00123
    assert settings["metric"]["name"] in found.summary and settings["project"] == found.about.project
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_PROJECT"):
        monkeypatch.delenv(name)
    wandb.teardown()
    more = ["adapter=t2i_adapter", "optim.lr=0.00123", "logger=wandb", *few[:2]]
    assert run("evaluate", world, tmp_path / "out", *more) == 0  # continues the agent's run
    assert only(tmp_path / "out").id == "agents1"


def test_every_logger_gets_the_same_values(world: list[str], tmp_path: Path) -> None:
    """TensorBoard, with its tab HPARAMS, and another logger of Lightning beside it."""
    classes = (
        "{a: {_target_: %s.CSVLogger, save_dir: %s}, b: {_target_: %s.TensorBoardLogger, save_dir: %s, version: x}}"
    )
    loggers = "lightning.pytorch.loggers"
    both = classes % (loggers, tmp_path / "logs", loggers, tmp_path / "boards")
    options = ["~logger", f"+logger={both}", "validation.every=3", "validation.images=2", "adapter=controlnet"]
    assert run("benchmark", world, tmp_path, *options, "study=b", "hydra/launcher=serial") == 0
    (settings,) = (tmp_path / "logs").rglob("hparams.yaml")
    found = yaml.safe_load(settings.read_text())
    assert found["optim"]["lr"] == 3e-3 and found == yaml.safe_load(
        (cell(tmp_path, "b") / "curves/hparams.yaml").read_text()
    )
    (rows,) = (tmp_path / "logs").rglob("metrics.csv")
    ours, theirs = pd.read_csv(cell(tmp_path, "b") / "curves/metrics.csv"), pd.read_csv(rows)
    pd.testing.assert_frame_equal(ours, theirs)
    assert {*CURVES, *LOSSES, "live/AP", "cost/train_s"} <= {*theirs.columns}

    board = EventAccumulator(str(tmp_path / "boards/lightning_logs/x"))
    board.Reload()
    assert {*CURVES, *LOSSES, "live/AP", "cost/train_s", "test/AP", "test/AP_hi"} <= {*board.Tags()["scalars"]}
    assert board.Tags()["images"] == ["live"]
    session = HParamsPluginData.FromString(board.SummaryMetadata("_hparams_/session_start_info").plugin_data.content)
    shown = session.session_start_info.hparams
    assert shown["optim/lr"].number_value == 3e-3 and shown["trainer/accelerator"].string_value == "cpu"


def test_looking_changes_no_weights(world: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the curves on validation images nor the gradient's norm, with tight clipping and in parts."""
    options = ["optim.clip=0.01", "optim.accumulate=2", "budget.steps=3"]
    assert run("train", world, tmp_path / "a", *options, "validation.every=1", "validation.images=2") == 0
    with monkeypatch.context() as patch:
        patch.setattr(Task, "configure_gradient_clipping", LightningModule.configure_gradient_clipping)
        assert run("train", world, tmp_path / "b", *options, "validation.every=0") == 0
    assert equal(weights(cell(tmp_path / "a")), weights(cell(tmp_path / "b")))
    assert run("train", world, tmp_path / "c", "optim.clip=null", *options[1:], "validation.every=0") == 0
    clipped, free = (pd.read_csv(cell(tmp_path / name) / "curves/metrics.csv") for name in "ac")
    norm = free["train/grad_norm"].dropna().iloc[0]
    assert norm > 0.01 and norm == pytest.approx(clipped["train/grad_norm"].dropna().iloc[0])


def test_validation_losses_compare_between_methods_and_seeds(world: list[str], tmp_path: Path) -> None:
    """Methods that start as the backbone alone have its loss, whatever their seed."""
    found: list[dict[str, float]] = []
    for words in (["seed=0"], ["seed=1"], ["adapter=t2i_adapter"]):
        with configured("train", *world, f"paths.output={tmp_path}", *words) as cfg:
            task = build_task(Components(cfg))
            with autocast(cfg.trainer.precision, torch.device("cpu")):
                found.append(validation_losses(task.eval(), 5, [125, 375, 625, 875]))
    first, *others = found
    assert list(first) == LOSSES and len({*first.values()}) == 5
    assert first["val/loss"] == pytest.approx(sum(list(first.values())[1:]) / 4)
    assert all(other == pytest.approx(first, rel=1e-3) for other in others)


def test_a_timestep_that_the_backbone_lacks_is_named(
    world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", world, tmp_path, "validation.timesteps=[100,1000]") == 1
    assert "validation.timesteps holds 1000; expected whole numbers from 0 to 999" in capsys.readouterr().err


def test_an_account_that_is_missing_is_one_sentence(
    world: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import wandb

    def refused(**_: Any) -> None:
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "init", refused)
    assert run("train", world, tmp_path, "logger=wandb", "logger.offline=false") == 1
    said = capsys.readouterr().err
    assert "W&B starts no run (UsageError: No API key configured.)" in said and "logger.offline=true" in said
    assert "Traceback" not in said
