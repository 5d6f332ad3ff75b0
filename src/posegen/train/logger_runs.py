"""Which loggers a configuration names, and the run on W&B that a cell continues; imports no Lightning, so that pages
are made quickly."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from posegen.io.atomic import read_json_or_empty, write_json
from posegen.runner.received.classes import found_class

RUN_FILE = "run.json"  # of a cell, or of a benchmark: the id of its run on W&B


def logger_nodes(node: Any) -> list[Any]:
    """The nodes of a configuration's ``logger``: one, several by name, or none."""
    return [] if not node else [node] if "_target_" in node else [each for each in node.values() if each]


def logs_to(kind: str, node: Mapping[str, Any]) -> bool:
    """Whether the node of a logger, which may stand in a received file, names this class of Lightning."""
    from lightning.pytorch import loggers

    target = found_class(str(node.get("_target_")))
    return isinstance(target, type) and issubclass(target, getattr(loggers, kind))


def log_as(rank: int) -> None:
    """Says which of the processes that train a cell together this one is. Lightning's loggers write on rank 0 alone;
    when it is imported, it guesses the rank from variables that Slurm also sets for tasks with cells of their own."""
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    rank_zero_only.rank = rank


def logger_of(node: Mapping[str, Any], folder: Path, rank: int = 0, **about: Any) -> Any:
    """The logger of a node in the process of this rank; in the first, it continues the run of ``folder``."""
    log_as(rank)
    run = {} if rank else run_arguments(node, folder)
    return instantiate(node, **run, **about, _convert_="all")


def run_arguments(node: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What the logger of a node lacks to log to the run of ``folder``: W&B's id, unless the node has one."""
    if not logs_to("WandbLogger", node):
        return {}
    import wandb

    # Its lines would stand between those of progress. It reads the variable only after its first warnings.
    wandb.termsetup(wandb.Settings(silent=os.environ.setdefault("WANDB_SILENT", "true")), None)
    return {"id": run_id(folder)} if node.get("id") is None else {}


def run_id(folder: Path) -> str:
    """The id of the run of a cell on W&B, which ``run.json`` keeps: random, so that no two people or folders share one,
    or that of a sweep's agent (``WANDB_RUN_ID``)."""
    known = read_json_or_empty(folder / RUN_FILE)
    before = known.get("id")
    usable = isinstance(before, str) and re.fullmatch(r"[\w-]{1,64}", before)
    found = os.environ.get("WANDB_RUN_ID") or (before if usable else secrets.token_hex(8))
    if found != before:
        write_json(folder / RUN_FILE, {**known, "id": found})
    return str(found)
