"""A table as text: comma-separated values for programs; markdown, LaTeX and aligned columns for people."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from posegen.io.tables import csv_text
from posegen.metrics.base import Column
from posegen.report import errors
from posegen.report.breakdown import CAPTION, Breakdown
from posegen.report.judges import JudgesTable
from posegen.report.rank_agreement import FIELDS
from posegen.report.rows import Row
from posegen.report.table import ALPHA, DIFFERS, FAITHFUL, TAUGHT, Table
from posegen.runner.received.state_files import COSTS

LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
BREAK = "\u200b"  # a place where a line may end
LATEX |= {BREAK: r"\allowbreak{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
LATEX |= {
    DIFFERS: r"$^\dagger$",
    FAITHFUL: r"$^\ddagger$",
    TAUGHT: r"$^\S$",
    **{char: f"\\{char}" for char in "&%$#_{}"},
}
#: Makes what follows smaller if it is wider than the page.
FITTED = r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%"
#: Header of the shown costs -> text of a row.
SHOWN_COSTS: dict[str, Callable[[Row], str]] = {
    "trained": lambda row: f"{v / 1e6:.2f} M" if (v := row.get("cost_trained_parameters")) else "-",
    "train img/s": lambda row: rate_text(row, "cost_train_images_per_s"),
    "sample img/s": lambda row: rate_text(row, "cost_sample_images_per_s"),
    "memory": lambda row: f"{v / 1024:.1f} GiB" if (v := row.get("cost_peak_memory_mb")) else "-",
}


@dataclass(frozen=True)
class TableEntry:
    """One entry of a table as people read it."""

    text: str  # without marks; of a measured value without its interval
    rank: int = 0  # 1 for the best of its column, 2 for the second best
    differs: bool = False  # significantly from the baseline
    interval: str = ""  # "[low, high]"

    def marked(self, first: str, second: str, escape: Callable[[str], str] = str) -> str:
        """As text; ``first`` and ``second`` are templates for the best and second best."""
        template = {1: first, 2: second}.get(self.rank, "{}")
        text = " ".join(filter(None, (self.text, self.interval)))
        return template.replace("{}", escape(text)) + escape(DIFFERS if self.differs else "")


Grid = list[list[TableEntry]]


def table_grid(table: Table, shown_costs: Mapping[str, Callable[[Row], str]] = SHOWN_COSTS) -> Grid:
    """Header and rows: method, status of its reproduction where something was compared, groups of methods that cannot
    be told apart, shown columns, costs. A row that did not finish has its state and reason as second entry, and else
    none."""
    compared = any(row.get("reproduction", "") not in ("", "not comparable") for row in table.rows)
    extra = ["reproduction"] if compared else []
    extra += ["group"] if any(row.get("group") for row in table.rows) else []
    ranks = {column: ranking(table.rows, column) for column in table.headline}
    lines = [[*map(TableEntry, ("method", *extra, *table.headline, *shown_costs))]]
    for row in table.rows:
        name = marked_name(row)
        reported, values = row["state"] == "reported", [entry(row, c, ranks[c]) for c in table.headline]
        if reported or row["state"] == "finished":
            first = ["reported" if reported and key == "reproduction" else row.get(key, "") for key in extra]
            costs = ["" if reported else cost(row) for cost in shown_costs.values()]
            lines.append([TableEntry(name), *map(TableEntry, first), *values, *map(TableEntry, costs)])
        else:
            state = f"{row['state']}: {row['reason']}".strip(": ")
            lines.append([TableEntry(name), TableEntry(state)] + [TableEntry("")] * (len(lines[0]) - 2))
    return lines


def marked_name(row: Row) -> str:
    """The method with the marks of its row."""
    marks = {FAITHFUL: row.get("faithful") == "true", TAUGHT: row.get("taught")}
    return " ".join([row["method"], *(mark for mark, holds in marks.items() if holds)])


def judges_grid(judges: JudgesTable) -> Grid:
    """The finished rows with the shown columns of every judge."""
    ranks = {column: ranking(judges.rows, column) for column in judges.columns}
    rows = [row for row in judges.rows if row["state"] == "finished"]
    lines = [[TableEntry(marked_name(row)), *(entry(row, c, ranks[c]) for c in judges.columns)] for row in rows]
    return [[*map(TableEntry, ("method", *judges.columns))], *lines]


def breakdown_grid(parts: Breakdown, column: Column) -> Grid:
    """A line per part, with the methods side by side."""
    methods = list(dict.fromkeys(row["method"] for row in parts.rows))
    lines = [[TableEntry(name) for name in (parts.by, "images", *methods)]]
    for part in parts.names:
        rows = [row for row in parts.rows if row[parts.by] == part]
        ranks = ranking(rows, column)
        values = {row["method"]: TableEntry(value_text(row[column]), rank_of(row, column, ranks)) for row in rows}
        entries = (values.get(method, TableEntry("-")) for method in methods)
        lines.append([TableEntry(part), TableEntry(str(rows[0]["n_images"])), *entries])
    return lines


def entry(row: Row, column: Column, ranks: Mapping[float, int]) -> TableEntry:
    value = row.get(column, math.nan)
    if row["state"] == "reported":
        return TableEntry(f"{value:g}" if column in row else "")
    if math.isnan(value):
        return TableEntry("-")
    differs = row.get(f"{column}_p", 1.0) < ALPHA
    return TableEntry(value_text(value), rank_of(row, column, ranks), differs, interval_text(row, column))


def rank_of(row: Row, column: Column, ranks: Mapping[float, int]) -> int:
    return ranks.get(row.get(column, math.nan), 0) if row["ranked"] and row["state"] == "finished" else 0


def ranking(rows: Iterable[Row], column: Column) -> dict[float, int]:
    """Value -> 1 for the best and 2 for the second best of a column; of two methods one is best and the other not
    worth a mark. Bounds and rows that did not finish are not ranked, nor columns without a direction."""
    ranked = [row[column] for row in rows if row["ranked"] and row["state"] == "finished" and column in row]
    values = {value for value in ranked if not math.isnan(value)}
    if len(values) < 2 or column.better is None:
        return {}
    best = sorted(values, reverse=column.better == "higher")
    return {value: rank for rank, value in enumerate(best[: 2 if len(best) > 2 else 1], 1)}


def rows_csv(names: Sequence[str], rows: Iterable[Row]) -> str:
    """Rows with the columns ``names``; nothing for NaN."""

    def text(value: object) -> object:
        return "" if isinstance(value, float) and math.isnan(value) else value

    return csv_text(names, ([text(row.get(name, "")) for name in names] for row in rows))


def table_csv(table: Table) -> str:
    """One row per method and per published source, with every column."""
    values = [f"{column}{suffix}" for column in table.columns for suffix in ("", "_lo", "_hi", "_p")]
    facts = [
        "n_images",
        "n_seeds",
        "state",
        "reason",
        *(f"cost_{name}" for name in COSTS),
        "faithful",
        "reproduction",
        "group",
    ]
    return rows_csv(["method", *values, *facts], table.rows)


def errors_grid(table: errors.ErrorTable, columns: Sequence[Column]) -> Grid:
    """A line per method, over everybody."""
    rows = table.everybody
    ranks = {column: ranking(rows, column) for column in columns}
    lines = [[TableEntry(row["method"]), *(plain_entry(row, c, ranks[c]) for c in columns)] for row in rows]
    return [[*map(TableEntry, ("method", *columns))], *lines]


def slices_grid(table: errors.ErrorTable) -> Grid:
    """PCK: a line per slice of the people, with the methods side by side."""
    methods = list(dict.fromkeys(row["method"] for row in table.rows))
    lines = [[*map(TableEntry, ("people", "number", *methods))]]
    for by, part in table.slices:
        rows = {row["method"]: row for row in table.rows if (row["by"], row["slice"]) == (by, part)}
        ranks, first = ranking(rows.values(), errors.PCK), next(iter(rows.values()))
        entries = (plain_entry(rows[m], errors.PCK, ranks) if m in rows else TableEntry("-") for m in methods)
        lines.append([TableEntry(f"{by}: {part}"), TableEntry(f"{first['n_people']:.0f}"), *entries])
    return lines


def plain_entry(row: Row, column: Column, ranks: Mapping[float, int]) -> TableEntry:
    """A value without an interval."""
    return TableEntry(value_text(row[column]), rank_of(row, column, ranks))


def errors_csv(table: errors.ErrorTable) -> str:
    """One row per method and slice of the people."""
    columns = [errors.PCK, *errors.KIND_COLUMNS, *errors.PEOPLE_COLUMNS, errors.SURPLUS, "AP"]
    columns += [*errors.REPAIR_COLUMNS, *errors.JOINT_COLUMNS]
    return rows_csv(["method", "by", "slice", "n_people", *columns], table.rows)


def errors_markdown(table: errors.ErrorTable, title: str) -> str:
    sheets = {name: errors_grid(table, columns) for name, columns in errors.SHEETS.items()}
    sheets |= {"PCK@0.1 by kind of people": slices_grid(table)} if table.slices else {}
    tables = (f"## {name}\n\n{markdown(grid)}" for name, grid in sheets.items())
    heading = f"# {markdown_text(title)}, errors seen by {table.judge}"
    return "\n\n".join([heading, *tables, markdown_text(errors.CAPTION)]) + "\n"


def judges_csv(judges: JudgesTable) -> str:
    """One row per method with every column of every judge."""
    return rows_csv(["method", *judges.every], judges.rows)


def judges_markdown(judges: JudgesTable, title: str) -> str:
    notes = [f"- {markdown_text(note)}" for note in (*(a.sentence for a in judges.agreements), *judges.notes)]
    return "\n".join([f"# {markdown_text(title)}, by judge", "", markdown(judges_grid(judges)), "", *notes, ""])


def agreements_csv(table: Table) -> str:
    """One row per order that the order of the methods was compared with."""
    return rows_csv(FIELDS, [each.row for each in table.agreements])


def breakdown_csv(parts: Breakdown) -> str:
    return rows_csv(["method", parts.by, "n_images", *parts.columns], parts.rows)


def table_markdown(table: Table) -> str:
    notes = ["", *(f"- {markdown_text(note)}" for note in table.notes)] if table.notes else []
    title, caption = markdown_text(table.title), markdown_text(table.caption)
    return "\n".join([f"# {title}", "", markdown(table_grid(table)), "", caption, *notes, ""])


def breakdown_markdown(parts: Breakdown, title: str) -> str:
    tables = (f"## {column}\n\n{markdown(breakdown_grid(parts, column))}" for column in parts.columns)
    notes = (f"- {markdown_text(note)}" for note in parts.notes)
    return "\n\n".join([f"# {markdown_text(title)}, by {parts.by}", *tables, CAPTION, *notes]) + "\n"


def markdown_text(text: str) -> str:
    """A text in one line, without html, which Markdown would make a part of the page."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", re.sub(r"\s*\n\s*", " ", text))


def markdown(lines: Grid) -> str:
    """A pipe table."""
    cells = [[one.marked("**{}**", "<u>{}</u>", markdown_text).replace("|", "\\|") for one in line] for line in lines]
    head, *rows = ["| " + " | ".join(line) + " |" for line in cells]
    return "\n".join([head, "|---" * len(lines[0]) + "|", *rows])


def table_latex(table: Table) -> str:
    """A ``table*`` of the headline columns that is no wider than a page of two columns, with intervals below their
    values; it needs the packages booktabs and graphicx. The full table is `table_csv`."""
    head, *lines = table_grid(table, {})
    complete = [row["state"] in ("finished", "reported") for row in table.rows]
    rows = [latex_row(*each) for each in zip(lines, complete, strict=True)]
    caption = rf"\caption{{{latex_prose(f'{table.title}. {table.caption}')}}}"
    begin = rf"\begin{{tabular}}{{@{{}}l{'r' * (len(head) - 1)}@{{}}}}"
    arrows: dict[str, str] = {
        c: rf" $\{'down' if c.better == 'lower' else 'up'}arrow$" for c in table.headline if c.better
    }
    names = " & ".join(latex_name(entry.text) + arrows.get(entry.text, "") for entry in head) + r" \\"
    notes = [rf"\par\footnotesize {latex_prose(note)}" for note in table.notes]
    small = r"\footnotesize\tabcolsep=4pt"
    top = [r"% \usepackage{booktabs,graphicx}", r"\begin{table*}", r"\centering", caption, small, FITTED]
    body = [begin, r"\toprule", names, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}}", *notes, r"\end{table*}"]
    return "\n".join([*top, *body]) + "\n"


def latex_row(line: Sequence[TableEntry], complete: bool) -> str:
    """A row of the table, and its intervals as a second one; the reason of an incomplete row runs over all columns."""
    name, *entries = line
    if not complete:
        reason = rf"{{p{{.6\textwidth}}}}{{\raggedright {latex_prose(entries[0].text)}}} \\"
        return rf"{latex_text(name.text)} & \multicolumn{{{len(entries)}}}{reason}"
    values = [replace(e, interval="").marked(r"\textbf{{}}", r"\underline{{}}", latex_text) for e in entries]
    first = " & ".join([latex_text(name.text), *values]) + r" \\"
    if not any(entry.interval for entry in entries):
        return first
    intervals = " & ".join(["", *(rf"\tiny {entry.interval}" if entry.interval else "" for entry in entries)])
    return f"{first}[-.6ex]\n{intervals.strip()} " + r"\\"


def latex_text(text: str) -> str:
    return "".join(LATEX.get(char, char) for char in text)


def latex_name(name: str) -> str:
    """The name of a column, a long one in several lines."""
    lines = latex_text(name).replace(r"\_", r"\_\\")
    return latex_text(name) if len(name) < 11 else rf"\shortstack[r]{{{lines}}}"


def latex_prose(text: str) -> str:
    """`latex_text` whose lines may also end behind a slash, an underscore, an equals sign or a comma."""
    return latex_text(re.sub(r"([/_=,])(?=\w)", f"\\1{BREAK}", text))


def table_terminal(table: Table, width: int = 160) -> str:
    """Title, as many columns as fit, caption and notes; the best value of a column is between stars."""
    cells = [[one.marked("**{}**", "{}") for one in line] for line in table_grid(table)]
    shown = [table.title, left_aligned(cells, width), table.caption, *table.notes]
    if table.judges:
        cells = [[one.marked("**{}**", "{}") for one in line] for line in judges_grid(table.judges)]
        shown += ["By judge", left_aligned(cells, width), *table.judges.notes]
    return "\n".join(shown)


def left_aligned(lines: Sequence[Sequence[str]], width: int = 160) -> str:
    """Columns of equal width, as many as fit; the state of a row that did not finish may be long, and stands behind."""
    done = [line for line in lines if not line[2:] or any(line[2:])]
    widths = [max(len(line[i]) for line in (done if i == 1 else lines)) for i in range(len(lines[0]))]
    fitting = next((n for n in range(len(widths), 2, -1) if sum(widths[:n]) + 2 * (n - 1) <= width), 2)
    aligned = ([cell.ljust(w) for cell, w in zip(line[:fitting], widths, strict=False)] for line in lines)
    return "\n".join("  ".join(cells).rstrip() for cells in aligned)


def row_terminal(row: Row, headline: Sequence[str]) -> str:
    """One row as lines of ``name value [low, high]``."""
    names = [name for name in headline if f"{name}_lo" in row]
    return "\n".join(f"{name:>20}  {value_text(row[name])} {interval_text(row, name)}".rstrip() for name in names)


def digits(value: float) -> int:
    return 1 if abs(value) >= 10 else 2 if abs(value) >= 0.1 else 3


def interval_text(row: Row, column: str) -> str:
    """``[low, high]`` with as many digits as the value; empty where there is no value."""
    value = row[column]
    low, high = (row.get(f"{column}{end}", math.nan) for end in ("_lo", "_hi"))
    return "" if math.isnan(value) else f"[{low:.{digits(value)}f}, {high:.{digits(value)}f}]"


def value_text(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits(value)}f}"


def rate_text(row: Row, name: str) -> str:
    value = row.get(name, math.nan)
    return "-" if math.isnan(value) else f"{value:.1f}"
