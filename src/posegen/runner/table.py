"""Tables: from the records of cells alone, so they can be made again at any time."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import OmegaConf

from posegen.runner.errors import UserError
from posegen.runner.files import read_json, write_text

#: What a reader sees first; the csv has every column of the protocol.
HEADLINE = ("PCK@0.1", "AP50", "AP", "AP75", "AR", "count_error", "count_bias", "caption_agreement", "judge_frechet", "judge_kernel")
COSTS = ("trained_parameters", "train_images_per_s", "sample_images_per_s", "wall_s", "peak_memory_mb")
Row = dict[str, Any]


@dataclass
class Table:
    """A benchmark's rows and how to show them.

    Attributes:
        title: what was compared.
        caption: protocol, number of images and seeds, and what the intervals are.
        columns: the protocol's columns.
        lower: columns where smaller is better.
        rows: one per method and setting.
        cells: state of every expected cell.
        folder: where the benchmark lies.
    """

    title: str
    caption: str
    columns: Sequence[str]
    lower: frozenset[str]
    rows: list[Row]
    cells: list[dict[str, Any]]
    folder: Path

    @property
    def headline(self) -> list[str]:
        return [name for name in HEADLINE if name in self.columns] or list(self.columns)

    @property
    def shown(self) -> dict[str, Path]:
        """Method -> folder of its cell of the first seed, for those that finished."""
        done = [cell for cell in self.cells if cell["state"] == "finished" and cell["seed"] == self.cells[0]["seed"]]
        return {cell["method"]: self.folder / cell["folder"] for cell in done}

    def csv(self) -> str:
        """One row per method; numbers in their shortest exact form."""
        names = ["method"]
        for column in self.columns:
            names += [column, f"{column}_lo", f"{column}_hi", f"{column}_p"]
        names += ["n_images", "n_seeds", "state", "reason", *(f"cost_{name}" for name in COSTS)]
        text = io.StringIO()
        writer = csv.DictWriter(text, names, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows([{k: ("" if isinstance(v, float) and math.isnan(v) else v) for k, v in row.items()} for row in self.rows])
        return text.getvalue()

    def grid(self) -> list[list[str]]:
        """Header and cells as text, for the formats people read."""
        best = {column: self._best(column) for column in self.headline}
        rows = [["method", *self.headline, "trained", "train img/s", "sample img/s"]]
        for row in self.rows:
            if row["state"] != "finished":
                rows.append([row["method"], f"{row['state']}: {row['reason']}".strip(": ")] + [""] * (len(rows[0]) - 2))
                continue
            values = [interval_text(row, column, mark=row["ranked"] and row.get(column) == best[column]) for column in self.headline]
            rows.append([row["method"], *values, parameters(row.get("cost_trained_parameters")), *(number(row.get(f"cost_{c}")) for c in COSTS[1:3])])
        return rows

    def _best(self, column: str) -> float | None:
        """The best value of a column; reference rows are not ranked."""
        values = {r[column] for r in self.rows if r["ranked"] and r["state"] == "finished" and not math.isnan(r.get(column, math.nan))}
        if len(values) < 2 or column == "count_bias":
            return None
        return min(values) if column in self.lower else max(values)

    def markdown(self) -> str:
        head, *rows = self.grid()
        lines = [f"# {self.title}", "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
        return "\n".join([*lines, "", self.caption, ""])

    def latex(self) -> str:
        """A booktabs table."""
        head, *rows = self.grid()
        body = [" & ".join(map(latex_text, row)) + r" \\" for row in rows]
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex_text(self.title + '. ' + self.caption)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
            r"\toprule",
            " & ".join(map(latex_text, head)) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        return "\n".join(lines) + "\n"

    def terminal(self) -> str:
        """The headline columns, aligned."""
        rows = self.grid()
        rows = [[row[0], *row[1:4], *row[6:8], *row[8:10]] if len(row) > 9 else row for row in rows]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([self.title, *lines, self.caption])


def build_table(folder: Path) -> Table:
    """The table of a benchmark folder, with a row for every expected cell, finished or not."""
    from posegen.runner.benchmark import planned

    plan = planned(folder)
    groups: dict[str, list[dict[str, Any]]] = {}
    cells = [{**cell, **state_of(folder / cell["folder"], cell["hash"])} for cell in plan["cells"]]
    for cell in cells:
        groups.setdefault(str(Path(cell["folder"]).parent), []).append(cell)
    protocol = instantiate(OmegaConf.create(plan["protocol"]), _convert_="all")
    names = row_names(groups)
    rows, spreads = [], {}
    for key, group in groups.items():
        row, spread = row_of([folder / c["folder"] for c in group if c["state"] == "finished"], protocol)
        failed = next((c for c in group if c["state"] != "finished"), None)
        row = {"method": names[key], "ranked": not names[key].startswith("reference/"), **row}
        row |= {"state": failed["state"] if failed else "finished", "reason": failed["reason"] if failed else ""}
        rows.append(row)
        if spread:
            spreads[names[key]] = spread
    add_tests(rows, spreads, plan.get("baseline"), protocol)
    return Table(plan.get("title") or f"Benchmark {folder.name}", caption(protocol, rows), protocol.columns, protocol.lower_is_better, rows, cells, folder)


def write_table(folder: Path) -> Table:
    """Writes ``table.{csv,md,tex,html}`` and ``pictures.png`` of a benchmark folder."""
    from posegen.runner.page import page
    from posegen.runner.pictures import overview, write_png

    table = build_table(folder)
    for suffix, text in {"csv": table.csv(), "md": table.markdown(), "tex": table.latex(), "html": page(table)}.items():
        write_text(folder / f"table.{suffix}", text)
    methods = {name: cell for name, cell in table.shown.items() if not name.startswith("reference/")}
    if (pictures := overview(methods)) is not None:
        write_png(folder / "pictures.png", pictures)
    return table


def main(argv: Sequence[str]) -> int:
    """The verb ``posegen table [folder]``: makes a benchmark's table again from its records."""
    folders = [Path(word) for word in argv] or sorted(path.parent for path in Path("outputs/benchmark").glob("*/cells.json"))
    if not folders:
        raise UserError("outputs/benchmark holds no benchmark; run posegen benchmark first, or name its folder: posegen table FOLDER")
    for folder in folders:
        print(write_table(folder).terminal())
        print(f"table: {folder / 'table.md'} (also .tex, .csv, .html)")
    return 0


def row_of(folders: Sequence[Path], protocol: Any) -> tuple[Row, Mapping[str, Any] | None]:
    """(row, bootstrap distributions) of the finished cells of one method, one per seed; empty without any."""
    if not folders:
        return {}, None
    seeds = [protocol.read(folder) for folder in folders]
    reference = protocol.read(folders[0] / "reference")
    spread = protocol.resampled(seeds, reference)
    return {**protocol.table_row(seeds, reference, spread=spread), **costs_of(folders)}, spread


def costs_of(folders: Sequence[Path]) -> Row:
    """Mean costs over seeds."""
    notes = [read_json(f / "costs.json") if (f / "costs.json").is_file() else {} for f in folders]
    notes = [{**note, "wall_s": round(read_json(f / "status.json").get("wall_s", math.nan), 1)} for f, note in zip(folders, notes, strict=True)]
    known = {name: [note[name] for note in notes if name in note] for name in COSTS}
    return {f"cost_{name}": sum(values) / len(values) for name, values in known.items() if values}


def state_of(cell: Path, expected: str) -> dict[str, str]:
    """State and reason of a cell, by its ``status.json``."""
    path = cell / "status.json"
    if not path.is_file():
        return {"state": "missing", "reason": "never started"}
    status = read_json(path)
    if status["hash"] != expected:
        return {"state": "other settings", "reason": f"{cell} was replaced by a cell of another identity"}
    state = "interrupted" if status["state"] == "running" else status["state"]
    return {"state": state, "reason": status.get("reason") or ""}


def row_names(groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, str]:
    """A row is named after its method, and after its folder's settings where a method has several rows."""
    names = {}
    for key, group in groups.items():
        method = str(group[0]["method"])
        alone = sum(g[0]["method"] == method for g in groups.values()) == 1
        settings = Path(key).name.partition(",")[2]
        names[key] = method if alone else f"{method} ({settings or 'default'})"
    return names


def add_tests(rows: list[Row], spreads: Mapping[str, Any], baseline: str | None, protocol: Any) -> None:
    """Adds ``<column>_p``: paired bootstrap tests against the baseline row, adjusted over the methods (Holm)."""
    ranked = {r["method"] for r in rows if r["ranked"]}
    tested = {name: spread for name, spread in spreads.items() if name in ranked}
    if baseline not in tested or len(tested) < 2:
        return
    p_values = protocol.p_values(tested, baseline)
    for row in rows:
        row.update({f"{column}_p": p for column, p in p_values.get(row["method"], {}).items()})


def caption(protocol: Any, rows: Sequence[Row]) -> str:
    seeds = {r["n_seeds"] for r in rows if r.get("n_seeds")}
    images = {r["n_images"] for r in rows if r.get("n_images")}
    span = ", ".join(map(str, sorted(images))) or "no"
    over = "images only (one seed: differences between trainings are not in them)" if seeds <= {1} else "seeds and images"
    return (
        f"Protocol {protocol.name} v{protocol.version}, {span} images; {protocol.level:.0%} bootstrap intervals over {over}. "
        f"{protocol.note} Reference rows are bounds and are not ranked."
    )


def interval_text(row: Row, column: str, mark: bool = False) -> str:
    value, low, high = row.get(column, math.nan), row.get(f"{column}_lo", math.nan), row.get(f"{column}_hi", math.nan)
    if math.isnan(value):
        return "-"
    digits = 1 if abs(value) >= 10 else 2 if abs(value) >= 0.1 else 3
    text = f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
    return f"**{text}**" if mark else text


def number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.1f}"


def parameters(value: float | None) -> str:
    return "-" if not value else f"{value / 1e6:.2f} M"


def latex_text(text: str) -> str:
    """Escapes what LaTeX would read as commands; ``**x**`` becomes bold."""
    for char in "\\&%$#_{}":
        text = text.replace(char, r"\textbackslash{}" if char == "\\" else "\\" + char)
    text = text.replace("~", r"\textasciitilde{}").replace("^", r"\textasciicircum{}")
    return rf"\textbf{{{text[2:-2]}}}" if text.startswith("**") and text.endswith("**") else text


def terminal_row(row: Row) -> str:
    """One row as lines of ``name value [low, high]``."""
    names = [name for name in HEADLINE if name in row] or [name for name in row if f"{name}_lo" in row]
    return "\n".join(f"{name:>20}  {interval_text(row, name)}" for name in names)
