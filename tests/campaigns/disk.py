"""A disk that becomes full at any moment: one message with path and way out; with more room the same command goes on."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.campaigns.study import Study, remove
from tests.campaigns.trying import Campaign, Try

SIZES = 10_000
ROOM = 64 << 20  # bytes that the study never needs


class NoMount(RuntimeError):
    """The system allows no file system of a size."""


def mount(*words: str) -> None:
    try:
        done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise NoMount("there is no mount") from error
    if done.returncode:
        raise NoMount(done.stderr.strip())


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[None]:
    remove(place)
    place.mkdir(parents=True)
    mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place))
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def tries(campaign: Campaign, study: Study, dice: random.Random) -> list[Try]:
    try:
        with small_disk(study.root / "disk", 1 << 20):
            pass
    except NoMount as reason:
        print(f"{campaign.name}: skipped, {reason}")
        return []
    return [filled(campaign, study, dice.uniform(0.02, 1.1)) for _ in range(SIZES)]


def filled(campaign: Campaign, study: Study, share: float) -> Try:
    def attack() -> str:
        place = study.root / "disk"
        needed = sum(path.stat().st_size for path in study.finished.rglob("*") if path.is_file())
        with small_disk(place, int(share * needed)):
            ending = study.run(place)
            if fault := campaign.refused(ending, str(place), "full") if ending.code else campaign.fault(ending):
                return fault
            mount("-o", f"remount,size={ROOM}", str(place))
            left = study.finishes(campaign, place)
            return f"with more room: {left}" if left else ""

    return Try(f"a disk with {share:.3f} of the room that is needed", attack)
