"""A table's columns part by part: by scenario, for data sets that have some, by action, by number of people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from posegen.report.formats import Entry, Grid, markdown, plain, ranking, to_csv

if TYPE_CHECKING:
    from posegen.metrics.base import Column, Records
    from posegen.report.rows import Group, Row

MACRO = "macro mean"
#: What the images are divided by, of what records know of them.
PARTS = ("scenario", "action", "people")


@dataclass
class Scenarios:
    """Values of every method in every part of the images, and their unweighted mean over the parts.

    Attributes:
        by: what the images are divided by, one of `PARTS`.
        columns: those of the table that people read.
        rows: ``method``, the part under the name of ``by``, ``n_images``, ``ranked``, and the columns; the mean is the last part.
        labels: the part of every image.
        notes: what could not be computed, and why.
    """

    columns: Sequence[Column]
    rows: list[Row]
    labels: list[str]
    notes: list[str]
    by: str = "scenario"

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(row[self.by] for row in self.rows))

    def csv(self) -> str:
        return to_csv(["method", self.by, "n_images", *self.columns], self.rows)

    def grid(self, column: Column) -> Grid:
        """A line per part, with the methods side by side."""
        methods = list(dict.fromkeys(row["method"] for row in self.rows))
        lines = [[Entry(name) for name in (self.by, "images", *methods)]]
        for part in self.names:
            rows = [row for row in self.rows if row[self.by] == part]
            ranks = ranking(rows, column)
            values = {
                row["method"]: Entry(plain(row[column]), ranks.get(row[column], 0) if row["ranked"] else 0)
                for row in rows
            }
            lines.append(
                [Entry(part), Entry(str(rows[0]["n_images"])), *(values.get(method, Entry("-")) for method in methods)]
            )
        return lines

    def markdown(self, title: str) -> str:
        parts = [
            f"# {title}, by {self.by}",
            *(f"## {column}\n\n{markdown(self.grid(column))}" for column in self.columns),
            self.caption,
        ]
        return "\n\n".join([*parts, *(f"- {note}" for note in self.notes)]) + "\n"

    @property
    def caption(self) -> str:
        return f"Means over seeds, without intervals; '{MACRO}' is the unweighted mean over the lines above, and '-' where one of them has no value."


def breakdowns(groups: Sequence[Group], protocol: Any, columns: Sequence[Column]) -> list[Scenarios]:
    """The finished rows by everything in `PARTS` of which the records name two or more; records are read once.

    The columns are those of the protocol on each part's records alone, compared with the real images of the same part.
    """
    found: dict[str, Scenarios] = {}
    for group in groups:
        if not group.finished:
            continue
        seeds = [protocol.read(folder) for folder in group.finished]
        reference = protocol.read(group.finished[0] / "reference")
        for by in PARTS:
            labels = parts_of(seeds[0], by)
            if len(set(labels)) > 1:
                table = found.setdefault(by, Scenarios(columns, [], labels, [], by))
                add_row(table, group, seeds, reference, protocol)
    return [found[by] for by in PARTS if by in found]


def add_row(table: Scenarios, group: Group, seeds: Sequence[Records], reference: Records, protocol: Any) -> None:
    """Adds the parts of one group of cells and their mean."""
    by, labels, own = table.by, parts_of(seeds[0], table.by), []
    for name in sorted(set(labels)):
        values, reason = values_in(name, seeds, reference, protocol, table.columns, by)
        table.notes += [reason] if reason and reason not in table.notes else []
        own.append(
            {
                "method": group.name,
                "ranked": group.ranked,
                "state": "finished",
                by: name,
                "n_images": labels.count(name),
                **values,
            }
        )
    mean = {column: float(np.mean([row[column] for row in own])) for column in table.columns}
    table.rows += [*own, {**own[0], by: MACRO, "n_images": len(labels), **mean}]


def parts_of(records: Records, by: str) -> list[str]:
    """The part of every image; empty where the records do not know."""
    return [f"{label:g}" if isinstance(label, float) else str(label) for label in records.get(by, ())]


def values_in(
    name: str, seeds: Sequence[Records], reference: Records, protocol: Any, columns: Sequence[str], by: str
) -> tuple[dict[str, float], str]:
    """(means over seeds in one part, why there are none)."""
    real = restricted(reference, name, by) if by in reference else reference
    parts = [restricted(records, name, by) for records in seeds]
    found, reason = dict.fromkeys(columns, math.nan), ""
    for metric in protocol.metrics:
        try:
            points = [metric.resampled(own, np.ones((1, len(own["id"]))), real) for own in parts]
        except ValueError as error:  # it needs more images than there are in this part
            reason = f"{name}: {error}"
            continue
        found |= {
            column: float(np.mean([point[column][0] for point in points])) for column in columns if column in points[0]
        }
    return found, reason


def restricted(records: Records, name: str, by: str) -> Mapping[str, Sequence[Any]]:
    """The records of one part."""
    chosen = [i for i, label in enumerate(parts_of(records, by)) if label == name]
    return {key: [values[i] for i in chosen] for key, values in records.items()}
