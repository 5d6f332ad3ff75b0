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
from posegen.io.hub import on_hub, pinned
from posegen.metrics.base import Estimator
from posegen.metrics.protocol import Protocol
from posegen.runner.backbone_lookup import WEIGHT_PLACES
from posegen.runner.cell import hub_record
from posegen.runner.method_folder import load_into, method_folder, parts_of, trains
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


def pinned_places(cfg: DictConfig) -> dict[str, str]:
    """The backbone's arguments that name places on the Hub, with the commits that the study reads."""
    named = {name: str(cfg.backbone[name]) for name in WEIGHT_PLACES if on_hub(cfg.backbone.get(name))}
    if not named or "paths" not in cfg or "cell" not in cfg.paths:
        return named
    known = read_status(Path(cfg.paths.cell)).get("hub")
    return {name: pinned(text, hub_record(cfg), known) for name, text in named.items()}


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


def start_from_folders(adapter: Adapter, backbone: Backbone) -> None:
    """Loads the method folders that ``adapter.init`` names, of the method or of its parts by name, and of each part."""
    parts = dict(getattr(adapter, "methods", {}).items())
    named = adapter.init if isinstance(adapter.init, Mapping) else {"": adapter.init} if adapter.init else {}
    for name, folder in named.items():
        if name and name not in parts:
            raise UserError(f"adapter.init names {name}; the methods are {', '.join(parts) or 'none'}")
        load_into(parts[name] if name else adapter, backbone, method_folder(Path(folder).expanduser()))


class Components:
    """Lazy access to what a composed cell configuration describes."""

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg
        self._data: dict[str, PoseData] = {}

    @cached_property
    def backbone(self) -> Backbone:
        torch.manual_seed(self.cfg.seed)  # weights that it starts from at random are a function of the seed
        try:
            return instantiate(self.cfg.backbone, **pinned_places(self.cfg), _convert_="all")
        except InstantiationException as error:
            if isinstance(error.__cause__, UserError):  # one sentence, for the table
                raise error.__cause__ from None
            raise

    @cached_property
    def bare_adapter(self) -> Adapter:
        """The adapter before `attach`."""
        node: Any = OmegaConf.to_container(self.cfg.adapter, resolve=True)
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
        torch.manual_seed(self.cfg.seed)  # initial weights are a function of the seed
        adapter.attach(self.backbone)
        if trains(self.backbone.network):
            self.backbone.network.float()  # whatever it was read in
        start_from_folders(adapter, self.backbone)
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
        return instantiate(self.cfg.estimator, _convert_="all")

    @cached_property
    def protocol(self) -> Protocol:
        return instantiate(self.cfg.protocol, _convert_="all")

    @cached_property
    def shard(self) -> Shard:
        return Shard.of(self.cfg)
