"""Several processes in one folder, and a cell in shares: the same bytes as one process alone."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

from tests.campaigns.study import Study, remove, table_of, wait_until
from tests.campaigns.trying import Campaign, Try, posegen

MOST = 8  # shares


def tries(campaign: Campaign, study: Study, dice: random.Random) -> list[Try]:
    return [*shares(campaign, study), *processes(campaign, study)]


def shares(campaign: Campaign, study: Study) -> Iterator[Try]:
    """A trained cell whose pictures are sampled and judged in shares, in any order."""
    more = ("adapter=controlnet", "sampler.batch=1", "data.test.count=8")

    def results(count: int, *order: str) -> dict[str, str]:
        place = study.root / f"shares{count}"
        remove(place)
        sharing = [f"shards={count}", f"shard={','.join(order)}"] if count > 1 else []
        ending = study.run(place, *more, *sharing)
        assert ending.code == 0, ending.text
        kept = [p for p in place.rglob("*") if p.suffix == ".png" or p.name in ("records.csv", "features.npz")]
        hashes = {str(p.relative_to(place)): hashlib.sha256(p.read_bytes()).hexdigest() for p in kept}
        remove(place)
        return hashes

    whole: dict[str, str] = {}
    for count in range(2, MOST + 1):

        def attack(count: int = count) -> str:
            if not whole:
                whole.update(results(1))
            order = list(map(str, range(count)))
            random.Random(count).shuffle(order)
            found = results(count, *order)
            other = sorted(name for name in whole.keys() | found.keys() if whole.get(name) != found.get(name))
            return f"other bytes: {', '.join(other)}" if other else ""

        yield Try(f"shards={count}", attack)


def processes(campaign: Campaign, study: Study) -> Iterator[Try]:
    place, methods = study.root / "place", ("none", "controlnet")

    def alike() -> str:
        remove(place)
        endings = [child.end(600) for child in [posegen(study.command(place), place) for _ in range(4)]]
        codes = [ending.code for ending in endings]
        faults = [*map(campaign.fault, endings), f"exit {codes}" if any(codes) else "", study.finishes(campaign, place)]
        return next(filter(None, faults), "")

    yield Try("four processes with the same command", alike)

    def different(at_once: bool) -> str:
        """The table has the rows of both, or the second says what is not in it."""
        remove(place)
        children = []
        for method in methods:
            children.append(posegen(study.command(place, f"adapter={method}"), place))
            wait_until(lambda: at_once or not children[-1].running())
        endings = [child.end(600) for child in children]
        if fault := next(filter(None, map(campaign.fault, endings)), ""):
            return fault
        lost = {*methods} - {row["method"] for row in table_of(place)}
        told = any(ending.code for ending in endings) or all(method in endings[-1].text for method in lost)
        return "" if told else f"{', '.join(lost)} is silently lost: {endings[-1].message}"

    yield Try("two benchmarks in one folder, one after the other", lambda: different(False))
    yield Try("two benchmarks in one folder at once", lambda: different(True))
