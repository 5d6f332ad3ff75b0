"""A study on disk: the plan of its cells, and the small files that a cell keeps beside its records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any

import yaml
from hydra.utils import instantiate
from omegaconf import OmegaConf

from posegen.errors import UserError
from posegen.io.atomic import read_json
from posegen.metrics.protocol import Protocol
from posegen.metrics.records import CSV_FILE, from_csv

COSTS = ("trained_parameters", "train_images_per_s", "sample_images_per_s", "wall_s", "peak_memory_mb")

#: Modules of metrics that older records name -> where they stand now.
MOVED_MODULES = {
    "posegen.metrics.likeness": "posegen.metrics.pixel_similarity",
    "posegen.metrics.observers": "posegen.metrics.image_features",
    "posegen.metrics.paper_pose": "posegen.metrics.papers.pose",
    "posegen.metrics.paper_quality": "posegen.metrics.papers.quality",
    "posegen.metrics.person_papers": "posegen.metrics.papers.person_images",
}


def read_facts(path: Path, fix: str, *required: str, **kinds: type | UnionType) -> dict[str, Any]:
    """The object in a json file, with its ``required`` keys and those of the ``kinds`` (key -> type) that are there; a
    UserError with the file, the key and the ``fix`` where it has something else."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}; expected an object; {fix}")
    for key in required:
        if key not in found:
            raise UserError(f"{path} has no {key}; {fix}")
    for key, kind in kinds.items():
        if key in found and not isinstance(found[key], kind):
            expected = kind if isinstance(kind, UnionType) else kind.__name__
            raise UserError(f"{path}: {key} is {found[key]!r}; expected {expected}; {fix}")
    return found


def benchmark_plan(folder: Path) -> dict[str, Any]:
    """``cells.json`` of a benchmark folder, or a UserError where there is none or it is damaged."""
    path, fix = folder / "cells.json", "run posegen benchmark again, which writes it"
    if not path.is_file():
        first = "run posegen benchmark first or name another folder"
        raise UserError(f"{folder} holds no benchmark (cells.json is missing); {first}")
    plan = read_facts(path, fix, "protocol", "cells", protocol=dict, cells=list)
    for i, cell in enumerate(plan["cells"]):
        if not isinstance(cell, dict) or not {"folder", "method", "seed", "hash"} <= cell.keys():
            raise UserError(f"{path}: entry {i} of cells is {cell!r}; expected folder, method, seed and hash; {fix}")
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
        about = {"method": config["method"], "seed": config["seed"], "hash": status["hash"]}
        if cell not in judged and status["state"] == "finished":
            about |= {"state": "not judged", "reason": "trained, not judged; posegen evaluate judges it"}
        entries.append({"folder": cell.relative_to(folder).as_posix(), **about})
    protocol = read_cell_config((judged or cells)[0])["protocol"]
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


def read_status(cell: Path) -> dict[str, Any]:
    """``status.json`` of a cell, empty for one that was never started."""
    path = cell / "status.json"
    if not path.is_file():
        return {}
    kinds: Any = {"state": str, "hash": str, "wall_s": int | float, "identity": dict | None, "versions": dict}
    return read_facts(path, "delete it and run this cell again", "state", **kinds)


def read_costs(cell: Path) -> dict[str, Any]:
    """``costs.json`` of a cell, empty where there is none."""
    path = cell / "costs.json"
    fix = "delete it; the table goes without these costs"
    return read_facts(path, fix, **dict.fromkeys(COSTS, int | float)) if path.is_file() else {}


def read_cell_config(cell: Path) -> dict[str, Any]:
    """``config.yaml`` of a cell, empty where there is none."""
    path = cell / "config.yaml"
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        fix = "run this cell again, which writes it"
        raise UserError(f"{path} is not a readable yaml file ({reason}); {fix}") from error


def benchmark_folders(verb: str, folders: Sequence[str]) -> list[Path]:
    """The named folders; by default every benchmark under ``outputs/benchmark``, of which there must be one."""
    known = sorted(path.parent for path in Path("outputs/benchmark").glob("*/cells.json"))
    found = [Path(folder) for folder in folders] or known
    if not found:
        fix = f"run posegen benchmark first, or name its folder: posegen {verb} FOLDER"
        raise UserError(f"outputs/benchmark holds no benchmark; {fix}")
    return found


def recorded_protocol(node: Mapping[str, Any]) -> Protocol:
    """The protocol that a study recorded, also where an older version of posegen did."""

    def moved(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: moved(each) for key, each in value.items()}
        if isinstance(value, list):
            return [moved(each) for each in value]
        module, _, name = value.rpartition(".") if isinstance(value, str) else ("", "", "")
        return f"{MOVED_MODULES[module]}.{name}" if module in MOVED_MODULES else value

    return instantiate(OmegaConf.create(moved(node)), _convert_="all")
