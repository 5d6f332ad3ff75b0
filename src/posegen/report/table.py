"""Tables: from the records of cells alone, so they can be made again at any time.

``table.csv`` has every column of the protocol; the formats that people read have its headline. Below them stands whatever a reader must know to believe them:
what the intervals are, why a column is empty, where a published number comes from.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import OmegaConf

from posegen.errors import UserError
from posegen.io.atomic import write_text
from posegen.metrics.base import Column
from posegen.report import formats
from posegen.report.breakdown import Scenarios, breakdowns
from posegen.report.published import Reproduction, read_expected
from posegen.report.rows import REFERENCE, Group, Row, add_tests, grouped, row_of, state_of

__all__ = ["Table", "build_table", "main", "row_of", "terminal_row", "write_table"]


@dataclass
class Table:
    """A benchmark's rows and how to show them.

    Attributes:
        title: what was compared.
        caption: protocol, number of images and seeds, what the intervals and marks are.
        columns: the protocol's columns.
        headline: those that people see.
        axes: pose accuracy and quality, what the points of charts are.
        rows: one per method and setting, and one per published source.
        cells: state of every expected cell.
        folder: where the benchmark lies.
        notes: what stands below the table.
        parts: the same by all that the images can be divided by.
    """

    title: str
    caption: str
    columns: Sequence[Column]
    headline: Sequence[Column]
    axes: Mapping[str, Sequence[Column]]
    rows: list[Row]
    cells: list[dict[str, Any]]
    folder: Path
    notes: list[str] = field(default_factory=list)
    parts: Sequence[Scenarios] = ()

    @property
    def scenarios(self) -> Scenarios | None:
        return next((found for found in self.parts if found.by == "scenario"), None)

    @property
    def shown(self) -> dict[str, Path]:
        """Row -> folder of its cell of the first seed, or of the next one that finished."""
        done = [cell for cell in self.cells if cell["state"] == "finished"]
        found: dict[str, Path] = {}
        for cell in sorted(done, key=lambda cell: cell["seed"] != self.cells[0]["seed"]):
            found.setdefault(cell["row"], self.folder / cell["folder"])
        return {row: found[row] for row in dict.fromkeys(cell["row"] for cell in done)}

    def csv(self) -> str:
        return formats.table_csv(self)

    def markdown(self) -> str:
        notes = [f"- {note}" for note in self.notes]
        return "\n".join(
            [
                f"# {self.title}",
                "",
                formats.markdown(formats.grid(self)),
                "",
                self.caption,
                *([""] if notes else []),
                *notes,
                "",
            ]
        )

    def latex(self) -> str:
        return formats.latex(formats.grid(self), f"{self.title}. {self.caption}", self.notes)

    def terminal(self) -> str:
        return "\n".join([self.title, formats.aligned(formats.grid(self)), self.caption, *self.notes])


def build_table(folder: Path, expected: Path | None = None, plan: Mapping[str, Any] | None = None) -> Table:
    """The table of a benchmark folder, with a row for every expected cell, finished or not.

    Args:
        expected: a recorded run that the rows are compared with.
        plan: which cells are expected; by default, those that the benchmark planned.
    """
    from posegen.verbs.benchmark import planned

    plan = planned(folder) if plan is None else plan
    cells = [{**state_of(folder / cell["folder"], cell["hash"]), **cell} for cell in plan["cells"]]
    protocol = instantiate(OmegaConf.create(plan["protocol"]), _convert_="all")
    groups = grouped(cells, folder)
    for group in groups:
        for cell in group.cells:
            cell["row"] = group.name
    own = [group.row(protocol) for group in groups]
    tested = add_tests(own, groups, plan.get("baseline"), protocol)
    reproduction = Reproduction(
        protocol.columns, plan.get("reproduction") or {}, read_expected(expected) if expected else {}
    )
    rows = [line for group, row in zip(groups, own, strict=True) for line in (row, *reproduction.beside(group, row))]
    headline = protocol.headline(plan.get("headline"))
    return Table(
        title=plan.get("title") or f"Benchmark {folder.name}",
        caption=caption(protocol, rows, str(plan.get("baseline")) if tested else None),
        columns=protocol.columns,
        headline=headline,
        axes={family: protocol.axes(family) for family in ("accuracy", "quality")},
        rows=rows,
        cells=cells,
        folder=folder,
        notes=[*reproduction.legend(), *gaps(own, groups, protocol.columns), *remarks(own, headline)],
        parts=breakdowns(groups, protocol, headline),
    )


def write_table(folder: Path, expected: Path | None = None) -> Table:
    """Writes ``table.{csv,md,tex,html}`` and ``pictures.png`` of a benchmark, with scenarios also ``table_scenarios.{csv,md}`` and ``pictures/*.png``."""
    from posegen.report.page import page
    from posegen.runner.images import by_scenario, overview, write_png

    table = build_table(folder, expected)
    for suffix, text in {
        "csv": table.csv(),
        "md": table.markdown(),
        "tex": table.latex(),
        "html": page(table),
    }.items():
        write_text(folder / f"table.{suffix}", text)
    if table.scenarios is not None:
        write_text(folder / "table_scenarios.csv", table.scenarios.csv())
        write_text(folder / "table_scenarios.md", table.scenarios.markdown(table.title))
    methods = {name: cell for name, cell in table.shown.items() if not name.startswith(REFERENCE)}
    if (pictures := overview(methods)) is not None:
        write_png(folder / "pictures.png", pictures)
    labels = table.scenarios.labels if table.scenarios else []
    for scenario, grid in by_scenario(labels, methods, table.shown.get(f"{REFERENCE}real")).items():
        write_png(folder / "pictures" / (re.sub(r"[^\w.-]+", "_", scenario) + ".png"), grid)
    return table


def main(argv: Sequence[str]) -> int:
    """The verb ``posegen table [folder ...] [expected=FILE]``: makes a benchmark's table again from its records."""
    expected = next((Path(word.partition("=")[2]) for word in argv if word.startswith("expected=")), None)
    folders = [Path(word) for word in argv if not word.startswith("expected=")]
    folders = folders or sorted(path.parent for path in Path("outputs/benchmark").glob("*/cells.json"))
    if not folders:
        raise UserError(
            "outputs/benchmark holds no benchmark; run posegen benchmark first, or name its folder: posegen table FOLDER"
        )
    for folder in folders:
        table = write_table(folder, expected)
        print(table.terminal())
        print(
            f"table: {folder / 'table.md'} (also .tex, .csv, .html{', table_scenarios.md' if table.scenarios else ''})"
        )
    return 0


# What stands below a table.


def caption(protocol: Any, rows: Sequence[Row], baseline: str | None) -> str:
    """What the numbers, intervals and marks are; of marks, those that occur."""
    seeds = {r["n_seeds"] for r in rows if r.get("n_seeds")}
    images = {r["n_images"] for r in rows if r.get("n_images")}
    span = ", ".join(map(str, sorted(images))) or "no"
    over = (
        "images only (one seed: differences between trainings are not in them)" if seeds <= {1} else "seeds and images"
    )
    told = [
        f"Protocol {protocol.name} v{protocol.version}, {span} images; {protocol.level:.0%} bootstrap intervals over {over}.",
        f"{protocol.note} Reference rows are bounds and are not ranked.",
    ]
    if sum(r["ranked"] and r["state"] == "finished" for r in rows) > 1:
        told.append("Bold: the best method of a column; underlined: the second best of three or more.")
    if baseline:
        told.append(
            f"{formats.DIFFERS}: differs from {baseline} (paired bootstrap test, Holm-adjusted over the methods, p < {formats.ALPHA:g})."
        )
    if any(r.get("faithful") == "true" for r in rows):
        told.append(f"{formats.FAITHFUL}: official quirks are reproduced rather than corrected.")
    return " ".join(told)


def gaps(rows: Sequence[Row], groups: Sequence[Group], columns: Sequence[str]) -> list[str]:
    """Why columns are empty, and what rows say about their own pictures."""
    finished = [(row, group) for row, group in zip(rows, groups, strict=True) if row["state"] == "finished"]
    found: dict[tuple[str, ...], list[str]] = {}
    for column in columns:
        empty: dict[str, list[str]] = {}
        for row, group in finished:
            if math.isnan(row[column]):
                empty.setdefault(group.absent.get(column, "the records hold nothing to compute it from"), []).append(
                    row["method"]
                )
        for reason, names in empty.items():
            found.setdefault((reason.rstrip("."), *(names if len(names) < len(finished) else ())), []).append(column)
    notes = [
        f"No {', '.join(missing)}{' of ' + ', '.join(names) if names else ''}: {reason}."
        for (reason, *names), missing in found.items()
    ]
    return [*notes, *(f"{row['method']}: {row['reason'].rstrip('.')}." for row, _ in finished if row["reason"])]


def remarks(rows: Iterable[Row], headline: Sequence[Column]) -> list[str]:
    """What the values of the headline depend on beyond the images; of columns that have some."""
    filled = [column for column in headline if any(not math.isnan(row.get(column, math.nan)) for row in rows)]
    told: dict[str, list[str]] = {}
    for column in filled:
        if column.remark:
            told.setdefault(column.remark, []).append(column)
    return [f"{', '.join(columns)}: {text.rstrip('.')}." for text, columns in told.items()]


def terminal_row(row: Row, headline: Sequence[str]) -> str:
    """One row as lines of ``name value [low, high]``."""
    names = [name for name in headline if f"{name}_lo" in row]
    return "\n".join(f"{name:>20}  {formats.interval_text(row, name)}" for name in names)
