"""Time of the metrics' fast forms beside the plain ones that other programs use, on the same input, in turns.

    python experiments/profile/metrics.py [repeats=3] [threads=1] [out=outputs/profile/metrics.csv]

Needs ``pip install 'posegen[metrics]'``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from experiments.profile.decoding import measure_decoding
from experiments.profile.keypoint_ap import measure_keypoint_ap
from experiments.profile.set_distances import measure_distances
from posegen.io.atomic import write_text
from posegen.io.tables import csv_text


def measure_metrics(repeats: int = 3, threads: int = 1) -> list[dict[str, Any]]:
    """One row per comparison: medians in ms, their ratio with its target, and the largest difference of the results."""
    torch.set_num_threads(threads)
    families = (measure_keypoint_ap, measure_distances, measure_decoding)
    found = [timing for measure in families for timing in measure(repeats)]
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


def main(words: list[str]) -> None:
    given = dict(word.split("=", 1) for word in words)
    out = Path(given.pop("out", "outputs/profile/metrics.csv"))
    rows = measure_metrics(**{key: int(value) for key, value in given.items()})
    print(*rows[0], sep="  ")
    for row in rows:
        print(*(value if isinstance(value, str) else f"{value:.4g}" for value in row.values()), sep="  ")
    write_text(out, csv_text(rows[0], (list(row.values()) for row in rows)))
    print(f"\n{out}")


if __name__ == "__main__":
    main(sys.argv[1:])
