"""Generate images from poses and prompts."""

from __future__ import annotations

from omegaconf import DictConfig

from posegen.runner.generate import sample


def main(cfg: DictConfig) -> None:
    """Samples the test data, or prompts, with a trained method."""
    sample(cfg)
