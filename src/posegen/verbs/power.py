"""How many images and seeds it takes to see a difference between two methods."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from posegen.config.problems import misspelt
from posegen.errors import UserError
from posegen.report.rows import identity_of

#: What two cells must share for their images to be paired.
SHARED = ("protocol", "estimator")
OPTIONS = {"column": "PCK@0.1", "images": "", "seeds": "1,3,5,10", "difference": "", "power": "0.8", "alpha": "0.05"}


def main(cfg: DictConfig) -> int:
    """Prints which differences a comparison of two methods' cells can find."""
    options = {key: ",".join(map(str, value)) if OmegaConf.is_list(value) else value for key in OPTIONS for value in [cfg[key]]}
    return plan_comparison([*map(str, cfg.cells), *(f"{key}={value}" for key, value in options.items())])


def plan_comparison(argv: Sequence[str]) -> int:
    """``posegen power A B [column=...] [images=...] [seeds=...] [difference=...]``."""
    options, folders = dict(OPTIONS), []
    for word in argv:
        key, equals, value = word.partition("=")
        if equals and key in OPTIONS:
            options[key] = value
        elif equals and key.isidentifier() and not Path(word).exists():
            raise UserError(str(misspelt(key, "no such option", key, OPTIONS)))
        else:
            folders.append(Path(word))
    if len(folders) != 2:
        raise UserError(
            f"{len(folders)} folders are named; expected two, of the methods to compare: posegen power A B column=PCK@0.1 (see --help)"
        )
    ours, theirs = paired(*map(seeds_of, folders))
    protocol = instantiate(OmegaConf.create(config_of(ours[0])["protocol"]), _convert_="all")
    column = options["column"]
    if column not in protocol.columns:
        raise UserError(str(misspelt("column", "no such column in the protocol", column, protocol.columns)))
    records = [[protocol.read(cell) for cell in cells] for cells in (ours, theirs)]
    if any(own["id"] != records[0][0]["id"] for side in records for own in side):
        raise UserError(
            f"{folders[0]} and {folders[1]} were judged on different images; judge both on the same data.test"
        )
    variance = protocol.variance(*records, column, protocol.read(ours[0] / "reference"))
    print(
        report(
            variance,
            len(records[0][0]["id"]),
            len(ours),
            column,
            {key: numbers(key, value) for key, value in options.items() if key != "column"},
        )
    )
    return 0


def report(variance: Any, images: int, observed: int, column: str, options: dict[str, list[float]]) -> str:
    """The answer as text.

    Args:
        variance: a `posegen.metrics.math.statistics.Variance`.
        images: of each seed.
        observed: number of seeds.
        options: the numbers asked for.
    """
    (power,), (alpha,) = options["power"], options["alpha"]
    known = not math.isnan(variance.seed)
    seeds = [int(s) for s in options["seeds"]] if known else [1]
    counts = [int(n) for n in options["images"]] or sorted({100, 400, 1000, 5000, images})
    error = variance.standard_error(images, observed)
    lines = [
        f"{column}: the methods differ by {variance.difference:.3g} on {images} images and {observed} seed{'s' if observed > 1 else ''}; its standard error is "
        f"{error:.2g}.",
        f"Smallest true difference that is found with probability {power:g} (two-sided, p < {alpha:g}):",
        aligned(
            [
                ["images", *heads(seeds, known)],
                *([str(n), *(f"{variance.detectable(n, s, power, alpha):.3g}" for s in seeds)] for n in counts),
            ]
        ),
    ]
    differences = options["difference"] or ([abs(variance.difference)] if variance.difference else [])
    needed = [[f"{d:.3g}", *(amount(variance.images_needed(d, s, power, alpha)) for s in seeds)] for d in differences]
    lines += (
        ["Images needed to find a difference:", aligned([["difference", *heads(seeds, known)], *needed])]
        if needed
        else []
    )
    if known:
        lines.append(
            f"Variance by seed was estimated from {observed} seeds{', which are few' if observed < 5 else ''}. '-': the seeds alone vary too much."
        )
    else:
        lines.append(
            "Only one seed: how much trainings differ is unknown, and the numbers hold for these two trainings alone. Train more seeds of both."
        )
    return "\n".join(
        [
            *lines,
            "Normal approximation; statistics of whole sets (AP, distances between sets) follow it for large numbers of images.",
        ]
    )


def heads(seeds: Sequence[int], known: bool) -> list[str]:
    return [f"{s} seed{'s' if s > 1 else ''}" for s in seeds] if known else ["these trainings"]


def amount(images: float) -> str:
    return "-" if math.isinf(images) else str(max(1, int(images)))


def aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  " + "  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows
    )


def numbers(key: str, text: str) -> list[float]:
    """``400,1000`` as positive numbers; probabilities below 1."""
    try:
        found = [float(part) for part in text.split(",") if part]
    except ValueError:
        found = [-1.0]
    most = 1.0 if key in ("power", "alpha") else math.inf
    least = 0.0 if key in ("power", "alpha", "difference") else 1.0
    if any(not least <= n < most or n == 0 for n in found) or (key in ("power", "alpha", "seeds") and not found):
        raise UserError(
            f"{key}={text}: expected {'a probability between 0 and 1' if most == 1 else 'positive numbers, separated by commas'}"
        )
    return found


def seeds_of(folder: Path) -> dict[str, Path]:
    """Seed folder's name -> judged cell, of a cell or of the folder with all seeds of a setting.

    Raises:
        UserError: there is none.
    """
    cells = [folder] if (folder / "status.json").is_file() else sorted(folder.glob("seed*"))
    judged = {cell.resolve().name: cell for cell in cells if (cell / "records.csv").is_file()}
    if not judged:
        raise UserError(
            f"{folder} is no judged cell and has none inside (seed*/records.csv); name a cell of posegen benchmark or evaluate, or the folder above it"
        )
    return judged


def paired(ours: dict[str, Path], theirs: dict[str, Path]) -> tuple[list[Path], list[Path]]:
    """The cells of the seeds that both have, which are comparable.

    Raises:
        UserError: there are none, or they were judged differently.
    """
    common = sorted(ours.keys() & theirs.keys())
    if not common:
        raise UserError(
            f"the methods have no seed in common: {', '.join(ours)} and {', '.join(theirs)}; run the missing ones"
        )
    for seed in common:
        a, b = (identity_of(side[seed]) for side in (ours, theirs))
        if other := [key for key in SHARED if a.get(key) != b.get(key)]:
            raise UserError(
                f"{ours[seed]} and {theirs[seed]} differ in {', '.join(other)}, so their images are not paired; judge both in the same way"
            )
    return [ours[seed] for seed in common], [theirs[seed] for seed in common]


def config_of(cell: Path) -> dict[str, Any]:
    path = cell / "config.yaml"
    if not path.is_file():
        raise UserError(f"{path} is missing; run posegen evaluate for this cell again")
    return yaml.safe_load(path.read_text(encoding="utf-8"))
