"""Files are whole or absent, and one process at a time holds a lock."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from posegen.errors import UserError
from posegen.io.atomic import read_json, read_json_or_empty, replacing, write_json
from posegen.io.locks import locked


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "a.json") as temporary:
        temporary.write_text("{")
        raise KeyboardInterrupt
    assert read_json(tmp_path / "a.json") == {"a": 1} and [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_replaces_a_folder(tmp_path: Path) -> None:
    for name in ("old", "new"):
        with replacing(tmp_path / "folder") as temporary:
            temporary.mkdir()
            (temporary / name).touch()
    assert [file.name for file in (tmp_path / "folder").iterdir()] == ["new"]


def test_damaged_json_is_named_with_its_fix(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    assert read_json_or_empty(tmp_path / "a.json") == {} == read_json_or_empty(tmp_path / "absent.json")
    with pytest.raises(UserError, match=r"a\.json is not a readable json file .*; get it again"):
        read_json(tmp_path / "a.json", "get it again")
    with pytest.raises(UserError, match=r"absent\.json is not a readable json file"):
        read_json(tmp_path / "absent.json")


def test_a_lock_is_waited_for_and_ends_with_its_process(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from posegen.io.locks import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as waiting:
            assert waiting.stdout is not None and "waiting: another process works on" in waiting.stdout.readline()
            holder.kill()
            assert waiting.stdout.readline() == "held\n"
            waiting.kill()
    with locked(tmp_path / "lock"):
        pass
