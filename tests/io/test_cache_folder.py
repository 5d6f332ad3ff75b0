"""Caches lie where a variable says, with and without HOME."""

from __future__ import annotations

from pathlib import Path

import pytest

from posegen.cli import main
from posegen.config.app import Command
from posegen.io.cache_folder import cache_folder
from posegen.io.hashes import sha256_of

NAMES = ("POSEGEN_CACHE", "XDG_CACHE_HOME", "HOME")


def set_only(patch: pytest.MonkeyPatch, **variables: str) -> None:
    for name in NAMES:
        patch.delenv(name, raising=False)
    for name, value in variables.items():
        patch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({"POSEGEN_CACHE": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/posegen"),
        ({"POSEGEN_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "/c"}, "/c/.cache/posegen"),
        ({"POSEGEN_CACHE": "/a"}, "/a"),
        ({"XDG_CACHE_HOME": "b"}, "b/posegen"),
    ],
)
def test_the_first_variable_that_is_set_counts(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], place: str
) -> None:
    set_only(monkeypatch, **variables)
    assert cache_folder() == Path(place)
    assert Command.read("train", []).base().paths.cache == place


def test_without_any_one_line_names_what_to_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_only(monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "trainer=smoke"]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "POSEGEN_CACHE=FOLDER or XDG_CACHE_HOME=FOLDER" in told
    (tmp_path / "weights").write_bytes(b"one")
    assert len(sha256_of([tmp_path / "weights"])) == 64, "nothing is kept, and the hash is the same"
