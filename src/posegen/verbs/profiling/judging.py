"""What the fast forms of the metrics cost beside the plain ones that other programs use."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import OmegaConf


def measure_metrics(config: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per comparison; both sides run in turns on the same input."""
    from posegen.metrics.timing import coco, decode, distances

    cfg = OmegaConf.create(config)
    torch.set_num_threads(cfg.budget.threads)
    found = [timing for family in (coco, distances, decode) for timing in family.measure(cfg.repeats)]
    return [
        {
            "what": timing.name,
            "posegen, ms": 1000 * timing.ours_s,
            "plain, ms": 1000 * timing.theirs_s,
            "ratio": timing.ratio,
            "at least": timing.target,
            "difference": timing.agreement,
        }
        for timing in found
    ]
