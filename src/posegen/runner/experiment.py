"""A configuration with some of its values replaced: what verbs derive before anything is built, never afterwards."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from posegen.adapters.base import Adapter
from posegen.config.cell_folder import cell_folder
from posegen.config.typed_text import as_literal
from posegen.runner.cell import Cell
from posegen.runner.components import reference_split
from posegen.runner.method_folder import find_checkpoint
from posegen.runner.stage import Stage


def replaced(cfg: DictConfig, **values: Any) -> DictConfig:
    """A copy of a configuration with other values under top-level keys."""
    copy = cfg.copy()
    with open_dict(copy):
        copy.update(as_literal(values))
        if "dataset" in values:
            copy.paths.cell = cell_folder(copy)
    return copy


def method_class(cfg: DictConfig) -> type[Adapter]:
    """The class of the configured method."""
    return get_class(cfg.adapter._target_)


def with_checkpoint(cfg: DictConfig) -> DictConfig:
    """The configuration with the method folder that ``checkpoint`` means; its weights count for the identity."""
    return replaced(cfg, checkpoint=str(find_checkpoint(cfg))) if method_class(cfg).trainable else cfg


def weights_of(cfg: DictConfig, folder: Path) -> Path | None:
    """The method folder that a cell samples with: the given one, or the one that it trained; None without weights."""
    if not method_class(cfg).trainable:
        return None
    return folder / "method" if cfg.checkpoint is None else Path(cfg.checkpoint)


def splits_of(cfg: DictConfig, judged: bool = True) -> list[str]:
    """The splits that the results of a cell depend on."""
    trained = method_class(cfg).trainable and cfg.checkpoint is None
    return ["test", *([reference_split(cfg)] if judged else []), *(["train"] if trained else [])]


def announce(cfg: DictConfig, stage: Stage, cell: Cell) -> None:
    """Says, before anything is computed, whose weights are taken and how much is left to do for a cell."""
    cell.check()
    left, weights = sum(map(len, stage.todo())), f"{cfg.method}, which trains nothing"
    if cfg.checkpoint is not None:
        place, trained = Path(cfg.checkpoint), OmegaConf.create()
        about = place.parent / "config.yaml"  # of a cell
        if place.name == "method" and about.is_file():
            with suppress(OSError, YAMLError, OmegaConfBaseException):  # only for this line
                trained = OmegaConf.load(about)  # type: ignore[assignment]
        facts = {"steps": "budget.steps", "seed": "seed", "data": "dataset"}
        known = {name: OmegaConf.select(trained, key, throw_on_resolution_failure=False) for name, key in facts.items()}
        settings = ", ".join(f"{name} {value}" for name, value in known.items() if value is not None)
        weights = f"{cfg.method} with the weights of {place}{f' ({settings})' if settings else ''}"
    print(f"posegen: {weights}; {left or 'no'} images to make in {cell.folder}", file=sys.stderr, flush=True)
