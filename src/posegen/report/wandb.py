"""Results on Weights & Biases, so that a project opens as a comparison of methods; offline and without an account, too.

The run of a cell has its curves while it trains, and once it is judged its values and a table of images. The table of
a benchmark is a further run, with the table as an artifact. `publish` makes a report of all of them, for an account.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from posegen.errors import UserError
from posegen.io.atomic import read_json_or_empty, write_json
from posegen.io.locks import locked
from posegen.report.errors import SHEETS
from posegen.report.formats import markdown, table_grid
from posegen.report.image_grids import prompts_of
from posegen.report.plots import LIVE
from posegen.report.rows import row_of
from posegen.report.table import Table
from posegen.runner.cell import provenance
from posegen.runner.components import Components
from posegen.runner.experiment import weights_of
from posegen.runner.images import picture, read_png
from posegen.runner.received.state_files import COSTS, read_cell_config, read_costs, read_status, read_yaml
from posegen.runner.stage import Stage
from posegen.train.logger_runs import RUN_FILE, logger_nodes, logger_of, logs_to

#: Of the benchmark's artifact.
FILES = ("table.csv", "table.md", "table.tex", "table.html", "pictures.png", "table_errors.csv", "table_judges.csv")


@dataclass(frozen=True)
class WandbSettings:
    """How a configuration logs to W&B."""

    logger: DictConfig  # the node of its logger, or of the first of several that is W&B's
    images: int = 16  # most images in a run's table
    methods: bool = False  # keep trained methods as artifacts


def wandb_settings(cfg: DictConfig) -> WandbSettings | None:
    """Those of a configuration; None where its logger is another."""
    node = wandb_node(cfg.get("logger"))
    return None if node is None else WandbSettings(node, **(cfg.get("dashboard") or {}))


def wandb_node(logger: Any) -> Any:
    """The first node of W&B's logger in a configuration's ``logger``, which may stand in a received file; else None."""
    return next((node for node in logger_nodes(logger) if logs_to("WandbLogger", node)), None)


def tell_offline_runs(cfg: DictConfig) -> None:
    """Says once, behind the first cell of a sweep or behind a benchmark, how offline runs are sent."""
    settings, job = wandb_settings(cfg), HydraConfig.get().job if HydraConfig.initialized() else None
    first = job is None or OmegaConf.is_missing(job, "num") or not job.num
    away = os.environ.get("WANDB_MODE", "") in ("offline", "dryrun")
    if settings is not None and first and (away or settings.logger.get("offline")):
        send = f"find {quote(str(cfg.paths.output))} -name '*.wandb' -exec wandb sync {{}} +"
        print(f"W&B logged offline; to send all runs: {send}", flush=True)


@contextmanager
def tolerated(name: str, dashboard: str = "W&B") -> Iterator[None]:
    """If a dashboard refuses something in the block, a line says so; nothing that was computed is lost."""
    try:
        yield
    except Exception as error:  # whatever the network, the account or W&B has to say
        print(f"{dashboard} does not show {name}: {type(error).__name__}: {error}", flush=True)


class ResultsOnDashboard(Stage):
    """Shows a judged cell to those of its loggers whose runs can be continued, W&B's and TensorBoard's."""

    def __init__(self, components: Components, folder: Path) -> None:
        self.components, self.folder = components, folder

    def finish(self) -> None:
        """Logs the cell's values with their intervals, and its costs; to W&B also its images and trained method."""
        cfg, folder = self.components.cfg, self.folder
        boards = [node for node in logger_nodes(cfg.get("logger")) if logs_to("TensorBoardLogger", node)]
        settings = wandb_settings(cfg)
        if settings is None and not boards:
            return
        values = result_values(self.components, folder)
        for node in boards:
            with tolerated(f"the results of {folder}", "TensorBoard"):
                logger = logger_of(node, folder)
                logger.log_metrics(values, step=cfg.budget.steps)
                logger.experiment.close()
        if settings is not None:
            with tolerated(f"the results of {folder}"):
                self.show(settings, values)

    def show(self, settings: WandbSettings, values: dict[str, float]) -> None:
        """To the run of the cell on W&B, or of the cell that trained what this one judges."""
        import wandb

        components, folder, cfg = self.components, self.folder, self.components.cfg
        plain: Any = OmegaConf.to_container(cfg, resolve=True)
        trained = cell_to_continue(cfg, folder, settings.logger)
        there = plain if trained is None else read_cell_config(trained)
        about = {} if trained is None else titles(wandb_node(there["logger"]))
        with open_run(settings.logger, trained or folder, **about) as logger:
            run = logger.experiment
            if trained is not None:
                judged = ("data", "sampler", "estimator", "protocol", "study")
                logger.log_hyperparams({"evaluation": {key: plain[key] for key in judged}})
            elif weights_of(cfg, folder) != folder / "method":  # else its training has logged them
                logger.log_hyperparams(plain | provenance() | training_settings(cfg))
            run.summary.update(values)
            records, step = components.protocol.read(folder), there["budget"]["steps"]
            logger.log_metrics({"images": image_table(components, folder, records, settings.images, step)}, step=step)
            if settings.methods and (folder / "method").is_dir():
                name = f"{cfg.method}-seed{cfg.seed}"
                artifact = wandb.Artifact(name.replace("/", "-"), type="method")
                artifact.add_dir(str(folder / "method"))
                run.log_artifact(artifact)


def result_values(components: Components, folder: Path) -> dict[str, float]:
    """The finite values of a judged cell by their names in loggers: ``test/COLUMN`` with ``_lo`` and ``_hi``, and
    ``cost/NAME``."""
    row, costs = row_of([folder], components.protocol)[0], read_costs(folder)
    names = [f"{column}{end}" for column in components.protocol.columns for end in ("", "_lo", "_hi")]
    values = {f"test/{name}": row[name] for name in names} | {f"cost/{name}": costs[name] for name in costs}
    if rate := costs.get("sample_images_per_s"):
        values["cost/sample_s_per_image"] = 1 / rate
    return {name: float(value) for name, value in values.items() if np.isfinite(value)}


def cell_to_continue(cfg: DictConfig, folder: Path, node: Any) -> Path | None:
    """The cell that trained what ``folder`` judges, where its run on W&B is continued: the first evaluation does so,
    further ones with other settings have runs of their own."""
    place = None if cfg.checkpoint is None else Path(cfg.checkpoint)
    if place is None or place.name != "method" or not (place.parent / RUN_FILE).is_file():
        return None
    trained, cell = place.parent, read_status(folder).get("hash")
    there: Any = wandb_node(read_cell_config(trained).get("logger")) or {}
    if any(there.get(key) != node.get(key) for key in ("project", "entity")):
        return None
    with locked(trained / ".run.lock"):
        known = read_json_or_empty(trained / RUN_FILE)
        if known.setdefault("evaluation", cell) == cell:
            write_json(trained / RUN_FILE, known)
    return trained if known["evaluation"] == cell else None


def training_settings(cfg: DictConfig) -> dict[str, Any]:
    """What trained the weights that a cell judges, as their training logged it; empty where no cell trained them."""
    file = None if cfg.checkpoint is None else Path(cfg.checkpoint).parent / "curves/hparams.yaml"
    found = read_yaml(file, "delete it; the run goes without them") if file is not None and file.is_file() else {}
    return {key: found[key] for key in ("optim", "budget", "model", "train_images") if key in found}


def titles(node: Mapping[str, Any]) -> dict[str, Any]:
    """What a run is called and grouped by; the node may stand in a received file, and Hydra gets plain text alone."""

    def plain(value: Any) -> bool:
        return isinstance(value, str) and "${" not in value

    texts = {key: node.get(key) for key in ("name", "group", "job_type", "notes", "tags")}
    return {k: v for k, v in texts.items() if plain(v) or (isinstance(v, list) and all(map(plain, v)))}


@contextmanager
def open_run(node: Any, folder: Path, **about: Any) -> Iterator[Any]:
    """W&B's logger with the run of ``folder``, which it continues where there is one; finished behind the block."""
    logger = logger_of(node, folder, **about)
    try:
        yield logger
    finally:
        logger.experiment.finish()


def image_table(components: Components, folder: Path, records: Any, images: int, step: int) -> Any:
    """The images that are kept to look at, those with the worst poses on top, with prompt, poses and values."""
    import wandb

    kept = [i for i in range(len(records["id"])) if picture(folder / "judged", i).is_file()][:images]
    words = prompts_of(folder)
    values = {i: values_of_image(components, {name: [column[i]] for name, column in records.items()}) for i in kept}
    columns = [c for c in components.protocol.columns if any(c in each for each in values.values())]
    accuracy = components.protocol.axes("accuracy")
    table = wandb.Table(columns=["id", "prompt", "pose", "sample", "found", *map(str, columns)])
    for i in sorted(kept, key=lambda i: next((values[i][c] for c in accuracy if c in values[i]), 0.0)):
        prompt = words[i] if i < len(words) else ""
        caption = f"{prompt} ({records['id'][i]}; {components.cfg.method}, step {step})"
        drawn = np.split(read_png(picture(folder / "judged", i)), 3, axis=1)
        panels = [wandb.Image(panel, caption=caption) for panel in drawn]
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
    about |= {"save_dir": str(place)}
    with tolerated(f"the table of {table.folder}"), open_run(settings.logger, table.folder, **about) as logger:
        run = logger.experiment
        run.config.update({"study": study})
        columns, rows = table_numbers(table)
        run.log({"table": wandb.Table(columns=columns, data=rows)})
        if table.errors:
            columns = ["method", *(column for columns in SHEETS.values() for column in map(str, columns))]
            rows = [[finite_or_none(row[name]) for name in columns] for row in table.errors.everybody]
            run.log({"errors": wandb.Table(columns=columns, data=rows)})
        artifact = wandb.Artifact(study.replace("/", "-"), type="benchmark")
        for name in FILES:
            if (table.folder / name).is_file():
                artifact.add_file(str(table.folder / name))
        run.log_artifact(artifact)


def table_numbers(table: Table) -> tuple[list[str], list[list[Any]]]:
    """(columns, rows) of the table as numbers that can be sorted and plotted, with the bounds of the intervals."""
    columns = ["method", "ranked", "state", "reason", "n_images", "n_seeds"]
    columns += [f"{column}{suffix}" for column in table.headline for suffix in ("", "_lo", "_hi")]
    columns += [f"cost_{name}" for name in COSTS]
    used = [name for name in columns if any(finite_or_none(row.get(name)) is not None for row in table.rows)]
    return used, [[finite_or_none(row.get(name)) for name in used] for row in table.rows]


def finite_or_none(value: Any) -> Any:
    """A value as a dashboard takes it."""
    return None if isinstance(value, float) and not np.isfinite(value) else value


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
    found = [node for config in configs if (node := wandb_node(config.get("logger"))) is not None]
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
