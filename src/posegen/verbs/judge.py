"""Judge the pictures of finished cells again, by another judge; nothing is sampled."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from posegen.config.app import Command
from posegen.config.typed_text import as_literal
from posegen.errors import UserError
from posegen.report.formats import value_text
from posegen.report.study import benchmark_plan, recorded_protocol
from posegen.runner.received.state_files import read_cell_config, read_status
from posegen.runner.second_judge import KeptPictures, SecondJudging
from posegen.runner.stage import complete
from posegen.train.loop import set_threads


def start(command: Command) -> int:
    """Lets each judge of ``estimator=[a,b]`` judge; the highest of their exit codes."""
    return max(judge.run() for judge in command.judges())


def judge_further(judges: Sequence[Command], cells: Sequence[Path], cfg: DictConfig) -> int:
    """Lets all judges but the first judge finished cells, for verbs that compute cells; the highest exit code."""
    place = {"progress": cfg.progress, "accelerator": cfg.trainer.accelerator, "cache": cfg.paths.cache}
    settings = [f"{key}={value}" for key, value in place.items()]
    paths = [f"hydra.searchpath=[{','.join(judges[0].search)}]"] if judges[0].search else []
    found = [next(key for key in judge.keys if key.startswith("estimator=")) for judge in judges[1:]]
    commands = [Command.read("judge", [*map(str, cells), word, *settings, *paths]) for word in found]
    return max((command.run() for command in commands), default=0)


def main(cfg: DictConfig) -> None:
    """Judges the pictures of ``cells``; what cannot be judged is said in the end, and does not stop the others."""
    cells, name, estimator = finished_cells(cfg.cells), judge_name(cfg), cache(lambda: instantiate(cfg.estimator))
    todo, problems = [], []
    for cell in cells:
        try:
            stage = SecondJudging(kept_pictures(cell, cfg, estimator), name)
            if cfg.name is None and stage.of_cell():
                print(f"{cell}: this is the judge that its table has; nothing to do without name=")
                continue
            place = stage.place()
            place.check()
            todo.append((place, stage))
        except UserError as error:
            problems.append(str(error))
    for place, stage in todo:
        set_threads(stage.components.cfg)
        complete(place, [stage])
        print(f"{place.folder}: {brief_values(stage)}")
    if problems:
        raise UserError("\n".join(problems))


def judge_name(cfg: DictConfig) -> str:
    """The name of the judge's folder in every cell."""
    choices = HydraConfig.get().runtime.choices
    names = [str(choices[group]).replace("/", "-") for group in ("estimator", "protocol") if choices.get(group)]
    name = "-".join(names) if cfg.name is None else str(cfg.name)
    if not re.fullmatch(r"(?!seed)\w[\w.+-]*", name):
        expected = "expected letters, digits and ._+-, and no name that begins with seed, as the folders of cells do"
        raise UserError(f"name={name}: {expected}")
    return name


def kept_pictures(cell: Path, cfg: DictConfig, estimator: Any) -> KeptPictures:
    """What judging the pictures of a cell needs, with its own protocol where the command names none."""
    file = cell / "config.yaml"
    if not (cell / "records.csv").is_file() or not file.is_file():
        fix = "it was trained alone, or is damaged; posegen evaluate samples and judges it"
        raise UserError(f"{cell} has no {'records.csv' if file.is_file() else file.name}: {fix}")
    if cfg.get("protocol") is not None:
        return KeptPictures(cell, cfg, estimator, instantiate(cfg.protocol, _convert_="all"))
    recorded, copy = read_cell_config(cell).get("protocol", {}), cfg.copy()
    with open_dict(copy):
        copy.protocol = OmegaConf.create(as_literal(recorded))
    return KeptPictures(cell, copy, estimator, recorded_protocol(recorded, file, observers=True))


def finished_cells(folders: Sequence[str]) -> list[Path]:
    """The finished cells that are named, or lie in a named benchmark, sweep or row."""
    if not folders:
        raise UserError(
            "no cell is named; expected cells, or a folder of posegen benchmark: posegen judge FOLDER (see --help)"
        )
    found: list[Path] = []
    for folder in map(Path, folders):
        every = list(cells_of(folder))
        finished = [cell for cell in every if read_status(cell).get("state") == "finished"]
        if not finished:
            states = ", ".join(f"{cell} is {read_status(cell).get('state', 'missing')}" for cell in every[:3])
            reason = f"no finished cell ({states or 'no status.json, cells.json or seed*/status.json'})"
            raise UserError(f"{folder} holds {reason}; name a cell or a folder of posegen benchmark or evaluate")
        if left := len(every) - len(finished):
            print(f"{folder}: {left} of {len(every)} cells did not finish and are left out")
        found += finished
    return list(dict.fromkeys(found))


def cells_of(folder: Path) -> Iterator[Path]:
    if (folder / "status.json").is_file():
        yield folder
    elif (folder / "cells.json").is_file():
        yield from (folder / entry["folder"] for entry in benchmark_plan(folder)["cells"])
    else:
        yield from (path.parent for path in sorted(folder.rglob("seed*/status.json")))


def brief_values(stage: SecondJudging) -> str:
    """The shown columns of a judged cell in one line."""
    protocol, records = stage.components.protocol, stage.components.protocol.read(stage.folder)
    reference = protocol.read(stage.folder / "reference")
    values = protocol.values(records, np.ones((1, len(records["id"]))), reference)
    return ", ".join(f"{column} {value_text(float(values[column][0]))}" for column in protocol.headline())
