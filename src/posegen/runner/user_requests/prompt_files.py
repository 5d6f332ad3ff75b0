"""Files of prompts: a text with one per line, or json, json lines or csv with names, poses and pictures of people."""

from __future__ import annotations

import json
import re
import unicodedata
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from posegen.errors import UserError
from posegen.io.foreign_files import csv_rows, read_foreign_text, read_json_or_lines
from posegen.io.json_text import parse_json
from posegen.io.pictures import PICTURE_SUFFIXES
from posegen.poses.topology import COCO_JOINTS

#: What a row may have -> the names that files have for it.
ROW_KEYS = {
    "prompt": ("prompt", "caption", "text"),
    "id": ("id",),
    "poses": ("poses", "keypoints"),
    "source": ("source",),
}
PROMPT_FORMATS = (
    "expected a text with one prompt per line, or json, jsonl or csv with the keys prompt, id, poses, source"
)
LONGEST_NAME = 200  # bytes of a picture's name
UNSAFE = re.compile(r'[\\/:*?"<>|\x00-\x1f\x7f]')  # on some file system
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)  # on Windows


@dataclass(frozen=True)
class PromptRow:
    """One prompt of a file, and what the file says about its image."""

    place: str  # in the file, for messages
    prompt: str
    name: str | None = None  # of its picture, without suffix
    poses: Path | np.ndarray | None = None  # a file, or keypoints ``[P, 17, 3]``
    source: tuple[str, ...] = ()  # files


def read_prompt_file(file: Path) -> list[PromptRow]:
    """The prompts of a file, in its order. Raises ValueError: it cannot be read, has none, or has a name twice."""
    suffix = file.suffix.lower()
    if suffix in (".csv", ".tsv"):
        found = list(_csv_entries(file, "\t" if suffix == ".tsv" else ","))
    elif suffix == ".json":
        found = list(_json_entries(read_json_or_lines(file, PROMPT_FORMATS), str(file)))
    else:
        lines = enumerate(re.split(r"\r\n|\r|\n", read_foreign_text(file)), 1)
        found = [(f"line {i}", line.strip()) for i, line in lines if line.strip()]
        if suffix in (".jsonl", ".ndjson"):
            found = [(place, parse_json(line, f"{file}: {place}", PROMPT_FORMATS)) for place, line in found]
    if not found:
        raise ValueError(f"{file} holds no prompt; {PROMPT_FORMATS}")
    unknown = {str(key): None for _, entry in found if isinstance(entry, dict) for key in entry if key not in _KNOWN}
    if unknown:
        warnings.warn(f"{file}: {', '.join(unknown)} is passed over; known are {', '.join(_KNOWN)}", stacklevel=2)
    return _named(file, [_row(file, place, entry) for place, entry in found])


_KNOWN = [name for names in ROW_KEYS.values() for name in names]


def _csv_entries(file: Path, separator: str) -> Iterator[tuple[str, Any]]:
    for between in (separator, ";"):
        (_, head), *rows = csv_rows(file, between) or [(0, [])]
        head = [name.strip().lower() for name in head]
        if set(head) & set(ROW_KEYS["prompt"]):
            break
    else:
        raise ValueError(f"{file}: its first line names no column prompt; {PROMPT_FORMATS}")
    for line, values in rows:
        if len(values) > len(head):
            fix = "put a prompt with a comma between double quotes"
            raise ValueError(f"{file}: line {line} has {len(values)} values for {len(head)} columns; {fix}")
        yield f"line {line}", {name: value.strip() for name, value in zip(head, values, strict=False) if value.strip()}


def _json_entries(content: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(content, dict) and not content.keys() & set(ROW_KEYS["prompt"]):  # name -> prompt
        for id, entry in content.items():
            yield repr(id), {"id": id, **(entry if isinstance(entry, dict) else {"prompt": entry})}
        return
    entries = content if isinstance(content, list) else [content]
    yield from ((f"entry {i}", entry) for i, entry in enumerate(entries, 1))


def _row(file: Path, place: str, entry: Any) -> PromptRow:
    entry = {"prompt": entry} if isinstance(entry, str) else entry
    where = f"{file}: {place}"
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is {str(entry)[:40]!r}, no text and no object; {PROMPT_FORMATS}")
    found = {name: _one_of(where, entry, names) for name, names in ROW_KEYS.items()}
    prompt, id, sources = found["prompt"], found["id"], found["source"] or []
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"{where} has the prompt {prompt!r}; expected a text")
    if id is not None and (isinstance(id, bool) or not isinstance(id, str | int)):
        raise ValueError(f"{where} has the id {id!r}; expected a text or a whole number")
    sources = [sources] if isinstance(sources, str) else sources
    if not isinstance(sources, list) or not all(isinstance(each, str) for each in sources):
        raise ValueError(f"{where} has the source {str(sources)[:40]!r}; expected a file, or a list of them")
    name = None if id is None else _picture_name(where, str(id))
    return PromptRow(
        place, prompt, name, _poses(file, where, found["poses"]), tuple(str(_beside(file, s)) for s in sources)
    )


def _one_of(where: str, entry: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    given = [name for name in names if entry.get(name) not in (None, "")]
    if len(given) > 1:
        raise ValueError(f"{where} has {' and '.join(given)}; they mean the same: leave one out")
    return entry[given[0]] if given else None


def _poses(file: Path, where: str, value: Any) -> Path | np.ndarray | None:
    if isinstance(value, str) and value.startswith("["):  # in a csv file
        value = parse_json(value, f"{where}: poses")
    if value is None or isinstance(value, str):
        return None if value is None else _beside(file, value)
    try:
        return np.array(value, np.float64).reshape(-1, COCO_JOINTS, 3)
    except (TypeError, ValueError) as error:
        expected = "expected a file, or COCO keypoints [17, 3] or [people, 17, 3]"
        raise ValueError(f"{where} has poses {json.dumps(value)[:40]}...; {expected}") from error


def _beside(file: Path, name: str) -> Path:
    """A file that another one names: beside that, or where the command runs."""
    place = Path(name).expanduser()
    return near if (near := file.parent / place).exists() else place


def _picture_name(where: str, id: str) -> str:
    """The id as the name of a picture on any file system."""
    path = Path(unicodedata.normalize("NFC", id))
    name = UNSAFE.sub("_", str(path.with_suffix("") if path.suffix.lower() in PICTURE_SUFFIXES else path))
    name = f"_{name}" if RESERVED.match(name) else name.strip(" .")
    if not name or len(name.encode("utf-8", "surrogatepass")) > LONGEST_NAME:
        fix = f"expected 1 to {LONGEST_NAME} bytes that can name a file"
        raise ValueError(f"{where} has the id {id[:40]!r}; {fix}")
    return name


def _named(file: Path, rows: list[PromptRow]) -> list[PromptRow]:
    """The rows, all or none of them with a name; one without gets its number."""
    if all(row.name is None for row in rows):
        return rows
    named = [row if row.name else PromptRow(**{**vars(row), "name": f"{i:06d}"}) for i, row in enumerate(rows)]
    seen: dict[str, PromptRow] = {}
    for row in named:
        other = seen.setdefault(str(row.name).casefold(), row)
        if other is not row:
            raise UserError(f"{file}: {other.place} and {row.place} both name their picture {row.name}; change one id")
    return named
