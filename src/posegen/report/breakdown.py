"""A table's columns part by part: by scenario, for data sets that have some, by action, by number of people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from posegen.metrics.base import Column, Records
from posegen.report.rows import Group, Row

MACRO = "macro mean"
PARTS = ("scenario", "action", "people")  # what the images are divided by, of the facts that records know about them
CAPTION = f"Means over seeds, without intervals; '{MACRO}' is the unweighted mean over the lines above, "
CAPTION += "and '-' where one of them has no value."


@dataclass
class Breakdown:
    """Values of every method in every part of the images, and their unweighted mean over the parts."""

    by: str  # what the images are divided by, one of `PARTS`
    columns: Sequence[Column]  # the shown columns of the table
    labels: list[str]  # the part of every image
    #: ``method``, ``ranked``, ``state``, ``n_images``, the columns, and the part under the name of ``by``; means last.
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what could not be computed, and why

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(row[self.by] for row in self.rows))


def breakdowns(groups: Sequence[Group], protocol: Any, columns: Sequence[Column]) -> list[Breakdown]:
    """The rows with finished cells by everything in `PARTS` of which the records name two or more: the protocol's
    columns on each part's records alone, compared with the real images of the same part."""
    found: dict[str, Breakdown] = {}
    for group in groups:
        if not group.finished:
            continue
        seeds = group.records(protocol)
        reference = protocol.read(group.finished[0] / "reference")
        for by in PARTS:
            labels = parts_of(seeds[0], by)
            if len(set(labels)) > 1:
                add_group(found.setdefault(by, Breakdown(by, columns, labels)), group, seeds, reference, protocol)
    return [found[by] for by in PARTS if by in found]


def add_group(table: Breakdown, group: Group, seeds: Sequence[Records], reference: Records, protocol: Any) -> None:
    labels, rows = parts_of(seeds[0], table.by), []
    about = {"method": group.name, "ranked": group.ranked, "state": group.state["state"]}
    for name in sorted(set(labels)):
        real = restricted(reference, name, table.by) if table.by in reference else reference
        parts, reason = [restricted(records, name, table.by) for records in seeds], ""
        values = {str(column): math.nan for column in table.columns}
        for metric in protocol.metrics:
            try:
                points = [metric.compute(part, reference=real) for part in parts]
            except ValueError as error:  # it needs more images than there are in this part
                reason = f"{name}: {error}"
                continue
            values |= {c: float(np.mean([p[c] for p in points])) for c in values.keys() & points[0].keys()}
        table.notes += [reason] if reason and reason not in table.notes else []
        rows.append({**about, table.by: name, "n_images": labels.count(name), **values})
    mean = {str(column): float(np.mean([row[column] for row in rows])) for column in table.columns}
    table.rows += [*rows, {**about, table.by: MACRO, "n_images": len(labels), **mean}]


def parts_of(records: Records, by: str) -> list[str]:
    """The part of every image; empty where the records do not know."""
    return [f"{label:g}" if isinstance(label, float) else str(label) for label in records.get(by, ())]


def restricted(records: Records, name: str, by: str) -> Mapping[str, Sequence[Any]]:
    chosen = [i for i, label in enumerate(parts_of(records, by)) if label == name]
    return {key: [values[i] for i in chosen] for key, values in records.items()}
