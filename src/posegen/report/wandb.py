"""Results on Weights & Biases, so that a project opens as a comparison of methods; offline and without an account, too.

The run of a cell has its curves while it trains, and once it is judged its values and a table of images. The table of
a benchmark is a further run, with the table as an artifact. `publish` makes a report of all of them, for an account.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from posegen.errors import UserError
from posegen.io.hashes import value_hash
from posegen.report.formats import markdown, table_grid
from posegen.report.image_grids import prompts_of
from posegen.report.plots import LIVE
from posegen.report.table import Table
from posegen.runner.components import Components
from posegen.runner.images import picture, read_png
from posegen.runner.received.classes import found_class
from posegen.runner.received.state_files import COSTS, read_cell_config
from posegen.runner.stage import Stage

FILES = ("table.csv", "table.md", "table.tex", "table.html", "pictures.png")  # of the benchmark's artifact


@dataclass(frozen=True)
class WandbSettings:
    """How a configuration logs to W&B."""

    logger: DictConfig  # the node of its logger
    images: int = 16  # most images in a run's table
    methods: bool = False  # keep trained methods as artifacts


def wandb_settings(cfg: DictConfig) -> WandbSettings | None:
    """Those of a configuration; None where its logger is another."""
    node: Any = cfg.get("logger") or {}
    return WandbSettings(node, **(cfg.get("dashboard") or {})) if logs_to_wandb(node) else None


def logs_to_wandb(node: Mapping[str, Any] | DictConfig) -> bool:
    """Whether the node of a logger, which may stand in a received file, names W&B's."""
    from lightning.pytorch.loggers import WandbLogger

    target = found_class(str(node.get("_target_")))
    return isinstance(target, type) and issubclass(target, WandbLogger)


@contextmanager
def tolerated(name: str) -> Iterator[None]:
    """If W&B refuses something in the block, a line says so; nothing that was computed is lost."""
    try:
        yield
    except Exception as error:  # whatever the network, the account or W&B has to say
        print(f"W&B does not show {name}: {type(error).__name__}: {error}", flush=True)


class ResultsOnDashboard(Stage):
    """Shows a judged cell to W&B, where that is its logger."""

    def __init__(self, components: Components, folder: Path) -> None:
        self.components, self.folder = components, folder

    def finish(self) -> None:
        """Logs the cell's values, its table of images and, on request, its trained method."""
        components, folder, settings = self.components, self.folder, wandb_settings(self.components.cfg)
        if settings is None:
            return
        import wandb

        records, reference = components.protocol.read(folder), components.protocol.read(folder / "reference")
        once = np.ones((1, len(records["id"])))  # a run shows no intervals
        values = components.protocol.values(records, once, reference)
        with tolerated(f"the results of {folder}"), open_run(settings.logger) as run:
            run.summary.update({f"test/{c}": float(value[0]) for c, value in values.items() if np.isfinite(value[0])})
            run.log({"images": image_table(components, folder, records, settings.images)})
            if settings.methods and (folder / "method").is_dir():
                name = f"{components.cfg.method}-seed{components.cfg.seed}"
                artifact = wandb.Artifact(name.replace("/", "-"), type="method")
                artifact.add_dir(str(folder / "method"))
                run.log_artifact(artifact)


@contextmanager
def open_run(logger: DictConfig, **about: Any) -> Iterator[Any]:
    """A run of the logger, finished behind the block; without ``about`` that of the cell, which it continues."""
    run = instantiate(logger, **about, _convert_="all").experiment
    try:
        yield run
    finally:
        run.finish()


def image_table(components: Components, folder: Path, records: Any, images: int) -> Any:
    """The images that are kept to look at, those with the worst poses on top, with prompt, poses and values."""
    import wandb

    kept = [i for i in range(len(records["id"])) if picture(folder / "judged", i).is_file()][:images]
    words = prompts_of(folder)
    values = {i: values_of_image(components, {name: [column[i]] for name, column in records.items()}) for i in kept}
    columns = [c for c in components.protocol.columns if any(c in each for each in values.values())]
    accuracy = components.protocol.axes("accuracy")
    table = wandb.Table(columns=["id", "prompt", "pose", "sample", "found", *map(str, columns)])
    for i in sorted(kept, key=lambda i: next((values[i][c] for c in accuracy if c in values[i]), 0.0)):
        panels = [wandb.Image(panel) for panel in np.split(read_png(picture(folder / "judged", i)), 3, axis=1)]
        prompt = words[i] if i < len(words) else ""
        table.add_data(records["id"][i], prompt, *panels, *(values[i].get(column) for column in columns))
    return table


def values_of_image(components: Components, record: Any) -> dict[str, float]:
    """The columns of one image alone, of the metrics that have a value for one."""
    found: dict[str, float] = {}
    for metric in components.protocol.metrics:
        try:
            found |= metric.compute(record)
        except ValueError:  # a distance between sets
            continue
    return {column: value for column, value in found.items() if np.isfinite(value)}


def log_table(table: Table, cfg: DictConfig) -> None:
    """The table of a benchmark as a run and an artifact of its own; nothing with another logger."""
    settings = wandb_settings(cfg)
    if settings is None:
        return
    import wandb

    study, place = str(cfg.study), table.folder / "dashboard"
    node: Any = OmegaConf.to_container(settings.logger, resolve=False)
    tags = [*(tag for tag in node.get("tags") or () if "${" not in tag), "table"]  # the others are of one cell
    about: dict[str, Any] = dict.fromkeys(("group", "job_type"), f"{study}/table") | {"name": "table", "tags": tags}
    about |= {"id": value_hash([str(table.folder), "table"]), "save_dir": str(place)}
    with tolerated(f"the table of {table.folder}"), open_run(settings.logger, **about) as run:
        run.config.update({"study": study})
        columns, rows = table_numbers(table)
        run.log({"table": wandb.Table(columns=columns, data=rows)})
        artifact = wandb.Artifact(study.replace("/", "-"), type="benchmark")
        for name in FILES:
            if (table.folder / name).is_file():
                artifact.add_file(str(table.folder / name))
        run.log_artifact(artifact)


def table_numbers(table: Table) -> tuple[list[str], list[list[Any]]]:
    """(columns, rows) of the table as numbers that can be sorted and plotted, with the bounds of the intervals."""

    def known(value: Any) -> Any:
        return None if isinstance(value, float) and not np.isfinite(value) else value

    columns = ["method", "ranked", "state", "reason", "n_images", "n_seeds"]
    columns += [f"{column}{suffix}" for column in table.headline for suffix in ("", "_lo", "_hi")]
    columns += [f"cost_{name}" for name in COSTS]
    used = [name for name in columns if any(known(row.get(name)) is not None for row in table.rows)]
    return used, [[known(row.get(name)) for name in used] for row in table.rows]


@dataclass(frozen=True)
class WandbPlace:
    """Where a study's runs are: the account (None: the user's own), the project, and the job type that they share."""

    entity: str | None
    project: str
    study: str


def place_of(table: Table, wanted: str | bool) -> WandbPlace:
    """``ENTITY/PROJECT``, or with ``true`` where the cells say that they were logged; a UserError where none does."""
    configs = [config for cell in table.cells if (config := read_cell_config(table.folder / cell["folder"]))]
    study = configs[0]["study"] if configs else table.folder.as_posix()
    if isinstance(wanted, str):
        entity, _, project = wanted.partition("/")
        return WandbPlace(entity, project, study)
    found = [node for config in configs if logs_to_wandb(node := config.get("logger") or {})]
    if not found:
        fix = "run it so, or say where its runs are: wandb=ENTITY/PROJECT"
        raise UserError(f"wandb=true: no cell of {table.folder} was logged to W&B (logger=wandb); {fix}")
    return WandbPlace(found[0].get("entity"), found[0].get("project", "posegen"), study)


def publish(table: Table, wanted: str | bool) -> str:
    """Saves the report to an account and returns its address; a UserError where W&B refuses or is missing."""
    place = place_of(table, wanted)
    workspaces()
    try:
        if place.entity is None:
            import wandb

            place = WandbPlace(wandb.Api().default_entity, place.project, place.study)
        report = wandb_report(table, place)
        report.save(draft=False)
    except Exception as error:  # whatever the network, the account or the package has to say
        fix = "log in with wandb login, and send offline runs with wandb sync"
        raise UserError(f"wandb={wanted}: the report could not be saved ({error}); {fix}") from error
    return str(report.url)


def workspaces() -> Any:
    """The module that reports are made of; a UserError where it is not installed."""
    try:
        from wandb_workspaces.reports import v2
    except ImportError as error:
        raise UserError("wandb=... needs the extra: pip install 'posegen[wandb]'") from error
    return v2


def wandb_report(table: Table, place: WandbPlace) -> Any:
    """The report as an object: the table, live curves, values, images; the seeds of a row are grouped."""
    wr = workspaces()
    where, jobs = {"entity": place.entity, "project": place.project}, f"JobType == '{place.study}'"
    runs = wr.Runset(**where, name=place.study, filters=jobs, groupby=["Group"])
    accuracy, quality = table.accuracy, table.quality
    shown: Sequence[str] = [accuracy, *(c for c in table.headline if c != accuracy and table.filled(c))]
    step = "trainer/global_step"
    curves = [wr.LinePlot(title=n, x=step, y=[n]) for n in ("train/loss", *(f"live/{c}" for c in shown[:LIVE]))]
    mean: Any = {"groupby": "Group", "groupby_aggfunc": "mean"}
    values: list[Any] = [wr.BarPlot(title=str(c), metrics=[f"test/{c}"], **mean) for c in shown[:6]]
    if quality:
        axes = {axis: wr.SummaryMetric(f"test/{column}") for axis, column in (("x", accuracy), ("y", quality))}
        values.append(wr.ScatterPlot(title="quality beside pose accuracy", **axes))
    images = wr.WeavePanelSummaryTable(table_name="images", layout=wr.Layout(w=24, h=16))
    pictures = [wr.MediaBrowser(media_keys=["live"]), images]
    blocks: list[Any] = [wr.MarkdownBlock(text=markdown(table_grid(table))), wr.P(text=table.caption)]
    blocks += [wr.UnorderedList(items=list(table.notes))] if table.notes else []
    for name, panels in {"Curves": curves, "Values": values, "Pictures": pictures}.items():
        blocks += [wr.H2(text=name), wr.PanelGrid(runsets=[runs], panels=panels)]
    about = {"title": table.title[:128], "description": place.study, "width": "fluid"}  # W&B takes no longer title
    return wr.Report(**where, blocks=blocks, **about)
