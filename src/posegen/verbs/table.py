"""Write the table of a benchmark again, from its records."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from posegen.report.formats import table_terminal
from posegen.report.recorded.files import STUDY, TABLE, table_again
from posegen.report.study import benchmark_folders
from posegen.report.table import require_records
from posegen.report.write import write_table


def main(cfg: DictConfig) -> None:
    """Writes and prints the tables of ``folders`` from the records of their cells."""
    tables = []
    expected = None if cfg.expected is None else Path(cfg.expected)
    for folder in benchmark_folders("table", cfg.folders):
        if (folder / STUDY).is_file() and not (folder / "cells.json").is_file():
            table, told = table_again(folder, expected)
            print(f"{table_terminal(table)}\n{folder / TABLE}: {told}")
            continue
        table = write_table(folder, expected)
        tables.append(table)
        print(table_terminal(table))
        further = {"scenarios": table.scenarios, "errors": table.errors, "judges": table.judges}
        also = ", ".join([".tex, .csv, .html", *(f"table_{name}.md" for name, found in further.items() if found)])
        print(f"table: {folder / 'table.md'} (also {also})")
    for table in tables:
        require_records(table)
