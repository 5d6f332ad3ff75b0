"""LAION-Human: unpacked and in tars, whatever its keys and paths look like; what is missing is counted and named."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from posegen.data.condition import Defect
from posegen.data.formats.laion_human import LaionHuman, LaionRow, PathRule, chosen_shards, held_out, laion_key
from posegen.data.on_disk.indexed import RealData
from posegen.data.on_disk.source import StoredImage
from tests.data.laion_tree import KEYS, in_tars, jpeg, members_of, parquet, people, tar_of, unpacked

MAPPED = {"train": "mapping_file_training.json"}


def listed(source: LaionHuman, split: str = "train") -> tuple[dict[int, StoredImage], list[Defect]]:
    """Entries by key, and defects."""
    defects: list[Defect] = []
    return {
        int(entry.id.removeprefix("laion_human/")): entry for entry in source.entries(split, defects.append)
    }, defects


def whole(root: Path, **options: Any) -> LaionHuman:
    """All pictures are in the training split."""
    return LaionHuman(root, **{"mapping": MAPPED, **options})


# What it is made of.


@pytest.mark.parametrize("storage", ["files", "tar"])
def test_every_picture_is_listed_with_its_prompt_and_poses(tmp_path: Path, storage: str) -> None:
    root = unpacked(tmp_path) if storage == "files" else in_tars(tmp_path)
    entries, defects = listed(whole(root, storage=storage))
    assert sorted(entries) == sorted(KEYS) and not defects
    for key, entry in entries.items():
        assert entry.prompt == f"prompt of {key}" and entry.attributes["shard"] == key // 10_000
        np.testing.assert_array_equal(entry.keypoints[0], people(key)[0]["keypoints"])
        assert entry.areas is not None and entry.areas.tolist() == [900 + key]
        content = (root / entry.place.file).read_bytes()
        assert content[entry.place.offset :][: entry.place.length or None] == jpeg(key)


@pytest.mark.parametrize("storage", ["files", "tar"])
def test_samples_are_the_same_in_either_storage(tmp_path: Path, storage: str) -> None:
    root = unpacked(tmp_path) if storage == "files" else in_tars(tmp_path)
    data = RealData(whole(root, storage=storage), "train", 32, cache=tmp_path / "cache", workers=1)
    data.prepare()
    assert len(data) == len(KEYS)
    for sample in (data[i] for i in range(len(data))):
        key = int(sample.id.removeprefix("laion_human/"))
        assert (
            sample.image is not None
            and sample.image.shape == (32, 32, 3)
            and abs(float(sample.image.mean()) - key % 256) < 3
        )
        assert sample.prompt == f"prompt of {key}" and len(sample.keypoints) == 1


def test_splits_follow_the_rule_and_are_disjoint(tmp_path: Path) -> None:
    source = LaionHuman(unpacked(tmp_path), holdout=3)
    parts = {split: set(listed(source, split)[0]) for split in ("train", "validation", "test")}
    assert parts["train"] | parts["validation"] == set(KEYS) and not parts["train"] & parts["validation"]
    assert parts["test"] == parts["validation"] == {key for key in KEYS if held_out(f"{key:09d}", 3)} != set()
    assert source.identity("validation")["validation"] == "sha1(key) mod 3 == 0"
    with pytest.raises(FileNotFoundError, match="no split best; it has train, validation, test"):
        listed(source, "best")


def test_the_rule_is_that_of_the_nine_digits() -> None:
    """The hashes are what `sha1sum` says; of c047...8cde, as a number, the remainder by 50 is 0."""
    assert [key for key in range(100) if held_out(f"{key:09d}", 50)] == [62, 79, 80]
    assert int("c047c841fdb1e6219f7f20774a294ae3378b8cde", 16) % 50 == 0


def test_keys_however_they_are_written() -> None:
    assert (
        laion_key("338717")
        == laion_key(338717)
        == laion_key("000338717")
        == laion_key("00033_000338717")
        == "000338717"
    )
    assert LaionRow("000338717").shard == 33
    assert laion_key("2000000001648") is None and laion_key("a_1") is None and laion_key("") is None


def test_shards_are_chosen(tmp_path: Path) -> None:
    root = unpacked(tmp_path)
    assert {key // 10_000 for key in listed(whole(root, shards="30-40"))[0]} == {33}
    assert (
        chosen_shards("0-3,7") == {0, 1, 2, 3, 7}
        and chosen_shards(7) == chosen_shards([7]) == {7}
        and chosen_shards(None) is None
    )
    with pytest.raises(ValueError, match=r"data\.shards=a-b: expected numbers and ranges such as 0-79"):
        whole(root, shards="a-b")


# Paths.


@pytest.mark.parametrize("prefix", ["Aesthetics_Human/", "LAION-Human/Aesthetics_Human/", "/LaionAesthetics/", ""])
def test_paths_of_all_known_copies_lead_to_the_files(tmp_path: Path, prefix: str) -> None:
    assert sorted(listed(whole(unpacked(tmp_path, prefix=prefix)))[0]) == sorted(KEYS)


def test_other_paths_can_be_adapted(tmp_path: Path) -> None:
    assert (
        PathRule("old/", "new/").below_root("/old/a.jpg") == "new/a.jpg"
        and PathRule(add="new/").below_root("x/images/a.jpg") == "new/images/a.jpg"
    )
    (tmp_path / "moved").mkdir()
    root = unpacked(tmp_path / "moved")
    (root / "mapping_file_training.json").rename(tmp_path / "mapping_file_training.json")
    assert len(listed(whole(tmp_path, add_prefix="moved/"))[0]) == len(KEYS)
    with pytest.raises(ValueError, match=r"there is no folder images in it; did you mean .*moved"):
        whole(tmp_path)


def test_paths_that_lead_nowhere_are_found_out_before_a_million_are_read(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"of 12 random entries none has its file of poses, .*npz; unpack .*data\.shards.*data\.strip_prefix",
    ):
        listed(whole(unpacked(tmp_path), strip_prefix="wrong/"))


# What is missing or damaged.


@pytest.mark.parametrize("storage", ["files", "tar"])
def test_dead_links_are_counted_and_named(tmp_path: Path, storage: str) -> None:
    missing = KEYS[1], KEYS[8]
    root = unpacked(tmp_path, missing) if storage == "files" else in_tars(tmp_path, missing)
    entries, defects = listed(whole(root, storage=storage))
    assert set(entries) == set(KEYS) - set(missing)
    assert Counter(defect.problem for defect in defects) == {"missing (dead link, or not fetched)": 2}
    assert all(any(f"{key:09d}" in defect.file for defect in defects) for key in missing)


def test_pictures_that_appear_later_are_found(tmp_path: Path) -> None:
    data = RealData(whole(unpacked(tmp_path, KEYS[:2])), "train", 32, cache=tmp_path / "cache", workers=1)
    data.prepare()
    assert len(data) == len(KEYS) - 2
    unpacked(tmp_path, KEYS[:1])
    again = RealData(whole(tmp_path), "train", 32, cache=tmp_path / "cache", workers=1)
    again.prepare()
    assert len(again) == len(KEYS) - 1


def test_poses_that_are_missing_or_damaged_are_named(tmp_path: Path) -> None:
    root = unpacked(tmp_path)
    (root / "pose/00033/000330000.npz").unlink()
    (root / "pose/00033/000330001.npz").write_bytes(b"PK no zip")
    np.savez(root / "pose/00033/000330002.npz", np.zeros(0, object))  # nobody was found, which happens
    entries, defects = listed(whole(root))
    assert (
        sorted(d.file for d in defects) == ["pose/00033/000330000.npz", "pose/00033/000330001.npz"]
        and len(entries) == len(KEYS) - 2
    )
    assert defects[0].problem == "missing" and defects[1].problem.startswith("cannot be read")
    assert entries[330002].keypoints.shape == (0, 17, 3)


def test_entries_of_the_mapping_that_are_something_else_are_named(tmp_path: Path) -> None:
    root = unpacked(tmp_path)
    file = root / "mapping_file_training.json"
    mapping = json.loads(file.read_text())
    file.write_text(
        json.dumps(mapping | {"2000000001648": mapping["00000_000000000"], "00000_000000001": {"prompt": "a"}})
    )
    entries, defects = listed(whole(root))
    assert len(entries) == len(KEYS) - 1
    assert {d.file.partition(": ")[2] for d in defects} == {"2000000001648", "00000_000000001"}


def test_a_missing_or_damaged_mapping_is_named(tmp_path: Path) -> None:
    root = unpacked(tmp_path)
    (root / "mapping_file_training.json").write_text("[")
    with pytest.raises(ValueError, match=r"mapping_file_training\.json is not a readable json file"):
        listed(LaionHuman(root))
    (root / "mapping_file_training.json").unlink()
    with pytest.raises(
        FileNotFoundError,
        match=r"has no mapping_file_training\.json or .*hand out.*data\.mapping=FILE; data\.storage=tar can do without",
    ):
        listed(LaionHuman(root))
    with pytest.raises(FileNotFoundError, match=r"data\.mapping has no list for validation; it has train"):
        listed(whole(root), "validation")


# Tars.


@pytest.mark.parametrize("prompts", ["txt", "json", "none"])
def test_tars_can_do_without_a_mapping(tmp_path: Path, prompts: str) -> None:
    root = in_tars(tmp_path, prompts=prompts)
    (root / "mapping_file_training.json").unlink()
    entries, defects = listed(LaionHuman(root, "tar", holdout=10**9))
    if prompts == "none":
        assert not entries and Counter(d.problem for d in defects) == {
            "no prompt: neither a mapping nor a .txt or .json beside it in the tar": 12
        }
    else:
        assert sorted(entries) == sorted(KEYS) and entries[KEYS[3]].prompt == f"prompt of {KEYS[3]}" and not defects


@pytest.mark.parametrize("kind", [int, lambda key: f"{key:09d}"])
def test_tables_bring_addresses_and_what_was_not_fetched(tmp_path: Path, kind: Any) -> None:
    root = in_tars(tmp_path, missing=[KEYS[2]])
    (root / "mapping_file_training.json").unlink()
    parquet(root / "images/00000.parquet", [kind(key) for key in KEYS[:6]])
    entries, defects = listed(LaionHuman(root, "tar", holdout=10**9))
    assert sorted(entries) == sorted(set(KEYS) - {KEYS[2]})
    assert [d.file for d in defects] == [f"images/00000.tar: {KEYS[2]:09d}"]
    assert (
        entries[KEYS[1]].attributes["url"] == f"https://example.org/{KEYS[1]}"
        and "url" not in entries[KEYS[7]].attributes
    )


def test_a_damaged_table_costs_the_addresses_only(tmp_path: Path) -> None:
    root = in_tars(tmp_path)
    (root / "images/00000.parquet").write_bytes(b"no table")
    entries, defects = listed(whole(root, storage="tar"))
    assert len(entries) == len(KEYS)
    assert [(d.file, d.fatal) for d in defects] == [
        ("images/00000.parquet", False)
    ] and "expected the columns key and url" in defects[0].problem


def test_a_table_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = in_tars(tmp_path)
    parquet(root / "images/00000.parquet", KEYS[:6])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        ImportError, match=r"00000\.parquet can only be read with pyarrow: pip install 'posegen\[data\]'"
    ):
        listed(whole(root, storage="tar"))


def test_truncated_and_compressed_tars_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    root = in_tars(tmp_path)
    (root / "images/00000.tar").write_bytes((root / "images/00000.tar").read_bytes()[:5000])
    tar_of(root / "images/00033.tar", members_of(KEYS[6:]), "w:gz")
    entries, defects = listed(whole(root, storage="tar"))
    about = {d.file: d.problem for d in defects}
    assert about["images/00000.tar"].startswith("truncated or damaged") and "gunzip" in about["images/00033.tar"]
    assert 0 < len(entries) < 6 and max(entries) < 6
    assert sum("dead link" in d.problem for d in defects) == 6 - len(
        entries
    )  # the compressed tar is one defect, not six


def test_tars_that_are_missing_or_carry_another_name_are_named(tmp_path: Path) -> None:
    root = in_tars(tmp_path)
    (root / "images/00033.tar").rename(root / "images/00033.tar.gz")
    _, defects = listed(whole(root, storage="tar"))
    assert {d.file: d.problem for d in defects} == {
        "images/00033.tar.gz": "compressed; uncompress it once to a plain .tar",
        "images/00033.tar": "missing; 6 pictures of train are in it",
    }
    for file in (root / "images").glob("*.tar*"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"images has no tars such as 00000\.tar; .*data\.storage=files"):
        listed(whole(root, storage="tar"))


# What is left out.


def test_pictures_are_left_out_by_a_list_or_a_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = unpacked(tmp_path)
    (root / "unsafe.txt").write_text(f"# keys\n{KEYS[0]}\n\n{KEYS[7]:09d}\n")
    (tmp_path / "own_filter.py").write_text("def unsafe(key, prompt):\n    return prompt.endswith(' 3')\n")
    monkeypatch.syspath_prepend(tmp_path)
    identities = set()
    for exclude, left_out in (
        (None, set()),
        ("unsafe.txt", {KEYS[0], KEYS[7]}),
        ("own_filter:unsafe", {3}),
        (lambda key, prompt: int(key) > 6, set(KEYS[6:])),
    ):
        source = whole(root, exclude=exclude)
        entries, defects = listed(source)
        assert set(entries) == set(KEYS) - left_out
        assert [d.problem for d in defects] == ["left out by data.exclude"] * len(left_out)
        identities.add(json.dumps(source.identity("train")))
    assert len(identities) == 4
    with pytest.raises(
        ValueError, match=r"data\.exclude=none\.txt: there is no .*; expected a file with a key per line"
    ):
        listed(whole(root, exclude="none.txt"))
    with pytest.raises(ValueError, match=r"data\.exclude=own_filter:safe: .*expected module:function"):
        whole(root, exclude="own_filter:safe")
    (root / "unsafe.txt").write_text("badword\n")
    with pytest.raises(ValueError, match=r"unsafe\.txt: 'badword' is no key"):
        listed(whole(root, exclude="unsafe.txt"))


def test_the_identity_tells_lists_and_options_apart(tmp_path: Path) -> None:
    root = in_tars(tmp_path)
    identities = [
        whole(root, storage="tar", **options).identity("train")
        for options in ({}, {"shards": "0"}, {"strip_prefix": "a/"})
    ]
    tar_of(root / "images/00034.tar", members_of([340_000]))
    identities += [whole(root, storage="tar").identity("train"), LaionHuman(root).identity("train")]
    assert len({json.dumps(identity) for identity in identities}) == 5
