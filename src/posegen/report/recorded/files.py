"""A recorded study: what its table is made of, in three files without pictures and weights.

``records.csv.gz`` has a line per image and set of records: those of a cell, of a further judge of it, and of the real
images that cells compare with. An array stands there as ``2x17:`` and its values. ``study.json`` has the plan, state
and identity of each cell, and the hash of the records. ``table.csv`` is the table. Equal studies give equal bytes.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from posegen.config.cell_folder import is_inside
from posegen.errors import UserError
from posegen.io.atomic import read_json, replacing, write_json, write_text
from posegen.io.hashes import file_hash, joint_hash, value_hash
from posegen.io.tables import csv_text
from posegen.metrics.base import Records, count_images
from posegen.metrics.records import NOBODY, read_records, write_records
from posegen.report.formats import table_csv
from posegen.report.rows import Group
from posegen.report.study import benchmark_plan
from posegen.report.table import Table, build_table, require_records
from posegen.runner.judge import RECORD_FILES
from posegen.runner.received.state_files import (
    COSTS,
    StudyFile,
    checked_state,
    read_cell_config,
    read_costs,
    read_status,
)
from posegen.runner.second_judge import JUDGES

STUDY, RECORDS, TABLE = "study.json", "records.csv.gz", "table.csv"
FORMAT = 1  # of these files
OF = "records_of"  # the column with the name of the set
STATUS = ("state", "hash", "identity", "reason", "wall_s", "versions", "git", "machine")
CONFIG = ("method", "seed", "study", "protocol")
LARGEST = 1 << 31  # bytes of the unpacked records
SAME = 1e-6  # share of a value by which another machine's may differ
FIX = "record the study again with posegen record, or ask its author to"


def record_study(folder: Path, target: Path) -> Table:
    """Writes the three files of a benchmark's folder, and reads them back; a UserError where its records are damaged
    or would not give its table."""
    plan, table = benchmark_plan(folder), build_table(folder)
    require_records(table)
    cells, sets = {}, {}
    for place in (p for entry in plan["cells"] for p in judged_folders(folder / entry["folder"])):
        name = place.relative_to(folder).as_posix()
        cells[name] = facts_of(place, folder)
        if cells[name]["status"].get("state") == "finished":
            real = f"real-{joint_hash([place / 'reference' / file for file in RECORD_FILES], 12)}"
            cells[name]["reference"], sets[name] = real, read_records(place)
            sets.setdefault(real, read_records(place / "reference"))
    described = {
        name: {"columns": list(records), "arrays": dict(array_types(records))} for name, records in sets.items()
    }
    content = io.BytesIO()
    with gzip.GzipFile("", "wb", 9, content, mtime=0) as packed:  # neither name nor time
        packed.write(records_text(sets).encode())
    with replacing(target / RECORDS) as temporary:
        temporary.write_bytes(content.getvalue())
    about = {"format": FORMAT, "records": file_hash(target / RECORDS), "plan": without_observers(plan), "cells": cells}
    write_json(target / STUDY, {**about, "sets": described})
    write_text(target / TABLE, table_csv(table))
    with unpacked_study(target) as there:
        same_values(table_csv(build_table(there)), target / TABLE, exactly=True)
    return table


def judged_folders(cell: Path) -> list[Path]:
    """The folders with records of a cell: its own, and one per further judge."""
    return [cell, *sorted(file.parent for file in cell.glob(f"{JUDGES}/*/status.json"))]


def facts_of(place: Path, folder: Path) -> dict[str, Any]:
    """What the table reads of a cell besides records, without paths of this machine."""
    status, costs = read_status(place), read_costs(place)
    about = next(Group("", [{"folder": str(place.relative_to(folder)), "state": "finished"}], folder).notes(), {})
    found = {"status": {key: status[key] for key in STATUS if key in status}}
    found |= {"costs": {key: costs[key] for key in COSTS if key in costs}}
    found |= {"row": {key: about[key] for key in ("remark", "faithful") if key in about}}
    config = read_cell_config(place)
    return {**found, "config": without_observers({key: config[key] for key in CONFIG if key in config})}


def without_observers(node: Mapping[str, Any]) -> dict[str, Any]:
    """A plan or configuration without the parts of its protocol that look at pictures, and name files."""
    kept = {key: value for key, value in node.get("protocol", {}).items() if key != "observers"}
    return {**node, "protocol": kept} if kept else dict(node)


def array_types(records: Records) -> Iterator[tuple[str, str]]:
    for name, values in records.items():
        if isinstance(values[0], np.ndarray):
            yield name, values[0].dtype.str


def records_text(sets: Mapping[str, Records]) -> str:
    """All records as csv; the sets take turns, so that what they share lies close together and packs well."""
    columns, counts = list(dict.fromkeys(c for s in sets.values() for c in s)), list(map(count_images, sets.values()))
    turns = ((i, name) for i in range(max(counts, default=0)) for name, n in zip(sets, counts, strict=True) if i < n)
    rows = ([name, *(entry_text(sets[name][c][i]) if c in sets[name] else "" for c in columns)] for i, name in turns)
    return csv_text([OF, *columns], rows)


def entry_text(value: Any) -> str:
    """A text as it is, a number in its shortest exact form, an array as its shape and such numbers."""
    if isinstance(value, np.ndarray):
        return f"{'x'.join(map(str, value.shape))}:{' '.join(value.ravel().astype(str))}"
    return value if isinstance(value, str) else repr(float(value))


def entry_array(text: str, kind: str) -> np.ndarray:
    """The inverse of `entry_text` for arrays; a ValueError for anything else."""
    shape, _, values = text.partition(":")
    if np.dtype(kind).kind not in "fiu":
        raise ValueError(f"{kind} is no type of numbers")
    return np.array(values.split(), np.dtype(kind)).reshape([int(n) for n in shape.split("x") if n])


def read_sets(file: Path, described: Mapping[str, Any]) -> dict[str, dict[str, list]]:
    """The sets of records of a ``records.csv.gz``, as `write_records` takes them."""
    sets: dict[str, dict[str, list]] = {name: {c: [] for c in each["columns"]} for name, each in described.items()}
    try:
        with gzip.open(file, "rb") as stream:
            content = stream.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ValueError(f"it would unpack to more than {LARGEST >> 30} GiB")
        for line in csv.DictReader(io.StringIO(content.decode())):
            arrays = described[line[OF]]["arrays"]
            for column, values in sets[line[OF]].items():
                values.append(entry_array(line[column], arrays[column]) if column in arrays else line[column])
    except (OSError, EOFError, zlib.error, csv.Error, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged ({type(error).__name__}: {error}); {FIX}") from error
    return sets


def unpack_study(source: Path, target: Path) -> None:
    """Writes the files of a benchmark that tables are made of to ``target``.

    A `UserError` where the study is damaged, of another format, or has other hashes than it says."""
    known = read_json(source / STUDY, FIX)
    if isinstance(known, dict) and known.get("format", FORMAT) != FORMAT:
        version = f"format {repr(known['format'])[:40]}; this posegen reads {FORMAT}"
        raise UserError(f"{source / STUDY} is of {version}; update posegen, or {FIX}")
    study = checked_state(known, source / STUDY, StudyFile, FIX)
    if (found := file_hash(source / RECORDS)) != study["records"]:
        claimed = f"the SHA-256 {found[:16]}, where {STUDY} says {study['records'][:16]}"
        raise UserError(f"{source / RECORDS} has {claimed}; {FIX}")
    sets = read_sets(source / RECORDS, study["sets"])
    for name, cell in study["cells"].items():
        place, status = target / name, cell["status"]
        if not is_inside(place, target):
            raise UserError(f"{source / STUDY}: the cell {name} lies outside of the study; {FIX}")
        if status.get("identity") is not None and (real := value_hash(status["identity"])) != status.get("hash"):
            claimed = f"has the hash {real}, and it says {status.get('hash')}"
            raise UserError(f"{source / STUDY}: the configuration of {name} {claimed}; {FIX}")
        files = {"status.json": status, "costs.json": cell.get("costs"), "row.json": cell.get("row")}
        for file, content in files.items():
            if content:
                write_json(place / file, content, durable=False)
        if cell.get("config"):
            write_text(place / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(cell["config"])), durable=False)
        for part, records, owner in (
            (place, name, status.get("hash", NOBODY)),
            (place / "reference", cell.get("reference"), NOBODY),
        ):
            if status.get("state") == "finished":
                if not sets.get(records or "", {}).get("id"):
                    raise UserError(f"{source / RECORDS} has no records of {records}, which {name} needs; {FIX}")
                write_records(part, sets[records], owner)
    write_json(target / "cells.json", study["plan"], durable=False)


@contextmanager
def unpacked_study(source: Path) -> Iterator[Path]:
    """A folder of the study's name with its files, for as long as the block lasts."""
    with TemporaryDirectory(prefix="posegen-") as place:
        target = Path(place) / source.resolve().name
        target.mkdir()
        unpack_study(source, target)
        yield target


def table_again(source: Path, expected: Path | None = None) -> tuple[Table, str]:
    """The table of a recorded study, and a sentence on how it agrees with the recorded one; see `same_values`."""
    with unpacked_study(source) as there:
        table = build_table(there, expected)
    require_records(table)
    return table, same_values(table_csv(table), source / TABLE) if expected is None else f"compared with {expected}"


def same_values(text: str, file: Path, exactly: bool = False) -> str:
    """A sentence that says how far a table agrees with that of ``file``; a `UserError` names the first value that does
    not: one of another machine may differ by `SAME`."""
    recorded = file.read_text(encoding="utf-8")
    if text == recorded:
        return "reproduced, byte by byte"
    ours, theirs = (list(csv.reader(io.StringIO(each))) for each in (text, recorded))
    if [len(line) for line in ours] != [len(line) for line in theirs] or ours[0] != theirs[0]:
        raise UserError(f"{file} is not reproduced: the records give other rows or columns; {FIX}")
    changed = 0
    for mine, line in zip(ours[1:], theirs[1:], strict=True):
        for column, value, other in zip(ours[0], mine, line, strict=True):
            if (exactly and value != other) or not same_entry(value, other):
                found = f"{column} of {line[0]} is {other} there, and the records give {value}"
                raise UserError(f"{file} is not reproduced: {found}; {FIX}")
            changed += value != other
    return f"reproduced; {changed} values differ by less than {SAME:g} of themselves, as those of another machine do"


def same_entry(one: str, other: str) -> bool:
    try:
        return math.isclose(float(one), float(other), rel_tol=SAME, abs_tol=SAME)
    except ValueError:
        return one == other
