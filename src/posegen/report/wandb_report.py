"""A report of W&B, of the runs that a study's cells logged there: the table, then panels that compare methods. It needs an account to be saved in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from posegen.errors import UserError
from posegen.report.dashboard import TARGET
from posegen.report.figures import accuracy_of, quality_of
from posegen.report.formats import grid, markdown

if TYPE_CHECKING:
    from posegen.report.table import Table

LONGEST = 128  # characters of a title
LIVE, BARS = 3, 6  # most columns with a curve, and with bars
STEP = "trainer/global_step"


@dataclass(frozen=True)
class Place:
    """Where a study's runs are.

    Attributes:
        entity: the account; None is the user's own.
        study: the job type that the runs share.
    """

    entity: str | None
    project: str
    study: str


def place_of(table: Table, asked: str) -> Place:
    """The place that was asked for, ``ENTITY/PROJECT`` or ``true``: where the cells say that they were logged.

    Raises:
        UserError: no cell says so.
    """
    logged = [config for cell in table.cells if (config := config_of(table.folder / cell["folder"]))]
    study = logged[0]["study"] if logged else table.folder.as_posix()
    if asked != "true":
        entity, _, project = asked.partition("/")
        return Place(entity, project, study)
    nodes = [config["logger"] for config in logged if (config.get("logger") or {}).get("_target_") == TARGET]
    if not nodes:
        raise UserError(
            f"wandb=true: no cell of {table.folder} was logged to W&B (logger=wandb); run it so, or say where its runs are: wandb=ENTITY/PROJECT"
        )
    return Place(nodes[0].get("entity"), nodes[0].get("project", "posegen"), study)


def config_of(cell: Path) -> dict[str, Any]:
    path = cell / "config.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}


def published(table: Table, asked: str) -> str:
    """Saves the report to an account and returns its address.

    Raises:
        UserError: the package is missing, or W&B refuses.
    """
    place = place_of(table, asked)
    workspaces()
    try:
        if place.entity is None:
            import wandb

            place = Place(wandb.Api().default_entity, place.project, place.study)
        report = composed(table, place)
        report.save(draft=False)
    except Exception as error:  # whatever the network, the account or the package has to say
        raise UserError(
            f"wandb={asked}: the report could not be saved ({error}); log in with wandb login, and send offline runs with wandb sync"
        ) from error
    return str(report.url)


def workspaces() -> Any:
    """The module that reports are made of.

    Raises:
        UserError: it is not installed; names the command.
    """
    try:
        from wandb_workspaces.reports import v2
    except ImportError as error:
        raise UserError("wandb=... needs the extra: pip install 'posegen[wandb]'") from error
    return v2


def composed(table: Table, place: Place) -> Any:
    """The report as an object: the table, live curves, values of the judged cells, images. Runs of the same row are grouped, one per seed."""
    wr = workspaces()
    runs = wr.Runset(
        entity=place.entity,
        project=place.project,
        name=place.study,
        filters=f"JobType == '{place.study}'",
        groupby=["Group"],
    )
    accuracy, quality = accuracy_of(table), quality_of(table)
    shown = [
        accuracy,
        *(
            column
            for column in table.headline
            if column != accuracy and any(math.isfinite(row.get(column, math.nan)) for row in table.rows)
        ),
    ]
    curves = [
        wr.LinePlot(title=name, x=STEP, y=[name])
        for name in ("train/loss", *(f"live/{column}" for column in shown[:LIVE]))
    ]
    values: list[Any] = [
        wr.BarPlot(title=column, metrics=[f"test/{column}"], groupby="Group", groupby_aggfunc="mean")
        for column in shown[:BARS]
    ]
    if quality:
        values.append(
            wr.ScatterPlot(
                title="quality beside pose accuracy",
                x=wr.SummaryMetric(f"test/{accuracy}"),
                y=wr.SummaryMetric(f"test/{quality}"),
            )
        )
    pictures = [
        wr.MediaBrowser(media_keys=["live"]),
        wr.WeavePanelSummaryTable(table_name="images", layout=wr.Layout(w=24, h=16)),
    ]
    blocks: list[Any] = [wr.MarkdownBlock(text=markdown(grid(table))), wr.P(text=table.caption)]
    blocks += [wr.UnorderedList(items=list(table.notes))] if table.notes else []
    for name, panels in {"Curves": curves, "Values": values, "Pictures": pictures}.items():
        blocks += [wr.H2(text=name), wr.PanelGrid(runsets=[runs], panels=panels)]
    return wr.Report(
        entity=place.entity,
        project=place.project,
        title=table.title[:LONGEST],
        description=place.study,
        blocks=blocks,
        width="fluid",
    )
