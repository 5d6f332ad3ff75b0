"""A benchmark that is killed again and again: the same command ends with the same bytes, and nothing is left lying."""

from __future__ import annotations

import random
import signal
import time
from functools import partial
from pathlib import Path

from tests.campaigns.study import Study, appeared, remove, temporaries, wait_until
from tests.campaigns.trying import Campaign, Child, Try, posegen

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
MOST = 4  # kills of one benchmark
PLANS = 10_000
#: A signal, and when it is sent: after a share of an undisturbed run's time, or when a file of this pattern appears.
Kill = tuple[signal.Signals, float | str]


def tries(campaign: Campaign, study: Study, dice: random.Random) -> list[Try]:
    """Kills at random times, or when a file of the benchmark, or its temporary one, appears."""
    files = [path.relative_to(study.finished) for path in study.finished.rglob("*") if path.is_file()]
    points = sorted({str(path.with_name(f"*{path.name}*")) for path in files if path.parts[0] != "given"})
    moments = [lambda: dice.choice(points), dice.random]
    plans = [
        [(dice.choice(SIGNALS), dice.choice(moments)()) for _ in range(dice.randint(1, MOST))] for _ in range(PLANS)
    ]
    return [killed(campaign, study, plan) for plan in plans]


def reached(child: Child, place: Path, moment: float | str, seconds: float) -> bool:
    there = appeared(place, moment) if isinstance(moment, str) else time.monotonic() > child.started + moment * seconds
    return there or not child.running()


def killed(campaign: Campaign, study: Study, plan: list[Kill]) -> Try:
    def attack() -> str:
        place = study.root / "place"
        remove(place)
        for number, moment in plan:
            child = posegen(study.command(place), place)
            wait_until(partial(reached, child, place, moment, study.seconds))
            child.kill(number)
            if "Traceback" in (text := child.end().text):
                return f"traceback after {number.name}: {text[-600:]}"
        left = study.finishes(campaign, place) or ", ".join(temporaries(place))
        return f"afterwards: {left}" if left else ""

    return Try("; ".join(f"{number.name} at {moment}" for number, moment in plan), attack)
