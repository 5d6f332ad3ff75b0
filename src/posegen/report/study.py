"""A study on disk: the plan of its cells, and the small files that a cell keeps beside its records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posegen.config.cell_folder import is_inside
from posegen.errors import UserError
from posegen.metrics.protocol import Protocol
from posegen.metrics.records import CSV_FILE, from_csv
from posegen.runner.received.classes import built
from posegen.runner.received.state_files import CellsFile, read_cell_config, read_state, read_status

#: Bootstrap resamples of a recorded protocol, at most; their memory grows with the number of images, too.
MAX_RESAMPLES = 100_000
#: Modules of metrics that older records name -> where they stand now.
MOVED_MODULES = {
    "posegen.metrics.likeness": "posegen.metrics.pixel_similarity",
    "posegen.metrics.observers": "posegen.metrics.image_features",
    "posegen.metrics.paper_pose": "posegen.metrics.papers.pose",
    "posegen.metrics.paper_quality": "posegen.metrics.papers.quality",
    "posegen.metrics.person_papers": "posegen.metrics.papers.person_images",
}


def benchmark_plan(folder: Path) -> dict[str, Any]:
    """``cells.json`` of a benchmark folder, or a UserError where there is none or it is damaged."""
    path, fix = folder / "cells.json", "run posegen benchmark again, which writes it"
    if not path.is_file():
        first = "run posegen benchmark first or name another folder"
        recorded = " and no records of one (study.json)" if (folder / "table.csv").is_file() else ""
        raise UserError(f"{folder} holds no benchmark (cells.json is missing){recorded}; {first}")
    plan = read_state(path, CellsFile, fix)
    for entry in plan["cells"]:
        if not is_inside(folder / entry["folder"], folder):
            raise UserError(f"{path}: the cell {entry['folder']} lies outside {folder}; nothing was read there; {fix}")
    return plan


def study_plan(folder: Path) -> dict[str, Any]:
    """The plan of a benchmark; of another folder, such as a sweep of ``posegen train``, one that expects its cells. A
    UserError where there are no cells, or they were judged in different ways."""
    if (folder / "cells.json").is_file():
        return benchmark_plan(folder)
    cells = [path.parent for path in sorted(folder.rglob("seed*/status.json")) if read_cell_config(path.parent)]
    if not cells:
        fix = "name the folder of a benchmark, or of a sweep: outputs/train"
        raise UserError(f"{folder} holds no cells (no cells.json of a benchmark, no seed*/status.json); {fix}")
    judged, entries = [cell for cell in cells if (cell / "records.csv").is_file()], []
    require_paired(judged)
    for cell in cells:
        config, status = read_cell_config(cell), read_status(cell)
        about = {"method": config["method"], "seed": config["seed"], "hash": status.get("hash", "")}
        if cell not in judged and status["state"] == "finished":
            about |= {"state": "not judged", "reason": "trained, not judged; posegen evaluate judges it"}
        entries.append({"folder": cell.relative_to(folder).as_posix(), **about})
    protocol = read_cell_config((judged or cells)[0]).get("protocol", {})
    return {"title": f"Study {folder.name}", "baseline": "none", "protocol": protocol, "cells": entries}


def require_paired(cells: Sequence[Path]) -> None:
    """Refuses judged cells whose images are not paired, naming the first two that differ, and in what."""
    for cell in cells[1:]:
        here, there = (read_status(path).get("identity") or {} for path in (cell, cells[0]))
        other = ", ".join(key for key in ("protocol", "estimator") if here.get(key) != there.get(key))
        if other or judged_ids(cell) != judged_ids(cells[0]):
            differ = f"{cells[0]} and {cell} differ in {other or 'the images that were judged'}"
            fix = "judge both alike, on the same data.test"
            raise UserError(f"{differ}, so their images are not paired; {fix}")


def judged_ids(cell: Path) -> list[str]:
    return from_csv(cell / CSV_FILE)["id"]


def benchmark_folders(verb: str, folders: Sequence[str]) -> list[Path]:
    """The named folders; by default every benchmark under ``outputs/benchmark``, of which there must be one."""
    known = sorted(path.parent for path in Path("outputs/benchmark").glob("*/cells.json"))
    found = [Path(folder) for folder in folders] or known
    if not found:
        fix = f"run posegen benchmark first, or name its folder: posegen {verb} FOLDER"
        raise UserError(f"outputs/benchmark holds no benchmark; {fix}")
    return found


def recorded_protocol(node: Mapping[str, Any], file: Path, observers: bool = False) -> Protocol:
    """The protocol that a study recorded in ``file``, also where an older version of posegen did; see `built`.

    ``observers`` look at pictures; a table needs the metrics alone."""

    def moved(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: moved(each) for key, each in value.items()}
        if isinstance(value, list):
            return [moved(each) for each in value]
        module, _, name = value.rpartition(".") if isinstance(value, str) else ("", "", "")
        return f"{MOVED_MODULES[module]}.{name}" if module in MOVED_MODULES else value

    recorded = {key: value for key, value in moved(node).items() if observers or key != "observers"}
    if isinstance(many := recorded.get("resamples"), int) and not 1 <= many <= MAX_RESAMPLES:
        raise UserError(f"{file}: protocol.resamples is {many}; expected 1 to {MAX_RESAMPLES}")
    return built(recorded, Protocol, "protocol", file, "protocol")
