"""What goes to Weights & Biases, so that a project opens as a comparison of methods; it works offline and without an account.

A cell is a run, named after its method and seed and grouped by study and method: its configuration, curves and picture grids while it trains, and once it is
judged its values and a table of images. The benchmark's table is a run of its own, with the table as an artifact.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from omegaconf import DictConfig, OmegaConf

from posegen.report.figures import ACCURACY
from posegen.report.rows import COSTS
from posegen.runner.components import Parts
from posegen.runner.images import picture, read_png

if TYPE_CHECKING:
    from posegen.report.table import Table

TARGET = "posegen.train.loggers.wandb"
FILES = ("table.csv", "table.md", "table.tex", "table.html", "pictures.png")  # of the benchmark's artifact


@dataclass(frozen=True)
class Dashboard:
    """The settings of ``logger=wandb``.

    Attributes:
        project: that the runs belong to.
        mode: ``offline`` runs are sent later, with ``wandb sync``.
        entity: the account; None is the user's own.
        tags: of all runs, beside those that name method, data and seed.
        rows: most images in a run's table.
        checkpoints: keep trained methods as artifacts.
    """

    project: str = "posegen"
    mode: Literal["offline", "online", "disabled"] = "offline"
    entity: str | None = None
    tags: Sequence[str] = ()
    rows: int = 16
    checkpoints: bool = False

    @classmethod
    def of(cls, cfg: DictConfig) -> Dashboard | None:
        """That of a configuration; None where its logger is another."""
        node: Any = OmegaConf.to_container(cfg.logger, resolve=True) if cfg.get("logger") else {}
        return cls(**{k: v for k, v in node.items() if k[0] != "_"}) if node.get("_target_") == TARGET else None

    def run_of(self, cfg: DictConfig, folder: Path) -> Any:
        """The run of a cell. Its id is a function of the cell, so that a resumed cell continues its run."""
        config: Any = OmegaConf.to_container(cfg, resolve=True)
        tags = [*self.tags, f"method:{cfg.method}", f"data:{cfg.dataset}", f"seed:{cfg.seed}"]
        run = self._started(
            folder,
            [str(folder), cfg.seed],
            f"{cfg.method}-seed{cfg.seed}",
            f"{cfg.study}/{cfg.method}",
            str(cfg.study),
            tags,
            config,
        )
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step")
        run.define_metric("live/PCK@0.1", step_metric="trainer/global_step", summary="max")
        return run

    def _started(
        self,
        folder: Path,
        key: Sequence[Any],
        name: str,
        group: str,
        kind: str,
        tags: Sequence[str],
        config: dict[str, Any],
    ) -> Any:
        import wandb

        from posegen.runner.cell import digest

        folder.mkdir(parents=True, exist_ok=True)
        resume: Any = "allow" if self.mode == "online" else None
        about: dict[str, Any] = {
            "id": digest(list(key)),
            "name": name,
            "group": group,
            "job_type": kind,
            "tags": list(tags),
            "config": config,
        }
        return wandb.init(
            project=self.project,
            entity=self.entity,
            mode=self.mode,
            dir=str(folder),
            resume=resume,
            reinit="finish_previous",
            **about,
        )


@contextmanager
def showing(what: str) -> Iterator[ExitStack]:
    """For runs that are finished behind the block. What a dashboard cannot take is said; nothing that was computed is lost for it."""
    try:
        with ExitStack() as stack:
            yield stack
    except Exception as error:  # whatever the network, the account or W&B has to say
        print(f"W&B does not show {what}: {type(error).__name__}: {error}", flush=True)


def opened(stack: ExitStack, run: Any) -> Any:
    stack.callback(run.finish)
    return run


def log_results(parts: Parts, folder: Path) -> None:
    """A judged cell's values, its table of images and, where that is asked for, its trained method; nothing with another logger."""
    board = Dashboard.of(parts.cfg)
    if board is None:
        return
    import wandb

    records = parts.protocol.read(folder)
    points = parts.protocol.values(
        records, np.ones((1, len(records["id"]))), parts.protocol.read(folder / "reference")
    )  # a run shows no intervals
    values = {column: float(value[0]) for column, value in points.items()}
    with showing(f"the results of {folder}") as stack:
        run = opened(stack, board.run_of(parts.cfg, folder))
        run.summary.update(
            {f"test/{column}": values[column] for column in parts.protocol.columns if np.isfinite(values[column])}
        )
        run.log({"images": image_table(parts, folder, records, board.rows)})
        if board.checkpoints and (folder / "method").is_dir():
            artifact = wandb.Artifact(f"{parts.cfg.method}-seed{parts.cfg.seed}".replace("/", "-"), type="method")
            artifact.add_dir(str(folder / "method"))
            run.log_artifact(artifact)


def image_table(parts: Parts, folder: Path, records: Any, rows: int) -> Any:
    """A table of the images that are kept to look at: what was asked for, the pose, the sample, the pose that is found in it, and each image's own values.

    The same images for every method, those with the worst poses on top.
    """
    import wandb

    looked_at = [i for i in range(len(records["id"])) if picture(folder / "judged", i).is_file()][:rows]
    prompts = folder / "samples" / "prompts.txt"
    words = prompts.read_text(encoding="utf-8").splitlines() if prompts.is_file() else [""] * len(records["id"])
    own = {i: values_of(parts, {name: [values[i]] for name, values in records.items()}) for i in looked_at}
    columns = [
        column
        for column in parts.protocol.columns
        if any(np.isfinite(each.get(column, np.nan)) for each in own.values())
    ]
    table = wandb.Table(columns=["id", "prompt", "pose", "sample", "found", *columns])
    for i, values in sorted(own.items(), key=lambda item: worst_first(item[1])):
        panels = [wandb.Image(panel) for panel in np.split(read_png(picture(folder / "judged", i)), 3, axis=1)]
        table.add_data(
            records["id"][i],
            words[i] if i < len(words) else "",
            *panels,
            *(known(values.get(column)) for column in columns),
        )
    return table


def worst_first(values: Mapping[str, float]) -> float:
    """What images are sorted by: the first measure of pose accuracy that there is."""
    return next((values[name] for name in ACCURACY if np.isfinite(values.get(name, np.nan))), 0.0)


def known(value: Any) -> Any:
    """None in the place of a number that is none."""
    return None if isinstance(value, float) and not np.isfinite(value) else value


def values_of(parts: Parts, record: Any) -> dict[str, float]:
    """The columns of one image alone, of the metrics that have a value for one."""
    found: dict[str, float] = {}
    for metric in parts.protocol.metrics:
        try:
            found |= metric.compute(record)
        except ValueError:  # a distance between sets
            continue
    return found


def numbers_of(table: Table) -> tuple[list[str], list[list[Any]]]:
    """(columns, rows) of the table as numbers that can be sorted and plotted, with the bounds of the intervals."""
    columns = ["method", "ranked", "state", "reason", "n_images", "n_seeds"]
    columns += [f"{column}{suffix}" for column in table.headline for suffix in ("", "_lo", "_hi")]
    columns += [f"cost_{name}" for name in COSTS]
    used = [name for name in columns if any(known(row.get(name)) is not None for row in table.rows)]
    return used, [[known(row.get(name)) for name in used] for row in table.rows]


def log_table(table: Table, cfg: DictConfig) -> None:
    """The table of a benchmark as a run and an artifact of its own; nothing with another logger."""
    board = Dashboard.of(cfg)
    if board is None:
        return
    import wandb

    study = str(cfg.study)
    place, tags = table.folder / "dashboard", [*board.tags, "table"]
    with showing(f"the table of {table.folder}") as stack:
        run = opened(
            stack,
            board._started(
                place,
                [str(table.folder), "table"],
                "table",
                f"{study}/table",
                f"{study}/table",
                tags,
                {"study": study},
            ),
        )
        columns, rows = numbers_of(table)
        run.log({"table": wandb.Table(columns=columns, data=rows)})
        artifact = wandb.Artifact(study.replace("/", "-"), type="benchmark")
        for name in FILES:
            if (table.folder / name).is_file():
                artifact.add_file(str(table.folder / name))
        run.log_artifact(artifact)
