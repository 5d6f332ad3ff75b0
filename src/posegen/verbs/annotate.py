"""Find the people in pictures and write a file of their poses."""

from __future__ import annotations

from inspect import signature

from omegaconf import DictConfig

from posegen.runner.user_requests.annotation import annotate


def main(cfg: DictConfig) -> None:
    annotate(**{key: cfg[key] for key in signature(annotate).parameters})
