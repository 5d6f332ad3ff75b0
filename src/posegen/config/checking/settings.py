"""The settings of a composed configuration: every key with what it may hold.

What a key may hold stands in one of two places: in the signature of the class that a ``_target_`` names, or, where no
class describes a node, in `posegen.config.schema`. The check, the options' pages of the documentation and the
tests read both here.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from posegen.config.checking.annotations import json_schema, mismatches, names_in, options_of, range_words, words
from posegen.config.checking.arguments import argument_types
from posegen.config.nodes import children, dotted, leaf_nodes, origin, target_nodes, value_of
from posegen.config.problems import NO_VALUE, Problem, nearest
from posegen.config.schema import VERBS, CellKeys, NodeKeys
from posegen.errors import UserError


@dataclass(frozen=True)
class Setting:
    """One key of a configuration, and what it may hold."""

    key: str  # dotted, as the user writes it
    value: Any  # the configured value; `NO_VALUE` where it is missing or leads nowhere
    annotation: Any  # what pydantic compares the value with; `Any` where nothing describes it
    finite: bool = True  # whether NaN and infinity are refused

    @cached_property
    def schema(self) -> Mapping[str, Any]:
        """What it may hold as a JSON schema; empty where that is anything."""
        return json_schema(self.annotation)

    @property
    def kinds(self) -> tuple[str, ...]:
        """JSON's names of the types: ``integer``, ``number``, ``boolean``, ``string``, ``array``, ``object``,
        ``null``; ``any`` where nothing describes the key."""
        options = options_of(self.schema)
        found = (str(option.get("type") or json_type(names_in(option))) for option in options)
        return tuple(dict.fromkeys(found))

    @property
    def range(self) -> str:
        """``from 0 to 1``, ``of at least 1``, ``above 0``; empty where a number may be any, or none is expected."""
        found = (range_words(option).strip() for option in options_of(self.schema) if not names_in(option))
        return " or ".join(dict.fromkeys(part for part in found if part))

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values it is chosen from; empty where there is no list of them."""
        return tuple(names_in(self.schema))

    @property
    def words(self) -> str:
        """``an integer of at least 1, or null``."""
        return words(self.schema)

    def problems(self) -> list[Problem]:
        """What is wrong with the value."""
        if self.value is NO_VALUE:
            return []
        if isinstance(self.value, float) and math.isnan(self.value):
            return [Problem(self.key, "expected a finite number", self.value)]
        return [
            Problem(".".join((self.key, *place)), f"expected {expected}", wrong, nearest(str(wrong), names))
            for place, expected, wrong, names in mismatches(self.value, self.annotation, self.finite)
        ]


def json_type(names: Collection[Any]) -> str:
    """JSON's name of the type of listed values."""
    known = {str: "string", bool: "boolean", int: "integer", float: "number"}
    return next((known[type(name)] for name in names if type(name) in known), "any")


def settings(cfg: DictConfig, verb: str = "train") -> Iterator[Setting]:
    """Every setting of a verb's composed configuration, once each; an interpolated value counts where it comes from."""
    seen: set[str] = set()
    for setting in (*described(cfg, VERBS.get(verb, CellKeys)), *_arguments(cfg), *_others(cfg)):
        parts = setting.key.split(".")
        if not any(".".join(parts[:count]) in seen for count in range(1, len(parts) + 1)):  # lists are described whole
            seen.add(setting.key)
            yield setting


def described(node: DictConfig, keys: type[NodeKeys], key: str = "") -> Iterator[Setting]:
    """The settings that `posegen.config.schema` describes."""
    types = typing.get_type_hints(keys, include_extras=True)
    for name, child in children(node):
        if name not in types:
            continue
        inner = [kind for kind in (types[name], *typing.get_args(types[name])) if _is_keys(kind)]
        if inner and isinstance(child, DictConfig) and not child._is_none():
            yield from described(child, inner[0], dotted(key, name))
        elif inner:
            null = None if type(None) in typing.get_args(types[name]) else dict[str, Any]
            yield _setting(dotted(key, name), child, dict[str, Any] | null if null is None else null)
        else:
            yield _setting(dotted(key, name), child, types[name])


def _is_keys(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, NodeKeys)


def _arguments(cfg: DictConfig) -> Iterator[Setting]:
    for key, node in target_nodes(cfg):
        for name, child, kind, finite in argument_types(node):
            if not any(True for _ in target_nodes(child)):
                yield _setting(dotted(key, name), child, kind, finite)


def _others(cfg: DictConfig) -> Iterator[Setting]:
    for key, leaf in leaf_nodes(cfg):
        if key.rpartition(".")[2][:1] != "_":
            yield _setting(key, leaf, Any)


def _setting(key: str, node: Any, annotation: Any, finite: bool = True) -> Setting:
    try:
        value = NO_VALUE if node._is_missing() else value_of(node)
    except (OmegaConfBaseException, UserError):
        value = NO_VALUE  # reported by `unresolved`
    return Setting(origin(node, key), value, annotation, finite)
