"""What saves memory while training: the weights stay the same, and the memory is really saved."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from posegen.cli import main
from tests.train.test_train import Stop, equal, interrupt, trained

IN_BACKWARD = "optim.in_backward=true"


@pytest.mark.parametrize(
    "options",
    [
        ["adapter=controlnet", "optim.clip=null"],
        ["adapter=humansd", "optim.clip=0.01", "trainer.precision=bf16-mixed"],
        ["adapter=stable_pose", "optim.clip=0.01", "compute.checkpointing=blocks"],
        ["adapter=grpose", "optim.optimizer=muon", "optim.clip=null"],
    ],
)
def test_updates_in_the_backward_pass_end_at_the_same_weights(
    options: list[str], world: list[str], tmp_path: Path
) -> None:
    """Whether gradients are clipped (0.01: always) or not, with every optimiser and way of computing."""
    every = [*options, "budget.steps=3", "trainer.log_every_n_steps=1"]
    usual = trained(world, tmp_path / "usual", *every)
    assert equal(usual, trained(world, tmp_path / "freed", *every, IN_BACKWARD))
    curves = [pd.read_csv(next((tmp_path / name).rglob("metrics.csv"))) for name in ("usual", "freed")]
    logged = [list(curve[name].dropna()) for curve in curves for name in ("train/loss", "train/grad_norm", "lr")]
    assert logged[:3] == logged[3:] and len(logged[1]) == 3
