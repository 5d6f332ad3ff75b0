"""Compare methods with tensors of their official implementations."""

from __future__ import annotations

from omegaconf import DictConfig

from posegen.parity.command import main as compare_cases


def main(cfg: DictConfig) -> int:
    """Compares reference cases, one line per tensor; 0 where all agree."""
    return compare_cases([*map(str, cfg.cases)])
