"""Train a method: one cell, or with -m a sweep of cells."""

from __future__ import annotations

from omegaconf import DictConfig

from posegen.train.loop import train


def main(cfg: DictConfig) -> float | None:
    """Trains the configured cell; returns its objective, where one is wanted."""
    return train(cfg)
