"""A table as text: comma-separated values for programs, markdown, LaTeX and aligned columns for people."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from posegen.metrics.base import Column
from posegen.report.rows import COSTS, Row

if TYPE_CHECKING:
    from posegen.report.table import Table

#: Marks of a value that differs from the baseline's, and of a row that reproduces official quirks.
DIFFERS, FAITHFUL = "†", "‡"
ALPHA = 0.05
LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    DIFFERS: r"$^\dagger$",
    FAITHFUL: r"$^\ddagger$",
}
LATEX |= {char: f"\\{char}" for char in "&%$#_{}"}


@dataclass(frozen=True)
class Entry:
    """One cell of a table as people read it.

    Attributes:
        text: without marks.
        rank: 1 for the best of its column, 2 for the second best, else 0.
        differs: significantly from the baseline.
    """

    text: str
    rank: int = 0
    differs: bool = False

    def marked(self, first: str, second: str, escape: Callable[[str], str] = str) -> str:
        """As text; ``first`` and ``second`` are templates for the best and second best."""
        template = {1: first, 2: second}.get(self.rank, "{}")
        return template.replace("{}", escape(self.text)) + escape(DIFFERS if self.differs else "")


Grid = list[list[Entry]]


def grid(table: Table) -> Grid:
    """Header and rows: method, status of its reproduction where something was compared, headline columns, costs."""
    compared = any(row.get("reproduction", "") not in ("", "not comparable") for row in table.rows)
    extra = ["reproduction"] if compared else []
    costs: dict[str, Callable[[Row], str]] = {
        "trained": lambda row: parameters(row.get("cost_trained_parameters")),
        "train img/s": lambda row: number(row.get("cost_train_images_per_s")),
        "sample img/s": lambda row: number(row.get("cost_sample_images_per_s")),
        "memory": lambda row: memory(row.get("cost_peak_memory_mb")),
    }
    ranks = {column: ranking(table.rows, column) for column in table.headline}
    lines = [[Entry(name) for name in ["method", *extra, *table.headline, *costs]]]
    for row in table.rows:
        name = Entry(row["method"] + (f" {FAITHFUL}" if row.get("faithful") == "true" else ""))
        if row["state"] not in ("finished", "reported"):
            lines.append(
                [name, Entry(f"{row['state']}: {row['reason']}".strip(": "))] + [Entry("")] * (len(lines[0]) - 2)
            )
            continue
        values = [entry(row, column, ranks[column]) for column in table.headline]
        if row["state"] == "reported":
            lines.append([name, *(Entry("reported") for _ in extra), *values, *(Entry("") for _ in costs)])
            continue
        lines.append(
            [
                name,
                *(Entry(row.get(key, "")) for key in extra),
                *values,
                *(Entry(cost(row)) for cost in costs.values()),
            ]
        )
    return lines


def entry(row: Row, column: str, ranks: Mapping[float, int]) -> Entry:
    """A value with its interval, where it has one, and its marks."""
    if row["state"] == "reported":
        return Entry(f"{row[column]:g}" if column in row else "")
    rank = ranks.get(row.get(column, math.nan), 0) if row["ranked"] else 0
    return Entry(interval_text(row, column), rank, row.get(f"{column}_p", 1.0) < ALPHA)


def ranking(rows: Iterable[Row], column: Column) -> dict[float, int]:
    """Value -> 1 for the best and 2 for the second best of a column.

    Reference rows are not ranked; neither is a column of which neither direction is better, nor one with a single method. Of two methods one is best and
    the other not worth a mark.
    """
    values = {
        r[column] for r in rows if r["ranked"] and r["state"] == "finished" and not math.isnan(r.get(column, math.nan))
    }
    if len(values) < 2 or column.better is None:
        return {}
    best = sorted(values, reverse=column.better == "higher")
    return {value: rank for rank, value in enumerate(best[: 2 if len(best) > 2 else 1], 1)}


# Formats.


def to_csv(names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows with the columns ``names``; numbers in their shortest exact form, nothing for NaN."""
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        [{k: ("" if isinstance(v, float) and math.isnan(v) else v) for k, v in row.items()} for row in rows]
    )
    return text.getvalue()


def table_csv(table: Table) -> str:
    """One row per method and per published source."""
    names = ["method"]
    for column in table.columns:
        names += [column, f"{column}_lo", f"{column}_hi", f"{column}_p"]
    names += [
        "n_images",
        "n_seeds",
        "state",
        "reason",
        *(f"cost_{name}" for name in COSTS),
        "faithful",
        "reproduction",
    ]
    return to_csv(names, table.rows)


def markdown(lines: Grid) -> str:
    """A pipe table."""
    cells = [[one.marked("**{}**", "<u>{}</u>").replace("|", "\\|") for one in line] for line in lines]
    head, *rows = ["| " + " | ".join(line) + " |" for line in cells]
    return "\n".join([head, "|---" * len(lines[0]) + "|", *rows])


def latex(lines: Grid, caption: str, notes: Sequence[str]) -> str:
    """A booktabs table."""
    head, *rows = [
        " & ".join(one.marked(r"\textbf{{}}", r"\underline{{}}", latex_text) for one in line) + r" \\" for line in lines
    ]
    text = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex_text(caption)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(lines[0]) - 1)}}}",
        r"\toprule",
        head,
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
        *(rf"\par\footnotesize {latex_text(note)}" for note in notes),
        r"\end{table}",
    ]
    return "\n".join(text) + "\n"


def latex_text(text: str) -> str:
    """Escapes what LaTeX would read as commands."""
    return "".join(LATEX.get(char, char) for char in text)


def aligned(lines: Grid, width: int = 160) -> str:
    """Columns of equal width, as many as fit; the best value of a column is between stars."""
    cells = [[one.marked("**{}**", "{}") for one in line] for line in lines]
    # What became of a row that did not finish may be long; it stands behind the others.
    widths = [
        max(len(line[i]) for line in cells if not (i == 1 and line[2:] and not any(line[2:])))
        for i in range(len(cells[0]))
    ]
    fitting = next(
        (n for n in range(len(widths), 2, -1) if sum(widths[:n]) + 2 * (n - 1) <= width), min(2, len(widths))
    )
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(line[:fitting], widths, strict=False)).rstrip() for line in cells
    )


# Numbers.


def digits(value: float) -> int:
    return 1 if abs(value) >= 10 else 2 if abs(value) >= 0.1 else 3


def interval_text(row: Row, column: str) -> str:
    value, low, high = row.get(column, math.nan), row.get(f"{column}_lo", math.nan), row.get(f"{column}_hi", math.nan)
    if math.isnan(value):
        return "-"
    return f"{value:.{digits(value)}f} [{low:.{digits(value)}f}, {high:.{digits(value)}f}]"


def plain(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits(value)}f}"


def number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.1f}"


def parameters(value: float | None) -> str:
    return "-" if not value else f"{value / 1e6:.2f} M"


def memory(value: float | None) -> str:
    return "-" if not value else f"{value / 1024:.1f} GiB"
