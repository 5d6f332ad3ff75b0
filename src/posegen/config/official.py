"""``official`` in the place of an address: where an option's yaml says that the official weights are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from posegen.config.groups import groups
from posegen.config.nodes import value_or_none
from posegen.errors import UserError

WORD = "official"
KNOWN = ("adapter", "backbone")  # groups whose yaml has addresses


def with_addresses(cfg: DictConfig) -> None:
    """Replaces ``official`` in a composed configuration, and takes the addresses out, on which nothing else depends.

    A UserError says that no official weights are known for this backbone."""
    found = nodes_of(cfg)
    plain = {group: value_or_none(node) for group, node in found.items()}
    adapter, backbone = (given if isinstance(given := plain.get(group), Mapping) else {} for group in KNOWN)
    if backbone.get("path") == WORD:
        cfg.backbone.path = address(backbone, backbone, "backbone.path")
    if not OmegaConf.is_missing(cfg, "source") and cfg.get("source") == WORD and adapter:
        cfg.source = address(adapter, backbone, "source")
    init = adapter.get("init")
    if init == WORD:
        cfg.adapter.init = address(adapter, backbone, "adapter.init")
    for name, text in init.items() if isinstance(init, Mapping) else ():
        if text == WORD:
            part = (adapter.get("methods") or {}).get(name) or {}
            cfg.adapter.init[name] = address(part, backbone, f"adapter.init.{name}")
    prior = cfg.get("prior")  # of the poses, a method with a backbone of its own
    for node in (*found.values(), *(nodes_of(prior).values() if isinstance(prior, DictConfig) else ())):
        if WORD in node:
            del node[WORD]


def nodes_of(cfg: DictConfig) -> dict[str, DictConfig]:
    return {group: node for group in KNOWN if isinstance(node := cfg._get_node(group), DictConfig)}


def address(node: Mapping[str, Any], backbone: Mapping[str, Any], key: str) -> Any:
    """The address for a backbone: of the entries of its id or size whose settings the node has, the most special."""
    known = node.get(WORD) or addresses(node.get("_target_"))
    names = {backbone.get("id"), backbone.get("size")}
    given = {f"{name}={value}" for name, value in node.items()}
    words = {entry: str(entry).split() for entry in known}
    fitting = [entry for entry, (name, *rest) in words.items() if name in names and given.issuperset(rest)]
    if not fitting or known[max(fitting, key=lambda entry: len(words[entry]))] is None:
        there = ", ".join(str(entry) for entry, place in known.items() if place) or "none"
        which = f"for backbone {backbone.get('id')} with these settings"
        raise UserError(f"{key}=official: no official weights are known {which} (known: {there}); name a file instead")
    return known[max(fitting, key=lambda entry: len(words[entry]))]


def addresses(target: Any) -> Mapping[str, Any]:
    """Those of the first method with a class that has some: a part of another method has no yaml of its own."""
    for option in groups()["adapter"].values():
        node: Any = OmegaConf.load(option.file)
        if target is not None and node.get("_target_") == target and node.get(WORD):
            return OmegaConf.to_container(node[WORD])  # type: ignore[return-value]
    return {}
