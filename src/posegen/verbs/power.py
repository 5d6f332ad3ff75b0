"""Estimate how many images and seeds show a difference between two methods."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from posegen.config.problems import misspelt
from posegen.errors import UserError
from posegen.metrics.math.statistics import Variance
from posegen.report.rows import records_fit
from posegen.report.study import recorded_protocol, require_paired
from posegen.runner.received.state_files import read_cell_config


def main(cfg: DictConfig) -> None:
    """Prints which differences a comparison of the ``cells`` of two methods can find."""
    if len(cfg.cells) != 2:
        expected = "expected two, of the methods to compare: posegen power A B column=PCK@0.1 (see --help)"
        raise UserError(f"{len(cfg.cells)} folders are named; {expected}")
    ours, theirs = (seed_cells(Path(folder)) for folder in cfg.cells)
    common = sorted(ours.keys() & theirs.keys())
    if not common:
        text = f"the methods have no seed in common: {', '.join(ours)} and {', '.join(theirs)}"
        raise UserError(f"{text}; run the missing ones")
    print(power_text(cfg, [ours[seed] for seed in common], [theirs[seed] for seed in common]))


def power_text(cfg: DictConfig, ours: Sequence[Path], theirs: Sequence[Path]) -> str:
    require_paired([*ours, *theirs])
    config = read_cell_config(ours[0])
    if not config:
        raise UserError(f"{ours[0] / 'config.yaml'} is missing; run posegen evaluate for this cell again")
    protocol = recorded_protocol(config.get("protocol", {}), ours[0] / "config.yaml")
    if cfg.column not in protocol.columns:
        raise UserError(str(misspelt("column", "no such column in the protocol", cfg.column, protocol.columns)))
    mine, others = ([protocol.read(cell) for cell in cells] for cells in (ours, theirs))
    with records_fit([*ours, *theirs], protocol):
        variance = protocol.variance(mine, others, cfg.column, protocol.read(ours[0] / "reference"))
    return variance_text(variance, len(mine[0]["id"]), len(ours), cfg)


def variance_text(variance: Variance, images: int, observed: int, cfg: DictConfig) -> str:
    power, alpha = cfg.power, cfg.alpha
    known = not math.isnan(variance.seed)
    seeds = list(cfg.seeds) if known else [1]
    heads = [f"{s} seed{'s' if s > 1 else ''}" for s in seeds] if known else ["these trainings"]
    counts = list(cfg.images) or sorted({100, 400, 1000, 5000, images})
    error, many = variance.standard_error(images, observed), f"{observed} seed{'s' if observed > 1 else ''}"
    found = ([str(n), *(f"{variance.detectable(n, s, power, alpha):.3g}" for s in seeds)] for n in counts)
    lines = [
        f"{cfg.column}: the methods differ by {variance.difference:.3g} on {images} images and {many}; "
        f"its standard error is {error:.2g}.",
        f"Smallest true difference that is found with probability {power:g} (two-sided, p < {alpha:g}):",
        *right_aligned(["images", *heads], *found),
    ]
    if differences := list(cfg.difference) or ([abs(variance.difference)] if variance.difference else []):
        rows = [["difference", *heads]]
        for difference in differences:
            needed = (variance.images_needed(difference, s, power, alpha) for s in seeds)
            rows.append([f"{difference:.3g}", *("-" if math.isinf(n) else str(max(1, int(n))) for n in needed)])
        lines += ["Images needed to find a difference:", *right_aligned(*rows)]
    if known:
        few = ", which are few" if observed < 5 else ""
        lines.append(f"Variance by seed was estimated from {observed} seeds{few}. '-': the seeds alone vary too much.")
    else:
        one = "Only one seed: how much trainings differ is unknown, and the numbers hold for these two trainings alone."
        lines.append(f"{one} Train more seeds of both.")
    end = "Normal approximation; statistics of whole sets (AP, distances) follow it for large numbers of images."
    return "\n".join([*lines, end])


def right_aligned(*rows: Sequence[str]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows]


def seed_cells(folder: Path) -> dict[str, Path]:
    """Seed folder's name -> judged cell, of a cell or of the folder with all seeds of a setting."""
    cells = [folder] if (folder / "status.json").is_file() else sorted(folder.glob("seed*"))
    judged = {cell.resolve().name: cell for cell in cells if (cell / "records.csv").is_file()}
    if not judged:
        fix = "name a cell of posegen benchmark or evaluate, or the folder above it"
        raise UserError(f"{folder} is no judged cell and has none inside (seed*/records.csv); {fix}")
    return judged
