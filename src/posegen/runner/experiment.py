"""A configuration with some of its values replaced: what verbs derive before anything is built, never afterwards."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf, open_dict

from posegen.adapters.base import Adapter
from posegen.config.cell_folder import cell_folder
from posegen.config.problems import as_typed
from posegen.config.typed_text import as_literal
from posegen.errors import UserError
from posegen.runner.cell import Cell
from posegen.runner.components import configured_method, reference_split
from posegen.runner.method_folder import find_checkpoint, method_folder, parts_of, plain_arguments, read_about
from posegen.runner.received.state_files import read_cell_config
from posegen.runner.stage import Stage


def replaced(cfg: DictConfig, **values: Any) -> DictConfig:
    """A copy of a configuration with other values under top-level keys."""
    copy = cfg.copy()
    with open_dict(copy):
        copy.update(as_literal(values))
        if "dataset" in values:
            copy.paths.cell = cell_folder(copy)
    return copy


def with_long_prompts(cfg: DictConfig) -> DictConfig:
    """The configuration with ``long_prompts`` in its sampler, where they are not cut."""
    if cfg.long_prompts == "cut":
        return cfg
    sampler: Any = OmegaConf.to_container(cfg.sampler, resolve=True)
    return replaced(cfg, sampler={**sampler, "long_prompts": cfg.long_prompts})


def method_class(cfg: DictConfig) -> type[Adapter]:
    """The class of the configured method."""
    return get_class(cfg.adapter._target_)


def fields_needed(cfg: DictConfig) -> frozenset[str]:
    """The fields of a batch that the configured method reads, or its parts do."""
    nodes = [*parts_of(OmegaConf.to_container(cfg.adapter)).values()] or [cfg.adapter]  # type: ignore[arg-type]
    classes: list[Any] = [get_class(node["_target_"]) for node in nodes]
    return frozenset().union(*(cls.needs for cls in classes))


def with_checkpoint(cfg: DictConfig) -> DictConfig:
    """The configuration with the method folder that ``checkpoint`` means, and the arguments that it was trained with;
    its weights count for the identity."""
    if not method_class(cfg).trainable:
        return cfg
    return with_trained_arguments(replaced(cfg, checkpoint=str(find_checkpoint(cfg))))


def with_trained_arguments(cfg: DictConfig, key: str = "adapter", quiet: bool = False) -> DictConfig:
    """The configuration with the adapter's arguments as the folder ``checkpoint`` has them, but for those on the
    command line below ``key``; every difference is printed."""
    if cfg.checkpoint is None or not method_class(cfg).trainable:
        return cfg
    node: Any = OmegaConf.to_container(cfg.adapter, resolve=True)
    folder, cls = method_folder(Path(cfg.checkpoint)), method_class(cfg)
    about = read_about(folder)
    if about["class"] != f"{cls.__module__}.{cls.__qualname__}":
        return cfg  # `load_into` refuses it
    built = {name: value for name, value in node.items() if not (isinstance(value, dict) and "_target_" in value)}
    here = json.loads(json.dumps(plain_arguments(configured_method(built))))  # as the folder has them
    words = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    typed = {word.lstrip("+~").partition("=")[0] for word in words}
    there = {name: value for name, value in about["kwargs"].items() if name in here and here[name] != value}
    for name, value in there.items():
        kept = any(f"{word}.".startswith(f"{key}.{name}.") for word in typed)
        node[name] = node[name] if kept else value
        used = f"the command line's {as_typed(here[name])}" if kept else f"that, not {as_typed(here[name])}"
        if not quiet:
            print(f"{folder} was trained with {key}.{name}={as_typed(value)}; used is {used}", flush=True)
    faithful = about.get("faithful", False)
    if f"{key}.faithful" in typed and node["faithful"] != faithful and not quiet:
        print(f"{folder} was trained with {key}.faithful={as_typed(faithful)}; used is that", flush=True)
    return replaced(cfg, adapter=node) if there else cfg


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
        place, trained = Path(cfg.checkpoint), {}
        if place.name == "method":  # of a cell
            with suppress(UserError):  # only for this line
                trained = read_cell_config(place.parent)
        steps = trained.get("budget", {}).get("steps")
        known = {"steps": steps, "seed": trained.get("seed"), "data": trained.get("dataset")}
        settings = ", ".join(f"{name} {value}" for name, value in known.items() if value is not None)
        weights = f"{cfg.method} with the weights of {place}{f' ({settings})' if settings else ''}"
    print(f"posegen: {weights}; {left or 'no'} images to make in {cell.folder}", file=sys.stderr, flush=True)
