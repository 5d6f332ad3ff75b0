"""Seconds of ``posegen benchmark`` by stage, with an empty cache, and whether its records are those of another run.

    python experiments/profile/default_benchmark.py [repeats=1] [like=FOLDER] [OVERRIDE ...]

Prints processor and wall seconds of each stage, over all processes, and the wall seconds of the whole; the medians of
``repeats`` runs. On an idle machine with n cores the whole takes at least the processor seconds divided by n. ``like``
is a benchmark's folder whose records must have the same bytes. Overrides are those of the verb, for instance
``benchmark=smoke``.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from omegaconf import DictConfig

from posegen.config.app import Command
from posegen.data.mannequin.dataset import MannequinData
from posegen.report.live_progress import LiveProgress
from posegen.runner.generate import Generation
from posegen.runner.judge import Judging
from posegen.train import loop
from posegen.verbs import benchmark

STAGES = ("start of a process", "checks", "render", "encode", "train", "sample", "judge", "table")
Spent = dict[str, list[float]]  # stage -> processor and wall seconds


class Ledger:
    """Appends what each stage took to a file that processes share; time inside another stage counts for that alone."""

    def __init__(self, file: Path) -> None:
        self.file, self.inner = file, [0.0, 0.0]

    def note(self, stage: str, processor: float, wall: float) -> None:
        with self.file.open("a") as lines:
            lines.write(json.dumps({"process": os.getpid(), "stage": stage, "seconds": [processor, wall]}) + "\n")

    def note_start(self) -> None:
        """What the process has taken so far, if it has noted nothing yet: its imports."""
        lines = self.file.read_text().splitlines() if self.file.is_file() else []
        if not any(json.loads(line)["process"] == os.getpid() for line in lines):
            self.note("start of a process", time.process_time(), 0.0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        outer, self.inner = self.inner, [0.0, 0.0]
        before = clocks()
        yield
        spent = [now - then for now, then in zip(clocks(), before, strict=True)]
        self.note(name, *(whole - part for whole, part in zip(spent, self.inner, strict=True)))
        self.inner = [a + b for a, b in zip(outer, spent, strict=True)]

    def noting(self, stack: ExitStack, owner: Any, name: str, stage: str) -> None:
        """Notes each call of ``owner.name`` until the stack is closed."""
        function: Callable[..., Any] = getattr(owner, name)

        def noted(*arguments: Any, **options: Any) -> Any:
            with self.stage(stage):
                return function(*arguments, **options)

        stack.enter_context(patch.object(owner, name, noted))

    @contextmanager
    def at_work(self) -> Iterator[None]:
        stages = [(MannequinData, "prepare", "render"), (loop, "encodings", "encode"), (loop.Training, "run", "train")]
        stages += [(Generation, "run", "sample"), (Judging, "run", "judge"), (Judging, "finish", "judge")]
        with ExitStack() as stack:
            for owner, name, stage in stages:
                self.noting(stack, owner, name, stage)
            yield

    def sums(self) -> Spent:
        found: Spent = {stage: [0.0, 0.0] for stage in STAGES}
        for line in map(json.loads, self.file.read_text().splitlines()):
            found[line["stage"]] = [a + b for a, b in zip(found[line["stage"]], line["seconds"], strict=True)]
        return found


def clocks() -> tuple[float, float]:
    """Processor seconds of this process and of its children that have ended, and wall seconds."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime, time.monotonic()


def cell(cfg: DictConfig) -> str:
    """A cell of the benchmark, in whatever process the launcher has chosen."""
    ledger = Ledger(Path(cfg.paths.output) / "spent.jsonl")
    ledger.note_start()
    with ledger.at_work():
        return benchmark.main(cfg)


def run_benchmark(words: Sequence[str], folder: Path) -> tuple[Spent, float, Path]:
    """Seconds by stage, of the whole, and the folder of the results."""
    start, ledger = time.monotonic(), Ledger(folder / "spent.jsonl")
    ledger.note_start()
    command = Command.read("benchmark", [*words, f"paths.output={folder}", f"paths.cache={folder / 'cache'}"])
    with ledger.at_work(), ledger.stage("checks"):
        config = command.base()
        study, planned = benchmark.plan(config, command)
    with LiveProgress(study):
        code = command.run(cell)
    with ledger.stage("table"):
        code = max(code, benchmark.conclude(study, config, planned))
    if code:
        raise SystemExit(f"the benchmark failed, see above; exit code {code}")
    return ledger.sums(), time.monotonic() - start, study


def differing(study: Path, other: Path) -> list[str]:
    """The files of records that are not the same in another benchmark's folder."""
    files = [file.relative_to(study) for file in sorted(study.rglob("records.csv"))]
    return [str(file) for file in files if (study / file).read_bytes() != (other / file).read_bytes()]


def main(words: Sequence[str]) -> None:
    own = {key: value for key, _, value in (word.partition("=") for word in words) if key in ("repeats", "like")}
    overrides = [word for word in words if word.partition("=")[0] not in own]
    imports, runs, wholes = time.process_time(), list[Spent](), list[float]()
    for _ in range(int(own.get("repeats", 1))):
        with TemporaryDirectory() as place:
            spent, whole, study = run_benchmark(overrides, Path(place))
            runs.append(spent)
            wholes.append(whole)
            if "like" in own and (other := differing(study, Path(own["like"]))):
                raise SystemExit(f"other records than in {own['like']}: {', '.join(other)}")
    medians = {stage: [median(run[stage][i] for run in runs) for i in (0, 1)] for stage in STAGES}
    print(f"\n{'stage':<20} processor, s   wall, s (summed over processes)")
    for stage, (processor, wall) in medians.items():
        print(f"{stage:<20} {processor:>12.1f} {wall:>9.1f}")
    total = sum(processor for processor, _ in medians.values())
    print(f"{'all':<20} {total:>12.1f} {imports + median(wholes):>9.1f} (the whole, by the clock)")
    if "like" in own:
        print(f"the same records as in {own['like']}")


if __name__ == "__main__":
    main(sys.argv[1:])
