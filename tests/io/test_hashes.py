"""Hashes keep their values, because caches and recorded identities hold them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from posegen.io.hashes import content_hash, file_hash, hash_fraction, joint_hash, text_hash, value_hash


def test_values_are_those_of_recorded_identities(tmp_path: Path) -> None:
    assert (
        text_hash("pose", 64) == hashlib.sha256(b"pose").hexdigest() and text_hash("pose") == text_hash("pose", 64)[:16]
    )
    assert value_hash({"b": 1, "a": [None, 0.5]}) == value_hash({"a": [None, 0.5], "b": 1}) == "175110073d475956"
    assert hash_fraction("human_art/1") == pytest.approx(0.0832967, abs=1e-7)
    (tmp_path / "a").write_bytes(b"po"), (tmp_path / "b").write_bytes(b"se")
    assert file_hash(tmp_path / "a") == hashlib.sha256(b"po").hexdigest()
    assert (
        joint_hash([tmp_path / "a", None, "s", b"e"])
        == joint_hash([tmp_path / "a", tmp_path / "b"])
        == text_hash("pose")
    )


def test_the_content_of_a_folder_counts_with_its_names_and_without_its_card(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "a").write_bytes(b"one")
    before = content_hash(tmp_path / "weights")
    (tmp_path / "weights" / "card.json").write_text("{}")
    assert content_hash(tmp_path / "weights") == before
    (tmp_path / "weights" / "a").rename(tmp_path / "weights" / "b")
    assert content_hash(tmp_path / "weights") != before
