"""How a user learns what is wrong: every problem names the key, what was expected, and the nearest right name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

#: Stands for a value that does not matter or does not exist.
NO_VALUE = object()


@dataclass(frozen=True)
class Problem:
    """One thing a user has to mend."""

    key: str  # the dotted key, group or flag as the user would write it
    expected: str  # what is wrong with it, or what was expected
    value: Any = NO_VALUE  # the value that was given
    nearest: str | None = None  # the right name that looks most like the wrong one
    available: Sequence[str] = ()  # all right names, where they are few enough to read
    file: str | None = None  # the file that the key's group was read from

    def __str__(self) -> str:
        text = self.key if self.value is NO_VALUE else f"{self.key}={as_typed(self.value)}"
        text += f": {self.expected}" if text else self.expected
        if self.nearest:
            text += f"; did you mean {self.nearest}?"
        if self.available:
            text += ("" if self.nearest else ";") + f" available: {', '.join(self.available)}"
        return text + (f" ({self.file})" if self.file else "")


def misspelt(key: str, expected: str, word: str, right: Iterable[str], **facts: Any) -> Problem:
    """A problem with a name that should be one of ``right``."""
    names = sorted(set(right))
    return Problem(key, expected, nearest=nearest(word, names), available=names if len(names) <= 40 else (), **facts)


def nearest(word: str, right: Iterable[str]) -> str | None:
    """The right name that looks most like ``word``, None if none does."""
    names = list(right)
    if close := difflib.get_close_matches(word, names, n=1, cutoff=0.6):
        return close[0]
    return next((name for name in names if word and (name.startswith(word) or name.endswith(f"/{word}"))), None)


def as_typed(value: Any) -> str:
    """A value as it is written on the command line."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def problem_report(problems: Sequence[Problem]) -> str:
    """All problems as one message."""
    if len(problems) == 1:
        return str(problems[0])
    return "\n".join([f"{len(problems)} problems:", *(f"  {problem}" for problem in problems)])


def without_repeats(problems: Iterable[Problem]) -> list[Problem]:
    """The problems; of those that read alike, one."""
    return list({str(problem): problem for problem in problems}.values())
