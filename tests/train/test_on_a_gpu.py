"""What differs on a GPU: bf16, compiled blocks, channels last, resuming and repeating, with the tiny world's models.

Without a GPU they are skipped; ``POSEGEN_CUDA_TESTS=cpu pytest -m cuda`` runs them on the CPU, to try the tests."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from posegen.runner.cell import Cell
from posegen.runner.components import Components
from posegen.runner.generate import Generation
from tests.tiny import configured
from tests.train.test_train import Stop, equal, interrupt, trained

ON = os.environ.get("POSEGEN_CUDA_TESTS", "cuda")
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(ON == "cuda" and not torch.cuda.is_available(), reason="needs a GPU that torch sees with CUDA"),
]
DEVICE = ["trainer.accelerator=" + ("gpu" if ON == "cuda" else "cpu"), "adapter=controlnet"]
SINGLE, MIXED = "trainer.precision=32-true", "trainer.precision=bf16-mixed"


def losses(folder: Path) -> np.ndarray:
    (file,) = folder.rglob("metrics.csv")
    return pd.read_csv(file)["train/loss"].dropna().to_numpy()


def sampled(world: list[str], folder: Path, *overrides: str) -> list[bytes]:
    """The samples of a method with its initial weights."""
    with configured("train", *world, f"paths.output={folder}", "sampler.steps=2", *DEVICE, *overrides) as cfg:
        cell = Cell.of(cfg).folder
        Generation(Components(cfg), cell, None).run()
    return [file.read_bytes() for file in sorted((cell / "samples").glob("*.png"))]


@pytest.mark.parametrize("precision", [SINGLE, MIXED])
def test_the_same_training_gives_the_same_bytes(world: list[str], tmp_path: Path, precision: str) -> None:
    one, again = (trained(world, tmp_path / name, *DEVICE, precision) for name in ("one", "again"))
    assert equal(one, again)


@pytest.mark.parametrize("precision", [SINGLE, MIXED])
def test_a_resumed_training_ends_at_the_same_bytes(
    world: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    whole = trained(world, tmp_path / "whole", *DEVICE, precision)
    with monkeypatch.context() as patch:
        interrupt(patch, after=3)
        with pytest.raises(Stop):
            trained(world, tmp_path / "broken", *DEVICE, precision)
    assert equal(whole, trained(world, tmp_path / "broken", *DEVICE, precision))


@pytest.mark.parametrize(
    "options",
    [
        [MIXED],
        [SINGLE, "compute.channels_last=true"],
        [SINGLE, "compute.compile=true"],
        [MIXED, "compute.compile=true", "compute.channels_last=true"],
    ],
    ids=lambda options: " ".join(option.partition(".")[2] for option in options),
)
def test_the_way_of_computing_changes_the_losses_by_its_rounding(
    world: list[str], tmp_path: Path, options: list[str]
) -> None:
    logged = "trainer.log_every_n_steps=1"
    trained(world, tmp_path / "plain", "adapter=controlnet", "trainer.accelerator=cpu", SINGLE, logged)
    trained(world, tmp_path / "other", *DEVICE, *options, logged)
    np.testing.assert_allclose(losses(tmp_path / "other"), losses(tmp_path / "plain"), rtol=3e-2)


@pytest.mark.parametrize("precision", [SINGLE, MIXED])
def test_the_same_sampling_gives_the_same_bytes(world: list[str], tmp_path: Path, precision: str) -> None:
    one, again = (sampled(world, tmp_path / name, precision) for name in ("one", "again"))
    assert one and one == again
