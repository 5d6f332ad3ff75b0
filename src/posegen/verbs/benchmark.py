"""Train, sample and judge every method of a benchmark, and make its table."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from posegen.config.app import Command
from posegen.errors import UserError
from posegen.io.text import read_json, write_json
from posegen.runner.cell import Cell, locked
from posegen.runner.components import reference_split
from posegen.runner.shards import Shard, share
from posegen.train.launch import Crew

#: Environment variable with the pid of the process that runs the sweep, inherited by its local workers.
SWEEP_PID = "POSEGEN_SWEEP_PID"
#: Keys of the configuration that only the table reads.
TABLE = ("title", "baseline", "headline", "reproduction")


def start(command: Command) -> int:
    """Plans the benchmark, runs its cells as a Hydra multirun, and writes its table, whatever became of the cells.

    Returns:
        0 where every expected cell finished, 1 otherwise.
    """
    from posegen.report.live_progress import Overview

    if command.asks:
        return command.run()
    config = command.base()
    folder, code = plan(config, command), 1
    os.environ[SWEEP_PID] = str(os.getpid())
    try:
        with Overview(lambda: str(folder)):
            code = command.run()
    finally:
        code = max(code, conclude(folder, config))
    return code


def conclude(folder: Path, config: DictConfig | None = None) -> int:
    """Writes the table of a benchmark folder, shows it to the dashboard of ``config``, and says what is missing; 0 where nothing is."""
    from posegen.report.dashboard import log_table
    from posegen.report.table import write_table

    table = write_table(folder)
    if config is not None:
        log_table(table, config)
    print(table.terminal())
    print(f"table: {folder / 'table.md'} (also .tex, .csv, .html)")
    unfinished = [cell for cell in table.cells if cell["state"] != "finished"]
    for cell in unfinished:
        print(
            f"{cell['state']}: {cell['folder']}"
            + (f": {cell['reason']}" if cell.get("reason") else "")
            + "; the same command again continues it"
        )
    return 1 if unfinished else 0


def plan(config: DictConfig, command: Command) -> Path:
    """Before the first cell starts: expands the sweep, checks every cell, writes ``cells.json`` and prepares what all cells share.

    Returns:
        The benchmark's folder.
    """
    from posegen.report.table import headline_of
    from posegen.runner.components import Parts

    cells: list[Cell] = []
    for cfg in command.cells():
        Shard.of(cfg)
        require_weights(cfg)
        cell = Cell.of(cfg, splits_of(cfg))
        cell.check()
        if all(cell.folder != other.folder for other in cells):  # shares of a cell are one cell
            cells.append(cell)
    folder = Path(config.paths.output) / config.study
    planned = [
        {
            "folder": os.path.relpath(c.folder, folder),
            "method": c.config["method"],
            "seed": c.config["seed"],
            "hash": c.hash,
        }
        for c in cells
    ]
    about: Any = OmegaConf.to_container(OmegaConf.masked_copy(config, list(TABLE)), resolve=True)
    parts = Parts(OmegaConf.create(cells[0].config))
    parts.protocol.check()
    headline_of(parts.protocol.columns, about.get("headline"))
    write_json(folder / "cells.json", {**about, "protocol": cells[0].config["protocol"], "cells": planned})
    prepare([OmegaConf.create(cell.config) for cell in cells if not cell.finished()])
    return folder


def prepare(configs: Sequence[DictConfig]) -> None:
    """Renders and encodes what the cells share, with every core, before they start."""
    from posegen.runner.components import Parts
    from posegen.train.loop import encodings

    seen: set[str] = set()
    for cfg in configs:
        parts = Parts(OmegaConf.merge(cfg, {"trainer": {"progress": "bar"}}))  # type: ignore[arg-type]
        trains = parts.bare_adapter.trainable and cfg.checkpoint is None
        key = OmegaConf.to_yaml(cfg.data) + OmegaConf.to_yaml(cfg.backbone) + str(trains)
        if key in seen:
            continue
        seen.add(key)
        for split in ("test", reference_split(cfg), *(("train",) if trains else ())):
            parts.data(split).prepare()
        if trains:
            encodings(parts)


def main(cfg: DictConfig) -> str:
    """One cell of a benchmark: train, sample, judge. A failure is recorded in the cell and does not stop the others.

    Returns:
        The cell's final state.
    """
    watch_parent()
    cell = Cell.of(cfg, splits_of(cfg))
    try:
        if Crew.of(cfg).node:
            help_train(cfg, cell)
        else:
            contribute(cfg, cell)
    except Exception as error:  # recorded in status.json by the cell, reported after the sweep
        print(f"failed: {cell.folder}: {error}", flush=True)
    return cell.status.get("state", "failed")


def contribute(cfg: DictConfig, cell: Cell) -> None:
    """What this process does for a cell, each stage skipping what an interrupted run, or another process, had finished."""
    from posegen.runner.components import Parts
    from posegen.runner.generate import generate
    from posegen.runner.judge import conclude, judge, judged
    from posegen.runner.method_folder import load_into
    from posegen.train.loop import fit, prepare_threads

    parts, folder = Parts(cfg), cell.folder

    def work() -> None:
        prepare_threads(cfg)
        if parts.bare_adapter.trainable:
            if cfg.checkpoint is None:
                with locked(folder / ".training"):
                    fit(parts, folder)
            load_into(
                parts.adapter, parts.backbone, Path(cfg.checkpoint or folder / "method")
            )  # what was exported, so that a resumed cell samples alike
        generate(parts, parts.adapter, folder)
        note_row(parts.adapter, folder)
        judge(parts, folder)

    share(cell, parts.shard, work, lambda: judged(parts, folder), lambda: conclude(parts, folder))


def help_train(cfg: DictConfig, cell: Cell) -> None:
    """What a cell's other machines do."""
    from posegen.runner.components import Parts
    from posegen.train.loop import assist

    if Parts(cfg).bare_adapter.trainable and cfg.checkpoint is None and not cell.finished():
        assist(cfg, cell.folder)


def note_row(adapter: Any, folder: Path) -> None:
    """What the table says about a row besides its numbers, in ``row.json``; a resumed cell that has nothing left to generate keeps what was noted."""
    path = folder / "row.json"
    if adapter.remark or not path.is_file():
        write_json(path, {"remark": adapter.remark, "faithful": adapter.faithful if adapter.trains else None})


def splits_of(cfg: DictConfig) -> list[str]:
    """The splits that a cell's results depend on."""
    from hydra.utils import get_class

    method: Any = get_class(cfg.adapter._target_)
    return ["test", reference_split(cfg), *(["train"] if method.trainable and cfg.checkpoint is None else [])]


def require_weights(cfg: DictConfig) -> None:
    """Refuses a method that is to be judged with given weights and has none.

    Raises:
        UserError: names the folder that is missing and the ways out.
    """
    from hydra.utils import get_class

    method: Any = get_class(cfg.adapter._target_)
    place = None if cfg.weights is None else Path(cfg.weights) / cfg.method
    if method.trainable and place is not None and not (place / "posegen.json").is_file():
        raise UserError(
            f"weights={cfg.weights} holds no method folder {cfg.method}; make it with posegen convert adapter={cfg.method} source=FILE "
            f"target={place}, leave {cfg.method} out of adapter=, or train every method with weights=null"
        )


def watch_parent() -> None:
    """Ends this worker process when the one that started the sweep has died, so that a killed benchmark leaves nothing running."""
    parent = os.getppid()
    if os.environ.get(SWEEP_PID) != str(parent):
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def planned(folder: Path) -> dict[str, Any]:
    """``cells.json`` of a benchmark folder.

    Raises:
        UserError: there is none.
    """
    path = folder / "cells.json"
    if not path.is_file():
        raise UserError(
            f"{folder} holds no benchmark (cells.json is missing); run posegen benchmark first or name another folder"
        )
    return read_json(path)
