"""Train, sample and judge every method of a benchmark, and write its table."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from posegen.config.app import ASKING, Command
from posegen.config.cell_folder import require_inside
from posegen.config.launchers.jobs import is_remote
from posegen.config.resolvers import AUTO_PRECISIONS
from posegen.errors import UserError
from posegen.io.atomic import write_json
from posegen.io.hashes import value_hash
from posegen.io.locks import locked
from posegen.report.formats import table_terminal
from posegen.report.live_progress import LiveProgress
from posegen.report.study import benchmark_plan
from posegen.report.wandb import ResultsOnDashboard, log_table, tell_offline_runs
from posegen.report.write import write_table
from posegen.runner.cell import Cell
from posegen.runner.components import Components, reference_split
from posegen.runner.experiment import method_class, splits_of, weights_of, with_trained_arguments
from posegen.runner.generate import Generation
from posegen.runner.judge import Judging
from posegen.runner.stage import Shard, Stage, complete
from posegen.train.launch import Processes
from posegen.train.loop import Training, fit, set_threads
from posegen.verbs.judge import judge_further

#: Keys of the configuration that only the table reads.
TABLE = ("title", "baseline", "headline", "reproduction")


def start(command: Command) -> int:
    """Plans the benchmark, runs its cells as a multirun, and writes its table; 0 where every cell finished, else 1."""
    judges = Command.read(command.verb, command.words).judges()
    command = judges[0]
    if ASKING & command.flags.keys():  # Hydra answers a question in place of running
        return command.run()
    config = command.base()
    (folder, planned), code = plan(config, command), 1
    try:
        with LiveProgress(folder):
            code = command.run()
    finally:
        for place in planned:
            with suppress(OSError):  # it is not empty
                (folder / place).rmdir()
        if judges[1:] and not code:
            code = judge_further(judges, [folder], config)
        code = max(code, conclude(folder, config, planned))
    return code


def main(cfg: DictConfig) -> str:
    """One cell: train, sample, judge. A failure is recorded and does not stop the others; returns the final state."""
    cfg = with_trained_arguments(cfg, quiet=True)  # `plan` has said it
    components = Components(cfg)
    cell = Cell.of(cfg, components.content(*splits_of(cfg)))
    try:
        set_threads(cfg)
        if Processes.of(cfg).first:
            complete(cell, stages_of(components, cell.folder), components.shard)
        elif will_train(cfg) and not cell.finished() and Training(components, cell.folder).todo():  # its share of it
            fit(components, cell.folder)
    except Exception as error:  # recorded in status.json by the cell, reported after the sweep
        print(f"failed: {cell.folder}: {error}", flush=True)
    return cell.status.get("state", "failed")


def will_train(cfg: DictConfig) -> bool:
    return method_class(cfg).trainable and cfg.checkpoint is None


def stages_of(components: Components, folder: Path) -> list[Stage]:
    """What is done for a cell; each stage skips what an interrupted run, or another process, has finished."""
    training: list[Stage] = [Training(components, folder)] if will_train(components.cfg) else []
    generation = Generation(components, folder, weights_of(components.cfg, folder))
    return [*training, generation, Judging(components, folder), ResultsOnDashboard(components, folder)]


def plan(config: DictConfig, command: Command) -> tuple[Path, set[str]]:
    """Checks every cell, writes ``cells.json``, and prepares what the cells share where this machine computes them;
    returns the benchmark's folder, and the folders of these cells in it."""
    cells: list[Cell] = []
    others: dict[Path, list[str]] = {}  # hashes of the cells as other kinds of machines compute them
    for cfg, open_precision in command.cells():
        Shard.of(cfg)
        require_weights(cfg)
        cfg = with_trained_arguments(cfg)
        cell = Cell.of(cfg, Components(cfg).content(*splits_of(cfg)))
        cell.check()
        if all(cell.folder != other.folder for other in cells):  # shares of a cell are one cell
            cells.append(cell)
            trainer = cell.identity["trainer"]
            each = [{**cell.identity, "trainer": {**trainer, "precision": known}} for known in AUTO_PRECISIONS]
            others[cell.folder] = [value_hash(one) for one in each if open_precision and one != cell.identity]
    folder = require_inside(Path(config.paths.output) / str(config.study), Path(config.paths.output))
    about: Any = OmegaConf.to_container(OmegaConf.masked_copy(config, list(TABLE)), resolve=True)
    protocol = Components(OmegaConf.create(cells[0].config)).protocol
    protocol.check()
    protocol.headline(about.get("headline"))
    about |= {"protocol": cells[0].config["protocol"], "cells": []}
    for cell in cells:
        facts = {"method": cell.config["method"], "seed": cell.config["seed"], "hash": cell.hash}
        facts |= {"others": others[cell.folder]} if others[cell.folder] else {}
        place = os.path.relpath(require_inside(cell.folder, folder), folder)
        about["cells"].append({"folder": place, **facts})
    planned = {entry["folder"] for entry in about["cells"]}
    with locked(folder / ".cells.lock"):
        about["cells"] += other_cells(folder, about)
        write_json(folder / "cells.json", about)
        for cell in cells:  # another benchmark of the study keeps their rows, though none has begun
            cell.folder.mkdir(parents=True, exist_ok=True)
    if not is_remote(config):  # else the first job that needs it
        prepare([OmegaConf.create(cell.config) for cell in cells if not cell.finished()])
    return folder, planned


def other_cells(folder: Path, about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The cells that earlier benchmarks of the study planned and this one does not, as far as their folders are there.

    A `UserError` where they are judged by another protocol, so that one table cannot show both.
    """
    try:
        known = benchmark_plan(folder) if (folder / "cells.json").is_file() else {"cells": []}
    except UserError as error:
        print(f"cells.json is written again: {error}", flush=True)
        return []
    planned = {entry["folder"] for entry in about["cells"]}
    others = [entry for entry in known["cells"] if entry["folder"] not in planned]
    others = [entry for entry in others if (folder / entry["folder"]).is_dir()]
    if others and known["protocol"] != about["protocol"]:
        names = ", ".join(dict.fromkeys(entry["folder"] for entry in others[:3]))
        fix = f"Keep both with another study=NAME, or delete {folder / 'cells.json'} to leave those rows out"
        raise UserError(f"{folder} holds rows that another protocol judged ({names}); {fix}")
    if others:
        rows = ", ".join(dict.fromkeys(str(Path(entry["folder"]).parent) for entry in others))
        print(f"the table also has earlier rows of this study: {rows}; delete their folders to leave them out")
    return others


def prepare(configs: Sequence[DictConfig]) -> None:
    """Renders, or checks, the data that the cells share, with every core, before they start. They share the encoding of
    it by themselves, each on its device, see `posegen.runner.encodings`."""
    distinct: dict[str, DictConfig] = {}
    for cfg in configs:
        distinct.setdefault(OmegaConf.to_yaml(cfg.data) + str(will_train(cfg)), cfg)
    for cfg in distinct.values():
        components = Components(OmegaConf.merge(cfg, {"progress": "bar"}))  # type: ignore[arg-type]
        for split in ("test", reference_split(cfg), *(("train",) if will_train(cfg) else ())):
            components.data(split).prepare()


def conclude(folder: Path, config: DictConfig, planned: Collection[str]) -> int:
    """Writes the table, shows it to the dashboard, and says what is missing of the ``planned`` cells; 0 for nothing."""
    table = write_table(folder)
    log_table(table, config)
    print(table_terminal(table))
    print(f"table: {folder / 'table.md'} (also .tex, .csv, .html)")
    tell_offline_runs(config)
    unfinished = [cell for cell in table.cells if cell["state"] != "finished" and cell["folder"] in planned]
    for cell in unfinished:
        reason = f": {cell['reason']}" if cell.get("reason") else ""
        print(f"{cell['state']}: {cell['folder']}{reason}")
    if unfinished:
        print("The same command again continues what was interrupted and tries again what failed.")
    return int(bool(unfinished))


def require_weights(cfg: DictConfig) -> None:
    """Refuses a method that is to be judged with given weights and has none."""
    place = None if cfg.weights is None else Path(cfg.weights) / cfg.method
    if method_class(cfg).trainable and place is not None and not (place / "posegen.json").is_file():
        way = f"make it with posegen convert adapter={cfg.method} source=FILE target={place}"
        other = f"leave {cfg.method} out of adapter=, or train every method with weights=null"
        raise UserError(f"weights={cfg.weights} holds no method folder {cfg.method}; {way}, {other}")
