"""Make the table of cells that exist."""

from __future__ import annotations

from omegaconf import DictConfig

from posegen.report.table import main as make_tables


def main(cfg: DictConfig) -> int:
    """Makes the tables of benchmarks again from their cells' records."""
    expected = [] if cfg.expected is None else [f"expected={cfg.expected}"]
    return make_tables([*map(str, cfg.folders), *expected])
