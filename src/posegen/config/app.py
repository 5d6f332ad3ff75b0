"""A verb as a Hydra application: reading its command line, running it, its help, and how its errors read."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from string import Template
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import env_override
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from posegen.config import groups
from posegen.config.check import require_valid, validate
from posegen.config.compose import VERSION, compose, composed
from posegen.config.overrides import hydra_message, judge_overrides
from posegen.config.problems import Problem, misspelt, report, without_repeats
from posegen.config.sweep import Axis, axes, combinations, representatives
from posegen.config.verb_files import Verb, positional
from posegen.errors import UserError

#: What a user can mend; anything else is a bug and shows its traceback.
EXPECTED = (ValueError, OSError, KeyError, ImportError, HydraException, OmegaConfBaseException)
#: Hydra's flags -> whether a value follows; ``--info`` takes one of `INFO` or none.
FLAGS = {
    **dict.fromkeys(("--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r"), False),
    **dict.fromkeys(("--multirun", "-m", "--shell-completion", "-sc", "--info", "-i"), False),
    **dict.fromkeys(("--cfg", "-c", "--package", "-p", "--experimental-rerun"), True),
    **dict.fromkeys(("--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"), True),
}
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
#: Flags that ask about a configuration in place of running it.
QUESTIONS = frozenset(("--hydra-help", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc"))


# The command line.


@dataclass(frozen=True)
class Command:
    """The command line ``posegen VERB words``, read.

    Attributes:
        verb: name of the primary configuration.
        flags: Hydra's flags with their values.
        overrides: ``key=value`` and ``group=option``; positional words have become one of them.
        words: what stands behind the verb, as it was typed.
    """

    verb: str
    flags: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    words: tuple[str, ...] = ()

    @classmethod
    def read(cls, verb: str, words: Sequence[str]) -> Command:
        """Flags and overrides in any order.

        Raises:
            UserError: a flag is misspelt.
        """
        flags: list[str] = []
        overrides: list[str] = []
        rest = list(words)
        while rest:
            word = rest.pop(0)
            if not word.startswith("-"):
                overrides.append(word)
                continue
            name, equals, _ = word.partition("=")
            if name not in FLAGS:
                raise UserError(str(misspelt(word, "no such flag", name, (f for f in FLAGS if f[:2] == "--"))))
            flags.append(word)
            if rest and not equals and (FLAGS[name] or (name in ("--info", "-i") and rest[0] in INFO)):
                flags.append(rest.pop(0))
        return cls(verb, tuple(flags), tuple(collected(verb, overrides)), tuple(words))

    def value_of(self, *names: str) -> str | None:
        """The value of a flag, given behind it or after an equals sign."""
        for flag, after in zip(self.flags, (*self.flags[1:], ""), strict=False):
            name, equals, value = flag.partition("=")
            if name in names:
                return value if equals else after
        return None

    @property
    def asks(self) -> bool:
        """Whether Hydra answers a question in place of running the verb."""
        return any(flag.split("=")[0] in QUESTIONS for flag in self.flags)

    @property
    def name(self) -> str:
        return self.value_of("--config-name", "-cn") or self.verb

    @property
    def main(self) -> Path | None:
        """Another folder with the primary configuration, where one is named."""
        folder = self.value_of("--config-path", "-cp")
        return Path(folder).resolve() if folder else None

    @property
    def search(self) -> list[str]:
        """``hydra.searchpath`` with the folder of ``--config-dir``, as an override, where there is either."""
        folder = self.value_of("--config-dir", "-cd")
        found = [*([folder] if folder else []), *groups.search_entries(self.overrides)]
        return [f"hydra.searchpath=[{','.join(map(groups.searchable, found))}]"] if found else []

    @property
    def chosen(self) -> list[str]:
        """The overrides but the search path."""
        return [word for word in self.overrides if not word.startswith("hydra.searchpath=")]

    @property
    def roots(self) -> list[Path]:
        """Every folder with groups."""
        return groups.roots(groups.search_entries(self.search), self.main)

    def compose(self, overrides: Sequence[str] | None = None) -> DictConfig:
        """The configuration with its ``hydra`` node, of these overrides or the command's."""
        return compose(self.name, [*self.search, *(self.chosen if overrides is None else overrides)], self.main)

    def base(self) -> DictConfig:
        """The configuration without the overrides that are swept over, with its ``hydra`` node."""
        return self.compose([axis.words[0] for axis in axes({}, self.chosen) if len(axis.words) == 1])

    def axes(self) -> list[Axis] | None:
        """The keys and groups that the command sweeps over; None where it runs one cell."""
        node = self.base().hydra
        if not (node.mode == RunMode.MULTIRUN or {"-m", "--multirun"} & set(self.flags)):
            return None
        return axes(node.sweeper.get("params"), self.chosen)

    def cells(self) -> Iterator[DictConfig]:
        """The checked and resolved configuration of each cell, in the order of Hydra's basic sweeper.

        ``${hydra:...}`` and ``HydraConfig`` are those of the cell until the next is taken.

        Raises:
            UserError: lists everything that is wrong with a cell.
        """
        found = self.axes()
        for overrides in [self.chosen] if found is None else combinations(found):
            with composed(self.name, [*self.search, *overrides], self.main) as cfg:
                yield checked(cfg)

    def judged(self) -> tuple[list[Problem], list[str]]:
        """The problems of single overrides, and the overrides that have none."""
        return judge_overrides(self.chosen, self.compose, self.roots)

    def check(self) -> tuple[list[Problem], int]:
        """All problems of the command, and how many cells were looked at: see `posegen.config.sweep.representatives`."""
        try:
            problems, good = self.judged()
            found = replace(self, overrides=(*self.search, *good)).axes()
            known = groups.groups(self.roots)
            cells = [good] if found is None else representatives(found, known)
        except (HydraException, OmegaConfBaseException, YAMLError) as error:
            return [Problem(self.name, hydra_message(error))], 0
        for overrides in cells:
            try:
                with composed(self.name, [*self.search, *overrides], self.main) as cfg:
                    problems += validate(cfg)
            except (HydraException, OmegaConfBaseException, YAMLError) as error:
                problems += replace(self, overrides=(*self.search, *overrides)).judged()[0] or [
                    Problem(self.name, hydra_message(error))
                ]
        return without_repeats(problems), len(cells)

    def run(self, function: Callable[[DictConfig], Any] | None = None) -> int:
        """Runs the verb as a Hydra application, with all of Hydra's flags.

        Args:
            function: what gets the configuration of each cell; by default ``main`` of the verb's file.

        Returns:
            The exit code. Errors that a user can mend have been printed as one message.
        """
        traced, before = traceback_wanted(), sys.argv
        job = Job(self.verb, function)
        # What Lightning's other processes run again.
        sys.argv = [before[0], "--config-name", self.verb, *self.flags, *self.overrides]
        try:
            # Hydra hands errors on and prints none; processes that start from here remember what the user wanted.
            with env_override({"HYDRA_FULL_ERROR": "1", "POSEGEN_TRACEBACK": str(int(traced))}):
                hydra.main(version_base=VERSION, config_path=str(groups.conf_dir()), config_name=self.verb)(job)()
            return tell(job.error, self, traced) if job.error else job.code
        except Exception as error:
            return tell(error, self, traced)
        finally:
            sys.argv = before
            GlobalHydra.instance().clear()

    def help(self) -> str:
        """Hydra's template with the groups from the file tree, because Hydra takes a second to list them."""
        try:
            cfg = self.compose()
        except HydraException:
            cfg = self.compose([])
        template = Template(cfg.hydra.help.template)
        with read_write(cfg), open_dict(cfg):
            del cfg["hydra"]
        shown = {name: options for name, options in groups.groups(self.roots).items() if "/" not in name}
        return template.safe_substitute(APP_CONFIG_GROUPS=groups.overview(shown), CONFIG=OmegaConf.to_yaml(cfg))


def collected(verb: str, words: Sequence[str]) -> Iterator[str]:
    """Overrides as Hydra reads them: paths are quoted, and where a verb has positional words they become one list."""
    key = positional(verb)
    if key is None:
        yield from map(quoted, words)
        return
    names = [word for word in words if "=" not in word or Path(word).exists()]
    yield from (listed(quoted(word)) for word in words if word not in names)
    if names:
        yield f"{key}=[{','.join(map(in_quotes, names))}]"


def quoted(override: str) -> str:
    """An override whose value is an existing path with characters of Hydra's grammar (a cell's folder, say), in quotes."""
    key, _, value = override.partition("=")
    return f"{key}={in_quotes(value)}" if set(value) & set("=,") and Path(value).exists() else override


def in_quotes(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def listed(override: str) -> str:
    """``key=a,b`` as the list ``key=[a,b]``, for verbs that are not swept."""
    key, _, value = override.partition("=")
    return f"{key}=[{value}]" if "," in value and value[0] not in "[{'\"" else override


# Running.


class Job:
    """What Hydra calls for a cell: checks the configuration, then gives it to the verb.

    Wherever it is unpickled, this module registers the resolvers. A single job keeps its error, because Hydra would put a heading above it; a sweep goes on
    with its other cells and raises it then.
    """

    def __init__(self, verb: str, function: Callable[[DictConfig], Any] | None = None) -> None:
        self.verb, self.function = verb, function
        self.__module__ = Verb(verb).module  # Hydra names the job after it
        self.error: Exception | None = None
        self.code = 0

    def __call__(self, cfg: DictConfig) -> Any:
        try:
            checked(cfg)
            result = (self.function or import_module(Verb(self.verb).module).main)(cfg)
        except Exception as error:
            if HydraConfig.get().mode != RunMode.RUN:
                raise
            self.error = error
            return None
        self.code = result if isinstance(result, int) else 0
        return result


def checked(cfg: DictConfig) -> DictConfig:
    """The configuration of the current cell with every ``${...}`` replaced by its value.

    Raises:
        UserError: lists everything that is wrong with it.
    """
    require_valid(cfg)
    OmegaConf.resolve(cfg)
    return cfg


def run(verb: Verb, words: Sequence[str], function: Callable[[DictConfig], Any] | None = None) -> int:
    """``posegen VERB words``, with another function in place of the verb's, if given; returns the exit code."""
    command = Command(verb.name)
    try:
        if {"--help", "-h"} & set(words):
            print(Command.read(verb.name, [] if verb.starts else words).help())
            return 0
        command = Command(verb.name, words=tuple(words)) if verb.starts else Command.read(verb.name, words)
        return import_module(verb.module).start(command) if verb.starts and not function else command.run(function)
    except Exception as error:
        return tell(error, command, traceback_wanted())


# Errors.


def traceback_wanted() -> bool:
    return os.environ.get("POSEGEN_TRACEBACK", os.environ.get("HYDRA_FULL_ERROR", "0")) not in ("", "0")


def tell(error: Exception, command: Command, traced: bool = False) -> int:
    """Prints an error: one message where the user can mend it, the traceback where not or where it is wanted.

    Returns:
        The exit code.
    """
    if isinstance(error, BrokenPipeError):
        raise error
    cause = cause_of(error)
    mendable = isinstance(cause, (*EXPECTED, YAMLError))
    if traced or not mendable:
        traceback.print_exception(error)
        if traced:
            return 1
    hint = "\nPOSEGEN_TRACEBACK=1 shows where it happened."
    shown = mendable and not isinstance(cause, (UserError, HydraException, YAMLError))
    print(f"posegen {command.verb}: {explain(error, command)}{hint if shown else ''}", file=sys.stderr)
    return 1


def explain(error: Exception, command: Command) -> str:
    """What is wrong, with the nearest right names where a name is misspelt."""
    cause = cause_of(error)
    if isinstance(cause, HydraException):
        if command.name not in groups.primaries(command.roots):
            return f"there is no {command.name}.yaml in {command.main or groups.conf_dir()}"
        try:
            problems, _ = command.judged()
        except HydraException as again:
            return hydra_message(again)
        return report(problems) if problems else hydra_message(error)
    if isinstance(cause, YAMLError):
        return hydra_message(cause)
    message = str(cause.args[0]) if isinstance(cause, KeyError) and cause.args else str(cause)
    plain = isinstance(cause, (UserError, OSError)) or type(cause) is ValueError
    key = str(error).rpartition("full_key: ")[2].strip() if cause is not error and "full_key: " in str(error) else ""
    return f"{f'{key}: ' if key else ''}{message if plain else f'{type(cause).__name__}: {message}'}"


def cause_of(error: BaseException) -> BaseException:
    """What went wrong inside an instantiated class, for errors that Hydra wrapped."""
    return cause_of(error.__cause__) if isinstance(error, InstantiationException) and error.__cause__ else error
