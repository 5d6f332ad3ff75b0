"""Make a page of a benchmark that opens without a network: table, curves, pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from posegen.errors import UserError
from posegen.io.text import write_text
from posegen.report.page import SIDE, page

POSES = 32  # lines of the grid of pictures
LEAST_SIDE = 16
KEYS = ("poses", "side", "wandb")


def main(cfg: DictConfig) -> int:
    """Makes the pages of benchmarks."""
    options = {"poses": cfg.poses, "side": cfg.side, "wandb": str(cfg.wandb or "false").replace("True", "true")}
    return make_pages([*map(str, cfg.folders), *(f"{key}={value}" for key, value in options.items())])


def make_pages(argv: Sequence[str]) -> int:
    """``posegen report [folder ...] [poses=32] [side=256] [wandb=true|ENTITY/PROJECT]``."""
    from posegen.report.figures import figures
    from posegen.report.study import study_of
    from posegen.report.table import build_table

    folders, options = read(argv)
    for folder in folders:
        table = build_table(folder, plan=study_of(folder))
        write_text(folder / "report.html", page(table, options["poses"], options["side"]))
        for name, figure in figures(table).items():
            write_text(folder / "figures" / f"{name}.svg", figure.file())
        print(f"{folder / 'report.html'} (charts also as {folder / 'figures'}/*.svg)")
        if options["wandb"]:
            from posegen.report.wandb_report import published

            print(published(table, options["wandb"]))
    return 0


def read(argv: Sequence[str]) -> tuple[list[Path], dict[str, Any]]:
    """(folders, options) of the command's words.

    Raises:
        UserError: an option is unknown or wrong, or there is no benchmark.
    """
    if flags := [word for word in argv if word.startswith("-")]:
        raise UserError(
            f"{flags[0]}: posegen report takes options as key=value: {', '.join(f'{key}=...' for key in KEYS)}"
        )
    given = dict(word.split("=", 1) for word in argv if re.match(r"\w+=", word))
    if unknown := sorted(given.keys() - set(KEYS)):
        raise UserError(
            f"{unknown[0]}={given[unknown[0]]}: posegen report has no such option; it has {', '.join(KEYS)}"
        )
    poses, side = given.get("poses", str(POSES)), given.get("side", str(SIDE))
    if not poses.isdigit():
        raise UserError(f"poses={poses}: expected a number of lines of pictures, 0 or more")
    if not side.isdigit() or int(side) < LEAST_SIDE:
        raise UserError(f"side={side}: expected the longer side of the page's pictures in pixels, {LEAST_SIDE} or more")
    wandb = given.get("wandb", "false")
    if not re.fullmatch(r"true|false|[\w.-]+/[\w.-]+", wandb):
        raise UserError(
            f"wandb={wandb}: expected ENTITY/PROJECT, the account and project whose runs the report shows, or true: where the cells were logged"
        )
    folders = [Path(word) for word in argv if not re.match(r"\w+=", word)] or sorted(
        p.parent for p in Path("outputs/benchmark").glob("*/cells.json")
    )
    if not folders:
        raise UserError(
            "outputs/benchmark holds no benchmark; run posegen benchmark first, or name its folder: posegen report FOLDER"
        )
    return folders, {"poses": int(poses), "side": int(side), "wandb": "" if wandb == "false" else wandb}
