"""The files of a study's results: table, page and pictures."""

from __future__ import annotations

import re
from pathlib import Path

from posegen.io.atomic import write_text
from posegen.report import formats
from posegen.report.html import results_page
from posegen.report.plots import all_plots
from posegen.report.rows import REFERENCE
from posegen.report.side_by_side import picture_table, scenario_pictures
from posegen.report.study import study_plan
from posegen.report.table import Table, build_table
from posegen.runner.images import write_png


def write_table(folder: Path, expected: Path | None = None) -> Table:
    """Writes ``table.*`` and ``pictures.png`` of a benchmark; by scenario ``table_scenarios.*``, ``pictures/*.png``."""
    table = build_table(folder, expected)
    texts = {"table.csv": formats.table_csv(table), "table.md": formats.table_markdown(table)}
    texts |= {"table.tex": formats.table_latex(table), "table.html": results_page(table)}
    if table.agreements:
        texts["table_orders.csv"] = formats.agreements_csv(table)
    if table.errors:
        texts["table_errors.csv"] = formats.errors_csv(table.errors)
        texts["table_errors.md"] = formats.errors_markdown(table.errors, table.title)
    if table.judges:
        texts["table_judges.csv"] = formats.judges_csv(table.judges)
        texts["table_judges.md"] = formats.judges_markdown(table.judges, table.title)
    if table.scenarios is not None:
        texts["table_scenarios.csv"] = formats.breakdown_csv(table.scenarios)
        texts["table_scenarios.md"] = formats.breakdown_markdown(table.scenarios, table.title)
    for name, text in texts.items():
        write_text(folder / name, text)
    if (pictures := picture_table(table.pictured_methods)) is not None:
        write_png(folder / "pictures.png", pictures)
    labels, real = table.scenarios.labels if table.scenarios else [], table.pictured.get(f"{REFERENCE}real")
    for scenario, grid in scenario_pictures(labels, table.pictured_methods, real).items():
        write_png(folder / "pictures" / (re.sub(r"[^\w.-]+", "_", scenario) + ".png"), grid)
    return table


def write_report(folder: Path, poses: int, side: int) -> Table:
    """Writes ``report.html`` and ``figures/*.svg`` of a benchmark or sweep; arguments as in `results_page`."""
    table = build_table(folder, plan=study_plan(folder))
    write_text(folder / "report.html", results_page(table, poses, side))
    for name, plot in all_plots(table).items():
        write_text(folder / "figures" / f"{name}.svg", plot.file())
    return table
