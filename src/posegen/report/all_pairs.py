"""Every method against every other: groups that cannot be told apart, detectable differences, wins image by image."""

from __future__ import annotations

import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist
from typing import Any

import numpy as np

from posegen.metrics.base import Column
from posegen.metrics.math.statistics import holm, multiple, wins
from posegen.report.rows import Group, Row

POWER = 0.8  # probability with which a difference is found that the table calls detectable


@dataclass(frozen=True)
class AllPairs:
    """The differences of a column between all pairs of methods."""

    column: Column
    letters: Mapping[str, str]  # method -> the letters of its groups, those of the best first
    detectable: float  # the true difference that is found with probability `POWER`, median over the pairs

    @classmethod
    def of(cls, rows: Sequence[Row], groups: Sequence[Group], column: Column, alpha: float) -> AllPairs | None:
        """Of the finished and ranked methods; None with fewer than three of them."""
        spreads = {
            group.name: np.asarray(group.spread[column])
            for group, row in zip(groups, rows, strict=True)
            if group.ranked and group.spread and row["state"] == "finished" and not math.isnan(row[column])
        }
        if len(spreads) < 3:
            return None
        values = {row["method"]: row[column] for row in rows if row["method"] in spreads}
        names = sorted(spreads, key=lambda name: values[name], reverse=column.better != "lower")
        pairs = list(combinations(names, 2))
        errors = [float((spreads[a] - spreads[b]).std(ddof=1)) for a, b in pairs]
        p_values = [normal_p_value(values[a] - values[b], error) for (a, b), error in zip(pairs, errors, strict=True)]
        different = [pair for pair, p in zip(pairs, holm(p_values), strict=True) if p < alpha]
        return cls(column, letter_display(names, different), multiple(POWER, alpha) * float(np.median(errors)))

    def notes(self, alpha: float) -> list[str]:
        tests = f"all pairs, paired bootstrap, normal p-values, Holm-adjusted, p < {alpha:g}"
        shared = f"group: methods that share a letter cannot be told apart by {self.column} ({tests})."
        what = f"the smallest true difference that is found with probability {POWER:g}, median over the pairs"
        return [shared, f"Detectable difference of {self.column}: {self.detectable:.2g} ({what})."]


def normal_p_value(difference: float, error: float) -> float:
    """Two-sided, of no difference; by the bootstrap's standard error, so that it has no smallest value."""
    if error == 0:
        return float(difference == 0)
    return 2 * NormalDist().cdf(-abs(difference) / error)


def letter_display(names: Sequence[str], different: Sequence[tuple[str, str]]) -> dict[str, str]:
    """A letter for every largest set of ``names`` without a ``different`` pair (Piepho 2004, insert and absorb)."""
    sets = [frozenset(names)]
    for pair in different:
        split = [part for each in sets for part in ([each - {n} for n in pair] if each >= {*pair} else [each])]
        sets = [each for each in dict.fromkeys(split) if not any(each < other for other in split)]
    sets.sort(key=lambda each: sorted(map(names.index, each)))
    marks = [*string.ascii_lowercase, *(a + b for a in string.ascii_lowercase for b in string.ascii_lowercase)]
    return {name: "".join(mark for mark, each in zip(marks, sets, strict=False) if name in each) for name in names}


def win_note(groups: Sequence[Group], protocol: Any, column: Column, baseline: str | None) -> str:
    """A sentence on the share of images on which each method is better than the baseline; empty without one."""
    ranked = {group.name: group for group in groups if group.ranked and group.finished}
    if baseline not in ranked or len(ranked) < 2 or column.better is None:
        return ""
    metric = next(metric for metric in protocol.metrics if column in metric.described())
    base = per_image(ranked.pop(baseline), protocol, metric, column)
    shares = []
    for name, group in ranked.items():
        gain = per_image(group, protocol, metric, column) - base
        gain = -gain if column.better == "lower" else gain
        known = gain[~np.isnan(gain)]
        shares.append(f"{name} {100 * np.mean(wins(known)):.0f}" if len(known) else f"{name} -")
    return f"Images on which {column} is better than that of {baseline}, ties half, %: {', '.join(shares)}."


def per_image(group: Group, protocol: Any, metric: Any, column: Column) -> np.ndarray:
    """``[n]`` the column on each image alone, the mean over seeds; NaN for images that have no value."""
    seeds = group.records(protocol)
    reference = protocol.read(group.finished[0] / "reference")
    alone = np.eye(len(seeds[0]["id"]))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.mean([metric.resampled(records, alone, reference)[column] for records in seeds], axis=0)
