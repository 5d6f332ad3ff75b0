"""The cells of a sweep, from ``hydra.sweeper.params`` and the command line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override


@dataclass(frozen=True)
class Axis:
    """One key or group of a sweep."""

    key: str  # as it stands in an override, with its prefix
    group: str  # the key without prefix and package
    words: list[str]  # an override per value; of an interval, its two ends
    override: Override  # as Hydra reads it

    @classmethod
    def of(cls, override: Override) -> Axis:
        key = override.get_key_element()
        if override.is_interval_sweep():
            interval: Any = override.value()
            words = [f"{key}={end}" for end in (interval.start, interval.end)]
        elif override.is_sweep_override():
            words = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            words = [override.input_line or ""]
        return cls(key, override.key_or_group, words, override)


def axes(params: Mapping[Any, Any] | None, overrides: Iterable[str]) -> list[Axis]:
    """The axes of ``hydra.sweeper.params`` in the order of the basic sweeper; an override replaces its key's one."""
    words = {str(key): f"{key}={value}" for key, value in (params or {}).items()}
    words |= {word.split("=", 1)[0].lstrip("+"): word for word in overrides}
    return [Axis.of(override) for override in OverridesParser.create().parse_overrides(list(words.values()))]


def combinations(found: Sequence[Axis]) -> list[tuple[str, ...]]:
    """The overrides of each cell, in the order in which the basic sweeper runs them."""
    return list(product(*(axis.words for axis in found)))


def representatives(found: Sequence[Axis], groups: Iterable[str]) -> list[tuple[str, ...]]:
    """Enough cells to find all problems: every combination of options of ``groups``, and every other value once."""
    known = set(groups)
    first = {axis.key: axis.words[0] for axis in found}
    chosen = [axis for axis in found if axis.group in known]
    keys = [axis.key for axis in chosen]
    changes = [dict(zip(keys, words, strict=True)) for words in combinations(chosen)]
    changes += [{axis.key: word} for axis in found if axis.group not in known for word in axis.words[1:]]
    return [tuple((first | change).values()) for change in changes]
