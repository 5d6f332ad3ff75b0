"""A benchmark that is killed again and again: the same command ends with the same bytes, and nothing is left lying."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tests.campaigns.study import NAME, Study, appeared, remove, table_of, temporaries, wait_until
from tests.campaigns.trying import Campaign, Child, Try, posegen

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
MOST = 4  # kills of one benchmark
ENDLESS = 10_000


def tries(campaign: Campaign, study: Study, dice: random.Random) -> list[Try]:
    """Kills at random times, or when a file of the benchmark appears."""
    started = time.monotonic()
    points = sorted(
        {pattern_of(path.relative_to(study.finished)) for path in study.finished.rglob("*") if path.is_file()}
    )
    return list(islice(kills(campaign, study, dice, time.monotonic() - started, points), ENDLESS))


def pattern_of(path: Path) -> str:
    """A file of the benchmark, with any process's temporary name as well."""
    return str(path.with_name(f"*{path.name}*"))


def wait_for(moment: float | str, child: Child, place: Path) -> None:
    """Waits for so many seconds, or for a file of the pattern, while the process runs."""
    if isinstance(moment, str):
        wait_until(lambda: appeared(place, moment) or not child.running())
    else:
        wait_until(lambda: not child.running(), moment)


def kills(campaign: Campaign, study: Study, dice: random.Random, duration: float, points: list[str]) -> Iterator[Try]:
    while True:
        plan: list[tuple[signal.Signals, float | str]] = []
        for _ in range(dice.randint(1, MOST)):
            moment = dice.choice(points) if dice.random() < 0.5 else dice.uniform(0, duration)
            plan.append((dice.choice(SIGNALS), moment))

        def attack(plan: list[tuple[signal.Signals, float | str]] = plan) -> str:
            place = study.root / "place"
            remove(place)
            for number, moment in plan:
                child = posegen(study.command(place), place)
                wait_for(moment, child, place)
                child.kill(number)
                ending = child.end()
                if "Traceback" in ending.text:
                    return f"traceback after {number.name}: {ending.message}"
            ending = study.run(place)
            if fault := campaign.fault(ending):
                return f"the same command: {fault}"
            if ending.code:
                return f"the same command does not finish: {ending.message}"
            if table_of(place) != study.table:
                return f"another table: {table_of(place)}"
            left = temporaries(place / "outputs" / NAME) + temporaries(place / "cache")
            return f"left lying: {', '.join(left)}" if left else ""

        yield Try(
            "; ".join(
                f"{number.name} {f'at {moment}' if isinstance(moment, str) else f'after {moment:.2f} s'}"
                for number, moment in plan
            ),
            attack,
        )
