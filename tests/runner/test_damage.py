"""Every file of a cell and of its caches, damaged: results are named and made again by the way that the message names,
caches heal and say so; the bytes are those of an undamaged run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig

from posegen.errors import UserError
from posegen.io.atomic import read_json, write_json
from posegen.report.rows import state_of
from posegen.runner.components import Components
from posegen.runner.images import read_png, write_png
from posegen.runner.judge import Judging
from posegen.runner.progress import note_costs
from posegen.verbs import evaluate
from tests.harms import emptied, flipped, folder, truncated
from tests.tiny import configured


def rewritten(file: Path) -> None:
    """Another program's archive of other values."""
    with np.load(file) as stored:
        arrays = {name: stored[name] for name in stored.files}
    np.savez(file, **{name: array * np.nan if array.dtype.kind == "f" else array for name, array in arrays.items()})


def another_size(file: Path) -> None:
    write_png(file, np.zeros((30, 20, 3), np.uint8))


def digit(file: Path) -> None:
    """Another number in a table of numbers."""
    text = file.read_text()
    file.write_text(text[:-4] + ("1" if text[-4] != "1" else "2") + text[-3:])


def long_field(file: Path) -> None:
    file.write_text(file.read_text() + "," * 140_000)


def no_text(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\xff\xfe")


Harm = Callable[[Path], object]


@pytest.fixture(scope="module")
def study(world: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DictConfig, Path]]:
    """The configuration and the folder of a finished cell, with a cache of its own."""
    place = tmp_path_factory.mktemp("damage")
    overrides = [*world, "adapter=none", f"paths.output={place}", f"paths.cache={place / 'cache'}"]
    with configured("evaluate", *overrides) as cfg:
        evaluate.main(cfg)
        yield cfg, Path(cfg.paths.cell)


def content(cell: Path) -> dict[str, bytes]:
    files = (path for path in cell.rglob("*") if path.is_file() and path.name not in (".lock", "progress.json"))
    return {str(path.relative_to(cell)): path.read_bytes() for path in files if path.name != "status.json"}


def problem(cell: Path) -> str:
    """What a table says about a finished cell."""
    status = read_json(cell / "status.json")
    found = state_of(cell, status["hash"])
    return found["reason"] if found["state"] == "damaged" else ""


RECORDS: list[tuple[str, Harm]] = [
    *(("records.csv", harm) for harm in (truncated, emptied, digit, folder, long_field, no_text)),
    *(("features.npz", harm) for harm in (truncated, emptied, flipped, folder, rewritten)),
    *(("reference/records.csv", harm) for harm in (digit, folder)),
    *(("reference/features.npz", harm) for harm in (flipped, rewritten)),
]


@pytest.mark.parametrize(("file", "harm"), RECORDS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_damaged_records_are_named_with_what_to_delete(study: tuple[DictConfig, Path], file: str, harm: Harm) -> None:
    _, cell = study
    before = content(cell)
    assert not problem(cell)
    harm(cell / file)
    found = problem(cell)
    assert str((cell / file).parent) in found and "the command of this cell again" in found
    shutil.rmtree(cell / file) if (cell / file).is_dir() else (cell / file).unlink()
    (cell / file).write_bytes(before[file])


def test_what_is_deleted_as_the_message_says_is_made_again(
    study: tuple[DictConfig, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Damaged records, then pictures: the message, the deletion, the same command, the same bytes and costs."""
    cfg, cell = study
    before, wall = content(cell), read_json(cell / "status.json")["wall_s"]
    digit(cell / "records.csv")
    with pytest.raises(UserError, match=r"delete records\.csv and features\.npz there and run the command"):
        evaluate.main(cfg)
    for name in ("records.csv", "features.npz"):
        (cell / name).unlink()
    evaluate.main(cfg)
    assert "records.csv and 1 more of a finished cell is gone: it is computed again" in capsys.readouterr().out
    assert content(cell) == before and read_json(cell / "status.json")["wall_s"] == wall
    for name in ("samples/000001.png", "judged/000002.png", "samples/prompts.txt", "reference/records.csv"):
        (cell / name).unlink()
    evaluate.main(cfg)
    assert content(cell) == before and read_json(cell / "status.json")["state"] == "finished"


def test_folders_that_were_deleted_to_save_space_are_not_missed(study: tuple[DictConfig, Path]) -> None:
    cfg, cell = study
    before = content(cell)
    for name in ("samples", "judged"):
        (cell / name).rename(cell / f"no-{name}")
    evaluate.main(cfg)
    assert not (cell / "samples").exists() and not (cell / "judged").exists()
    for name in ("samples", "judged"):
        (cell / f"no-{name}").rename(cell / name)
    assert content(cell) == before


def interrupted(cell: Path, cfg: DictConfig) -> Components:
    """The cell as if it had been stopped before its batches were merged."""
    for name in ("records.csv", "features.npz"):
        (cell / name).unlink(missing_ok=True)
    write_json(cell / "status.json", read_json(cell / "status.json") | {"state": "running"})
    return Components(cfg)


@pytest.mark.parametrize("harm", [truncated, digit, emptied])
def test_damaged_batches_of_an_unfinished_cell_are_judged_again(
    study: tuple[DictConfig, Path], harm: Harm, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg, cell = study
    before = content(cell)
    Judging(interrupted(cell, cfg), cell).run()
    harm(cell / "batches/000004/records.csv")
    evaluate.main(cfg)
    assert "batches/000004 is damaged and judged again" in capsys.readouterr().out
    assert {**content(cell), "config.yaml": before["config.yaml"]} == before


@pytest.mark.parametrize("harm", [another_size, truncated, emptied])
def test_a_picture_that_cannot_be_judged_is_named_and_made_again(study: tuple[DictConfig, Path], harm: Harm) -> None:
    cfg, cell = study
    before = content(cell)
    interrupted(cell, cfg)
    harm(cell / "samples/000003.png")
    with pytest.raises(UserError, match=r"samples/000003\.png .*delete it and run the command of this cell again"):
        evaluate.main(cfg)
    (cell / "samples/000003.png").unlink()
    evaluate.main(cfg)
    assert content(cell) | {"costs.json": b""} == before | {"costs.json": b""}


@pytest.mark.parametrize(
    ("file", "harm"), [("records.csv", digit), ("features.npz", truncated), ("features.npz", rewritten)]
)
def test_damaged_records_of_real_images_in_the_cache_heal(
    study: tuple[DictConfig, Path], file: str, harm: Harm, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg, cell = study
    before = content(cell)
    interrupted(cell, cfg)
    (cached,) = Path(cfg.paths.cache).glob("reference/*/records.csv")
    harm(cached.with_name(file))
    evaluate.main(cfg)
    assert f"{cached.parent} is damaged and judged again" in capsys.readouterr().out
    assert content(cell) == before


@pytest.mark.parametrize("text", ["[1, 2]", "", '{"wall_s": ', "null"])
def test_costs_that_are_damaged_begin_again(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "costs.json").write_text(text)
    note_costs(tmp_path, sample_images_per_s=2.0)
    assert json.loads((tmp_path / "costs.json").read_text()) == {"sample_images_per_s": 2.0}
    assert "costs.json is damaged" in capsys.readouterr().out


def test_a_picture_of_another_size_is_named(tmp_path: Path) -> None:
    another_size(tmp_path / "x.png")
    assert read_png(tmp_path / "x.png", (30, 20)).shape == (30, 20, 3)
    with pytest.raises(UserError, match=r"x\.png has 20 x 30 pixels, expected 64 x 64; delete it"):
        read_png(tmp_path / "x.png", (64, 64))
