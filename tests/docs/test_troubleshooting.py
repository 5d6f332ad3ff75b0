"""The page of error messages holds what the program prints: each command is run, and what it prints is compared."""

from __future__ import annotations

import json
import os
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from posegen.cli import main
from tests.docs.blocks import blocks

PAGE = "troubleshooting.md"
CASES = [
    (first.text.strip(), second.text.strip())
    for first, second in pairwise(blocks(PAGE))
    if (first.language, second.language) == ("bash", "text")
]


class Malicious:
    def __reduce__(self) -> tuple:
        return os.system, ("touch executed",)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the page's commands are typed in."""
    monkeypatch.chdir(tmp_path)
    for name in ("somewhere", "pictures"):
        (tmp_path / name).mkdir()
    (tmp_path / "pose.json").write_text("[]")
    (tmp_path / "prompts.csv").write_text("id,prompt\ndancer,a dancer\nboxer,a boxer\ndancer,another dancer\n")
    torch.save({"state_dict": {"x": torch.zeros(1)}, "callbacks": Malicious()}, tmp_path / "malicious.pth")
    return tmp_path


def changed_cell(words: list[str], folder: Path) -> None:
    """A finished cell where the command writes, as an earlier version of some yaml made it."""
    assert main(words) == 0
    (status,) = folder.rglob("status.json")
    record = json.loads(status.read_text())
    record["identity"]["trainer"]["steps"] = 99
    status.write_text(json.dumps({**record, "hash": "another"}))


@pytest.mark.parametrize(("command", "message"), CASES, ids=[command for command, _ in CASES])
def test_the_page_holds_what_the_program_prints(
    command: str, message: str, folder: Path, world: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(command)[1:]
    if "study=changed" in words:
        words += world
        changed_cell(words, folder)
    capsys.readouterr()
    assert main(words) != 0
    printed = capsys.readouterr().err
    pattern = re.escape(message).replace(re.escape("..."), ".*?").replace("\\\n", "\n")
    assert re.search(pattern, printed, re.DOTALL), printed
    assert "Traceback" not in printed
    assert not (folder / "executed").exists()


def test_the_page_has_many_cases() -> None:
    assert len(CASES) > 20
