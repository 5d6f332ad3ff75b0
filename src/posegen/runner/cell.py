"""A cell: one method on one data set with one seed and one set of settings, in one folder.

``status.json`` is the only truth about it. The same identity again continues or skips the cell; another identity at the same place is refused.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from posegen.errors import CellConflict, UserError
from posegen.io.atomic import read_json, write_json, write_text
from posegen.io.hashes import content_hash, value_hash
from posegen.io.locks import locked

#: Groups and keys that results depend on ...
IDENTITY = (
    "task",
    "adapter",
    "backbone",
    "data",
    "sampler",
    "optim",
    "trainer",
    "estimator",
    "protocol",
    "seed",
    "checkpoint",
    "transfer",
)
#: ... except for these: where things lie, who computes, how it is shown. (Weights at a path count by their hash.)
NEUTRAL = frozenset(
    {
        "cache",
        "workers",
        "devices",
        "nodes",
        "strategy",
        "accelerator",
        "progress",
        "save_every",
        "log_every",
        "validate_every",
        "validate_images",
    }
)
#: Overrides that do not belong in a folder's name: these stand elsewhere in the path ...
PLACED = frozenset({"adapter", "data", "seed", "study"})
#: ... and these, with whatever is below them, change no result, or do so through keys of their own.
UNNAMED = frozenset(
    {
        "logger",
        "hydra",
        "paths",
        "experiment",
        "benchmark",
        "objective",
        "force",
        "shard",
        "shards",
        "title",
        "baseline",
        "headline",
        "reproduction",
    }
)
#: Options that differ from their group's default in neutral keys alone.
ALIKE = frozenset({"trainer=default", "trainer=ddp", "trainer=fsdp"})
#: Keys whose value is a path even where it is a bare name.
PATHS = frozenset({"path", "folder", "checkpoint", "names"})
#: Stages a cell can go through; an experiment or verb may stop early.
STATES = ("running", "finished", "failed")


@dataclass
class Cell:
    """A cell's folder and what it must hold.

    Attributes:
        folder: where everything of the cell lies.
        identity: everything its results depend on, as plain values.
        config: the full resolved configuration, for the record.
    """

    folder: Path
    identity: dict[str, Any]
    config: dict[str, Any]

    @classmethod
    def of(cls, cfg: DictConfig, splits: Sequence[str] = ()) -> Cell:
        """The cell of a composed configuration; Hydra knows the overrides that led to it.

        Args:
            splits: those that results depend on. Data sets that know a hash of their content count by it.
        """
        overrides = HydraConfig.get().overrides.task
        config: Any = OmegaConf.to_container(cfg, resolve=True)
        if config["trainer"]["precision"] == "auto":  # results depend on what it means here, so that is what counts
            from posegen.runner.precision import precision

            config["trainer"]["precision"] = precision("auto")
        return cls(folder(config, overrides), {**identity(config), **contents(cfg, splits)}, config)

    @property
    def hash(self) -> str:
        return value_hash(self.identity)

    @property
    def status(self) -> dict[str, Any]:
        """The content of ``status.json``, empty for a cell that was never started."""
        path = self.folder / "status.json"
        return read_json(path) if path.is_file() else {}

    def check(self) -> None:
        """Refuses a folder that belongs to another identity.

        Raises:
            CellConflict: names the differing keys with both values and the ways out.
        """
        status = self.status
        if not status or status["hash"] == self.hash:
            return
        rows = differences(status["identity"], self.identity)
        listed = (
            "\n".join(f"  {key}: {there!r} there, {here!r} now" for key, there, here in rows)
            or "  (files at the same paths have other content)"
        )
        raise CellConflict(
            f"{self.folder} holds a cell of other settings:\n{listed}\nKeep both with another study=NAME, or delete that folder to replace it."
        )

    def finished(self) -> bool:
        return self.status.get("state") == "finished"

    @contextmanager
    def working(self, sharing: bool = False) -> Iterator[None]:
        """Claims the cell for this process and records how the block ends.

        Another process that works on the cell is waited for: when it has finished, the block may find nothing left to do.

        Args:
            sharing: processes that share the cell do not wait for each other, and the cell is not finished with the block.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / ".lock", sharing):
            self.check()
            if self.finished():
                yield
                return
            started, earlier = time.time(), float(self.status.get("wall_s", 0.0))
            write_text(self.folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(self.config)))
            self.write(state="running", wall_s=earlier)
            try:
                yield
            except BaseException as error:
                state = (
                    "running" if isinstance(error, KeyboardInterrupt | SystemExit) else "failed"
                )  # the latter is what schedulers' signals become
                reason = f"{type(error).__name__}: {error}" if not isinstance(error, UserError) else str(error)
                self.write(
                    state=state,
                    reason=reason,
                    traceback=traceback.format_exc(),
                    wall_s=earlier + time.time() - started,
                )
                raise
            self.write(state="running" if sharing else "finished", wall_s=earlier + time.time() - started)

    def write(self, **facts: Any) -> None:
        """Writes ``status.json``."""
        write_json(
            self.folder / "status.json",
            {"hash": self.hash, "identity": self.identity, "pid": os.getpid(), **provenance(), **facts},
        )


def folder(config: Mapping[str, Any], overrides: Sequence[str]) -> Path:
    """``<output>/<study>/<method>/<data>[,key=value ...]/seed<k>``; only overrides that change the identity are named."""
    named = []
    for override in overrides:
        key, _, text = override.lstrip("+~").partition("=")
        group = key.split("@")[0]
        first, last = group.split(".")[0].split("/")[0], group.split(".")[-1]
        if override not in ALIKE and group not in PLACED and first not in UNNAMED and last not in NEUTRAL:
            named.append(f"{group}={_short(config, group, text)}")
    name = ",".join([config["dataset"], *sorted(named)]).replace("/", "-").replace(" ", "")
    if len(name) > 150:  # file systems allow 255 bytes
        name = f"{name[:120]}~{value_hash(named)[:8]}"
    return Path(config["paths"]["output"]) / config["study"] / str(config["method"]) / name / f"seed{config['seed']}"


def _short(config: Mapping[str, Any], key: str, text: str) -> str:
    """An override's value as the configuration has it, since Hydra rewrites what was typed (1e-3 to 0.001); of a path only the name."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if isinstance(value, list | tuple) and any(os.sep in str(each) for each in value):
        return "+".join(Path(str(each)).name for each in value)
    text = text if value is None or isinstance(value, Mapping) else str(value)
    return Path(text).name if os.sep in text else text


def identity(config: Mapping[str, Any] | DictConfig) -> dict[str, Any]:
    """The part of a resolved configuration that results depend on; files count by content, not by place."""
    if isinstance(config, DictConfig):
        config = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    return {key: _plain(config[key], key, hashed=key != "data") for key in IDENTITY if key in config}


def contents(cfg: DictConfig, splits: Sequence[str]) -> dict[str, Any]:
    """The content of data sets on disk, under ``content``; they are prepared where they are not yet. What is generated is all said by its configuration."""
    from posegen.runner.components import Parts

    parts = Parts(cfg)
    known = {split: parts.data(split).identity.get("content") for split in dict.fromkeys(splits) if split in cfg.data}
    return {"content": known} if any(known.values()) else {}


def _plain(value: Any, key: str, hashed: bool) -> Any:
    """A value without neutral keys, and with its paths replaced: weights by a hash of their content, data sets by name, since `contents` knows more of them."""
    if isinstance(value, Mapping):
        return {k: _plain(v, str(k), hashed) for k, v in value.items() if k not in NEUTRAL}
    if isinstance(value, list | tuple):
        return [_plain(v, key, hashed) for v in value]
    if isinstance(value, str) and value and (os.sep in value or key in PATHS) and Path(value).exists():
        return f"sha256:{content_hash(Path(value))}" if hashed else Path(value).name
    return value


def differences(there: Any, here: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted key, value there, value here) wherever two identities differ."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        rows = []
        for name in sorted({*there, *here}):
            rows += differences(there.get(name), here.get(name), f"{key}.{name}" if key else str(name))
        return rows
    return [] if there == here else [(key, there, here)]


def provenance() -> dict[str, Any]:
    """Versions and commit, for the record; not part of the identity."""
    import platform
    from importlib import metadata

    names = ("posegen", "torch", "diffusers", "lightning", "numpy")
    versions = {name: metadata.version(name) for name in names if _installed(name)}
    return {
        "versions": {"python": platform.python_version(), **versions},
        "git": git_commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def _installed(name: str) -> bool:
    from importlib import metadata

    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def git_commit() -> str | None:
    """The commit of the checkout the code runs from, None outside one."""
    import subprocess

    where = Path(__file__).resolve().parent
    result = subprocess.run(["git", "-C", str(where), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return result.stdout.strip() or None
