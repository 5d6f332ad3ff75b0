"""The verb ``posegen table``: a benchmark's table again, from the records of its cells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from posegen.report.formats import table_terminal
from posegen.report.write import write_table
from posegen.verbs.words import benchmark_folders, read_words

OPTIONS = {"expected": None}


def main(argv: Sequence[str]) -> int:
    """``posegen table [folder ...] [expected=FILE]``."""
    cfg = read_words("table", argv, OPTIONS)
    for folder in benchmark_folders("table", cfg.folders):
        table = write_table(folder, None if cfg.expected is None else Path(cfg.expected))
        print(table_terminal(table))
        also = ".tex, .csv, .html" + (", table_scenarios.md" if table.scenarios else "")
        print(f"table: {folder / 'table.md'} (also {also})")
    return 0
