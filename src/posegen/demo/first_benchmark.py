"""A benchmark that the page starts where nothing is trained yet: a process that is watched through its cells' files."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posegen.config.app import Command
from posegen.errors import UserError
from posegen.report.live_progress import cell_progress, progress_text
from posegen.report.study import benchmark_plan


@dataclass(frozen=True)
class BenchmarkProgress:
    share: float  # of the work that is done, from 0 to 1; a cell counts by its stages
    text: str  # for the user
    state: str  # ``running``, ``finished``, ``failed`` or ``stopped``


class FirstBenchmark:
    """``posegen benchmark`` with the given words behind the verb."""

    def __init__(self, words: Sequence[str]) -> None:
        cfg = Command.read("benchmark", list(words)).base()
        self.folder = Path(cfg.paths.output) / cfg.study
        self.started, self.stopped = time.time(), False
        self.log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  # open as it runs
        command = [sys.executable, "-m", "posegen", "benchmark", *words]
        streams: dict[str, Any] = {"stdout": self.log, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
        # a new session: its workers end with it, and an interrupt of the page's terminal reaches it only through `stop`
        self.process = subprocess.Popen(command, **streams, start_new_session=True)
        atexit.register(self.stop)

    def report(self) -> BenchmarkProgress:
        code = self.process.poll()
        if self.stopped:
            return BenchmarkProgress(0.0, "stopped; the same button continues where it was", "stopped")
        if code is None:
            return self.running()
        if code == 0:
            return BenchmarkProgress(1.0, "finished", "finished")
        self.log.seek(0)
        lines = self.log.read().replace("\r", "\n").strip().splitlines()
        return BenchmarkProgress(1.0, "\n".join(lines[-6:]), "failed")

    def running(self) -> BenchmarkProgress:
        """From the cells' files, as the command line shows it."""
        plan = self.folder / "cells.json"
        if not plan.is_file() or plan.stat().st_mtime < self.started:
            return BenchmarkProgress(0.0, "rendering the world", "running")
        shares, texts = [], []
        for entry in benchmark_plan(self.folder)["cells"]:
            try:
                state, facts = cell_progress(self.folder / entry["folder"], self.started)
            except UserError:
                state, facts = "failed", {}
            inside = {"sample": 0.7, "judge": 0.85}.get(facts.get("stage", ""), 0.0)
            inside += 0.15 * facts.get("done", 0) / max(1, facts.get("total", 1))
            shares.append(1.0 if state in ("finished", "failed") else min(inside, 1.0) if state == "running" else 0.0)
            if state == "running":
                texts.append(f"{entry['method']}: {progress_text(state, facts)}")
        text = "; ".join([f"{sum(share == 1.0 for share in shares)} of {len(shares)} rows are done", *texts[:2]])
        return BenchmarkProgress(sum(shares) / max(1, len(shares)), text, "running")

    def stop(self) -> None:
        """Ends the benchmark with its workers; finished cells stay, and the same words continue it."""
        atexit.unregister(self.stop)
        if self.process.poll() is not None:
            return
        self.stopped = True
        if not hasattr(os, "killpg"):  # Windows; its workers end by themselves
            return self.process.terminate()
        for number in (signal.SIGINT, signal.SIGKILL):
            with suppress(subprocess.TimeoutExpired):
                with suppress(ProcessLookupError):
                    os.killpg(self.process.pid, number)
                    self.process.wait(10.0)  # seconds to end by itself
                return
