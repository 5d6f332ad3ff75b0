"""A command line's overrides, read one by one, so that all mistakes are found at once; and how Hydra's errors read."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import OverrideParseException
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError

from posegen.config.groups import KnownGroups
from posegen.config.problems import Problem, misspelt, nearest

#: Extras that bring options of Hydra's own groups, by how the options' names begin.
EXTRAS = {"submitit": "sweep", "optuna": "optuna"}


def readable(words: Sequence[str], known: KnownGroups) -> tuple[list[Problem], list[str]]:
    """The problems of words that are no override or name an option that does not exist, and the other words."""
    problems: list[Problem] = []
    good = []
    for word in words:
        try:
            [override] = OverridesParser.create().parse_overrides([word])
            found = _option_problems(override, known)
        except OverrideParseException as error:
            found = [_unreadable(word, known, error)]
        problems += found
        good += [] if found else [word]
    return problems, good


def forced(word: str, known: KnownGroups) -> str:
    """``key=value`` as ``++key=value``, which adds a key that does not exist; the check tells what reads no key."""
    key = word.partition("=")[0]
    return word if key[0] in "+~" or key.partition("@")[0] in known or key[:5] == "hydra" else f"++{word}"


def _option_problems(override: Override, known: KnownGroups) -> list[Problem]:
    group = override.key_or_group
    hydras = group.startswith("hydra/")
    if not (group in known or hydras) or override.is_delete():
        return []
    if isinstance(override.value(), Glob):
        return []  # of one that matches nothing `posegen.config.sweep` tells
    if override.value() is None:
        return [misspelt(f"{group}=null", "expected the name of an option", "", known.get(group, ()))]
    values = override.sweep_string_iterator() if override.is_sweep_override() else [override.get_value_string()]
    names = {name for value in values for name in str(value).strip("[]'\"").split(",")} - {"null", ""}
    right = set(known.get(group, ()))
    if hydras:
        right.update(file.stem for file in Path(hydra.__file__).parent.joinpath("conf", group).glob("*.yaml"))
        with suppress(OSError):  # the store, filled by installed plugins, has no such group
            right.update(name.removesuffix(".yaml") for name in ConfigStore.instance().list(group))
    wrong = sorted(names - right)
    return [misspelt(f"{group}={name}", f"no such option{bringing(name)}", name, right) for name in wrong]


def _unreadable(word: str, known: KnownGroups, error: Exception) -> Problem:
    """The problem of a word that is no override; it may be an option without its group."""
    if "=" in word:
        return Problem(word, f"cannot be read: {error}")
    exact = [f"{group}={word}" for group in known if word in known[group]]
    close = [f"{group}={near}" for group in known if (near := nearest(word, known[group]))]
    return Problem(word, "expected group=option or key=value", nearest=" or ".join(exact or close[:1]) or None)


def hydra_message(error: BaseException) -> str:
    """Hydra's message without the folders it looked in, with the extra that brings an option; of a yaml, the line."""
    if isinstance(error, MarkedYAMLError) and error.problem_mark:
        return f"{error.problem_mark.name}, line {error.problem_mark.line + 1}: this is no yaml: {error.problem}"
    cause = f"\n{error.__cause__}" if isinstance(error.__cause__, OmegaConfBaseException) else ""
    text = str(error).partition("Config search path")[0].rstrip().replace("'++", "'")  # see `forced`
    return f"{text}{cause}" + (bringing(text.rpartition("/")[2]) if "hydra/" in text else "")


def bringing(option: str) -> str:
    """The command that brings an option of Hydra's plugins, if it is one."""
    extra = next((extra for start, extra in EXTRAS.items() if option.startswith(start)), None)
    return f" (pip install 'posegen[{extra}]' brings some)" if extra else ""
