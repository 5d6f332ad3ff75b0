"""The verb ``posegen report``: a study as one page that opens without a network, its charts as files, and, where there is an account, as a report of W&B."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posegen.runner.errors import UserError
from posegen.runner.files import write_text
from posegen.runner.formats import markdown
from posegen.runner.page import SIDE, page

if TYPE_CHECKING:
    from posegen.runner.table import Table

POSES = 32  # lines of the grid of pictures
LEAST_SIDE = 16
KEYS = ("poses", "side", "wandb")


def main(argv: Sequence[str]) -> int:
    """``posegen report [folder ...] [poses=32] [side=256] [wandb=ENTITY/PROJECT]``."""
    from posegen.runner.figures import figures
    from posegen.runner.table import build_table

    folders, options = read(argv)
    for folder in folders:
        table = build_table(folder)
        write_text(folder / "report.html", page(table, options["poses"], options["side"]))
        for name, figure in figures(table).items():
            write_text(folder / "figures" / f"{name}.svg", figure.file())
        print(f"{folder / 'report.html'} (charts also as {folder / 'figures'}/*.svg)")
        if options["wandb"]:
            print(published(table, options["wandb"]))
    return 0


def read(argv: Sequence[str]) -> tuple[list[Path], dict[str, Any]]:
    """(benchmark folders, options) of the command's words.

    Raises:
        UserError: an option is unknown or wrong, or there is no benchmark.
    """
    given = dict(word.split("=", 1) for word in argv if re.match(r"\w+=", word))
    if unknown := sorted(given.keys() - set(KEYS)):
        raise UserError(f"{unknown[0]}={given[unknown[0]]}: posegen report has no such option; it has {', '.join(KEYS)}")
    poses, side = given.get("poses", str(POSES)), given.get("side", str(SIDE))
    if not poses.isdigit():
        raise UserError(f"poses={poses}: expected a number of lines of pictures, 0 or more")
    if not side.isdigit() or int(side) < LEAST_SIDE:
        raise UserError(f"side={side}: expected the longer side of the page's pictures in pixels, {LEAST_SIDE} or more")
    if "wandb" in given and not re.fullmatch(r"[\w.-]+/[\w.-]+", given["wandb"]):
        raise UserError(f"wandb={given['wandb']}: expected ENTITY/PROJECT, the account and project whose runs the report shows")
    folders = [Path(word) for word in argv if not re.match(r"\w+=", word)] or sorted(p.parent for p in Path("outputs/benchmark").glob("*/cells.json"))
    if not folders:
        raise UserError("outputs/benchmark holds no benchmark; run posegen benchmark first, or name its folder: posegen report FOLDER")
    return folders, {"poses": int(poses), "side": int(side), "wandb": given.get("wandb")}


# A report of W&B.


def published(table: Table, where: str) -> str:
    """Saves the report to an account and returns its address.

    Raises:
        UserError: the package is missing, or W&B refuses.
    """
    report = composed(table, where)
    try:
        report.save(draft=False)
    except Exception as error:  # whatever the network, the account or the package has to say
        raise UserError(f"wandb={where}: the report could not be saved ({error}); log in with wandb login, and sync offline runs with wandb sync") from error
    return str(report.url)


def composed(table: Table, where: str) -> Any:
    """The report as an object of ``wandb-workspaces``: the table, and panels that compare the study's runs."""
    try:
        from wandb_workspaces.reports import v2 as wr
    except ImportError as error:
        raise UserError("wandb=... needs the extra: pip install 'posegen[wandb]'") from error
    from posegen.runner.formats import grid

    entity, project = where.split("/")
    study = table.folder.as_posix().rpartition("outputs/")[2]
    runs = wr.Runset(entity=entity, project=project, name=study, filters=f"JobType == '{study}'", groupby=["Group"])
    live = [f"live/{column}" for column in table.headline[:3]]
    panels = [wr.LinePlot(x="trainer/global_step", y=[name]) for name in ("train/loss", *live)]
    blocks: list[Any] = [
        wr.MarkdownBlock(text=markdown(grid(table))),
        wr.P(text=table.caption),
        wr.H2(text="Curves"),
        wr.PanelGrid(runsets=[runs], panels=[*panels, wr.MediaBrowser(media_keys=["live", "images"])]),
    ]
    return wr.Report(entity=entity, project=project, title=table.title, description=study, blocks=blocks)
