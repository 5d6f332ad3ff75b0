"""Files are whole or absent, and one process at a time holds a lock."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from posegen.errors import UserError
from posegen.io.atomic import FOREIGN_S, machine, read_json, read_json_or_empty, replacing, write_json
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


def left_by(folder: Path, pid: int, where: str, age: float = 0.0) -> Path:
    file = folder / f".model.safetensors.{pid}{where}.tmp"
    file.write_text("weights")
    os.utime(file, (time.time() - age, time.time() - age))
    return file


def test_leftovers_of_dead_processes_are_removed_and_no_others(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        dead = ended.pid
    here, other = f".{machine()}", ".0a1b2c3d"
    gone = [left_by(tmp_path, dead, here), left_by(tmp_path, dead, other, 2 * FOREIGN_S)]
    gone += [left_by(tmp_path, os.getppid(), "", 2 * FOREIGN_S)]  # of an older version, which named no machine
    stay = [left_by(tmp_path, os.getppid(), here, 2 * FOREIGN_S), left_by(tmp_path, dead + 1, other)]
    stay += [left_by(tmp_path, dead + 1, "")]
    (folder := tmp_path / f".method.{dead}{here}.tmp").mkdir()
    (folder / "adapter.safetensors").touch()
    write_json(tmp_path / "a.json", 1)
    assert not any(map(Path.exists, [*gone, folder])) and all(map(Path.exists, stay))


def test_a_killed_process_leaves_nothing_after_the_next_write(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from posegen.io.atomic import replacing\n"
        "with replacing(Path(sys.argv[1])) as part: part.write_text('x'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "big.bin")], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    write_json(tmp_path / "status.json", {})
    assert [file.name for file in tmp_path.iterdir()] == ["status.json"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full. Free space there and run the same"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "your quota of the disk is used up"),
        (OSError(errno.EROFS, "Read-only file system"), "is read-only. Run chmod"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "the disk is full"),  # safetensors
    ],
)
def test_a_disk_that_takes_nothing_is_named_with_the_way_out(tmp_path: Path, error: Exception, message: str) -> None:
    with pytest.raises(UserError, match=message) as told, replacing(tmp_path / "a.json"):
        raise error
    assert str(told.value).startswith(f"{tmp_path / 'a.json'} cannot be written") and "paths.output=" in str(told.value)
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "a.json"):
        (tmp_path / "other").read_bytes()  # not an error of writing


def test_a_folder_that_may_not_be_written_is_named_with_chmod_which_works(tmp_path: Path) -> None:
    (folder := tmp_path / "results").mkdir(mode=0o555)
    if os.access(folder, os.W_OK):
        pytest.skip("this user may write everywhere")
    with pytest.raises(UserError, match=rf"Run chmod u\+rwx {folder}"):
        write_json(folder / "cell" / "a.json", 1)
    folder.chmod(0o755)
    write_json(folder / "cell" / "a.json", 1)


def test_a_file_in_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "results").touch()
    with pytest.raises(UserError, match=rf"{tmp_path / 'results'} is no folder. Move it away"):
        write_json(tmp_path / "results" / "cell" / "a.json", 1)
    (tmp_path / "results").unlink()
    write_json(tmp_path / "results" / "cell" / "a.json", 1)
    with pytest.raises(UserError, match="its name is too long. Shorten study="):
        write_json(tmp_path / ("a" * 300) / "a.json", 1)
