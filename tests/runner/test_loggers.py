"""Curves and pictures arrive, without an account and without a network."""

from __future__ import annotations

from pathlib import Path

import pytest

from posegen.runner.train import train
from tests.tiny import configured


def test_wandb_offline_holds_config_curves_pictures_and_group(world: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.setenv("WANDB_SILENT", "true")
    seen: dict = {}
    init = wandb.init
    monkeypatch.setattr(wandb, "init", lambda **kwargs: seen.update(kwargs) or init(**kwargs))
    options = ["logger=wandb", "trainer.validate_every=3", "trainer.validate_images=4", "trainer.log_every=1", f"paths.output={tmp_path}"]
    with configured("train", *world, *options) as cfg:
        train(cfg)
    assert seen["mode"] == "offline" and seen["group"] == "train/controlnet" and seen["name"] == "controlnet-seed0"
    assert seen["config"]["adapter"]["strength"] == 1.0 and "seed:0" in seen["tags"]
    (run,) = tmp_path.rglob("offline-run-*")
    content = b"".join(p.read_bytes() for p in run.glob("*.wandb"))
    assert b"live/PCK@0.1" in content and b"train/loss" in content
    assert list(run.rglob("live_*.png"))


def test_tensorboard_and_csv_write_into_the_cell(world: list[str], tmp_path: Path) -> None:
    for logger, pattern in (("tensorboard", "events.out.tfevents.*"), ("csv", "metrics.csv")):
        with configured("train", *world, f"logger={logger}", "trainer.steps=2", "trainer.log_every=1", f"paths.output={tmp_path / logger}") as cfg:
            train(cfg)
        assert list((tmp_path / logger / "train/controlnet").rglob(f"curves/{pattern}"))
