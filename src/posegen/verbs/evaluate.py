"""Judge a trained method."""

from __future__ import annotations

from omegaconf import DictConfig

from posegen.runner.judge import evaluate


def main(cfg: DictConfig) -> None:
    """Samples the test data with a trained method, judges it and prints the metrics."""
    evaluate(cfg)
