"""The small files in which cells, studies and method folders say what they are: one schema and one reader each.

Whatever is wrong with one is a `UserError` with the file, the entry and a way out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from posegen.errors import UserError
from posegen.io.atomic import read_json
from posegen.io.json_text import MAX_DEPTH, decoded

MAX_STATE_BYTES = 1 << 26
MAX_YAML_BYTES = 1 << 22


class State(BaseModel):
    """A state file; it may hold further entries."""

    model_config = ConfigDict(extra="allow", strict=True)


class StatusFile(State):
    """``status.json``: what became of a cell."""

    state: str
    hash: str = ""
    identity: dict[str, Any] | None = None
    reason: str | None = None
    wall_s: float = 0.0
    hub: dict[str, str] | None = None
    versions: dict[str, str] = {}
    git: str | None = None
    machine: str = ""


class CostsFile(State):
    """``costs.json``: what a cell cost."""

    trained_parameters: float = 0.0
    train_images_per_s: float = 0.0
    sample_images_per_s: float = 0.0
    wall_s: float = 0.0
    peak_memory_mb: float = 0.0


class ProgressFile(State):
    """``progress.json``: how far a stage of a cell is."""

    stage: str
    done: float
    total: float
    unit: str
    rate: float
    loss: float = 0.0


class RowFile(State):
    """``row.json``: what a table says about a cell besides numbers."""

    remark: str = ""
    faithful: bool | None = None


class ConfigFile(State):
    """``config.yaml``: a cell's resolved configuration."""

    method: str
    seed: int
    study: str
    protocol: dict[str, Any] = {}
    adapter: dict[str, Any] = {}
    backbone: dict[str, Any] = {}
    data: dict[str, Any] = {}
    sampler: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    logger: dict[str, Any] | None = None
    dashboard: dict[str, Any] | None = None
    budget: dict[str, Any] = {}


class CellEntry(State):
    """One cell of a benchmark."""

    folder: str
    method: str
    seed: int
    hash: str
    others: list[str] = []  # hashes of the cell as other kinds of machines compute it


class ReproductionEntry(State):
    """What a benchmark's numbers are compared with."""

    source: str | None = None
    tolerance: dict[str, float] | None = None
    excluded: dict[str, str] | None = None


class CellsFile(State):
    """``cells.json``: the cells of a benchmark and how they are judged."""

    protocol: dict[str, Any]
    cells: list[CellEntry]
    title: str | None = None
    baseline: str | None = None
    headline: list[str] | None = None
    reproduction: ReproductionEntry | None = None


class RecordedCell(State):
    """What a recorded study says of a cell, or of a further judge of one: the content of its state files."""

    status: StatusFile | dict[str, Any]
    costs: CostsFile = CostsFile()
    row: RowFile = RowFile()
    config: dict[str, Any] = {}
    reference: str | None = None  # the set of records of the real images


class RecordsEntry(State):
    """A set of records of a recorded study."""

    columns: list[str]
    arrays: dict[str, str]  # column -> type of numbers, as numpy writes it


class StudyFile(State):
    """``study.json``: a recorded study, see `posegen.report.recorded.files`."""

    format: int
    records: str  # SHA-256 of records.csv.gz
    plan: CellsFile
    cells: dict[str, RecordedCell]
    sets: dict[str, RecordsEntry]


class BackboneEntry(State):
    """The backbone that a method belongs to; ``class`` where its id is none of an option's."""

    id: str
    sha256: str
    hub: dict[str, str] | None = None


class PipelineEntry(State):
    """The backbone in the folder of a saved pipeline."""

    name: str = Field(alias="class")
    kwargs: dict[str, Any]


class MethodFile(State):
    """``posegen.json``: class and arguments of a method, and its backbone."""

    format: int
    name: str = Field(alias="class")
    kwargs: dict[str, Any]
    backbone: BackboneEntry
    faithful: bool | None = None
    sampler: dict[str, Any] | None = None
    pipeline: PipelineEntry | None = None
    training: dict[str, Any] | None = None
    converted: dict[str, Any] | None = None
    origin: str | None = None


COSTS = tuple(CostsFile.model_fields)


def read_state(path: Path, schema: type[State], fix: str) -> Any:
    """The content of a json state file, a dictionary with the schema's entries and maybe others."""
    return checked_state(read_json(path, fix, MAX_STATE_BYTES), path, schema, fix)


def checked_state(value: Any, path: Path, schema: type[State], fix: str) -> Any:
    """Plain values that are as the schema says; a `UserError` names the first entry that is not."""
    try:
        schema.model_validate(value)
        return value
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    expected = first["msg"].removeprefix("Input should be ")
    if not place:
        kind = "null" if value is None else f"a {type(value).__name__}"
        raise UserError(f"{path} holds {kind}; expected an object; {fix}")
    if first["type"] == "missing":
        raise UserError(f"{path} has no {place}; {fix}")
    raise UserError(f"{path}: {place} is {repr(first['input'])[:200]}; expected {expected}; {fix}")


class _PlainLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Plain values alone, and every key once."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        found = super().construct_mapping(node, deep)
        if len(found) < len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a key is there twice", node.start_mark)
        return found


def read_yaml(path: Path, fix: str) -> Any:
    """The plain values of a yaml file that posegen wrote; a `UserError` where it is damaged or asks for more."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_YAML_BYTES + 1)
        if len(content) > MAX_YAML_BYTES:
            raise ValueError(f"it is larger than {MAX_YAML_BYTES >> 20} MiB")
        text, depth = decoded(content), 0
        for event in yaml.parse(text, Loader=_PlainLoader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("it refers to parts of itself")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise ValueError(f"it nests deeper than {MAX_DEPTH} levels")
        return yaml.load(text, Loader=_PlainLoader)
    except OSError as error:
        reason = str(error.strerror)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        digits = "4300 digits" in str(error)  # of Python's limit
        reason = "it has a number of thousands of digits" if digits else " ".join(str(error).split())
    raise UserError(f"{path} is not a readable yaml file ({reason}); {fix}")


def read_status(cell: Path) -> dict[str, Any]:
    """``status.json`` of a cell, empty for one that was never started."""
    path, fix = cell / "status.json", "delete it and run this cell again; what is computed stays"
    return read_state(path, StatusFile, fix) if path.is_file() else {}


def read_costs(cell: Path) -> dict[str, Any]:
    """``costs.json`` of a cell, empty where there is none."""
    path = cell / "costs.json"
    return read_state(path, CostsFile, "delete it; the table goes without these costs") if path.is_file() else {}


def read_row(path: Path) -> dict[str, Any]:
    """``row.json`` of a cell, or the ``posegen.json`` in which older cells say the same."""
    return read_state(path, RowFile, "delete it; the table goes without this cell's remark")


def read_progress(cell: Path) -> dict[str, Any]:
    """``progress.json`` of a cell, which is for looking at only: empty where there is none or it is damaged."""
    try:
        return read_state(cell / "progress.json", ProgressFile, "")
    except UserError:
        return {}


def read_cell_config(cell: Path) -> dict[str, Any]:
    """``config.yaml`` of a cell as it stands there, no ``${...}`` resolved; empty where there is none."""
    path = cell / "config.yaml"
    fix = f"delete it and {cell / 'status.json'} and run this cell again, which writes both; what is computed stays"
    return checked_state(read_yaml(path, fix), path, ConfigFile, fix) if path.is_file() else {}
