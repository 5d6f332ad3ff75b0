"""A benchmark that the page starts when nothing is trained yet: a process of its own, watched through its cells' files and ended with its children."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from posegen.io.atomic import read_json
from posegen.report.live_progress import cell_progress, progress_text

LINES = 6  # of its output that a failure shows
PATIENCE = 10.0  # seconds that it has to end by itself


@dataclass(frozen=True)
class Report:
    """How far it is.

    Attributes:
        share: done, from 0 to 1; a cell counts by its stages.
        text: what is going on.
        state: ``running``, ``finished``, ``failed`` or ``stopped``.
    """

    share: float
    text: str
    state: str


class Practice:
    """``posegen benchmark`` with the given words.

    Args:
        words: what stands behind the verb.
    """

    def __init__(self, words: Sequence[str]) -> None:
        cfg = Command.read("benchmark", list(words)).base()
        self.folder = Path(cfg.paths.output) / cfg.study
        self.words, self.started, self.stopped = list(words), time.time(), False
        self.log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (open as long as the process is)
        command = [sys.executable, "-m", "posegen.cli", "benchmark", *words]
        # a session of its own, so that its workers end with it and an interrupt of the page's terminal reaches it only through `stop`
        self.process = subprocess.Popen(
            command, stdout=self.log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True
        )
        atexit.register(self.stop)

    def report(self) -> Report:
        code = self.process.poll()
        if self.stopped:
            return Report(0.0, "stopped; the same button continues where it was", "stopped")
        if code is not None:
            return Report(1.0, "finished", "finished") if code == 0 else Report(1.0, self.tail(), "failed")
        return self.running()

    def running(self) -> Report:
        """From the cells' own files, as the command line shows it."""
        plan = self.folder / "cells.json"
        if not plan.is_file() or plan.stat().st_mtime < self.started:
            return Report(0.0, "rendering the world", "running")
        shares, texts = [], []
        for entry in read_json(plan)["cells"]:
            state, facts = cell_progress(self.folder / entry["folder"], self.started)
            stages = {"train": 0.0, "sample": 0.7, "judge": 0.85}
            inside = stages.get(facts.get("stage", ""), 0.0) + 0.15 * facts.get("done", 0) / max(
                1, facts.get("total", 1)
            )
            shares.append(1.0 if state in ("finished", "failed") else min(inside, 1.0) if state == "running" else 0.0)
            if state == "running":
                texts.append(f"{entry['method']}: {progress_text(state, facts)}")
        done = sum(share == 1.0 for share in shares)
        return Report(
            sum(shares) / max(1, len(shares)),
            f"{done} of {len(shares)} rows are done" + "".join(f"; {text}" for text in texts[:2]),
            "running",
        )

    def tail(self) -> str:
        """The end of what it said."""
        self.log.seek(0)
        return "\n".join(self.log.read().replace("\r", "\n").strip().splitlines()[-LINES:])

    def stop(self) -> None:
        """Ends it with its workers; finished cells stay, and the same words continue."""
        atexit.unregister(self.stop)
        if self.process.poll() is not None:
            return
        self.stopped = True
        for number, wait in ((signal.SIGINT, PATIENCE), (signal.SIGKILL, PATIENCE)):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(wait)
                return
            except ProcessLookupError:
                return
            except subprocess.TimeoutExpired:
                continue
