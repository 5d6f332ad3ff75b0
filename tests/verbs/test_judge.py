"""Pictures of finished cells are judged again by other judges; nothing is sampled, and the first records stay."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from posegen.cli import main
from posegen.io.atomic import read_json, write_json
from posegen.metrics.estimators.mannequin import MannequinJudge
from posegen.metrics.records import read_records
from posegen.runner.images import HASHES, read_png, write_png

FIRST = ("records.csv", "features.npz", "reference/records.csv", "reference/features.npz", "status.json", "config.yaml")


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a judge of another architecture and seed."""
    folder = tmp_path_factory.mktemp("second") / "judge"
    torch.manual_seed(5)
    MannequinJudge(widths=(8, 12, 16, 24)).save(folder)
    return folder


@pytest.fixture(scope="module")
def computed(world: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder with a judged benchmark of two rows."""
    output = tmp_path_factory.mktemp("computed")
    assert main(benchmark(world, output)) == 0
    return output


def benchmark(world: list[str], output: Path, *more: str) -> list[str]:
    rows = ["adapter=none,reference/real", "hydra/launcher=basic"]
    return ["benchmark", "benchmark=smoke", *world, *rows, f"paths.output={output}", *more]


@pytest.fixture
def study(computed: Path, tmp_path: Path) -> Path:
    shutil.copytree(computed, tmp_path / "outputs")
    return tmp_path / "outputs/benchmark/smoke"


@pytest.fixture
def never_sampled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What of sampling was called: nothing may be."""
    called: list[str] = []
    names = (
        "runner.generate.Generation.run",
        "adapters.base.Adapter.generate",
        "runner.components.Components.backbone",
    )
    for name in (*names, "runner.components.Components.bare_adapter"):
        monkeypatch.setattr(f"posegen.{name}", lambda *_, name=name, **__: called.append(name))
    return called


def again(place: Path, judge: Path, world: list[str], *more: str) -> list[str]:
    cache = next(word.replace("paths.", "") for word in world if word.startswith("paths.cache"))
    return ["judge", str(place), f"estimator.folder={judge}", "name=second", "progress=none", cache, *more]


def cells(study: Path) -> dict[str, Path]:
    return {entry["method"]: study / entry["folder"] for entry in read_json(study / "cells.json")["cells"]}


def test_a_benchmark_is_judged_again_and_nothing_is_sampled(
    study: Path, second: Path, world: list[str], never_sampled: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in first_files(study)}
    assert main(again(study, second, world)) == 0
    assert never_sampled == []
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before
    for cell in cells(study).values():
        place = cell / "judges/second"
        ours, theirs, status = read_records(place), read_records(cell), read_json(place / "status.json")
        assert ours["id"] == theirs["id"] and ours.keys() == theirs.keys()
        assert any(
            (a.shape != b.shape) or (a != b).any() for a, b in zip(ours["features"], theirs["features"], strict=True)
        )
        assert status["state"] == "finished" and status["identity"]["cell"] == read_json(cell / "status.json")["hash"]
        assert status["identity"]["estimator"]["folder"].startswith("sha256:")
        assert (place / "reference/records.csv").is_file() and not (place / "batches").exists()
    shown = capsys.readouterr().out
    assert shown.count("judges/second: PCK@0.1") == 2


def first_files(study: Path) -> list[Path]:
    return [cell / name for cell in cells(study).values() for name in FIRST]


def test_the_records_are_those_of_a_cell_that_this_judge_judged_first(
    study: Path, second: Path, world: list[str], tmp_path: Path
) -> None:
    cell = cells(study)["none"]
    assert main(again(cell, second, world)) == 0
    other = [word for word in world if not word.startswith("estimator.folder")]
    rest = ["adapter=none", f"estimator.folder={second}", f"paths.output={tmp_path / 'other'}"]
    assert main(["evaluate", *other, *rest]) == 0
    directly = next((tmp_path / "other").rglob("status.json")).parent
    for name in ("records.csv", "reference/records.csv"):
        assert (directly / name).read_bytes() == (cell / "judges/second" / name).read_bytes()
    ours, theirs = read_records(directly), read_records(cell / "judges/second")
    assert all((a == b).all() for a, b in zip(ours["features"], theirs["features"], strict=True))


def test_the_same_line_again_judges_only_what_is_new(
    study: Path, second: Path, world: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    examine = MannequinJudge.examine
    monkeypatch.setattr(
        MannequinJudge, "examine", lambda self, images: looks.append(len(images)) or examine(self, images)
    )
    assert main(again(cells(study)["none"], second, world)) == 0
    assert looks[-2:] == [4, 2]  # behind the real images, where no other test has judged them
    looks.clear()
    assert main(again(study, second, world)) == 0 and looks == [4, 2]
    looks.clear()
    assert main(again(study, second, world)) == 0 and looks == []


def test_interrupted_it_goes_on_at_the_next_batch(
    study: Path, second: Path, world: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell, looks, examine = cells(study)["none"], [], MannequinJudge.examine
    assert main(again(cell, second, world, "name=whole")) == 0

    def stopped(self: Any, images: Any) -> Any:
        looks.append(len(images))
        if len(looks) == 2:
            raise KeyboardInterrupt
        return examine(self, images)

    monkeypatch.setattr(MannequinJudge, "examine", stopped)
    monkeypatch.setattr("posegen.runner.stage.only_signals_stop", __import__("contextlib").nullcontext)
    assert main(again(cell, second, world)) == 130
    assert read_json(cell / "judges/second/status.json")["state"] == "running"
    assert main(again(cell, second, world)) == 0 and looks == [4, 2, 2]
    for name in ("records.csv", "features.npz", "reference/records.csv"):
        one, other = (cell / "judges" / judge / name for judge in ("second", "whole"))
        assert one.suffix == ".npz" or one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("name", ["records.csv", "features.npz", "reference/records.csv"])
def test_a_damaged_record_is_named_set_aside_and_made_again(
    study: Path, second: Path, world: list[str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = cells(study)["none"]
    assert main(again(cell, second, world)) == 0
    file = cell / "judges/second" / name
    whole = file.read_bytes()
    file.write_bytes(whole[:-40])
    assert main(again(cell, second, world)) == 0
    shown = capsys.readouterr().out
    assert file.name in shown and "set aside" in shown and file.read_bytes() == whole
    assert file.with_name(file.name + ".damaged").read_bytes() == whole[:-40]


def test_pictures_that_are_gone_or_changed_are_refused_and_the_way_out_is_true(
    study: Path, second: Path, world: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    cell, output = cells(study)["none"], study.parents[1]
    picture = cell / "samples/000003.png"
    whole = picture.read_bytes()

    def message() -> str:
        assert main(again(study, second, world)) == 1
        return capsys.readouterr().err.strip()

    def healed() -> bool:
        return main(benchmark(world, output)) == 0 and main(again(study, second, world)) == 0

    write_png(picture, 255 - read_png(picture))
    assert message() == f"posegen judge: {picture} changed after it was sampled; delete it and run the command of " + (
        "this cell again, which samples it"
    )
    assert (cells(study)["reference/real"] / "judges/second/records.csv").is_file(), "the others are judged"
    picture.unlink()
    assert "1 of 6 pictures in" in (text := message()) and "(the first is 000003)" in text
    assert healed() and picture.read_bytes() == whole
    shutil.rmtree(cell / "samples")
    assert f"delete {cell / 'status.json'} and run the command of this cell again" in message()
    (cell / "status.json").unlink()
    assert healed() and picture.read_bytes() == whole


def test_pictures_of_older_cells_count_as_they_lie_there_when_they_are_first_judged_again(
    study: Path, second: Path, world: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    cell = cells(study)["none"]
    (cell / "samples" / HASHES).unlink()
    assert main(again(cell, second, world)) == 0 and (cell / "samples" / HASHES).is_file()
    write_png(cell / "samples/000001.png", 255 - read_png(cell / "samples/000001.png"))
    assert main(again(cell, second, world)) == 1
    assert "000001.png changed after it was sampled" in capsys.readouterr().err


def test_another_judge_of_the_same_name_is_refused(
    study: Path, second: Path, world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = cells(study)["none"]
    assert main(again(cell, second, world)) == 0
    MannequinJudge(widths=(8, 8, 8, 8)).save(tmp_path / "third")
    assert main(again(cell, tmp_path / "third", world)) == 1
    message = capsys.readouterr().err
    assert "estimator.folder: 'sha256:" in message and "Keep both with another name=NAME" in message
    assert main(again(cell, tmp_path / "third", world, "name=third")) == 0
    assert sorted(path.name for path in (cell / "judges").iterdir()) == ["second", "third"]


def test_what_cannot_be_judged_is_said_in_one_sentence(
    study: Path, second: Path, world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def message(place: Path, *more: str) -> str:
        assert main(again(place, second, world, *more)) == 1
        return capsys.readouterr().err.strip()

    assert "holds no finished cell (no status.json" in message(tmp_path / "nowhere")
    assert "name=seed: expected letters" in message(study, "name=seed")
    cell = cells(study)["none"]
    status = read_json(cell / "status.json")
    write_json(cell / "status.json", {**status, "state": "failed"})
    assert f"holds no finished cell ({cell} is failed)" in message(cell)
    assert main(again(study, second, world)) == 0
    assert "1 of 2 cells did not finish and are left out" in capsys.readouterr().out
    write_json(cell / "status.json", status)
    text = (cell / "config.yaml").read_text()
    (cell / "config.yaml").write_text(text.replace("count: 6", "count: 5"))
    assert "holds other images than those that it was sampled for" in message(cell)
    (cell / "config.yaml").write_text(text.replace("batch: 4", "batch: many"))
    assert "config.yaml has no data, paths and sampler.batch of a cell" in message(cell)
    (cell / "config.yaml").write_text(text.replace("posegen.data.mannequin.dataset.MannequinData", "os.system"))
    assert "names the class os.system, which is no data set; nothing was run" in message(cell)


def test_the_first_judge_has_nothing_to_do(study: Path, world: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    folder = next(word for word in world if word.startswith("estimator.folder"))
    assert main(["judge", str(cells(study)["none"]), folder]) == 0
    assert "this is the judge that its table has; nothing to do without name=" in capsys.readouterr().out
    assert not (cells(study)["none"] / "judges").exists()


def test_another_protocol_is_another_judge(study: Path, second: Path, world: list[str]) -> None:
    folder, cell = next(word for word in world if word.startswith("estimator.folder")), cells(study)["none"]
    cache = next(word.replace("paths.", "") for word in world if word.startswith("paths.cache"))
    assert main(["judge", str(cell), folder, "protocol=person_image", "progress=none", cache]) == 0
    records = read_records(cell / "judges/mannequin-person_image")
    assert "psnr" in {name.lower() for name in records} and "psnr" not in {name.lower() for name in read_records(cell)}


@pytest.fixture
def second_by_name(second: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The second judge as an option of its own."""
    conf = tmp_path / "conf/estimator"
    conf.mkdir(parents=True)
    node = f"_target_: posegen.metrics.estimators.mannequin.MannequinJudge.from_pretrained\nfolder: {second}\n"
    (conf / "second.yaml").write_text(f"# Another judge.\n{node}")
    monkeypatch.setenv("POSEGEN_SEARCHPATH", str(tmp_path / "conf"))
    return "second"


def test_several_judges_judge_in_one_go_and_once(
    study: Path, second_by_name: str, world: list[str], never_sampled: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    cache = next(word.replace("paths.", "") for word in world if word.startswith("paths.cache"))
    words = ["judge", str(study), "estimator=[mannequin,second]", "progress=none", cache]
    assert main(words) == 0 and never_sampled == []
    places = {p.parent.name for cell in cells(study).values() for p in cell.glob("judges/*/status.json")}
    assert "second" in places
    files = [cell / f"judges/{name}/records.csv" for cell in cells(study).values() for name in places]
    before = [file.stat().st_mtime_ns for file in files]
    assert main(words) == 0 and [file.stat().st_mtime_ns for file in files] == before
    capsys.readouterr()
    for wrong, reason in {
        "name=x": "names several judges",
        "estimator.folder=x": "names several judges",
        "estimator=[mannequin,secnd]": "no such option",
        "estimator=[second,second]": "name each once",
    }.items():
        assert main([*words, wrong] if "[" not in wrong else [*words[:2], wrong]) == 1
        assert reason in capsys.readouterr().err


@pytest.mark.slow
def test_a_benchmark_of_two_judges_has_both_in_its_table(second_by_name: str, world: list[str], tmp_path: Path) -> None:
    others = [word for word in world if not word.startswith("estimator")]
    assert main([*benchmark(others, tmp_path / "out"), "estimator=[mannequin,second]"]) == 0
    study = tmp_path / "out/benchmark/smoke"
    assert "(second)" in (study / "table_judges.csv").read_text()
    assert all((cell / "judges/second/records.csv").is_file() for cell in cells(study).values())
    first = {entry["method"]: entry["hash"] for entry in read_json(study / "cells.json")["cells"]}
    assert main(benchmark(others, tmp_path / "one")) == 0
    alone = read_json(tmp_path / "one/benchmark/smoke/cells.json")["cells"]
    assert first == {entry["method"]: entry["hash"] for entry in alone}
