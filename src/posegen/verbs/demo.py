"""Compare methods in the browser: drag a pose, see every method draw it."""

from __future__ import annotations

from omegaconf import DictConfig

from posegen.verbs.demo_app.command import demo


def main(cfg: DictConfig) -> None:
    """Serves the page until it is interrupted."""
    demo(cfg)
