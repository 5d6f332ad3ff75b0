"""The table of a study as plain data, from the records of its cells alone, so it can be built again at any time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posegen.errors import UserError
from posegen.metrics.base import Column
from posegen.report.all_pairs import AllPairs, win_note
from posegen.report.breakdown import Breakdown, breakdowns
from posegen.report.errors import ErrorTable, error_table
from posegen.report.judges import Judge, JudgesTable, first_judge, judges_table, taught_by
from posegen.report.published import Reproduction, read_expected
from posegen.report.rank_agreement import Agreement, agreements, seeds_note
from posegen.report.rows import DAMAGED, REFERENCE, Group, Row, add_tests, group_cells, set_baseline, state_of
from posegen.report.study import benchmark_plan, recorded_protocol

#: Marks of a value that differs from the baseline's, of a row that reproduces official quirks, and of one whose teacher
#: is the judge.
DIFFERS, FAITHFUL, TAUGHT = "†", "‡", "§"
ALPHA = 0.05
NOTED = ("AP", "paper_AP")  # columns whose agreement with published orders stands below the table


@dataclass
class Table:
    """A study's rows and the facts that are needed to show them."""

    title: str  # what was compared
    caption: str  # protocol, number of images and seeds, what the intervals and marks are
    columns: Sequence[Column]  # of the protocol, all of them in table.csv
    headline: Sequence[Column]  # the shown ones
    axes: Mapping[str, Sequence[Column]]  # family -> columns that a plot can have as its axis, the preferred one first
    rows: list[Row]  # one per method and setting, and one per published source
    cells: list[dict[str, Any]]  # state of every expected cell
    folder: Path  # of the study
    notes: list[str] = field(default_factory=list)  # what stands below the table
    parts: Sequence[Breakdown] = ()  # the same by everything that the images can be divided by
    agreements: Sequence[Agreement] = ()  # of the order of the methods with other orders
    judges: JudgesTable | None = None  # the columns of several judges side by side
    errors: ErrorTable | None = None  # the diagnosis, by the first judge whose records have the poses

    @property
    def scenarios(self) -> Breakdown | None:
        return next((found for found in self.parts if found.by == "scenario"), None)

    @property
    def accuracy(self) -> Column:
        """The column of pose accuracy that plots show: the preferred one of those that are not empty."""
        return next((column for column in self.axes["accuracy"] if self.filled(column)), self.headline[0])

    @property
    def quality(self) -> Column | None:
        """The column of quality that plots show beside it; of equals, a shown one; None where there is none."""
        filled = [c for c in self.axes["quality"] if c != self.accuracy and self.filled(c)]
        return min(filled, key=lambda c: (c.axis, c not in self.headline), default=None)

    def filled(self, column: str) -> bool:
        """Whether a row has a value of a column."""
        return not all(math.isnan(row.get(column, math.nan)) for row in self.rows)

    @property
    def pictured(self) -> dict[str, Path]:
        """Row -> folder of its cell of the first seed, or of the next one that finished."""
        done = [cell for cell in self.cells if cell["state"] == "finished"]
        found: dict[str, Path] = {}
        for cell in sorted(done, key=lambda cell: cell["seed"] != self.cells[0]["seed"]):
            found.setdefault(cell["row"], self.folder / cell["folder"])
        return {row: found[row] for row in dict.fromkeys(cell["row"] for cell in done)}

    @property
    def pictured_methods(self) -> dict[str, Path]:
        return {name: cell for name, cell in self.pictured.items() if not name.startswith(REFERENCE)}


def build_table(folder: Path, expected: Path | None = None, plan: Mapping[str, Any] | None = None) -> Table:
    """The table of a folder, with a row for every expected cell, finished or not.

    ``expected`` is a recorded run that the rows are compared with; ``plan`` replaces that of the benchmark."""
    plan = benchmark_plan(folder) if plan is None else plan
    cells = [
        {**state_of(folder / cell["folder"], cell["hash"], *cell.get("others", ())), **cell} for cell in plan["cells"]
    ]
    protocol = recorded_protocol(plan["protocol"], folder / "cells.json")
    groups = group_cells(cells, folder)
    set_baseline(groups, plan.get("baseline"))
    for group in groups:
        for cell in group.cells:
            cell["row"] = group.name
    measured = [group.row(protocol) for group in groups]
    tested = add_tests(measured, groups, plan.get("baseline"), protocol)
    recorded = read_expected(expected) if expected else {}
    reproduction, rows = Reproduction(protocol.columns, plan.get("reproduction") or {}, recorded), []
    for group, row in zip(groups, measured, strict=True):
        rows += [row, *reproduction.beside(group, row)]
    estimator = first_judge(groups)[1]
    for group, row in zip(groups, measured, strict=True):
        row["taught"] = taught_by(group, estimator)
    columns, headline = protocol.columns, protocol.headline(plan.get("headline"))
    about = caption(protocol, rows, str(plan.get("baseline")) if tested else None)
    axes = {family: protocol.axes(family) for family in ("accuracy", "quality")}
    kinds = {cell["precision"] for cell in cells if cell.get("others") and cell["state"] == "finished"}
    mixed = f"The machines that computed the cells chose {' and '.join(sorted(kinds))}; trainer.precision= sets one."
    notes = [mixed] if len(kinds) > 1 else []
    notes += [*reproduction.legend(), *gaps(measured, groups, columns), *column_remarks(measured, headline)]
    title, parts = plan.get("title") or f"Benchmark {folder.name}", breakdowns(groups, protocol, headline)
    table = Table(title, about, columns, headline, axes, rows, cells, folder, notes, parts)
    table.agreements = agreements(groups, measured, columns, table.accuracy)
    if (judges := judges_table(groups, measured, protocol, table.accuracy)) is not None:
        table.judges, table.agreements = judges, [*table.agreements, *judges.agreements]
    seen = table.judges.judges if table.judges else [Judge(*first_judge(groups), protocol, groups, measured)]
    diagnosed = (error_table(judge.name, judge.groups, judge.rows, judge.protocol) for judge in seen)
    table.errors = next(filter(None, diagnosed), None)
    shown = [each.sentence for each in table.agreements if each.column in (table.accuracy, *NOTED)]
    notes += [*shown, *filter(None, [seeds_note(groups, protocol, table.accuracy)])]
    if pairs := AllPairs.of(measured, groups, table.accuracy, ALPHA):
        notes += pairs.notes(ALPHA)
        for row in measured:
            row["group"] = pairs.letters.get(row["method"], "")
    if tested:
        notes += filter(None, [win_note(groups, protocol, table.accuracy, plan.get("baseline"))])
    return table


def require_records(table: Table) -> None:
    """Raises a UserError that names the cells whose records are damaged; the table has no values of them."""
    damaged = [cell["reason"] for cell in table.cells if cell["state"] == DAMAGED]
    if damaged:
        raise UserError("the table goes without damaged cells:\n" + "\n".join(damaged))


def caption(protocol: Any, rows: Sequence[Row], baseline: str | None) -> str:
    """What the numbers, intervals and marks are; of marks, those that occur."""
    seeds = {r["n_seeds"] for r in rows if r.get("n_seeds")}
    images = ", ".join(map(str, sorted({r["n_images"] for r in rows if r.get("n_images")}))) or "no"
    one_seed = "images only (one seed: differences between trainings are not in them)"
    sentences = [
        f"Protocol {protocol.name} v{protocol.version}, {images} images; {protocol.level:.0%} bootstrap intervals over "
        f"{one_seed if seeds <= {1} else 'seeds and images'}.",
        f"{protocol.note} Reference rows are bounds and are not ranked.",
    ]
    if sum(r["ranked"] and r["state"] == "finished" for r in rows) > 1:
        sentences.append("Bold: the best method of a column; underlined: the second best of three or more.")
    if baseline:
        test = f"paired bootstrap test, Holm-adjusted over the methods, p < {ALPHA:g}"
        sentences.append(f"{DIFFERS}: differs from {baseline} ({test}).")
    if any(r.get("faithful") == "true" for r in rows):
        sentences.append(f"{FAITHFUL}: official quirks are reproduced rather than corrected.")
    if any(r.get("taught") for r in rows):
        sentences.append(f"{TAUGHT}: the judge was the teacher of this method's training, or its reward.")
    return " ".join(sentences)


def gaps(rows: Sequence[Row], groups: Sequence[Group], columns: Sequence[Column]) -> list[str]:
    """Why columns are empty, and what rows say about their own pictures."""
    finished = [(row, group) for row, group in zip(rows, groups, strict=True) if row["state"] == "finished"]
    found: dict[tuple[str, ...], list[str]] = {}
    for column in columns:
        empty: dict[str, list[str]] = {}
        for row, group in finished:
            if math.isnan(row[column]):
                reason = group.absent.get(column, "the records hold nothing to compute it from")
                empty.setdefault(reason, []).append(row["method"])
        for reason, names in empty.items():
            found.setdefault((reason.rstrip("."), *(names if len(names) < len(finished) else ())), []).append(column)
    whose = {key: " of " + ", ".join(key[1:]) if key[1:] else "" for key in found}
    notes = [f"No {', '.join(missing)}{whose[key]}: {key[0]}." for key, missing in found.items()]
    return [*notes, *(f"{row['method']}: {row['reason'].rstrip('.')}." for row, _ in finished if row["reason"])]


def column_remarks(rows: Iterable[Row], headline: Sequence[Column]) -> list[str]:
    """What the values of the shown columns depend on beyond the images; of columns that have some."""
    found: dict[str, list[str]] = {}
    for column in headline:
        if column.remark and any(not math.isnan(row.get(column, math.nan)) for row in rows):
            found.setdefault(column.remark, []).append(column)
    return [f"{', '.join(columns)}: {text.rstrip('.')}." for text, columns in found.items()]
