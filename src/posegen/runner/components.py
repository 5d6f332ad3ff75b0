"""The configured objects of a cell, each built when it is first asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_class, get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from posegen.adapters.base import Adapter
from posegen.backbones.base import Backbone
from posegen.config.typed_text import as_literal
from posegen.data.base import PoseData, Sample
from posegen.errors import UserError
from posegen.io.hub import hub_places, local_place, pinned
from posegen.metrics.base import Estimator
from posegen.metrics.protocol import Protocol
from posegen.runner.cell import hub_record
from posegen.runner.method_folder import load_into, method_folder, parts_of, trains
from posegen.runner.official_weights import put_official
from posegen.runner.outputs import KINDS, Kind
from posegen.runner.precision import arranged, keep_cast
from posegen.runner.received.state_files import read_status
from posegen.runner.sampler import Sampler
from posegen.runner.stage import Shard


def reference_split(cfg: DictConfig) -> str:
    """The split whose real images distances between sets compare with."""
    return cfg.data.get("reference", "validation")


def build_node(node: Any, **arguments: Any) -> Any:
    """The object that a node describes; texts with ``${`` keep it."""
    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    return instantiate(as_literal(as_literal(plain)), **arguments, _convert_="all")  # Hydra resolves twice


def pinned_node(cfg: DictConfig, group: str) -> Any:
    """The node of a group; places on the Hub have the commits that the study reads."""
    plain = OmegaConf.to_container(cfg[group], resolve=True)
    if not hub_places(plain) or "paths" not in cfg or "cell" not in cfg.paths:
        return cfg[group]
    known = read_status(Path(cfg.paths.cell)).get("hub")
    return OmegaConf.create(as_literal(with_commits(plain, hub_record(cfg), known)))


def with_commits(value: Any, record: Path, known: Mapping[str, str] | None) -> Any:
    if isinstance(value, Mapping):
        return {key: with_commits(each, record, known) for key, each in value.items()}
    if isinstance(value, list):
        return [with_commits(each, record, known) for each in value]
    return pinned(value, record, known) if hub_places(value) else value


def configured_method(node: Mapping[str, Any]) -> Adapter:
    """The method that plain values describe, before `Adapter.attach`, with its declared settings; so are its parts."""
    cls: Any = get_class(node["_target_"])
    declared = {name: node[name] for name in cls.declared if name in node}
    parts = {name: configured_method(part) for name, part in parts_of(node).items()}
    own = {name: value for name, value in node.items() if name not in declared and (name != "methods" or not parts)}
    adapter = instantiate(OmegaConf.create(own), _convert_="all", _partial_=bool(parts))
    adapter = adapter(methods=parts) if parts else adapter
    vars(adapter).update(declared)  # before it is attached: quirks may shape modules
    return adapter


def starting_weights(adapter: Adapter) -> list[tuple[Adapter, list[Path]]]:
    """What ``adapter.init`` names on this disk, with the method or the part of it that starts from there. Official
    files expect official quirks, which may shape modules: they are set before `Adapter.attach`."""
    parts = dict(getattr(adapter, "methods", {}).items())
    named = adapter.init if isinstance(adapter.init, Mapping) else {"": adapter.init} if adapter.init else {}
    found = []
    for name, text in named.items():
        if name and name not in parts:
            raise UserError(f"adapter.init names {name}; the methods are {', '.join(parts) or 'none'}")
        method = parts[name] if name else adapter
        places = [method_folder(local_place(each)) for each in ([text] if isinstance(text, str) else text)]
        if lost := [place for place in places if not place.exists()]:
            expected = "a cell, a method folder, an official file, hub:OWNER/NAME/FILE or official"
            raise UserError(f"adapter.init={lost[0]}: no such file or folder; expected {expected}")
        method.faithful = method.faithful or not is_method(places)
        found.append((method, places))
    return found


def is_method(places: list[Path]) -> bool:
    return len(places) == 1 and (places[0] / "posegen.json").is_file()


class Components:
    """Lazy access to what a composed cell configuration describes."""

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg
        self._data: dict[str, PoseData] = {}

    @cached_property
    def backbone(self) -> Backbone:
        torch.manual_seed(self.cfg.seed)  # weights that it starts from at random are a function of the seed
        try:
            return instantiate(pinned_node(self.cfg, "backbone"), _convert_="all")
        except InstantiationException as error:
            if isinstance(error.__cause__, UserError):  # one sentence, for the table
                raise error.__cause__ from None
            raise

    @cached_property
    def bare_adapter(self) -> Adapter:
        """The adapter before `attach`."""
        node: Any = OmegaConf.to_container(pinned_node(self.cfg, "adapter"), resolve=True)
        adapter = configured_method(node)
        if adapter.sample != self.backbone.sample:
            kinds = f"generates a {adapter.sample}, backbone generates a {self.backbone.sample}"
            raise UserError(f"adapter {self.cfg.method} {kinds}; choose another backbone=")
        return adapter

    @property
    def text_reader(self) -> tuple[Any, int] | None:
        """The tokenizer of a backbone on this disk, and how many tokens of a prompt it reads; no weight is loaded."""
        node = self.cfg.backbone
        given = {str(key): node[key] for key in node if not OmegaConf.is_missing(node, key)}
        cls, path = get_object(given.pop("_target_")), given.get("path")
        readable = isinstance(cls, type) and issubclass(cls, Backbone)
        return cls.text_reader(**given) if readable and path and Path(path).expanduser().exists() else None

    @cached_property
    def adapter(self) -> Adapter:
        """The adapter, attached to the backbone and in its initial state, computing as ``trainer`` says."""
        adapter = self.bare_adapter
        starts = starting_weights(adapter)
        torch.manual_seed(self.cfg.seed)  # initial weights are a function of the seed
        adapter.attach(self.backbone)
        if trains(self.backbone.network):
            self.backbone.network.float()  # whatever it was read in
        for method, places in starts:
            if is_method(places):
                load_into(method, self.backbone, places[0])
            else:
                put_official(method, self.backbone, places)
        if "compute" in self.cfg:  # some verbs compute nothing
            for network in (adapter, self.backbone):
                arranged(network, self.cfg.compute)
            keep_cast(self.backbone.network, self.cfg.trainer.precision)
        return adapter

    def data(self, split: str) -> PoseData:
        if split not in self._data:
            if split not in self.cfg.data:
                raise UserError(f"data has no split {split!r}; it has {sorted(map(str, self.cfg.data))}")
            self._data[split] = build_node(self.cfg.data[split])
        return self._data[split]

    def content(self, *splits: str) -> dict[str, str | None]:
        """Hashes of what data sets on disk hold, by split, prepared where necessary; None for what is generated."""
        known = (split for split in dict.fromkeys(splits) if split in self.cfg.data)
        return {split: self.data(split).identity.get("content") for split in known}

    @cached_property
    def population(self) -> list[Sample]:
        """The split that the adapter may know beforehand, usually the training split, without its images."""
        data = self.data(self.bare_adapter.population)
        return [replace(data.seen(i, image=False), image=None) for i in range(len(data))]

    @cached_property
    def kind(self) -> Kind:
        return KINDS[self.backbone.sample]

    @cached_property
    def sampler(self) -> Sampler:
        return build_node(self.cfg.sampler, precision=self.cfg.trainer.precision)

    @cached_property
    def estimator(self) -> Estimator:
        return instantiate(pinned_node(self.cfg, "estimator"), _convert_="all")

    @cached_property
    def protocol(self) -> Protocol:
        return instantiate(pinned_node(self.cfg, "protocol"), _convert_="all")

    @cached_property
    def shard(self) -> Shard:
        return Shard.of(self.cfg)
