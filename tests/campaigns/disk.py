"""A disk that becomes full at any moment: one message with path and way out; with more room the same command goes on."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from tests.campaigns.study import Study, remove, table_of
from tests.campaigns.trying import Campaign, Try

ENDLESS = 10_000
ROOM = 64 << 20  # bytes that the study never needs


class NoMount(RuntimeError):
    """The system allows no file system of a size."""


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[None]:
    place.mkdir(parents=True, exist_ok=True)
    mounted("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place))
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def mounted(*words: str) -> None:
    try:
        done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise NoMount("there is no mount") from error
    if done.returncode:
        raise NoMount(done.stderr.strip())


def tries(campaign: Campaign, study: Study, dice: random.Random) -> list[Try]:
    place = study.root / "disk"
    try:
        with small_disk(place, 1 << 20):
            pass
    except NoMount as reason:
        print(f"{campaign.name}: skipped, {reason}")
        return []
    needed = sum(path.stat().st_size for path in study.finished.rglob("*") if path.is_file())
    return list(islice(disks(campaign, study, dice, place, needed), ENDLESS))


def disks(campaign: Campaign, study: Study, dice: random.Random, place: Path, needed: int) -> Iterator[Try]:
    while True:
        size = int(dice.uniform(0.02, 1.1) * needed)

        def attack(size: int = size) -> str:
            remove(place)
            with small_disk(place, size):
                ending = study.run(place)
                if fault := campaign.fault(ending):
                    return fault
                if ending.code and not ("space" in ending.text or "full" in ending.text):
                    return f"the message does not say that the disk is full: {ending.message}"
                if ending.code and (refusal := campaign.refused(ending, str(place))):
                    return refusal
                if ending.code and "Errno" in ending.text:
                    return f"words for programmers: {ending.message}"
                mounted("-o", f"remount,size={ROOM}", str(place))
                ending = study.run(place)
                if fault := campaign.fault(ending):
                    return f"with more room: {fault}"
                if ending.code or table_of(place) != study.table:
                    return f"with more room: exit {ending.code}, {ending.message}"
            return ""

        yield Try(f"a disk of {size:,} bytes", attack)
