"""Write a page of a benchmark that opens without a network: table, curves, pictures."""

from __future__ import annotations

import re

from omegaconf import DictConfig

from posegen.errors import UserError
from posegen.report.study import benchmark_folders
from posegen.report.table import require_records
from posegen.report.wandb import publish
from posegen.report.write import write_report


def main(cfg: DictConfig) -> None:
    """Writes the page and the plots of ``folders`` and, with an account, a report of W&B."""
    known = cfg.wandb is None or isinstance(cfg.wandb, bool)
    if not known and not re.fullmatch(r"[\w.-]+/[\w.-]+", str(cfg.wandb)):
        expected = "expected ENTITY/PROJECT, the account and project whose runs the report shows"
        raise UserError(f"wandb={cfg.wandb}: {expected}, or true: where the cells were logged")
    tables = []
    for folder in benchmark_folders("report", cfg.folders):
        table = write_report(folder, cfg.poses, cfg.side)
        tables.append(table)
        print(f"{folder / 'report.html'} (plots also as {folder / 'figures'}/*.svg)")
        if cfg.wandb:
            print(publish(table, cfg.wandb))
    for table in tables:
        require_records(table)
