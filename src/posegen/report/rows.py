"""The rows of a table: what the cells of one method and setting found, cost, and became of."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posegen.config.launchers.jobs import submitted
from posegen.errors import UserError
from posegen.metrics.base import BASELINE
from posegen.metrics.records import AGAIN, read_records
from posegen.runner.received.state_files import COSTS, read_costs, read_row, read_status

REFERENCE = "reference/"  # how the names of rows begin that bound the methods and compete with none
DAMAGED = "damaged"  # state of a cell that finished and whose records cannot be read
Row = dict[str, Any]


@dataclass
class Group:
    """The cells of one row, one per seed."""

    name: str  # of the row
    cells: list[dict[str, Any]]  # entries of the plan with `state` and `reason`
    folder: Path  # where the benchmark lies
    spread: Mapping[str, Any] = field(default_factory=dict)  # bootstrap distributions of the columns, after `row`
    absent: Mapping[str, str] = field(default_factory=dict)  # column -> why its records cannot fill it
    baseline: Group | None = field(default=None, repr=False)  # the row that win rates are over

    @property
    def ranked(self) -> bool:
        return not self.name.startswith(REFERENCE)

    @property
    def finished(self) -> list[Path]:
        """Folders of the finished cells."""
        return [self.folder / cell["folder"] for cell in self.cells if cell["state"] == "finished"]

    @property
    def state(self) -> dict[str, str]:
        """``state`` and ``reason`` of the row: those of the first cell that did not finish, if there is one."""
        unfinished = next((cell for cell in self.cells if cell["state"] != "finished"), None)
        if unfinished:
            return {"state": unfinished["state"], "reason": unfinished["reason"]}
        # what the method itself said about its pictures
        return {"state": "finished", "reason": next((n["remark"] for n in self.notes() if n.get("remark")), "")}

    @property
    def method(self) -> str:
        return str(self.cells[0]["method"])

    @property
    def data(self) -> str:
        return Path(self.cells[0]["folder"]).parent.name.partition(",")[0]

    @property
    def adapter(self) -> str:
        """Import path of the method's class, empty where no cell has started."""
        identities = [read_status(self.folder / cell["folder"]).get("identity") or {} for cell in self.cells]
        adapters = [found["adapter"] for found in identities if isinstance(found.get("adapter"), dict)]
        return next((str(found["_target_"]) for found in adapters if "_target_" in found), "")

    def row(self, protocol: Any) -> Row:
        """The values, costs and state of the row."""
        with records_fit(self.finished, protocol):
            seeds = self.records(protocol)
            values, spread = row_of(self.finished, protocol, seeds)
            self.spread = spread or {}
            if seeds:
                self.absent = protocol.absent(seeds[0])
        return {"method": self.name, "ranked": self.ranked, **values, **self.state, "faithful": self.faithful}

    def records(self, protocol: Any) -> list[Mapping[str, Sequence[Any]]]:
        """Those of the finished cells, beside the baseline's of the same seed where the protocol compares with it."""
        seeds = [protocol.read(folder) for folder in self.finished]
        if self.baseline is None or not any(metric.against for metric in protocol.metrics):
            return seeds
        theirs = {seed_of(folder): protocol.read(folder) for folder in self.baseline.finished}
        pairs = [(mine, theirs.get(seed_of(folder), {})) for folder, mine in zip(self.finished, seeds, strict=True)]
        if any(other.get("id") != mine["id"] for mine, other in pairs):
            return seeds
        return [{**mine, **{f"{BASELINE}{name}": values for name, values in other.items()}} for mine, other in pairs]

    @property
    def faithful(self) -> str:
        """Whether official quirks are reproduced: ``true``, ``false``, or empty where there is nothing official."""
        said = [note["faithful"] for note in self.notes() if note.get("faithful") is not None]
        return str(bool(said[0])).lower() if said else ""

    def notes(self) -> Iterator[dict[str, Any]]:
        """What cells say about themselves; older ones say it in the method folder that they trained."""
        for file in (folder / name for folder in self.finished for name in ("row.json", "method/posegen.json")):
            if file.is_file():
                yield read_row(file)


def seed_of(cell: Path) -> str:
    """The folder of a cell's seed, also of a judge in it."""
    return next((part for part in reversed(cell.parts) if part.startswith("seed")), cell.name)


@contextmanager
def records_fit(folders: Sequence[Path], protocol: Any) -> Iterator[None]:
    """Records that the metrics of ``protocol`` cannot read, because others wrote them, are a UserError."""
    try:
        yield
    except (KeyError, TypeError, IndexError, RuntimeError) as error:
        found = f"the records of {', '.join(map(str, folders))} are not those of protocol {protocol.name}"
        reason = f"v{protocol.version} ({type(error).__name__}: {error})"
        raise UserError(f"{found} {reason}; {AGAIN}, with the protocol of the table") from error


def set_baseline(groups: Sequence[Group], name: str | None) -> None:
    """Tells each row which one it is compared with."""
    for group in groups:
        group.baseline = next((each for each in groups if each.name == name), None)


def group_cells(cells: Sequence[dict[str, Any]], folder: Path) -> list[Group]:
    """The rows of a plan's cells, which have their ``state``, in the plan's order: each named after its method, and
    after its folder's settings where a method has several rows."""
    rows: dict[Path, list[dict[str, Any]]] = {}
    for cell in cells:
        rows.setdefault(Path(cell["folder"]).parent, []).append(cell)
    groups = [Group(str(row[0]["method"]), row, folder) for row in rows.values()]
    methods = [group.name for group in groups]
    for group, path in zip(groups, rows, strict=True):
        if methods.count(group.name) > 1:
            group.name += f" ({path.name.partition(',')[2] or 'default'})"
    return groups


def row_of(
    folders: Sequence[Path], protocol: Any, seeds: Sequence[Mapping[str, Sequence[Any]]] = ()
) -> tuple[Row, Mapping[str, Any] | None]:
    """(row, bootstrap distributions) of the finished cells of one method, one per seed, whose records may be known;
    empty without any."""
    if not folders:
        return {}, None
    seeds = seeds or [protocol.read(folder) for folder in folders]
    reference = protocol.read(folders[0] / "reference")
    spread = protocol.resampled(seeds, reference)
    return {**protocol.table_row(seeds, reference, spread=spread), **costs_of(folders)}, spread


def costs_of(folders: Sequence[Path]) -> Row:
    """Mean costs over seeds."""
    notes = [{**read_costs(f), "wall_s": round(read_status(f).get("wall_s", math.nan), 1)} for f in folders]
    known = {name: [note[name] for note in notes if name in note] for name in COSTS}
    return {f"cost_{name}": sum(values) / len(values) for name, values in known.items() if values}


def state_of(cell: Path, *expected: str) -> dict[str, str]:
    """State and reason of a cell with one of the ``expected`` hashes, by its ``status.json``, and whether its records
    can be read."""
    status = read_status(cell)
    if not status:
        return {"state": "missing", "reason": submitted(cell) or "never started"}
    if status.get("hash") not in expected:
        return {"state": "other settings", "reason": f"{cell} was replaced by a cell of another identity"}
    if status["state"] == "finished":
        try:
            read_records(cell, status["hash"])
            read_records(cell / "reference")
        except (ValueError, OSError) as error:
            return {"state": DAMAGED, "reason": str(error)}
    if status["state"] == "running":
        return {"state": "interrupted", "reason": status.get("reason") or submitted(cell)}
    precision = ((status.get("identity") or {}).get("trainer") or {}).get("precision")
    return {"state": status["state"], "reason": status.get("reason") or "", "precision": str(precision)}


def add_tests(rows: Sequence[Row], groups: Sequence[Group], baseline: str | None, protocol: Any) -> bool:
    """Adds ``<column>_p``: paired bootstrap tests against the baseline, Holm-adjusted over methods; False if none."""
    tested = {group.name: group.spread for group in groups if group.ranked and group.spread}
    if baseline not in tested or len(tested) < 2:
        return False
    p_values = protocol.p_values(tested, baseline)
    for row in rows:
        row.update({f"{column}_p": p for column, p in p_values.get(row["method"], {}).items()})
    return True
