"""Everything that runs on images runs on poses: the benchmark of text-to-pose models on a tiny world, and what does not
fit together."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from posegen.adapters.reference_pose import mean_pose
from posegen.cli import main
from posegen.config.checking.check import validate
from posegen.data.base import Sample
from posegen.errors import UserError
from posegen.io.atomic import read_json
from posegen.runner.components import Components
from posegen.runner.images import picture, read_png
from posegen.runner.outputs import KINDS, numbers
from posegen.train.loop import encodings
from posegen.train.tasks import AdapterTask
from tests.tiny import configured, making

ROWS = ["gunet", "reference/mean_pose", "reference/other_pose"]


@pytest.fixture(scope="module")
def overrides(world: list[str]) -> list[str]:
    """The tiny world with one person per picture."""
    counts = {"train": (16, 40), "validation": (8, 20), "test": (4, 12)}
    kept = [o for o in making("pose", world) if not o.startswith(("data.", "progress", "backbone=", "sampler.batch"))]
    return [
        *kept,
        *(f"data.{s}.count={n}" for s, (n, _) in counts.items()),
        *(f"data.{s}.data.count={n}" for s, (_, n) in counts.items()),
        "sampler.batch=3",
    ]


@pytest.fixture(scope="module")
def finished(overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("poses")
    more = ["budget.steps=2", "protocol.draws=3", f"paths.output={output}", "hydra/launcher=basic"]
    assert (
        main(
            [
                "benchmark",
                "benchmark=mannequin_prior",
                *(o for o in overrides if not o.startswith("budget.steps")),
                *more,
            ]
        )
        == 0
    )
    return output / "benchmark" / "mannequin_prior"


def cell(finished: Path, method: str) -> Path:
    return next(finished / c["folder"] for c in read_json(finished / "cells.json")["cells"] if c["method"] == method)


def test_the_benchmark_of_poses_ends_in_a_table(finished: Path) -> None:
    with (finished / "table.csv").open(newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert list(rows) == ROWS and all(row["state"] == "finished" and row["n_images"] == "4" for row in rows.values())
    assert float(rows["gunet"]["cost_trained_parameters"]) > 0
    assert float(rows["reference/mean_pose"]["variance"]) == 0 < float(rows["reference/other_pose"]["variance"])
    assert float(rows["reference/other_pose"]["validity"]) > 50
    text = (finished / "table.md").read_text()
    assert "squared cells" in text and "| MSE | variance |" in text and "FID" not in text
    assert (finished / "pictures.png").is_file()


def test_draws_of_a_caption_differ_and_have_a_picture(finished: Path) -> None:
    folder = cell(finished, "gunet") / "samples"
    poses = KINDS["pose"].read(folder, range(4))
    assert poses.shape == (4, 3, 17, 3) and torch.isfinite(poses).all()
    assert not torch.equal(poses[:, 0], poses[:, 1])
    assert read_png(picture(folder, 0)).shape == (64, 64, 3)
    mean = KINDS["pose"].read(cell(finished, "reference/mean_pose") / "samples", range(4))
    assert torch.equal(mean, mean[:1, :1].expand_as(mean))


def test_poses_on_disk_come_back_and_damage_is_named(tmp_path: Path) -> None:
    kind, draws = KINDS["pose"], torch.rand(2, 17, 3)
    assert not kind.kept(tmp_path, 7)
    kind.write(tmp_path, 7, draws, (48, 64))
    assert kind.kept(tmp_path, 7) and torch.equal(kind.read(tmp_path, range(7, 8))[0], draws)
    assert read_png(picture(tmp_path, 7)).any()
    numbers(tmp_path, 7).write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"000007\.npy cannot be read .* delete it"):
        kind.read(tmp_path, range(7, 8))


def test_training_notes_that_there_is_no_live_curve_of_another_kind(
    world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = [o for o in making("pose", world) if not o.startswith("budget.steps")]
    assert (
        main(
            [
                "train",
                "adapter=gunet",
                *tiny,
                "budget.steps=1",
                "validation.every=1",
                f"paths.output={tmp_path}",
            ]
        )
        == 0
    )
    assert "no live curve: the backbone generates poses and protocol=corrected judges images" in capsys.readouterr().out


def test_a_live_curve_of_poses(world: list[str], tmp_path: Path) -> None:
    tiny = [o for o in making("pose", world) if not o.startswith("budget.steps")]
    more = [
        "budget.steps=1",
        "validation.every=1",
        "validation.images=4",
        "protocol=pose_prior",
        f"paths.output={tmp_path}",
    ]
    assert main(["train", "adapter=gunet", *tiny, *more]) == 0
    [curve] = tmp_path.rglob("curves/metrics.csv")
    assert "live/MSE" in curve.read_text()
    assert [path.name for path in tmp_path.rglob("live/*.png")] == ["live-0000001.png"]


@pytest.mark.parametrize(
    ("verb", "refused"), [("train", False), ("sample", False), ("evaluate", True), ("benchmark", True)]
)
def test_a_protocol_of_another_kind_is_refused_where_it_judges(verb: str, refused: bool, world: list[str]) -> None:
    words = ("adapter=gunet", *making("pose", world))
    with configured(verb, *words) as cfg:
        problems = [str(problem) for problem in validate(cfg)]
    assert any("judges images and the backbone generates poses" in problem for problem in problems) == refused


def test_latents_of_poses_are_not_cached(overrides: list[str], tmp_path: Path) -> None:
    words = [o for o in overrides if not o.startswith("paths.cache")]
    with configured(
        "train",
        "adapter=gunet",
        "backbone=mannequin_pose",
        "data=mannequin_single",
        *words,
        f"paths.cache={tmp_path}",
        "progress=none",
    ) as cfg:
        components = Components(cfg)
        latents, _, text = encodings(components, AdapterTask(components).needs)
    assert latents is None and text is not None
    assert (tmp_path / "text").is_dir() and not (tmp_path / "latents").exists()


def test_weights_that_start_at_random_follow_the_seed(world: list[str]) -> None:
    first: list[torch.Tensor] = []
    for seed, ask in ((0, "backbone"), (0, "adapter"), (1, "backbone")):
        with configured("train", "adapter=gunet", *making("pose", world), f"seed={seed}") as cfg:
            components = Components(cfg)
            getattr(components, ask)
            first.append(components.backbone.unet.conv_in.weight.detach())  # type: ignore[union-attr]
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])


def test_the_mean_pose_is_the_mean_of_the_joints_that_are_there() -> None:
    keypoints = np.zeros((3, 1, 17, 3), np.float32)
    keypoints[:, 0, :, :2] = np.random.default_rng(0).uniform(0, 60, (3, 17, 2))
    keypoints[..., 2] = 2
    keypoints[0, 0, 4, 2] = keypoints[:2, 0, 6, 2] = 0
    samples = [Sample(str(i), "", k, np.ones(1), None, (64, 64)) for i, k in enumerate(keypoints)]
    mean, poses = mean_pose(samples), torch.stack([s.pose for s in samples])
    torch.testing.assert_close(mean[0, :2], poses[:, 0, :2].mean(0))
    torch.testing.assert_close(mean[4], torch.cat([poses[1:, 4, :2].mean(0), torch.tensor([2 / 3])]))
    assert not mean[6].any()
    with pytest.raises(ValueError, match="no training pose"):
        mean_pose([])
