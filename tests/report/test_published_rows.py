"""The published comparison from the files that users have to the table, at the smallest size of everything."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from posegen.cli import main
from posegen.io.atomic import read_json
from posegen.metrics.estimators.higherhrnet import HigherHRNet
from tests.backbones.models import SD1, parts_of
from tests.data.laion_tree import in_tars
from tests.data.trees import human_art

ROWS = ["none", "controlnet", "reference/real"]


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A user's files: a Human-Art tree, a Stable Diffusion folder, and a detector's weights in official layouts."""
    folder = tmp_path_factory.mktemp("user")
    human_art(folder / "HumanArt", scenarios=19, per_scenario=2)
    parts_of(SD1).save(folder / "sd", autoencoder=True)
    torch.manual_seed(0)
    torch.save({"state_dict": HigherHRNet.from_width(8).state_dict(), "meta": {"epoch": 1}}, folder / "detector.pth")
    sizes = [
        "data.size=64",
        "estimator.width=8",
        "estimator.size=64",
        "sampler.steps=2",
        "budget.steps=2",
        "optim.batch=2",
        "protocol.resamples=20",
    ]
    quiet = ["hydra/launcher=basic", "progress=none", "callbacks.checkpoint.every=1"]
    names = [
        f"data.root={folder / 'HumanArt'}",
        f"backbone.path={folder / 'sd'}",
        f"estimator.path={folder / 'detector.pth'}",
    ]
    return ["benchmark", "benchmark=human_art", *names, *sizes, *quiet, f"adapter={','.join(ROWS)}"]


def table(output: Path) -> dict[str, dict[str, str]]:
    with (output / "benchmark/human_art/table.csv").open(newline="") as file:
        return {
            row["method"]: {k: v for k, v in row.items() if not k.startswith("cost_")} for row in csv.DictReader(file)
        }


@pytest.fixture(scope="module")
def finished(user: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("one")
    assert main([*user, f"paths.output={output}", f"paths.cache={output / 'cache'}"]) == 0
    return output


@pytest.mark.slow
def test_every_column_of_every_protocol_is_filled_or_says_why_not(finished: Path) -> None:
    rows, text = table(finished), (finished / "benchmark/human_art/table.md").read_text()
    assert [name for name in rows if name in ROWS] == ROWS
    own = {name: rows[name] for name in ROWS}
    assert all(row["state"] == "finished" and row["n_images"] == "38" for row in own.values())
    columns = [name.removesuffix("_lo") for name in own["none"] if name.endswith("_lo")]
    filled = {name for name in columns if own["controlnet"][name]}
    assert {
        "AP",
        "AR",
        "PCK@0.1",
        "count_error",
        "count_bias",
        "paper_AP",
        "paper_SAP",
        "paper_PCE",
        "rfd_kernel",
    } <= filled
    for name in set(columns) - filled:
        assert f"{name}" in text.split("\n\n", 2)[-1], name


@pytest.mark.slow
def test_scenarios_are_broken_down(finished: Path) -> None:
    with (finished / "benchmark/human_art/table_scenarios.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["scenario"] for row in rows}) >= 19


@pytest.mark.slow
def test_sharding_changes_no_byte(user: list[str], finished: Path, tmp_path: Path) -> None:
    cells = {c["method"]: c["folder"] for c in read_json(finished / "benchmark/human_art/cells.json")["cells"]}
    for pieces in (2, 3):
        output = tmp_path / str(pieces)
        assert (
            main(
                [
                    *user,
                    f"paths.output={output}",
                    f"paths.cache={output / 'cache'}",
                    f"shards={pieces}",
                    f"shard=range({pieces})",
                ]
            )
            == 0
        )
        for folder in cells.values():
            for name in ("records.csv", "features.npz", "reference/features.npz"):
                assert (output / "benchmark/human_art" / folder / name).read_bytes() == (
                    finished / "benchmark/human_art" / folder / name
                ).read_bytes()
        assert table(output) == table(finished)


def test_laion_human_is_read_from_its_tars(user: list[str], tmp_path: Path) -> None:
    in_tars(tmp_path / "Aesthetics_Human")
    own = ["benchmark=laion_human", f"data.root={tmp_path / 'Aesthetics_Human'}", "data.storage=tar", "data.holdout=2"]
    rest = [word for word in user if not word.startswith(("benchmark=", "data.root=", "adapter="))]
    assert (
        main(
            [
                *rest,
                *own,
                "adapter=none,reference/real",
                f"paths.output={tmp_path}",
                f"paths.cache={tmp_path / 'cache'}",
            ]
        )
        == 0
    )
    with (tmp_path / "benchmark/laion_human/table.csv").open(newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert rows["none"]["state"] == "finished" and rows["none"]["n_images"] == rows["reference/real"]["n_images"]
    assert rows["none"]["paper_AP"] and rows["none"]["rfd_kernel"]
