"""The cells of a folder that no benchmark planned: sweeps of ``posegen train`` and ``posegen evaluate``."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import yaml

from posegen.errors import UserError
from posegen.io.atomic import read_json
from posegen.verbs.benchmark import planned

#: What cells of one table must share, so that their images are paired.
SHARED = ("protocol", "estimator")
UNJUDGED = {"state": "not judged", "reason": "trained, not judged; posegen evaluate judges it"}


def study_of(folder: Path) -> dict[str, Any]:
    """The plan of a benchmark, and of another folder one that expects the cells it has.

    Raises:
        UserError: there are no cells, or they were judged in different ways.
    """
    if (folder / "cells.json").is_file():
        return planned(folder)
    cells = [
        path.parent for path in sorted(folder.rglob("seed*/status.json")) if (path.parent / "config.yaml").is_file()
    ]
    if not cells:
        raise UserError(
            f"{folder} holds no cells (no cells.json of a benchmark, no seed*/status.json); name the folder of a benchmark, or of a sweep: outputs/train"
        )
    configs = {cell: yaml.safe_load((cell / "config.yaml").read_text(encoding="utf-8")) for cell in cells}
    judged = [cell for cell in cells if (cell / "records.csv").is_file()]
    require_alike(judged)
    planned_cells = [
        {
            "folder": cell.relative_to(folder).as_posix(),
            "method": configs[cell]["method"],
            "seed": configs[cell]["seed"],
            "hash": read_json(cell / "status.json")["hash"],
            **({} if cell in judged or read_json(cell / "status.json")["state"] != "finished" else UNJUDGED),
        }
        for cell in cells
    ]
    return {
        "title": f"Study {folder.name}",
        "baseline": "none",
        "protocol": configs[(judged or cells)[0]]["protocol"],
        "cells": planned_cells,
    }


def require_alike(cells: list[Path]) -> None:
    """Refuses cells whose images are not paired.

    Raises:
        UserError: names the first two that differ, and in what.
    """
    for cell in cells[1:]:
        here, there = (read_json(path / "status.json")["identity"] for path in (cell, cells[0]))
        other = [key for key in SHARED if here.get(key) != there.get(key)]
        if other or ids(cell) != ids(cells[0]):
            raise UserError(
                f"{cells[0]} and {cell} differ in {', '.join(other) or 'the images that were judged'}; name a folder whose cells are judged alike"
            )


def ids(cell: Path) -> list[str]:
    with (cell / "records.csv").open(newline="", encoding="utf-8") as file:
        return [row["id"] for row in csv.DictReader(file)]
