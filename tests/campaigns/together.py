"""Several processes in one folder, and a cell in shares: the same bytes as one process alone."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

from tests.campaigns.study import NAME, Study, remove, table_of
from tests.campaigns.trying import Campaign, Try, posegen

MOST = 8  # shares


def tries(campaign: Campaign, study: Study, dice: random.Random) -> list[Try]:
    return [*shares(campaign, study), *processes(campaign, study, dice)]


def shares(campaign: Campaign, study: Study) -> Iterator[Try]:
    """A trained cell whose pictures are sampled and judged in shares, in any order."""
    more = ("adapter=controlnet", "sampler.batch=1", "data.test.count=8")

    def results(count: int, *order: str) -> dict[str, str]:
        place = study.root / f"shares{count}"
        remove(place)
        sharing = [f"shards={count}", f"shard={','.join(order)}"] if count > 1 else []
        ending = study.run(place, *more, *sharing)
        assert ending.code == 0, ending.text
        found = {
            p.name: p
            for p in place.rglob("*")
            if p.is_file() and (p.suffix == ".png" or p.name in ("records.csv", "features.npz"))
        }
        hashes = {f"{p.parent.name}/{p.name}": hashlib.sha256(p.read_bytes()).hexdigest() for p in found.values()}
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


def processes(campaign: Campaign, study: Study, dice: random.Random) -> Iterator[Try]:
    def alike() -> str:
        place = study.root / "place"
        remove(place)
        for child in [posegen(study.command(place), place) for _ in range(4)]:
            ending = child.end(600)
            if fault := campaign.fault(ending):
                return fault
            if ending.code:
                return f"exit {ending.code}: {ending.message}"
        return "" if table_of(place) == study.table else f"another table: {table_of(place)}"

    yield Try("four processes with the same command", alike)

    for at_once in (False, True):

        def different(at_once: bool = at_once) -> str:
            place = study.root / "place"
            remove(place)
            methods = ("none", "controlnet")
            children, endings = [], []
            for method in methods:
                children.append(posegen(study.command(place, f"adapter={method}"), place))
                if not at_once:
                    endings.append(children[-1].end())
            endings = endings or [child.end(600) for child in children]
            for ending in endings:
                if fault := campaign.fault(ending):
                    return fault
            rows = {row["method"] for row in table_of(place)}
            lost = [method for method in methods if method not in rows]
            told = all(
                any(method in line and "table" in line for line in endings[-1].text.splitlines()) for method in lost
            )
            return (
                f"{', '.join(lost)} is silently lost: {endings[-1].message}"
                if lost and not told and not any(e.code for e in endings)
                else ""
            )

        yield Try(f"two benchmarks in one folder, {'at once' if at_once else 'one after the other'}", different)


_ = NAME
