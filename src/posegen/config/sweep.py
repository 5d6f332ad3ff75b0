"""The cells of a sweep, from ``hydra.sweeper.params`` and the command line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, RangeSweep

from posegen.errors import UserError

MOST_VALUES = 10_000  # of one key


@dataclass(frozen=True)
class Axis:
    """One key or group of a sweep."""

    key: str  # as it stands in an override, with its prefix
    group: str  # the key without prefix and package
    words: list[str]  # an override per value; of an interval, its two ends
    override: Override  # as Hydra reads it

    @classmethod
    def of(cls, override: Override, options: Iterable[str] = ()) -> Axis:
        """An override as an axis; ``options`` are those of its group, for ``glob``. A `UserError` refuses a sweep
        without values, or with a value twice, whose cells would be the same."""
        key, line = override.get_key_element(), (override.input_line or "").lstrip("+")
        if override.is_interval_sweep():
            interval: Any = override.value()
            words = [f"{key}={end}" for end in (interval.start, interval.end)]
        elif override.is_sweep_override():
            words = [f"{key}={value}" for value in _swept(override, line, options)]
            if not words:
                known = f"; available: {', '.join(options)}" if options else ""
                raise UserError(f"{line}: a sweep without any value{known}")
            if twice := [word for word in dict.fromkeys(words) if words.count(word) > 1]:
                raise UserError(f"{line}: {twice[0]} stands there {words.count(twice[0])} times; leave one of them")
        else:
            words = [override.input_line or ""]
        return cls(key, override.key_or_group, words, override)


def _swept(override: Override, line: str, options: Iterable[str]) -> list[str]:
    found: Any = override.value()
    if isinstance(found, Glob):  # as Hydra, which lists no folders
        return found.filter([name for name in options if "/" not in name])
    start, stop, step = (getattr(found, end, 1) for end in ("start", "stop", "step"))
    if isinstance(found, RangeSweep) and abs(stop - start) > MOST_VALUES * abs(step):
        expected = f"a range with a step other than 0 and at most {MOST_VALUES} values"
        raise UserError(f"{line}: expected {expected}, such as range(0,3)")
    return list(override.sweep_string_iterator())


def axes(
    params: Mapping[Any, Any] | None, overrides: Iterable[str], known: Mapping[str, Iterable[str]] | None = None
) -> list[Axis]:
    """The axes of ``hydra.sweeper.params`` in the order of the basic sweeper; an override replaces its key's one."""
    words = {str(key): f"{key}={value}" for key, value in (params or {}).items()}
    words |= {word.split("=", 1)[0].lstrip("+"): word for word in overrides}
    read = OverridesParser.create().parse_overrides(list(words.values()))
    return [Axis.of(override, (known or {}).get(override.key_or_group, ())) for override in read]


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
