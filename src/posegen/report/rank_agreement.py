"""Whether the order of the methods is that of published numbers, of other settings, and of other seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from posegen.adapters.base import Paper, Published
from posegen.metrics.base import Column
from posegen.metrics.math.rank_correlation import kendall, permutation_p_value, spearman
from posegen.metrics.math.statistics import interval
from posegen.report.rows import Group, Row
from posegen.runner.received.classes import found_class

Measured: TypeAlias = Sequence[tuple[Group, Row]]
LEAST = 3  # methods that an order is compared for
#: Published metrics -> the columns that measure the same of the images, the first one that a table has.
SAME_MEANING = {
    "AP": ("paper_AP", "AP"),
    "CAP": ("paper_SAP", "SAP_fixed"),
    "PCE": ("paper_PCE", "count_error"),
    "FID": ("paper_FID", "FID", "judge_frechet"),
    "KID": ("paper_KID", "KID", "judge_kernel"),
    "CLIP": ("paper_CLIP", "CLIP"),
}
FIELDS = ("column", "compared_with", "n_methods", "tau", "tau_lo", "tau_hi", "tau_p", "rho", "rho_p", "methods")


@dataclass(frozen=True)
class Agreement:
    """Rank correlations of a column's order of methods with another order."""

    column: str
    compared_with: str
    methods: tuple[str, ...]
    tau: float  # Kendall
    tau_p: float  # one-sided, of a permutation test
    rho: float  # Spearman
    rho_p: float
    tau_interval: tuple[float, float]  # over the bootstrap resamples of the measured values

    @classmethod
    def of(cls, measured_rows: Measured, column: Column, other: Sequence[float], name: str) -> Agreement:
        """Of the rows of some methods, and their ``other`` values."""
        measured, values = np.array([row[column] for _, row in measured_rows]), np.array(other)
        spread = np.stack([np.asarray(group.spread[column]) for group, _ in measured_rows], axis=-1)
        taus = kendall(spread, np.broadcast_to(values, spread.shape))
        p_values = [permutation_p_value(statistic, measured, values) for statistic in (kendall, spearman)]
        tau, rho = float(kendall(measured, values)), float(spearman(measured, values))
        methods = tuple(group.name for group, _ in measured_rows)
        return cls(str(column), name, methods, tau, p_values[0], rho, p_values[1], interval(taus))

    @property
    def sentence(self) -> str:
        low, high = self.tau_interval
        spread = "" if math.isnan(low) else f" [{low:.2f}, {high:.2f}]"  # where a resample has no order at all
        tests = f"Kendall's tau {self.tau:.2f}{spread}, p = {self.tau_p:.2g}"
        tests += f"; Spearman's rho {self.rho:.2f}, p = {self.rho_p:.2g} (one-sided permutation tests)"
        return f"Order by {self.column} against {self.compared_with} ({len(self.methods)} methods): {tests}."

    @property
    def row(self) -> Row:
        low, high = self.tau_interval
        facts = {"column": self.column, "compared_with": self.compared_with, "n_methods": len(self.methods)}
        facts |= {"tau": self.tau, "tau_lo": low, "tau_hi": high, "tau_p": self.tau_p}
        return {**facts, "rho": self.rho, "rho_p": self.rho_p, "methods": " ".join(self.methods)}


def agreements(
    groups: Sequence[Group], rows: Sequence[Row], columns: Sequence[Column], accuracy: Column
) -> list[Agreement]:
    """The order of the finished methods against the published orders, and between settings by ``accuracy``."""
    ranked = [(g, r) for g, r in zip(groups, rows, strict=True) if g.ranked and r["state"] == "finished" and g.spread]
    settings: dict[str, list[tuple[Group, Row]]] = {}
    for group, row in ranked:
        settings.setdefault(setting_of(group), []).append((group, row))
    found = [each for name, pairs in settings.items() for each in with_published(pairs, columns, name, len(settings))]
    return [*found, *between(settings, accuracy)]


def setting_of(group: Group) -> str:
    """What a row's cells share besides the method: data set, backbone and overrides."""
    return Path(group.cells[0]["folder"]).parent.name


def with_published(pairs: Measured, columns: Sequence[Column], setting: str, settings: int) -> list[Agreement]:
    """One for every data set and metric of which at least `LEAST` of the methods have published numbers."""
    known: dict[tuple[str, str], dict[int, float]] = {}
    for i, (group, _) in enumerate(pairs):
        for fact in published_numbers(group):
            known.setdefault((fact.data, fact.metric), {})[i] = (
                fact.value
            )  # of several, the one that was published last
    found, names = [], {str(column): column for column in columns}
    for (data, metric), values in known.items():
        column = next((names[name] for name in SAME_MEANING.get(metric, ()) if name in names), None)
        if column is None:
            continue
        kept = [i for i in values if not math.isnan(pairs[i][1][column])]
        if len(kept) >= LEAST:
            where = f" ({setting})" if settings > 1 else ""
            name = f"{metric} published on {data}{where}"
            found.append(Agreement.of([pairs[i] for i in kept], column, [values[i] for i in kept], name))
    return found


def published_numbers(group: Group) -> list[Published]:
    """The numbers about a row's method that were read at their source; none of methods that only mark the floor."""
    cls = found_class(group.adapter) if group.adapter else None
    paper: Any = getattr(cls, "paper", None)
    published: Any = paper.published if isinstance(paper, Paper) and getattr(cls, "trainable", True) else ()
    return [fact for fact in published if fact.read]


def between(settings: Mapping[str, Measured], column: Column) -> list[Agreement]:
    """One for every two settings (backbones, budgets, worlds) with at least `LEAST` methods in common."""
    found = []
    for (one, here), (other, there) in combinations(settings.items(), 2):
        rows = {group.method: row for group, row in there}
        shared = [(g, r) for g, r in here if g.method in rows and not math.isnan(r[column] + rows[g.method][column])]
        if len({group.method for group, _ in shared}) == len(shared) >= LEAST:
            values = [rows[group.method][column] for group, _ in shared]
            found.append(Agreement.of(shared, column, values, f"the same of {other} ({one})"))
    return found


def seeds_note(groups: Sequence[Group], protocol: Any, column: Column) -> str:
    """A sentence on the orders of single seeds; empty where there are not `LEAST` methods with the same seeds."""
    ranked = [group for group in groups if group.ranked and len(group.finished) > 1 and group.spread]
    ranked = [group for group in ranked if len(group.finished) == len(ranked[0].finished)]
    if len(ranked) < LEAST or len({setting_of(group) for group in ranked}) > 1:
        return ""
    metric = next(metric for metric in protocol.metrics if column in metric.described())
    values = []
    for group in ranked:
        reference = protocol.read(group.finished[0] / "reference")
        seeds = group.records(protocol)
        values.append([metric.compute(records, reference=reference)[column] for records in seeds])
    by_seed = np.array(values).T
    taus = [float(kendall(one, other)) for one, other in combinations(by_seed, 2)]
    mean, count = float(np.mean(taus)), f"{len(by_seed)} seeds, {len(ranked)} methods"
    return f"Order by {column} of one seed against another ({count}): Kendall's tau {mean:.2f} on average."
