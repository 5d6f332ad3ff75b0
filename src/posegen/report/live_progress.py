"""The benchmark at a glance while it runs: one line per cell, read from the cells' own files, so it works with any launcher."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from posegen.io.atomic import read_json


class Overview:
    """Shows the progress of a benchmark's cells from a thread.

    On a terminal it draws a bar with rate and remaining time per cell; elsewhere it prints a line whenever a cell's state or stage changes.

    Args:
        folder: returns the benchmark's folder, None until it is known.
    """

    def __init__(self, folder: Callable[[], str | None], every: float = 1.0) -> None:
        self.folder, self.every = folder, every
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Overview:
        self.started = time.time()
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()

    def _watch(self) -> None:
        show = self._draw if sys.stdout.isatty() else self._print
        while not self.stop.is_set() and not self._cells():
            self.stop.wait(self.every)
        show()

    def _cells(self) -> dict[str, Path]:
        """``method/data/seed`` of every cell and its folder."""
        folder = self.folder()
        if folder is None or not (Path(folder) / "cells.json").is_file():
            return {}
        return {
            cell["folder"]: Path(folder) / cell["folder"] for cell in read_json(Path(folder) / "cells.json")["cells"]
        }

    def _draw(self) -> None:
        from rich.live import Live

        with Live(self._picture(), refresh_per_second=2) as live:
            while not self.stop.wait(self.every):
                live.update(self._picture())
            live.update(self._picture())

    def _picture(self) -> Any:
        from rich.progress import BarColumn, Progress, TextColumn

        bars = Progress(TextColumn("{task.description}"), BarColumn(30), TextColumn("{task.fields[facts]}"))
        for label, cell in self._cells().items():
            state, report = look(cell, self.started)
            done, total = (1, 1) if state == "finished" else (report.get("done", 0), report.get("total", 1))
            bars.add_task(label, total=total, completed=done, facts=describe(state, report))
        return bars

    def _print(self) -> None:
        said: dict[Path, tuple[str, str]] = {}
        while True:
            for label, cell in self._cells().items():
                state, report = look(cell, self.started)
                now = (state, report.get("stage", "") if state == "running" else "")
                if said.get(cell) != now and state != "waiting":
                    said[cell] = now
                    print(f"{label}: {describe(state, report)}", flush=True)
            if self.stop.wait(self.every):
                return


def look(cell: Path, since: float) -> tuple[str, dict[str, Any]]:
    """(state, progress report) of a cell; files from before ``since`` say nothing about what is running now."""
    status, progress = cell / "status.json", cell / "progress.json"
    if not status.is_file():
        return "waiting", {}
    state = read_json(status)["state"]
    if state in ("running", "failed") and status.stat().st_mtime < since:
        return "waiting", {}
    return state, read_json(progress) if progress.is_file() and progress.stat().st_mtime >= since else {}


def describe(state: str, report: dict[str, Any]) -> str:
    if state != "running" or not report:
        return state
    rate = report.get("rate", 0.0)
    left = (report["total"] - report["done"]) / rate if rate else 0.0
    loss = f", loss {report['loss']:.3f}" if "loss" in report else ""
    return (
        f"{report['stage']} {report['done']}/{report['total']} {report['unit']}, {rate:.1f}/s, {left:.0f} s left{loss}"
    )
