"""A tiny study to attack: its benchmark's command, finished and interrupted copies of it, and what must not change."""

from __future__ import annotations

import csv
import os
import shutil
import time
from collections.abc import Callable
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path

from tests.campaigns.trying import Campaign, Ending, posegen
from tests.tiny import make_world

NAME = Path("benchmark") / "smoke"
CELL = f"outputs/{NAME}/{{}}/*/seed0"  # of a method, as a pattern


class Study:
    """A benchmark of a row without a method and a trained one, seconds long, below ``root``.

    Copies lie at one place after the other, each with caches of its own, so that an attack cannot reach the next.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        words = make_world(root / "world")
        self.world = [word for word in words if not word.startswith(("paths.", "budget.", "progress"))]
        self.world += ["budget.steps=4", "data.train.count=12", "data.validation.count=4", "data.test.count=5"]
        self.world += ["sampler.batch=2"]

    def command(self, place: Path, *more: str) -> list[str]:
        """The benchmark's command with outputs and caches in ``place``."""
        places = [f"paths.output={place / 'outputs'}", f"paths.cache={place / 'cache'}"]
        start = ["benchmark=smoke", "adapter=none,controlnet", "seed=0", "hydra/launcher=basic"]
        last = {word.partition("=")[0]: word for word in (*start, *self.world, *places, *more)}  # of each key
        return ["benchmark", *last.values()]

    def run(self, place: Path, *more: str) -> Ending:
        return posegen(self.command(place, *more), place).end()

    def finishes(self, campaign: Campaign, place: Path) -> str:
        """Runs the command once more; says how it fell where it does not end with the table of an undisturbed run."""
        ending = self.run(place)
        if ending.code:
            return campaign.fault(ending) or f"the same command does not finish: {ending.message}"
        return campaign.fault(ending) or ("" if table_of(place) == self.table else f"another table: {table_of(place)}")

    @cached_property
    def finished(self) -> Path:
        """An undisturbed run."""
        place = self.root / "finished"
        remove(place)
        ending = self.run(place)
        assert ending.code == 0, ending.text
        self.seconds = ending.seconds
        return place

    def interrupted(self, name: str, pattern: str, *more: str) -> Path:
        """A run that was killed as soon as a file of the ``pattern`` appeared."""
        place = self.root / name
        if not place.exists():
            child = posegen(self.command(place, *more), place)
            wait_until(lambda: appeared(place, pattern) or not child.running())
            child.kill()
            child.end()
        return place

    @cached_property
    def table(self) -> list[dict[str, str]]:
        return table_of(self.finished)

    def copy(self, source: Path, name: str = "place") -> Path:
        """A fresh copy of a run."""
        place = self.root / name
        remove(place)
        shutil.copytree(source, place, symlinks=True)
        return place


def cell_of(place: Path, method: str) -> Path:
    return next(place.glob(CELL.format(method)))


def appeared(place: Path, pattern: str) -> bool:
    """Whether a file of the pattern is there, in a folder that changes meanwhile."""
    return any(
        fnmatch(os.path.join(folder, name), f"{place}/{pattern}")
        for folder, _, names in os.walk(place)
        for name in names
    )


def wait_until(condition: Callable[[], bool], limit: float = 120.0) -> None:
    end = time.monotonic() + limit
    while not condition() and time.monotonic() < end:
        time.sleep(0.002)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def table_of(place: Path) -> list[dict[str, str]]:
    """The table of a run without the columns of costs; empty where there is none."""
    file = place / "outputs" / NAME / "table.csv"
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8") as stream:
        return [{k: v for k, v in row.items() if not k.startswith("cost_")} for row in csv.DictReader(stream)]


def temporaries(place: Path) -> list[str]:
    """Files that only a running process may have."""
    return sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.name.endswith(".tmp"))
