"""From a user's DeepFashion or Market-1501 to a row: checked, trained on, sampled and judged, and other programs'
pictures beside it."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from shutil import copyfile

import numpy as np
import pytest
import torch

from posegen.cli import main
from posegen.config.checking.check import validate
from posegen.metrics.estimators.higherhrnet import HigherHRNet
from posegen.runner.cell import Cell
from posegen.runner.components import Components
from posegen.runner.images import picture, read_png
from posegen.verbs.evaluate import main as evaluate
from posegen.verbs.prepare import main as prepare
from posegen.verbs.train import main as train
from tests.backbones.models import SD1, parts_of
from tests.data.person_trees import deepfashion, market1501
from tests.tiny import configured

SETS: dict[str, tuple[Callable, str]] = {
    "deepfashion": (deepfashion, "data.size=[64,48]"),
    "market1501": (market1501, "data.size=[64,32]"),
}


def user(name: str, world: list[str], folder: Path) -> list[str]:
    """Overrides for a small tree on the tiny world's backbone."""
    make, size = SETS[name]
    make(folder / name, (12, 2))
    tiny = [override for override in world if not override.startswith(("data.", "paths.cache"))]
    return [
        *tiny,
        f"data={name}",
        f"data.root={folder / name}",
        size,
        "data.holdout=0.3",
        f"paths.cache={folder / 'cache'}",
        f"paths.output={folder / 'out'}",
    ]


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_one_report_tells_of_pictures_and_pairs(
    world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    mine = user("deepfashion", world, tmp_path)
    gone = min((tmp_path / "deepfashion/img_highres/MEN").rglob("*.jpg"))
    gone.unlink()
    with configured("prepare", *mine) as cfg:
        prepare(cfg)
        found = rows(Path(cfg.out) / "report.csv")
        report = (Path(cfg.out) / "report.md").read_text()
    assert [
        row["problem"] for row in found if row["file"] == gone.relative_to(tmp_path / "deepfashion").as_posix()
    ] == ["missing"]
    pairs = [row for row in found if "_2_" in row["file"]]
    assert (
        len(pairs) == 4
        and {row["split"] for row in pairs} <= {"train", "validation"}
        and all("no usable picture" in row["problem"] for row in pairs)
    )
    printed = capsys.readouterr().out
    assert "train_images: 35 pictures, 35 people; 1 left out" in printed and "test: 12 pairs; 0 left out" in printed
    assert "the released list has 48,674" in report and "- outfits also in train: 0 of 2" in report


@pytest.mark.parametrize("name", SETS)
def test_a_method_is_trained_and_judged_against_the_training_pictures(
    name: str, world: list[str], tmp_path: Path
) -> None:
    mine = user(name, world, tmp_path)
    with configured("train", "adapter=dnaf", *mine) as cfg:
        train(cfg)
    with configured("evaluate", "adapter=dnaf", *mine) as cfg:
        evaluate(cfg)
        folder, data = Cell.of(cfg).folder, Components(cfg).data("test")
    image = read_png(picture(folder / "samples", 0))
    assert image.shape == (*data.size, 3) and image.std() > 0
    assert len(rows(folder / "records.csv")) == 12 == len(data)
    names = [row["id"].split("/")[1] for row in rows(folder / "reference/records.csv")]
    assert len(names) == 36 == len(set(names)) and not any(
        "_2_" in one for one in names
    )  # each once, the held-out ones with them

    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for i, sample in enumerate(data):
        copyfile(picture(folder / "samples", i), theirs / "{source}_to_{target}_vis.png".format(**sample.attributes))
    with configured("evaluate", "adapter=reference/folder", f"adapter.path={theirs}", *mine) as cfg:
        evaluate(cfg)
        again = Cell.of(cfg).folder
    assert all(
        np.array_equal(read_png(picture(folder / "samples", i)), read_png(picture(again / "samples", i)))
        for i in range(12)
    )


def test_sizes_and_splits_are_checked_before_anything_is_read(world: list[str], tmp_path: Path) -> None:
    mine = user("deepfashion", world, tmp_path)
    with configured("train", "adapter=dnaf", *mine) as cfg:
        assert not validate(cfg)
    with configured("train", "adapter=dnaf", *mine, "data.size=[63,48]", "data.train.holdout=much") as cfg:
        told = "\n".join(map(str, validate(cfg)))
    assert "data.train.size=[63, 48]: expected a multiple of" in told
    assert "data.train.holdout=much: expected a number" in told
    with configured("train", "adapter=dnaf", *mine, "data.train._target_=posegen.data.formats.pairs.Pictures") as cfg:
        assert any(
            "needs another image of each person, which Pictures does not have" in str(problem)
            for problem in validate(cfg)
        )


@pytest.mark.slow
def test_the_benchmark_compares_a_method_with_its_ablations_and_the_real_pictures(tmp_path: Path) -> None:
    """As a user calls it, at the smallest size of everything; the methods start from the files that it names."""
    torch.manual_seed(0)
    parts_of(SD1).save(tmp_path / "sd", autoencoder=True)
    torch.save({"state_dict": HigherHRNet.from_width(8).state_dict(), "meta": {"epoch": 1}}, tmp_path / "detector.pth")
    deepfashion(tmp_path / "deepfashion", (4, 1))
    names = [
        f"data.root={tmp_path / 'deepfashion'}",
        f"backbone.path={tmp_path / 'sd'}",
        f"estimator.path={tmp_path / 'detector.pth'}",
        "data.holdout=0.3",
    ]
    sizes = [
        "data.size=[64,48]",
        "estimator.width=8",
        "estimator.size=64",
        "sampler.steps=2",
        "budget.steps=2",
        "optim.batch=2",
        "optim.warmup=1",
    ]
    quiet = ["hydra/launcher=basic", "progress=none", "callbacks.checkpoint.every=1", "protocol.resamples=20"]
    sizes.append("protocol.size=[64,48]")
    places = [f"paths.output={tmp_path / 'out'}", f"paths.cache={tmp_path / 'cache'}"]
    rest = ["benchmark", "benchmark=deepfashion", *names, *sizes, *quiet, *places]
    assert main(rest) == 0
    table = {row["method"]: row for row in rows(tmp_path / "out/benchmark/deepfashion/table.csv")}
    own = [
        "dnaf",
        "ablation/dnaf_b1",
        "ablation/dnaf_b2",
        "reference/real",
        "reference/reconstruction",
        "reference/copy_source",
    ]
    assert set(own) <= set(table) and all(
        table[name]["state"] == "finished" and table[name]["n_images"] == "6" for name in own
    )
    assert (
        len({table[name]["PSNR"] + table[name]["cfld_SSIM_256"] for name in own}) == 6
    )  # they are six different things
    with configured(
        "benchmark", *rest[1:-2], *places, "adapter=ablation/dnaf_b1", f"files.vision={tmp_path / 'nothing.pth'}"
    ) as cfg:
        assert Components(cfg).bare_adapter._start == {"vision": str(tmp_path / "nothing.pth"), "pose": None}
