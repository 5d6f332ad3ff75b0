"""The cells of a running benchmark, one line each, read from the cells' files, so that it works with any launcher."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from posegen.io.atomic import read_json_or_empty
from posegen.report.study import benchmark_plan
from posegen.runner.received.state_files import read_progress


class LiveProgress:
    """Shows the progress of a benchmark's cells, ``every`` so many seconds from a thread, while the block runs: on a
    terminal a bar with rate and remaining time per cell, elsewhere a line whenever a cell's state or stage changes,
    and every minute."""

    def __init__(self, folder: Path, every: float = 1.0) -> None:
        self.every, self.started, self.stop = every, time.time(), threading.Event()
        self.cells = {cell["folder"]: folder / cell["folder"] for cell in benchmark_plan(folder)["cells"]}
        self.thread = threading.Thread(target=self._draw if sys.stdout.isatty() else self._print, daemon=True)

    def __enter__(self) -> LiveProgress:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()

    def _draw(self) -> None:
        from rich.live import Live

        with Live(self._bars(), refresh_per_second=2) as live:
            while not self.stop.wait(self.every):
                live.update(self._bars())
            live.update(self._bars())

    def _bars(self) -> Any:
        from rich.progress import BarColumn, Progress, TextColumn

        bars = Progress(TextColumn("{task.description}"), BarColumn(30), TextColumn("{task.fields[facts]}"))
        for label, state, report in self._states():
            done, total = (1, 1) if state == "finished" else (report.get("done", 0), report.get("total", 1))
            bars.add_task(label, total=total, completed=done, facts=progress_text(state, report))
        return bars

    def _print(self) -> None:
        said: dict[str, tuple[str, str, int]] = {}
        while True:
            for label, state, report in self._states():
                running = state == "running"
                minute = int(time.time() - self.started) // 60 if running else 0
                now = (state, report.get("stage", "") if running else "", minute)
                if said.get(label) != now and state != "waiting":
                    said[label] = now
                    print(f"{label}: {progress_text(state, report)}", flush=True)
            if self.stop.wait(self.every):
                return

    def _states(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        for label, cell in self.cells.items():
            yield label, *cell_progress(cell, self.started)


def cell_progress(cell: Path, since: float) -> tuple[str, dict[str, Any]]:
    """(state, progress report) of a cell; files from before ``since`` say nothing about what is running now."""
    status, progress = cell / "status.json", cell / "progress.json"
    if not status.is_file():
        return "waiting", {}
    state = read_json_or_empty(status).get("state", "damaged")  # what is wrong with it is the cell's own error
    if state in ("running", "failed") and status.stat().st_mtime < since:
        return "waiting", {}
    return state, read_progress(cell) if progress.is_file() and progress.stat().st_mtime >= since else {}


def progress_text(state: str, report: dict[str, Any]) -> str:
    """``train 30/100 step, 12.0/s, 6 s left, loss 0.123`` of a running cell, else its state."""
    if state != "running" or not report:
        return state
    rate = report["rate"]
    left = (report["total"] - report["done"]) / rate if rate else 0.0
    loss = f", loss {report['loss']:.3f}" if "loss" in report else ""
    done = f"{report['stage']} {report['done']}/{report['total']} {report['unit']}"
    return f"{done}, {rate:.1f}/s, {left:.0f} s left{loss}"
