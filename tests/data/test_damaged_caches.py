"""Every file that data sets keep to read them faster, damaged: it is named, written again, and the samples are the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from posegen.data.formats.human_art import HumanArt
from posegen.data.mannequin.cache import BrokenShard
from posegen.data.mannequin.dataset import MannequinData
from posegen.data.on_disk.indexed import RealData
from posegen.data.on_disk.tar_members import TarMembers
from posegen.io.arrays import read_arrays_or_none, write_arrays
from posegen.io.hashes import sha256_of
from tests.data.trees import human_art
from tests.harms import flipped, folder, truncated

Harm = Callable[[Path], object]


def rewritten(file: Path) -> None:
    """Other values in a file of the same kind."""
    with np.load(file) as stored:
        arrays = {name: stored[name] for name in stored.files}
    np.savez(file, **{name: array * 0 if array.dtype.kind in "if" else array for name, array in arrays.items()})


def a_list(file: Path) -> None:
    file.write_text("[1, 2]")


def other_words(file: Path) -> None:
    file.write_text(file.read_text().replace("1", "2"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tree of real images and their cache, checked once."""
    place = tmp_path_factory.mktemp("prepared")
    human_art(place / "HumanArt", scenarios=2, per_scenario=2, size=(72, 100))
    data_of(place).prepare()
    return place


def data_of(place: Path) -> RealData:
    return RealData(HumanArt(place / "HumanArt", "annotation"), "test", 64, cache=place / "cache")


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        *(("index.npz", harm) for harm in (truncated, flipped, folder, rewritten)),
        *(("condition.json", harm) for harm in (truncated, a_list, other_words, folder)),
        *(("looks.jsonl", harm) for harm in (truncated, flipped, other_words, folder)),
    ],
)
def test_a_damaged_file_of_prepared_data_is_written_again(
    prepared: Path, name: str, harm: Harm, capsys: pytest.CaptureFixture[str]
) -> None:
    before = data_of(prepared)
    samples, identity = list(before), before.identity
    harm(before.folder / name)
    (before.folder / "condition.json").touch()
    again = data_of(prepared)
    again.prepare()
    assert again.identity == identity
    for one, other in zip(samples, again, strict=True):
        assert one.id == other.id and one.prompt == other.prompt
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.keypoints, other.keypoints)
    if name == "index.npz":
        assert "index.npz is damaged" in capsys.readouterr().out or harm is folder


def test_prepared_data_is_read_where_nothing_may_be_written(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_of(prepared).prepare()
    monkeypatch.setattr("posegen.data.on_disk.indexed.locked", lambda *_: pytest.fail("a lock is a file"))
    assert len(list(data_of(prepared))) == len(data_of(prepared))


@pytest.mark.parametrize("harm", [truncated, flipped, folder, rewritten])
def test_a_damaged_index_of_a_tar_is_written_again(prepared: Path, tmp_path: Path, harm: Harm) -> None:
    tar = Path(shutil.make_archive(str(tmp_path / "images"), "tar", prepared / "HumanArt" / "annotations"))
    members = TarMembers.of(tar)
    harm(tmp_path / "images.tar.index.npz")
    again = TarMembers.of(tar)
    assert dict(again) == dict(members) and again.problem == members.problem


def test_arrays_are_those_of_their_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        write_arrays(tmp_path / f"{name}.npz", values=[1, 2])
    assert read_arrays_or_none(tmp_path / "a.npz")["values"].tolist() == [1, 2]  # type: ignore[index]
    shutil.copy(tmp_path / "b.npz", tmp_path / "a.npz")
    assert read_arrays_or_none(tmp_path / "a.npz") is None and "a.npz is damaged" in capsys.readouterr().out
    assert read_arrays_or_none(tmp_path / "absent.npz") is None and not capsys.readouterr().out
    monkeypatch.setattr("posegen.io.arrays.SMALL", 1 << 20)
    write_arrays(tmp_path / "bomb.npz", values=np.zeros(1 << 22, np.uint8))
    assert (tmp_path / "bomb.npz").stat().st_size < 1 << 15
    assert read_arrays_or_none(tmp_path / "bomb.npz") is None, "more than it may unpack to"


@pytest.mark.parametrize("content", ["[]", '{"files": [], "checksum": ""}', "{", "null", None])
def test_hashes_that_are_kept_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "weights").write_text("weights")
    expected = sha256_of([tmp_path / "weights"])
    kept = tmp_path / "cache" / "posegen" / "sha256.json"
    known = json.loads(kept.read_text())
    known["files"] = dict.fromkeys(known["files"], "0" * 64)
    kept.write_text(json.dumps(known) if content is None else content)
    assert sha256_of([tmp_path / "weights"]) == expected
    assert list(json.loads(kept.read_text())["files"].values()) != ["0" * 64]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("world")
    for split in ("test", "validation"):
        MannequinData(split, 2, cache=cache, workers=1).prepare()
    return cache


@pytest.mark.parametrize("harm", [a_list, truncated, folder, flipped])
@pytest.mark.parametrize("name", ["shard.json", "keypoints.npy", "captions.jsonl"])
def test_a_damaged_shard_is_noticed_however_it_is_opened(world: Path, tmp_path: Path, name: str, harm: Harm) -> None:
    shutil.copytree(world, tmp_path / "cache")
    data = MannequinData("test", 2, cache=tmp_path / "cache", workers=1)
    expected = data[1]
    harm(data.cache.folder / "00000-0002" / name)
    with pytest.raises(ValueError, match="00000-0002.*run again"):
        MannequinData("test", 2, cache=tmp_path / "cache", workers=1)[1]
    with pytest.warns(UserWarning, match="rendered again"):
        data.prepare()
    np.testing.assert_array_equal(data[1].image, expected.image)
    assert data[1].prompt == expected.prompt


def test_a_shard_of_another_split_and_a_file_in_its_place_are_noticed(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world, tmp_path / "cache")
    data = MannequinData("test", 2, cache=tmp_path / "cache", workers=1)
    shard = data.cache.folder / "00000-0002"
    expected = data[1].prompt
    shutil.rmtree(shard)
    shutil.copytree(shard.parents[1] / "validation" / shard.name, shard)
    with pytest.raises(BrokenShard, match=r"is a copy of .*/validation/00000-0002: delete this folder"):
        MannequinData("test", 2, cache=tmp_path / "cache", workers=1)[1]
    shutil.rmtree(shard)
    shard.write_text("a file")
    with pytest.warns(UserWarning, match="rendered again"):
        data.prepare()
    assert data[1].prompt == expected
    assert [path.name for path in shard.parent.iterdir()] == [shard.name]
