"""Tab in the real shells, in a pseudo-terminal: what is on the line then is what the program gets."""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

pty = pytest.importorskip("pty", reason="no pseudo-terminals here")

#: Shell -> the words that start it, with a start file.
STARTS = {"bash": ["--noprofile", "--rcfile", "start", "-i"], "zsh": ["-i"], "fish": ["-C", "source start"]}
#: Runs the program for questions of the completion, and keeps the words of any other call.
PROGRAM = """#!/bin/sh
if [ "$1" = -sc ]; then {python} -m posegen "$@"; code=$?; echo >> asked; exit $code; fi
if [ "$1" = completion ]; then exec {python} -m posegen "$@"; fi
printf '%s\\0' "$@" > words.part; mv words.part words
"""


class Terminal:
    """A shell in a pseudo-terminal, with the lines for its start file from ``posegen completion``."""

    def __init__(self, shell: str, folder: Path) -> None:
        self.folder, self.shown = folder, b""
        (folder / "bin").mkdir()
        program = folder / "bin" / "posegen"
        program.write_text(PROGRAM.format(python=sys.executable))
        program.chmod(0o755)
        line = "posegen completion fish | source" if shell == "fish" else f'eval "$(posegen completion {shell})"'
        for name in ("start", ".zshrc"):
            (folder / name).write_text(f"{line}\nprintf 'rea%s\\n' dy\n")
        path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        places = {"HOME": str(folder), "ZDOTDIR": str(folder), "XDG_CONFIG_HOME": str(folder / ".config")}
        environment = {**os.environ, **places, "PATH": path, "TERM": "xterm", "LC_ALL": "C.UTF-8"}
        self.process, self.end = pty.fork()
        if self.process == 0:
            os.chdir(folder)
            os.execve(str(shutil.which(shell)), [shell, *STARTS[shell]], environment)
        self.wait_for(lambda: b"ready" in self.shown)
        self.rest(0.5)

    def rest(self, seconds: float) -> None:
        """Reads what is shown for a while."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([self.end], [], [], left)[0]:
                self.shown += os.read(self.end, 65536)

    def wait_for(self, happened: object, seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while not happened():  # type: ignore[operator]
            assert time.monotonic() < end, self.shown.decode(errors="replace")
            self.rest(0.05)

    def asked(self) -> int:
        file = self.folder / "asked"
        return len(file.read_text()) if file.is_file() else 0

    def typed(self, *parts: str) -> list[str]:
        """The words that the program gets for a line that is typed in parts, with Tab behind each but the last."""
        for part in parts[:-1]:
            before = self.asked()
            os.write(self.end, f"{part}\t".encode())
            self.wait_for(lambda before=before: self.asked() > before)
            self.rest(0.3)
        os.write(self.end, f"{parts[-1]}\r".encode())
        words = self.folder / "words"
        self.wait_for(words.is_file)
        found = words.read_bytes().split(b"\0")[:-1]
        words.unlink()
        self.rest(0.3)
        return [os.fsdecode(word) for word in found]

    def close(self) -> None:
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        os.close(self.end)


@pytest.mark.slow  # half a second for each Tab
@pytest.mark.parametrize("shell", STARTS)
def test_tab_completes_in_a_real_shell(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed; Debian's package of the same name brings it")
    for folder, name in (("my folder", "pose (1).json"), ("it's", "a.json")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).touch()
    terminal = Terminal(shell, tmp_path)
    try:
        assert terminal.typed("posegen sam", "adapter=humans", "") == ["sample", "adapter=humansd"]
        assert terminal.typed("posegen train trainer=smo", " progress=n", "") == [
            "train",
            "trainer=smoke",
            "progress=none",
        ]
        assert terminal.typed("posegen train optim.bat", "8") == ["train", "optim.batch=8"]
        files = terminal.typed("posegen sample poses=my", "po", " seed=1")
        assert files == ["sample", "poses=my folder/pose (1).json", "seed=1"]
        assert terminal.typed("posegen sample prompts=it", "a", "") == ["sample", "prompts=it's/a.json"]
        assert terminal.typed("posegen report my", "") == ["report", "my folder/"]
        assert terminal.typed('posegen sample source="my f', "po", " seed=1")[1] == "source=my folder/pose (1).json"
        assert terminal.typed("echo x; posegen train -m adapter=controlnet,humans", "") == [
            "train",
            "-m",
            "adapter=controlnet,humansd",
        ]
        terminal.shown = b""
        again = [""] if shell == "bash" else []  # it lists at the second Tab
        chosen = terminal.typed("posegen train trainer.precision=", *again, "3", "")
        assert chosen == ["train", "trainer.precision=32-true"]
        assert b"16-mixed" in terminal.shown, "the choices are listed"
    finally:
        terminal.close()
