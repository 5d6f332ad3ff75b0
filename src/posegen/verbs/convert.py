"""Convert official weights into a method folder."""

from __future__ import annotations

from omegaconf import DictConfig

from posegen.runner.user_requests.conversion import convert


def main(cfg: DictConfig) -> None:
    """Reads official weights, prints what became of their keys, and writes a method folder."""
    convert(cfg.adapter, cfg.backbone, cfg.source, cfg.target, cfg.get("sampler"))
