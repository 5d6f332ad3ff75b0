"""Published numbers beside measured ones, and whether the two agree.

A benchmark whose protocol repeats a published computation (columns that are ``published``) on the published data shows
the numbers of its methods' papers as rows of their own. Whether they should be reached at all, only the author of the
benchmark can know: the training, the weights and the table that is repeated stand in its ``reproduction``::

    reproduction:
      source: GRPose                              # a part of the source's name; other sources are shown, not compared
      tolerance: {paper_AP: 1.0, paper_PCE: 0.1}  # 0 by default
      excluded: {humansd: "trained for a tenth of the published steps"}

A number counts as reproduced if it lies inside the row's interval or within its tolerance. ``posegen table FOLDER
expected=FILE`` compares with a recorded run instead, ``{row: {column: value}}`` as in ``experiments/*/expected.yaml``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posegen.adapters.base import Paper, Published
from posegen.errors import UserError
from posegen.metrics.base import Column
from posegen.report.rows import Group, Row
from posegen.runner.received.classes import found_class
from posegen.runner.received.state_files import read_yaml

REPRODUCED, DIFFERENT, INCOMPARABLE = "reproduced", "not reproduced", "not comparable"
EXAMPLE = "lines like 'controlnet: {AP: 16.1}'"


@dataclass
class Reproduction:
    """What the columns of a table are compared with."""

    columns: Sequence[Column]  # of the protocol
    settings: Mapping[str, Any] = field(default_factory=dict)  # the benchmark's `reproduction`
    expected: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # row -> column -> recorded value
    sources: list[str] = field(default_factory=list)  # the shown ones, in order; a row's mark is its number here
    compared: dict[str, None] = field(default_factory=dict)  # sources that rows were compared with
    shown: set[str] = field(default_factory=set)  # methods whose reported rows are in the table
    notes: list[tuple[str, str]] = field(default_factory=list)  # (row, what to say about it) below the table

    def beside(self, group: Group, row: Row) -> list[Row]:
        """The reported rows that belong to a row, after setting its status (``reproduction``); once for each method."""
        if group.name in self.expected:
            self._judge(row, "the recorded run", self.expected[group.name], {})
            return []
        published = self._published(group) if group.ranked else []
        if not published:
            return []
        here = [fact for fact in published if same_name(fact.data, group.data)]
        wanted = self.settings.get("source")
        repeated = [fact for fact in here if wanted and wanted in fact.source]
        excluded = (self.settings.get("excluded") or {}).get(group.name)
        if not here:
            elsewhere = ", ".join(sorted({fact.data for fact in published}))
            self._refuse(row, f"published on {elsewhere}; this is {group.data}")
        elif row["state"] != "finished" or excluded:
            self._refuse(row, str(excluded) if row["state"] == "finished" else f"{row['state']} here")
        elif not wanted:
            self._refuse(row, "the benchmark does not say which table it repeats (reproduction.source)")
        elif not repeated:
            self._refuse(row, f"no source of its numbers has {wanted!r} in its name")
        else:
            values = {fact.column: fact.value for fact in repeated}
            self._judge(row, repeated[0].source, values, self.settings.get("tolerance") or {})
        if group.method in self.shown:
            return []
        self.shown.add(group.method)
        return [self._row(group.method, source, here) for source in dict.fromkeys(fact.source for fact in here)]

    def _refuse(self, row: Row, reason: str) -> None:
        row["reproduction"] = INCOMPARABLE
        self.notes.append((row["method"], f"{INCOMPARABLE} with published numbers: {reason}."))

    def _published(self, group: Group) -> list[Published]:
        """The numbers published about a method that this protocol measures; only then is its module imported."""
        if not any(column.published for column in self.columns) or not group.adapter:
            return []
        paper = getattr(found_class(group.adapter), "paper", None)
        published: Any = paper.published if isinstance(paper, Paper) else ()
        return [fact for fact in published if fact.read and fact.column in self.columns]

    def _row(self, method: str, source: str, published: Sequence[Published]) -> Row:
        if source not in self.sources:
            self.sources.append(source)
        name = f"{method} [{self.sources.index(source) + 1}]"
        values = {fact.column: fact.value for fact in published if fact.source == source}
        return {"method": name, "ranked": False, **values, "state": "reported", "reason": source}

    def _judge(self, row: Row, source: str, values: Mapping[str, float], tolerance: Mapping[str, float]) -> None:
        if unknown := ", ".join(sorted(values.keys() - set(self.columns))):
            known = f"its columns are {', '.join(self.columns)}"
            raise UserError(f"{source} has values of {unknown}, which are no columns of this protocol; {known}")
        if row["state"] != "finished":
            return
        missed = []
        for column, value in values.items():
            measured, low, high = (row[f"{column}{end}"] for end in ("", "_lo", "_hi"))
            near = abs(measured - value) <= tolerance.get(column, 0.0)
            if not (near or low <= value <= high):
                missed.append(f"{column} {measured:.4g} [{low:.4g}, {high:.4g}] where {value:g} was reported")
        row["reproduction"] = DIFFERENT if missed else REPRODUCED
        self.compared[source] = None
        if missed:
            self.notes.append((row["method"], f"{DIFFERENT} ({source}): {'; '.join(missed)}."))

    def legend(self) -> list[str]:
        """The sources by number, then the reasons; equal reasons of several rows in one note."""
        reasons: dict[str, list[str]] = {}
        for name, reason in self.notes:
            reasons.setdefault(reason, []).append(name)
        lines = [f"[{i}] Reported, not measured here: {source}." for i, source in enumerate(self.sources, 1)]
        if self.compared:
            where = "the values lie inside the row's intervals or the benchmark's tolerance"
            lines.append(f"Compared with {' and '.join(self.compared)}: {REPRODUCED} where {where}.")
        return [*lines, *(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())]


def same_name(one: str, other: str) -> bool:
    """Whether two names of data sets differ in spelling only: Human-Art, human_art."""
    letters = ["".join(char for char in name.lower() if char.isalnum()) for name in (one, other)]
    return letters[0] == letters[1]


def read_expected(path: Path) -> dict[str, dict[str, float]]:
    """Row -> column -> value of an ``expected.yaml``; a UserError where it is missing or holds something else."""
    found = read_yaml(path, f"expected={path} is a yaml file with {EXAMPLE}")
    rows = list(found.values()) if isinstance(found, dict) else [None]
    values = [value for row in rows for value in (row.values() if isinstance(row, dict) else [None])]
    if not all(isinstance(value, int | float) and not math.isnan(value) for value in values):
        raise UserError(f"expected={path} needs {EXAMPLE}: for each row the values of some columns")
    return found
