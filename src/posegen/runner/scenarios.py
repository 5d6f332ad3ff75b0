"""A table's columns scenario by scenario, for data sets that have some."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from posegen.runner.formats import Entry, Grid, markdown, plain, ranking, to_csv

if TYPE_CHECKING:
    from posegen.metrics.base import Records
    from posegen.runner.rows import Group, Row

MACRO = "macro mean"


@dataclass
class Scenarios:
    """Values of every method in every scenario, and their unweighted mean over scenarios.

    Attributes:
        columns: those of the table that people read.
        lower: columns where smaller is better.
        rows: ``method``, ``scenario``, ``n_images``, ``ranked``, and the columns; the mean is the last scenario.
        labels: the scenario of every image.
        notes: what could not be computed, and why.
    """

    columns: Sequence[str]
    lower: frozenset[str]
    rows: list[Row]
    labels: list[str]
    notes: list[str]

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(row["scenario"] for row in self.rows))

    def csv(self) -> str:
        return to_csv(["method", "scenario", "n_images", *self.columns], self.rows)

    def grid(self, column: str) -> Grid:
        """A line per scenario, with the methods side by side."""
        methods = list(dict.fromkeys(row["method"] for row in self.rows))
        lines = [[Entry(name) for name in ("scenario", "images", *methods)]]
        for scenario in self.names:
            rows = [row for row in self.rows if row["scenario"] == scenario]
            ranks = ranking(rows, column, column in self.lower)
            values = {row["method"]: Entry(plain(row[column]), ranks.get(row[column], 0) if row["ranked"] else 0) for row in rows}
            lines.append([Entry(scenario), Entry(str(rows[0]["n_images"])), *(values.get(method, Entry("-")) for method in methods)])
        return lines

    def markdown(self, title: str) -> str:
        parts = [f"# {title}, by scenario", *(f"## {column}\n\n{markdown(self.grid(column))}" for column in self.columns), self.caption]
        return "\n\n".join([*parts, *(f"- {note}" for note in self.notes)]) + "\n"

    @property
    def caption(self) -> str:
        return f"Means over seeds, without intervals; '{MACRO}' is the unweighted mean over scenarios, and '-' where one of them has no value."


def breakdown(groups: Sequence[Group], protocol: Any, columns: Sequence[str]) -> Scenarios | None:
    """The scenarios of the finished rows; None where the records name fewer than two.

    The columns are those of the protocol on each scenario's records alone, compared with the real images of the same scenario.
    """
    rows: list[Row] = []
    labels: list[str] = []
    reasons: dict[str, None] = {}
    for group in groups:
        if not group.finished:
            continue
        seeds = [protocol.read(folder) for folder in group.finished]
        reference = protocol.read(group.finished[0] / "reference")
        labels = list(seeds[0].get("scenario", ()))
        names = sorted(set(labels))
        if len(names) < 2:
            continue
        own = []
        for name in names:
            values, reason = values_in(name, seeds, reference, protocol, columns)
            reasons |= {reason: None} if reason else {}
            own.append({"method": group.name, "ranked": group.ranked, "state": "finished", "scenario": name, "n_images": labels.count(name), **values})
        mean = {column: float(np.mean([row[column] for row in own])) for column in columns}
        rows += [*own, {**own[0], "scenario": MACRO, "n_images": len(labels), **mean}]
    return Scenarios(columns, protocol.lower_is_better, rows, labels, list(reasons)) if rows else None


def values_in(name: str, seeds: Sequence[Records], reference: Records, protocol: Any, columns: Sequence[str]) -> tuple[dict[str, float], str]:
    """(means over seeds in one scenario, why there are none)."""
    real = restricted(reference, name) if "scenario" in reference else reference
    try:
        points = [protocol.values(own, np.ones((1, len(own["id"]))), real) for own in (restricted(records, name) for records in seeds)]
    except ValueError as error:  # a metric that needs more images than the scenario has
        return dict.fromkeys(columns, math.nan), f"{name}: {error}"
    return {column: float(np.mean([point[column][0] for point in points])) for column in columns}, ""


def restricted(records: Records, name: str) -> Mapping[str, Sequence[Any]]:
    """The records of one scenario."""
    chosen = [i for i, label in enumerate(records["scenario"]) if label == name]
    return {key: [values[i] for i in chosen] for key, values in records.items()}
