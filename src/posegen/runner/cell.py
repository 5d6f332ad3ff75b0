"""A cell: one method on one data set with one seed and one set of settings, in one folder.

``status.json`` is the only truth about it. The same identity again continues or skips the cell; another identity at
the same place is refused.
"""

from __future__ import annotations

import os
import platform
import subprocess
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from posegen.config.cell_folder import NEUTRAL_CALLBACKS, NEUTRAL_KEYS, require_inside, untouched
from posegen.config.typed_text import as_literal
from posegen.errors import CellConflict, UserError
from posegen.io.atomic import read_json, write_json, write_text
from posegen.io.hashes import content_hash, value_hash
from posegen.io.hub import hub_places
from posegen.io.locks import locked
from posegen.runner.received.state_files import read_cell_config, read_status

#: Groups and keys that results depend on, except for `NEUTRAL_KEYS`; weights at a path count by their hash.
IDENTITY = (
    *("task", "loss", "adapter", "backbone", "data", "sampler", "optim", "budget", "compute", "trainer", "callbacks"),
    *("estimator", "protocol", "seed", "checkpoint", "transfer"),
)
#: Keys whose value is a path even where it is a bare name.
PATHS = frozenset({"path", "detector_path", "folder", "checkpoint", "names", "init"})
#: Groups that may name places on the Hub.
FROM_HUB = ("backbone", "adapter", "loss", "estimator", "protocol")
#: Settings that came when there were cells, with the value that changes nothing: those cells are of the same identity.
LATER: list[tuple[str, Any]] = [
    ("packed", False), ("attention", "auto"), ("fused", False), ("layers", None), ("occlusion", "drawn"),
    ("parts", None), ("topology", None), ("loss", {"_target_": "posegen.losses.base.TrainingLoss"}),
    ("init", None), ("lr_of", None), ("methods", None),
]  # fmt: skip
PACKAGES = ("posegen", "torch", "diffusers", "lightning", "numpy")


@dataclass
class Cell:
    """A cell's folder and what it must hold.

    Attributes:
        identity: everything its results depend on, as plain values.
        config: the full resolved configuration, for the record; texts with ``${`` as OmegaConf keeps them.
    """

    folder: Path
    identity: dict[str, Any]
    config: dict[str, Any]
    named_by: str = "study"  # the key that gives it another folder

    @classmethod
    def of(cls, cfg: DictConfig, content: Mapping[str, str | None] | None = None) -> Cell:
        """The cell of a composed configuration; ``content``: hashes of its data sets, see `Components.content`."""
        config: Any = OmegaConf.to_container(cfg, resolve=True)
        on_disk = {"content": dict(content)} if content and any(content.values()) else {}
        folder = require_inside(Path(config["paths"]["cell"]), Path(config["paths"]["output"]))
        return cls(folder, {**identity(config), **on_disk}, as_literal(config))

    @property
    def hash(self) -> str:
        return value_hash(self.identity)

    @property
    def status(self) -> dict[str, Any]:
        """The content of ``status.json``, empty for a cell that was never started."""
        return read_status(self.folder)

    @property
    def hub(self) -> dict[str, str]:
        """``hub:owner/name`` of what the cell reads -> the commit that the study reads, where that is recorded."""
        named = hub_places([self.config.get(group) for group in FROM_HUB])
        record = hub_record(self.config) if named else None
        known = read_json(record) if record and record.is_file() else {}
        return {text: known[text] for text in named if text in known}

    def check(self) -> None:
        """Raises `CellConflict` for a folder of another identity, with the differing keys and the ways out."""
        status, here = self.status, self.identity
        if status.get("state") != "finished" and untouched(self.folder):
            return
        if not status:  # it was deleted
            here = {key: value for key, value in here.items() if key != "content"}  # which no config.yaml has
            there = identity(read_cell_config(self.folder) or self.config)
            status = {"hash": value_hash(there), "identity": there}
        if status.get("hash") == value_hash(here):
            return self._check_commits(status.get("hub") or {})
        rows = differences(status.get("identity") or {}, here)
        listed = "\n".join(f"  {key}: {briefly(there)} there, {briefly(here)} now" for key, there, here in rows)
        listed = listed or "  (files at the same paths have other content)"
        fix = f"Keep both with another {self.named_by}=NAME, or delete that folder to replace it."
        raise CellConflict(f"{self.folder} holds a cell of other settings:\n{listed}\n{fix}")

    def _check_commits(self, before: Mapping[str, str]) -> None:
        """Refuses to go on with other weights than the cell began with, under the same name on the Hub."""
        for text, commit in self.hub.items():
            if before.get(text, commit) != commit:
                record = hub_record(self.config)
                fix = f"Write {before[text]} into {record} to go on with it, or keep both with another study=NAME"
                commits = f"{text} at commit {before[text]}, and {record} names {commit}"
                raise CellConflict(f"{self.folder} was computed with {commits}. {fix}")

    def finished(self) -> bool:
        return self.status.get("state") == "finished"

    @contextmanager
    def working(self, sharing: bool = False) -> Iterator[None]:
        """Claims the cell for this process and records how the block ends.

        Another process that works on the cell is waited for; when it has finished, the block may find nothing to do.
        Processes with ``sharing`` do not wait for each other, and their blocks do not finish the cell.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / ".lock", sharing):
            self.check()
            if self.finished():
                try:
                    yield
                except UserError as error:  # what it holds cannot be used: it is not finished
                    self.write(state="failed", reason=str(error), wall_s=float(self.status.get("wall_s", 0.0)))
                    raise
                return
            started, earlier = time.time(), float(self.status.get("wall_s", 0.0))
            write_text(self.folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(self.config)))
            self.write(state="running", wall_s=earlier)
            try:
                yield
            except BaseException as error:
                # Ctrl-C and the signals of schedulers, which become SystemExit, are no failures.
                state = "running" if isinstance(error, KeyboardInterrupt | SystemExit) else "failed"
                reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
                wall = earlier + time.time() - started
                self.write(state=state, reason=reason, traceback=traceback.format_exc(), wall_s=wall)
                raise
            self.write(state="running" if sharing else "finished", wall_s=earlier + time.time() - started)

    def write(self, **facts: Any) -> None:
        """Writes ``status.json``."""
        about = {"hash": self.hash, "identity": self.identity, "pid": os.getpid(), **provenance()}
        about |= {"hub": found} if (found := self.hub) else {}
        write_json(self.folder / "status.json", {**about, **facts})


def hub_record(config: Mapping[str, Any] | DictConfig) -> Path:
    """The file in which a study keeps the commits of what it reads from the Hub, so that all of its cells read one."""
    return Path(config["paths"]["output"]) / str(config.get("study") or "") / "hub.json"


def identity(config: Mapping[str, Any] | DictConfig) -> dict[str, Any]:
    """The part of a configuration that results depend on; files count by content, not by place."""
    plain: Any = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else config
    counting = {key: plain[key] for key in IDENTITY if key in plain and (key, plain[key]) not in LATER}
    found = {key: neutralised(value, key, hashed=key != "data") for key, value in counting.items()}
    callbacks = {name: node for name, node in (plain.get("callbacks") or {}).items() if name not in NEUTRAL_CALLBACKS}
    return {**found, "callbacks": without_places(callbacks)}


def without_places(value: Any) -> Any:
    """Plain values with paths replaced by their last names: callbacks write files, which are there or not."""
    if isinstance(value, Mapping):
        return {key: without_places(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_places(each) for each in value]
    return Path(value).name if isinstance(value, str) and os.sep in value else value


def neutralised(value: Any, key: str, hashed: bool) -> Any:
    """A value without neutral keys and places: files count by hash, data sets (see `Components.content`) by name."""
    if isinstance(value, Mapping):
        counting = {k: v for k, v in value.items() if k not in NEUTRAL_KEYS and (k, v) not in LATER}
        return {k: neutralised(v, key if key == "init" else str(k), hashed) for k, v in counting.items()}
    if isinstance(value, list | tuple):
        return [neutralised(v, key, hashed) for v in value]
    if isinstance(value, str) and value and (os.sep in value or key in PATHS) and Path(value).exists():
        inner = Path(value, "method")  # of a cell
        place = inner if key == "init" and inner.is_dir() else Path(value)
        return f"sha256:{content_hash(place)}" if hashed else place.name
    return value


def differences(there: Any, here: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted key, value there, value here) wherever two identities differ."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        names = sorted({*there, *here})
        inner = (differences(there.get(n), here.get(n), f"{key}.{n}" if key else str(n)) for n in names)
        return [row for rows in inner for row in rows]
    return [] if there == here else [(key, there, here)]


def briefly(value: Any) -> str:
    """A value of an identity in a message; coordinates and other long lists are not spelled out."""
    text = repr(value)
    if len(text) <= 100:
        return text
    return f"{text[:60]}..." if isinstance(value, str) else f"{len(value)} entries (sha256 {value_hash(value, 8)})"


def provenance() -> dict[str, Any]:
    """Versions and commit, for the record; not part of the identity."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # posegen itself, run from a checkout
            continue
    where = ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "HEAD"]
    commit = subprocess.run(where, capture_output=True, text=True, check=False).stdout.strip() or None
    return {"versions": versions, "git": commit, "machine": f"{platform.machine()}, {os.cpu_count()} cores"}
