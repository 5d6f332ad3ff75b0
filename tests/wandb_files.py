"""What is in the offline files of W&B, read as `wandb sync` does: a log of LevelDB's format with protocol buffers."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEADER = 32768, 7  # bytes of a block, and of the header of each piece in it: checksum, length, kind
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4  # kinds of pieces


@dataclass
class OfflineRun:
    """One run, with all parts of it that were written one after the other."""

    id: str
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    about: Record | None = None  # the last record with name, group, job type and tags
    exit_codes: list[int] = field(default_factory=list)

    def values(self, name: str) -> list[Any]:
        return [row[name] for row in self.history if name in row]


def records(file: Path) -> Iterator[Record]:
    content, place, whole = file.read_bytes(), HEADER, b""
    while place + HEADER <= len(content):
        if BLOCK - place % BLOCK < HEADER:
            place += BLOCK - place % BLOCK
        length, kind = struct.unpack("<HB", content[place + 4 : place + HEADER])
        whole = (b"" if kind in (FULL, FIRST) else whole) + content[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (FULL, LAST):
            yield Record.FromString(whole)


def offline_runs(folder: Path) -> dict[str, OfflineRun]:
    """Id -> run, of all runs below a folder."""
    runs: dict[str, OfflineRun] = {}
    for file in sorted(folder.rglob("*.wandb"), key=lambda file: file.parent.name):
        if file.parent.is_symlink():
            continue
        run = runs.setdefault(file.stem.removeprefix("run-"), OfflineRun(file.stem.removeprefix("run-")))
        for record in records(file):
            if record.WhichOneof("record_type") == "run":
                run.about = record.run
                run.config |= items(record.run.config.update)
            run.config |= items(record.config.update)
            if record.history.item:
                run.history.append(items(record.history.item))
            run.summary |= items(record.summary.update)
            if record.WhichOneof("record_type") == "exit":
                run.exit_codes.append(record.exit.exit_code)
    return runs


def items(found: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in found}
