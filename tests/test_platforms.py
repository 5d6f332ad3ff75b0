"""Windows and macOS as far as Linux can show them: without the modules of Unix, and without HOME."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

#: What Windows lacks; the libraries are loaded before, since theirs are those of this system.
WITHOUT_UNIX = """
import os, sys
import torch, lightning.pytorch, diffusers, transformers, torch_geometric, wandb, matplotlib.pyplot, hydra, tqdm, filelock
import torchvision, timm, cleanfid.fid, optuna, gradio, torch.distributed.elastic.multiprocessing.api, sqlite3
for name in ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "readline"):
    sys.modules[name] = None
import signal
del signal.SIGHUP, signal.SIGQUIT, os.killpg, os.sync, os.sched_getaffinity
os.environ.pop("HOME", None)
"""


def without_unix(program: str, *words: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WITHOUT_UNIX + program, *words]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, env={**os.environ, **environment}, **streams)  # type: ignore[call-overload]


@pytest.mark.slow  # imports everything
def test_every_module_imports_and_lists_and_checks(tmp_path: Path) -> None:
    process = without_unix(
        """
import importlib, pkgutil, posegen
names = [m.name for m in pkgutil.walk_packages(posegen.__path__, "posegen.") if not m.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
from posegen.cli import main
from posegen.runner.progress import peak_memory_mb
from posegen.train.launch import signal_handlers_restored
assert len(names) > 200 and main(["list", "adapters"]) == main(["check", "train"]) == 0
with signal_handlers_restored():
    pass
""",
        USERPROFILE=str(tmp_path),
    )
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "stable_pose" in out


HOLDING = """
from pathlib import Path
from posegen.io import locks
assert locks.fcntl is None
with locks.locked(Path(sys.argv[1]), shared=sys.argv[2] == "shared"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_locks_without_fcntl_are_shared_or_waited_for_and_end_with_their_process(tmp_path: Path) -> None:
    program = "import sys; sys.modules['fcntl'] = None" + HOLDING

    def holding(kind: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", program, str(tmp_path / "a folder" / "lock"), kind]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    readers = [holding("shared"), holding("shared")]
    assert [process.stdout.readline() for process in readers] == ["held\n"] * 2  # type: ignore[union-attr]
    writer = holding("alone")
    assert writer.stdout.readline().startswith("waiting: another process works on")  # type: ignore[union-attr]
    readers[0].communicate("")
    time.sleep(0.3)
    assert writer.poll() is None
    readers[1].kill()
    assert writer.stdout.readline() == "held\n"  # type: ignore[union-attr]
    writer.communicate("")
    assert writer.returncode == 0
