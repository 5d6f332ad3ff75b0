"""A verb as a Hydra application: reading its command line, running it, its help, and how its errors read."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from string import Template
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import env_override
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from posegen.config import groups
from posegen.config.checking.check import require_valid, validate
from posegen.config.compose import HYDRA_VERSION, compose, composed, user_folders
from posegen.config.official import with_addresses
from posegen.config.overrides import forced, hydra_message, readable
from posegen.config.problems import Problem, misspelt, problem_report, without_repeats
from posegen.config.sweep import Axis, axes, combinations, representatives
from posegen.config.typed_text import exists, hydra_text, is_text, quoted, resolve_config
from posegen.config.verb_files import Verb, positional
from posegen.config.yaml_files import readable_files
from posegen.errors import UserError

COMPOSING = (HydraException, OmegaConfBaseException, YAMLError)
#: What a user can mend; anything else is a bug and shows its traceback.
EXPECTED = (ValueError, OSError, KeyError, ImportError, *COMPOSING)
#: Hydra's flags: the short forms, those with a value, and those that ask about a configuration in place of running it.
SHORT = {
    "-h": "--help", "-c": "--cfg", "-p": "--package", "-r": "--run", "-m": "--multirun", "-i": "--info",
    "-sc": "--shell-completion", "-cp": "--config-path", "-cn": "--config-name", "-cd": "--config-dir",
}  # fmt: skip
VALUED = {"--cfg", "--package", "--experimental-rerun", "--config-path", "--config-name", "--config-dir"}
ASKING = {"--hydra-help", "--cfg", "--info", "--shell-completion"}
FLAGS = {*SHORT.values(), *VALUED, *ASKING, "--version", "--resolve"}
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


@dataclass(frozen=True)
class Command:
    """The command line ``posegen VERB words``, read."""

    verb: str  # the file of ``posegen/verbs``
    keys: tuple[str, ...] = ()  # ``key=value`` and ``group=option``; positional words have become one of them
    search: tuple[str, ...] = ()  # further folders with groups, of ``--config-dir`` and ``hydra.searchpath``
    flags: dict[str, str | None] = field(default_factory=dict)  # Hydra's flags in their long form -> value
    words: tuple[str, ...] = ()  # the words behind the verb as they were typed

    @classmethod
    def read(cls, verb: str, words: Sequence[str]) -> Command:
        """Flags and overrides in any order; a `UserError` names a misspelt flag."""
        flags: dict[str, str | None] = {}
        found: list[str] = []
        rest = list(words)
        while rest:
            word = rest.pop(0)
            name, equals, value = word.partition("=")
            name = SHORT.get(name, name)
            if not word.startswith("-"):
                found.append(word)
            elif name not in FLAGS:
                raise UserError(str(misspelt(word, "no such flag", name, FLAGS)))
            elif not equals and rest and (name in VALUED or (name == "--info" and rest[0] in INFO)):
                flags[name] = rest.pop(0)
            else:
                flags[name] = value if equals else None
        paths = [word for word in found if word.startswith("hydra.searchpath=")]
        folder = flags.get("--config-dir")
        search = [*([folder] if folder else []), *groups.search_entries(paths)]
        command = cls(verb, (), tuple(map(groups.searchable, search)), flags, tuple(words))
        return replace(command, keys=tuple(command.hydra_words([word for word in found if word not in paths])))

    @property
    def main(self) -> Path:  # the folder of the primary configuration
        return Path(self.flags.get("--config-path") or groups.conf_dir()).resolve()

    @property
    def known(self) -> dict[str, dict[str, groups.Option]]:
        return groups.groups(groups.roots(self.search, self.main))

    def asking(self, keys: Sequence[str]) -> tuple[str, list[str], Path]:
        """The arguments of `compose` with other overrides."""
        path = [f"hydra.searchpath=[{','.join(map(quoted, self.search))}]"] if self.search else []
        return self.flags.get("--config-name") or self.verb, [*path, *keys], self.main

    def judges(self) -> list[Command]:
        """The command once for each judge of ``estimator=[a,b]``; a `UserError` lists all that is wrong with any."""
        found = self._judges()
        if found[1:] and (problems := self.check()[0]):
            raise UserError(problem_report(problems))
        return found

    def _judges(self) -> list[Command]:
        """The same unchecked. Hydra would merge the judges into one node."""
        word = next((word for word in self.keys if word.startswith("estimator=[")), None)
        names = OverridesParser.create().parse_override(word).value() if word else None
        if not isinstance(names, list) or len(names) < 2:
            return [self]
        if wrong := [key for key in self.keys if key.startswith("estimator.") or key.partition("=")[0] == "name"]:
            fix = f"leave it out, or name one judge and run posegen judge again: estimator={names[-1]} {wrong[0]}"
            raise UserError(f"{wrong[0]}: {word} names several judges, and this belongs to one of them; {fix}")
        if len({*names}) < len(names):
            raise UserError(f"{word}: a judge is there twice; name each once")
        each = (tuple(f"estimator={name}" if key == word else key for key in self.keys) for name in names)
        return [replace(self, keys=keys) for keys in each]

    def base(self) -> DictConfig:
        """The configuration without the overrides that are swept over, with its ``hydra`` node."""
        return compose(
            *self.asking([axis.words[0] for axis in axes({}, self.keys, self.known) if len(axis.words) == 1])
        )

    def hydra_words(self, words: Sequence[str]) -> Iterator[str]:
        """Overrides as Hydra reads them: text is quoted, and a verb's words without a key become one list."""
        key = positional(self.verb)
        names = [word for word in words if key and ("=" not in word or exists(word))]

        def sweeps() -> bool:  # another word may make it a sweep, as experiment=tune does
            if "--multirun" in self.flags:
                return True
            others = [word for word in words if word not in names and not is_text(word.partition("=")[0], self.verb)]
            with suppress(*COMPOSING):
                keys = tuple(hydra_text(word, lambda: True, self.verb) for word in others)
                return replace(self, keys=keys).axes() is not None
            return False

        for word in words:
            if word in names:
                continue
            name, _, value = word.partition("=")
            if key and "," in value and value[0] not in "[{'\"" and not is_text(name, self.verb) and not exists(value):
                yield f"{name}=[{value}]"
            else:
                yield hydra_text(word, sweeps, self.verb)
        if names:
            yield f"{key}=[{','.join(map(quoted, names))}]"

    def axes(self) -> list[Axis] | None:
        """The keys and groups that the command sweeps over; None where it runs one cell."""
        node = self.base().hydra
        swept = node.mode == RunMode.MULTIRUN or "--multirun" in self.flags
        return axes(node.sweeper.get("params"), self.keys, self.known) if swept else None

    def readable(self) -> tuple[list[Problem], Command]:
        """The problems of single words, and the command with the others, which add the keys that do not exist."""
        known = self.known
        problems, words = readable(self.keys, known)
        return problems, replace(self, keys=tuple(forced(word, known) for word in words))

    def cells(self) -> Iterator[tuple[DictConfig, bool]]:
        """Each cell's checked and resolved configuration in the basic sweeper's order, while ``HydraConfig`` has it,
        and whether the machine that computes the cell chooses the precision."""
        found = self.axes()
        for words in [self.keys] if found is None else combinations(found):
            with composed(*self.asking(words)) as cfg:
                trainer: Any = OmegaConf.to_container(cfg.get("trainer") or OmegaConf.create(), resolve=False)
                yield checked(cfg), "auto_precision" in str(trainer.get("precision"))

    def check(self) -> tuple[list[Problem], int]:
        """All problems, and how many cells were looked at, see `posegen.config.sweep.representatives`."""
        problems, command = self.readable()
        cells: list[Sequence[str]] = []
        try:
            for each in command._judges():
                found = each.axes()
                cells += [each.keys] if found is None else representatives(found, self.known)
            for words in cells:
                with composed(*self.asking(words)) as cfg:
                    problems += validate(cfg)
        except ValueError as error:  # a `UserError`, or Hydra's own on lists of defaults
            return [*problems, Problem("", str(error))], 0
        except UserError as error:
            return [*problems, Problem("", str(error))], 0
        except COMPOSING as error:
            return [*problems, Problem("", hydra_message(error))], 0
        return without_repeats(problems), len(cells)

    def run(self, function: Callable[[DictConfig], Any] | None = None) -> int:
        """Lets Hydra run ``function``, by default the verb's ``main``, for each cell; returns the exit code."""
        traced, before = traceback_wanted(), sys.argv
        job = Job(self.verb, function)
        flags = [flag if value is None else f"{flag}={value}" for flag, value in self.flags.items()]
        # Lightning runs these words again.
        sys.argv = [before[0], "--config-name", self.verb, *flags, *self.asking(self.keys)[1]]
        try:
            axes({}, self.keys, self.known)  # refuses a sweep with the same cell twice
            # Hydra hands errors on and prints none; processes that start from here remember what the user wanted.
            debugging = env_override({"HYDRA_FULL_ERROR": "1", "POSEGEN_TRACEBACK": str(int(traced))})
            with debugging, readable_files(user_folders(sys.argv, self.main)):
                hydra.main(version_base=HYDRA_VERSION, config_path=str(groups.conf_dir()), config_name=self.verb)(job)()
            return tell(job.error, self, traced) if job.error else job.code
        except Exception as error:
            return tell(error, self, traced)
        finally:
            sys.argv = before
            GlobalHydra.instance().clear()

    def help(self) -> str:
        """Hydra's template with the groups from the file tree, because Hydra takes a second to list them."""
        try:
            cfg = self.readable()[1].base()
        except COMPOSING:  # the words are wrong, or of another verb
            cfg = compose(*self.asking(()))
        template = Template(cfg.hydra.help.template)
        with read_write(cfg), open_dict(cfg):
            del cfg["hydra"]
        shown = {name: options for name, options in self.known.items() if "/" not in name}
        return template.safe_substitute(APP_CONFIG_GROUPS=groups.group_lines(shown), CONFIG=OmegaConf.to_yaml(cfg))


class Job:
    """What Hydra calls for a cell: checks the configuration, then gives it to the verb.

    Wherever it is unpickled, this module registers the resolvers. A single job keeps its error, because Hydra would put
    a heading above it; a sweep goes on with its other cells before it raises one.
    """

    def __init__(self, verb: str, function: Callable[[DictConfig], Any] | None = None) -> None:
        self.verb, self.function = verb, function
        self.__module__ = Verb(verb).module  # Hydra names the job after it
        self.error: Exception | None = None
        self.code = 0

    def __call__(self, cfg: DictConfig) -> Any:
        try:
            with read_write(cfg), open_dict(cfg):
                with_addresses(cfg)
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
    """The current cell's configuration with every ``${...}`` replaced; a `UserError` lists all that is wrong."""
    require_valid(cfg)
    resolve_config(cfg)
    return cfg


def run_verb(verb: Verb, words: Sequence[str], function: Callable[[DictConfig], Any] | None = None) -> int:
    """``posegen VERB words``, with another function in place of the verb's, if given; returns the exit code."""
    command = Command(verb.name)
    try:
        command = Command.read(verb.name, words)
        if "--help" in command.flags:
            print(command.help())
            return 0
        if verb.starts and function is None:
            return import_module(verb.module).start(command)
        return command.run(function)
    except Exception as error:
        return tell(error, command, traceback_wanted())


def traceback_wanted() -> bool:
    return os.environ.get("POSEGEN_TRACEBACK", os.environ.get("HYDRA_FULL_ERROR", "0")) not in ("", "0")


def tell(error: Exception, command: Command, traced: bool = False) -> int:
    """Prints one message where the user can mend it, the traceback where not or where wanted; returns the exit code."""
    if isinstance(error, BrokenPipeError):
        raise error
    cause: BaseException = error
    while isinstance(cause, InstantiationException) and cause.__cause__:  # inside an instantiated class
        cause = cause.__cause__
    mendable = isinstance(cause, EXPECTED)
    if traced or not mendable:
        traceback.print_exception(error)
    if traced:
        return 1
    hint, (_, nested, key) = "", str(error).rpartition("full_key: ")
    if isinstance(cause, (HydraException, YAMLError)):
        problems = command.check()[0] if isinstance(cause, HydraException) else []  # with the nearest right names
        message = problem_report(problems) if problems else hydra_message(cause)
    else:
        message = str(cause.args[0]) if isinstance(cause, KeyError) and cause.args else str(cause)
        if not (isinstance(cause, (UserError, OSError)) or type(cause) is ValueError):
            message = f"{type(cause).__name__}: {message}"
        if cause is not error and nested and key.strip():
            message = f"{key.strip()}: {message}"
        if mendable and not isinstance(cause, UserError):
            hint = "\nPOSEGEN_TRACEBACK=1 shows where it happened."
    print(f"posegen {command.verb}: {message}{hint}", file=sys.stderr)
    return 1
