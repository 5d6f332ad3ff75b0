"""Several judges of the same pictures: their values side by side, how far they agree, and which of them taught."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from posegen.metrics.base import Column
from posegen.metrics.math.rank_correlation import spearman
from posegen.report.all_pairs import per_image
from posegen.report.rank_agreement import LEAST, Agreement
from posegen.report.rows import DAMAGED, Group, Row, set_baseline, state_of
from posegen.report.study import recorded_protocol
from posegen.runner.received.state_files import read_cell_config, read_status
from posegen.runner.second_judge import JUDGES


@dataclass
class Judge:
    """The rows of a table as one judge sees them."""

    name: str
    estimator: Mapping[str, Any]  # its identity
    protocol: Any
    groups: Sequence[Group]
    rows: Sequence[Row]

    def column(self, column: Column) -> Column:
        """A column of the protocol under a name with that of the judge."""
        return Column(f"{column} ({self.name})", column.better, family=column.family, unit=column.unit)


@dataclass
class JudgesTable:
    """A table with the columns of several judges side by side."""

    judges: Sequence[Judge]  # that of the cells first
    columns: Sequence[Column]  # the shown ones
    rows: list[Row]
    agreements: list[Agreement] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def every(self) -> list[str]:
        """All columns of all judges, with their intervals."""
        ends = ("", "_lo", "_hi")
        return [f"{judge.column(c)}{end}" for judge in self.judges for c in judge.protocol.columns for end in ends]


def judges_table(groups: Sequence[Group], rows: Sequence[Row], protocol: Any, accuracy: Column) -> JudgesTable | None:
    """The table of all judges; None where the cells have one judge alone."""
    names = sorted({p.parent.name for g in groups for cell in g.finished for p in cell.glob(f"{JUDGES}/*/status.json")})
    first, notes = Judge(*first_judge(groups), protocol, groups, rows), []
    judges = [first]
    for name in names:
        judge, missing = further_judge(name, groups)
        judges += [judge] if judge else []
        notes += [f"Judge {name} has no values of {'; '.join(missing)}."] if missing else []
    if len(judges) == 1 and not notes:
        return None
    families = ("accuracy", "count", "preference")
    shared = [c for judge in judges for family in families for c in judge.protocol.axes(family)]
    counts = [c for c in protocol.headline() if c.family == "count" and c.better]
    columns = [j.column(c) for c in dict.fromkeys([*shared, *counts]) for j in judges if c in j.protocol.columns]
    merged: list[Row] = [
        {key: row.get(key) for key in ("method", "ranked", "state", "reason", "faithful", "taught")} for row in rows
    ]
    for judge in judges:
        for row, values in zip(merged, judge.rows, strict=True):
            for column in judge.protocol.columns:
                row |= {
                    f"{judge.column(column)}{end}": values.get(f"{column}{end}", math.nan) for end in ("", "_lo", "_hi")
                }
    table = JudgesTable(judges, columns, merged, notes=notes)
    for one, other in combinations([j for j in judges if accuracy in j.protocol.columns], 2):
        table.agreements += order_agreement(one, other, accuracy, of_cells=one is first)
        table.notes += image_agreement(one, other, accuracy)
    return table


def first_judge(groups: Sequence[Group]) -> tuple[str, Mapping[str, Any]]:
    """Name and identity of the judge of the cells: the name is that of its class."""
    identities = (read_status(cell).get("identity") or {} for group in groups for cell in group.finished)
    estimator = next((found["estimator"] for found in identities if isinstance(found.get("estimator"), dict)), {})
    parts = str(estimator.get("_target_", "")).split(".")
    return next((part for part in parts if part[:1].isupper()), "first judge"), estimator


def further_judge(name: str, groups: Sequence[Group]) -> tuple[Judge | None, list[str]]:
    """The rows by a judge of ``judges/NAME``, empty where it has not judged all of their cells, with the reasons."""
    known: dict[str, Any] = {}  # identity of the judge, that of the first cell
    place, found, missing = Path(), [], []
    for group in groups:
        cells, reason = [], "" if group.finished else "not finished"
        for cell in group.finished:
            folder = cell / JUDGES / name
            status = read_status(folder)
            identity = status.get("identity") or {}
            state = state_of(folder, str(status.get("hash")))
            judge = {key: identity.get(key) for key in ("estimator", "protocol")}
            if state["state"] != "finished":
                broken = state["state"] == DAMAGED
                reason = f"{'its records are damaged' if broken else 'not judged by it'}; posegen judge mends that"
            elif identity.get("cell") != read_status(cell).get("hash"):
                reason = f"judged before the cell changed; delete {folder} and run posegen judge again"
            elif judge != (known := known or judge):
                reason = f"judged by another one of this name; delete {folder} or judge with another name="
            else:
                place = folder
            cells.append({**group.cells[0], "folder": str(folder.relative_to(group.folder)), **state})
        missing += [f"{group.name} ({reason})"] if reason else []
        found.append(Group(group.name, [] if reason else cells, group.folder))
    if not known:
        return None, missing
    set_baseline(found, next((group.baseline.name for group in groups if group.baseline), None))
    protocol = recorded_protocol(read_cell_config(place)["protocol"], place / "config.yaml")
    rows = [group.row(protocol) if group.cells else {} for group in found]
    return Judge(name, known["estimator"] or {}, protocol, found, rows), missing


def shared_rows(first: Judge, other: Judge, column: Column) -> Iterator[tuple[Group, Row, Group, Row]]:
    """The finished methods that both judges have values of."""
    for group, row, there, values in zip(first.groups, first.rows, other.groups, other.rows, strict=True):
        known = group.spread and row["state"] == "finished" and values
        if group.ranked and known and not math.isnan(row[column] + values[column]):
            yield group, row, there, values


def order_agreement(first: Judge, other: Judge, column: Column, of_cells: bool) -> list[Agreement]:
    """Of the order of the methods by one judge with that by another; empty for fewer than `LEAST` methods."""
    shared = list(shared_rows(first, other, column))
    values = [values[column] for _, _, _, values in shared]
    pairs = [(group, row) for group, row, _, _ in shared]
    name = f"the same by judge {other.name}" + ("" if of_cells else f" (by judge {first.name})")
    return [Agreement.of(pairs, column, values, name)] if len(pairs) >= LEAST else []


def image_agreement(first: Judge, other: Judge, column: Column) -> list[str]:
    """A sentence on the rank correlation of a column image by image, within each method."""
    rhos: dict[str, float] = {}
    for group, _, there, _ in shared_rows(first, other, column):
        ours, theirs = (
            per_image(each, judge.protocol, next(m for m in judge.protocol.metrics if column in m.described()), column)
            for each, judge in ((group, first), (there, other))
        )
        known = ~np.isnan(ours + theirs)
        rhos[group.name] = float(spearman(ours[known], theirs[known])) if known.sum() > 1 else math.nan
    defined = [rho for rho in rhos.values() if not math.isnan(rho)]
    if not defined:
        return []
    each = ", ".join(f"{name} {'-' if math.isnan(rho) else f'{rho:.2f}'}" for name, rho in rhos.items())
    both = f"{first.name} and {other.name}"
    return [f"{column} image by image, {both}: Spearman's rho {np.mean(defined):.2f} on average ({each})."]


def taught_by(group: Group, estimator: Mapping[str, Any]) -> bool:
    """Whether a row's method was trained with the judge as the teacher of its loss, or as its reward."""
    for cell in group.finished:
        start = Path(str(read_cell_config(cell).get("checkpoint") or ""))  # a cell, or the method folder in one
        for folder in (cell, start, start.parent):
            node = (read_status(folder).get("identity") or {}) if (folder / "status.json").is_file() else {}
            if estimator and any(
                found == estimator for key in ("adapter", "loss", "task") for found in nodes_in(node.get(key))
            ):
                return True
    return False


def nodes_in(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every mapping inside plain values."""
    if isinstance(value, Mapping):
        yield value
    for each in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from nodes_in(each)
