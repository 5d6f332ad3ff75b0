"""Cells: where they lie, what they are, and what happens when that changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from posegen.config.cell_folder import cell_folder
from posegen.errors import CellConflict, UserError
from posegen.io.hashes import content_hash
from posegen.runner.cell import Cell, differences, identity
from tests.tiny import configured


def config(tmp_path: Path, **changes: object) -> dict:
    base = {
        "paths": {"output": str(tmp_path), "cache": "/anywhere"},
        "study": "train",
        "method": "controlnet",
        "dataset": "mannequin",
        "seed": 0,
        "adapter": {"strength": 1.0},
        "budget": {"steps": 10},
        "trainer": {"devices": 1},
        "data": {"train": {"count": 5, "cache": "/anywhere", "workers": 1}},
        "logger": {"project": "x"},
    }
    return {**base, **changes}


def folder(values: dict, overrides: list[str]) -> Path:
    """Where a cell with these overrides lies."""
    hydra = OmegaConf.create({"hydra": {"overrides": {"task": overrides}}})
    before = HydraConfig.instance().cfg
    HydraConfig.instance().cfg = hydra
    try:
        return Path(cell_folder(OmegaConf.create(values)))
    finally:
        HydraConfig.instance().cfg = before


def cell(tmp_path: Path, **changes: object) -> Cell:
    values = config(tmp_path, **changes)
    return Cell(folder(values, []), identity(values), values)


def test_the_folder_names_what_differs_and_nothing_neutral(tmp_path: Path) -> None:
    overrides = [
        "adapter=controlnet",
        "seed=3",
        "+sampler.guidance=4",
        "logger=wandb",
        "trainer.devices=2",
        "paths.output=x",
        "trainer=smoke",
    ]
    assert (
        folder(config(tmp_path, seed=3), overrides)
        == tmp_path / "train/controlnet/mannequin,sampler.guidance=4,trainer=smoke/seed3"
    )


def test_an_override_may_ask_for_the_folder() -> None:
    with configured(
        "train", "logger._target_=lightning.pytorch.loggers.CSVLogger", "+logger.save_dir=${paths.cell}/x"
    ) as cfg:
        assert cfg.logger.save_dir == f"{cfg.paths.cell}/x" and cfg.paths.cell.endswith("seed0")


def test_files_in_a_list_are_named_without_their_folders(tmp_path: Path) -> None:
    values = config(tmp_path, source=["/a/front.png", "/b/back.png"])
    assert (
        folder(values, ["source=[/a/front.png,/b/back.png]"])
        == tmp_path / "train/controlnet/mannequin,source=front.png+back.png/seed0"
    )


def test_the_folder_does_not_depend_on_how_a_number_was_typed(tmp_path: Path) -> None:
    values = config(tmp_path, optim={"lr": 0.001})
    assert (
        folder(values, ["optim.lr=1e-3"])
        == folder(values, ["optim.lr=0.001"])
        == tmp_path / "train/controlnet/mannequin,optim.lr=0.001/seed0"
    )


def test_the_folder_does_not_depend_on_spaces_in_a_mapping(tmp_path: Path) -> None:
    """Hydra hands the jobs of a sweep ``{a:b}`` for the ``{a: b}`` that was typed."""
    values = config(tmp_path, optim={"x": {"_target_": "a.B"}})
    assert folder(values, ["+optim.x={_target_: a.B}"]) == folder(values, ["+optim.x={_target_:a.B}"])


def test_texts_and_files_that_differ_never_share_a_folder(tmp_path: Path) -> None:
    texts = ["a man/woman", "a boy/woman", "adancer", "a dancer", "a dancer ", "a,dancer", "a_dancer", "Caf\u00e9",
             "Cafe\u0301", "x" * 300, "x" * 301, "踊" * 150, "踊" * 149 + "x", "💃", "🕺", ".", ".."]  # fmt: skip
    folders = {text: folder(config(tmp_path, prompt=text), ["prompt=?"]) for text in texts}
    assert len(set(folders.values())) == len(texts)
    assert all(len(part.encode()) <= 255 for place in folders.values() for part in place.parts)
    assert folders["a_dancer"].parent.name == "mannequin,prompt=a_dancer", "a plain text has no digits"
    for name, content in {"v1/frame.json": "1", "v2/frame.json": "2", "v3/frame.json": "2"}.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(content)
    one, two, copy = (
        folder(config(tmp_path, poses=str(tmp_path / place / "frame.json")), ["poses=?"])
        for place in ("v1", "v2", "v3")
    )
    assert one != two == copy and one.parent.name.startswith("mannequin,poses=frame.json~")
    (tmp_path / "v1" / "frame.json").write_text("3")  # moved in an editor and saved again
    assert folder(config(tmp_path, poses=str(tmp_path / "v1" / "frame.json")), ["poses=?"]) != one


def test_two_checkpoints_of_one_name_have_two_folders(tmp_path: Path) -> None:
    places = [tmp_path / name / "method" for name in ("a", "b", "c")]
    for place, content in zip(places, (b"1", b"2", b"2"), strict=True):
        place.mkdir(parents=True)
        (place / "adapter.safetensors").write_bytes(content)
    a, b, c = (folder(config(tmp_path, checkpoint=str(place)), ["checkpoint=?"]) for place in places)
    assert a != b == c
    cell = folder(config(tmp_path, checkpoint=str(tmp_path / "a")), ["checkpoint=?"])
    (tmp_path / "a" / "status.json").write_text("{}")
    assert folder(config(tmp_path, checkpoint=str(tmp_path / "a")), ["checkpoint=?"]) == cell, "weights count alone"


def test_the_folder_does_not_depend_on_the_order_of_overrides(tmp_path: Path) -> None:
    values = config(tmp_path, optim={"lr": 0.1}, budget={"steps": 3})
    words = ["optim.lr=0.1", "budget.steps=3", "optim.lr=0.2", "optim.lr=0.1"]
    assert folder(values, words) == folder(values, words[:2]) == folder(values, words[1::-1])
    values = config(tmp_path, adapter={f"setting_{letter}": i for i, letter in enumerate("abcdefgh")})
    words = [f"adapter.{name}={value}" for name, value in values["adapter"].items()]  # more than 150 bytes
    found = {folder(values, order) for order in (words, words[::-1], [*words[5:], *words[:5]])}
    start = "mannequin,adapter.setting_a=0,adapter.setting_b=1,adapter.setting_c=2,adapter.setting_d=3,adapter.setting_e=4,adapter.se"
    assert {place.parent.name for place in found} == {f"{start}~c8334d3a"}


@pytest.mark.parametrize("study", ["../x", "a/../../x", "/tmp/x", "", None, "x" * 256])
def test_a_study_is_a_name_inside_of_the_output(tmp_path: Path, study: str | None) -> None:
    with pytest.raises(UserError, match="study="):
        folder(config(tmp_path, study=study), [])


def test_a_conflict_spells_out_no_coordinates(tmp_path: Path) -> None:
    people = [[[[float(i), 1.0, 2.0] for i in range(17)]]]
    first = cell(tmp_path, data={"test": {"people": people, "prompts": ["a"]}})
    with first.working():
        pass
    moved = cell(tmp_path, data={"test": {"people": [[[[9.0, 9.0, 2.0]] * 17]], "prompts": ["b"]}})
    with pytest.raises(CellConflict) as told:
        moved.check()
    assert len(str(told.value)) < 600 and "9.0" not in str(told.value)
    assert "data.test.people: 1 entries (sha256" in str(told.value) and "data.test.prompts: ['a'] there" in str(
        told.value
    )


def test_neutral_keys_are_not_identity(tmp_path: Path) -> None:
    here = identity(config(tmp_path))
    there = identity(
        config(
            tmp_path,
            logger={},
            trainer={"devices": 8},
            data={"train": {"count": 5, "cache": "/else"}},
        )
    )
    assert here == there
    assert here != identity(config(tmp_path, budget={"steps": 11}))


def test_files_count_by_content(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "w.bin").write_bytes(b"same")
    assert identity({"backbone": {"path": str(tmp_path / "a")}}) == identity(
        {"backbone": {"path": str(tmp_path / "b")}}
    )
    before = content_hash(tmp_path / "a")
    (tmp_path / "a" / "w.bin").write_bytes(b"other")
    assert content_hash(tmp_path / "a") != before


def test_a_finished_cell_stays_finished(tmp_path: Path) -> None:
    first = cell(tmp_path)
    with first.working():
        assert not first.finished()
    again = cell(tmp_path, logger={"project": "another"})
    with again.working():
        assert again.finished()


def test_another_identity_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    first = cell(tmp_path)
    with first.working():
        (first.folder / "result").write_text("precious")
    with (
        pytest.raises(CellConflict, match=r"budget\.steps: 10 there, 99 now") as error,
        cell(tmp_path, budget={"steps": 99}).working(),
    ):
        pass
    assert "study=" in str(error.value)
    assert (first.folder / "result").read_text() == "precious" and first.finished()


def test_a_start_that_computed_nothing_gives_way_to_other_settings(tmp_path: Path) -> None:
    """A checkpoint that was damaged, say, and is repaired: the folder is the same, the hash another."""
    first, other = cell(tmp_path), cell(tmp_path, budget={"steps": 99})
    for ending in (UserError, KeyboardInterrupt):
        with pytest.raises(ending), first.working():
            raise ending("not yet")
    with pytest.raises(UserError), other.working():
        (other.folder / "last.ckpt").write_text("precious")
        raise UserError("later")
    with pytest.raises(CellConflict), first.working():
        pass


def test_a_failure_is_recorded_with_its_reason(tmp_path: Path) -> None:
    broken = cell(tmp_path)
    with pytest.raises(RuntimeError), broken.working():
        raise RuntimeError("no such luck")
    assert broken.status["state"] == "failed" and "no such luck" in broken.status["reason"]
    with broken.working():
        pass
    assert broken.finished() and "reason" not in broken.status


def test_an_interrupted_cell_is_still_running(tmp_path: Path) -> None:
    stopped = cell(tmp_path)
    with pytest.raises(KeyboardInterrupt), stopped.working():
        raise KeyboardInterrupt
    assert stopped.status["state"] == "running"


def test_a_damaged_status_names_the_file_and_the_fix(tmp_path: Path) -> None:
    damaged = cell(tmp_path)
    damaged.folder.mkdir(parents=True)
    (damaged.folder / "status.json").write_text('{"state": "fin')
    with pytest.raises(UserError, match=r"status\.json.*delete it"):
        damaged.check()


def test_differences_are_dotted() -> None:
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4}) == [("a.c", 2, 3), ("d", None, 4)]


def test_the_record_is_json(tmp_path: Path) -> None:
    done = cell(tmp_path)
    with done.working():
        pass
    status = json.loads((done.folder / "status.json").read_text())
    assert {"state", "identity", "hash", "versions", "git", "wall_s"} <= set(status)
    assert (done.folder / "config.yaml").is_file()
