"""Hydra behind the verbs: what was asked for, running it, and how its errors read."""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from string import Template
from typing import Any

import hydra
from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import env_override, setup_globals
from hydra.errors import HydraException, InstantiationException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from posegen.config import groups as listing
from posegen.config import resolvers  # noqa: F401  (registers what ${...} may ask for)
from posegen.config.problems import misspelt, report
from posegen.errors import UserError

#: What a user can mend; anything else is a bug and shows its traceback.
EXPECTED = (ValueError, OSError, KeyError, ImportError, HydraException, OmegaConfBaseException)
#: Extras that bring options of Hydra's own groups, by how the options' names begin.
EXTRAS = {"submitit": "sweep", "ray": "ray", "optuna": "optuna"}


class OtherPackages(SearchPathPlugin):
    """Finds groups of other packages through the variable POSEGEN_SEARCHPATH."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for entry in listing.third_party():
            search_path.append("posegen", entry)


Plugins.instance().register(OtherPackages)


# What was asked for.


@dataclass(frozen=True)
class Request:
    """A configuration that someone asked for.

    Attributes:
        name: the primary file, which is the verb.
        overrides: as on the command line.
        main: the folder of the primary file.
        extra: further search path entries.
        choices: group -> option, where the configuration has been composed already.
    """

    name: str
    overrides: tuple[str, ...] = ()
    main: Path = field(default_factory=lambda: listing.conf_dir())
    extra: tuple[str, ...] = ()
    choices: Mapping[str, str | None] = field(default_factory=dict)

    @classmethod
    def parse(cls, verb: str, argv: Sequence[str]) -> Request:
        """From the command line behind a verb."""
        args = get_args_parser().parse_args(arranged(argv))
        extra = [listing.searchable(args.config_dir)] if args.config_dir else []
        extra += [
            listing.searchable(entry)
            for word in args.overrides
            if word.startswith("hydra.searchpath=")
            for entry in listing.searchpath(word)
        ]
        overrides = tuple(word for word in args.overrides if not word.startswith("hydra.searchpath="))
        return cls(
            args.config_name or verb,
            overrides,
            Path(args.config_path).resolve() if args.config_path else listing.conf_dir(),
            tuple(extra),
        )

    @classmethod
    def of(cls, node: DictConfig) -> Request:
        """From the ``hydra`` node of a composed configuration, as a running job sees it."""
        sources = [(s.provider, s.schema, s.path) for s in node.runtime.config_sources]
        main = next((Path(path) for provider, _, path in sources if provider == "main"), listing.conf_dir())
        extra = tuple(
            f"{schema}://{path}"
            for provider, schema, path in sources
            if provider not in ("hydra", "main", "schema", "posegen")
        )
        return cls(node.job.config_name, tuple(node.overrides.task), main, extra, dict(node.runtime.choices))

    @property
    def roots(self) -> list[Path]:
        return listing.roots(self.extra, self.main)

    def having(self, *overrides: str) -> Request:
        """The same request with other overrides."""
        return replace(self, overrides=overrides)

    def compose(self) -> DictConfig:
        """The configuration, with its ``hydra`` node; changes no global state, so a running job may call it."""
        version.setbase("1.3")
        setup_globals()
        search = create_config_search_path(str(self.main))
        schema = search.get_path().pop()  # Hydra wants its own schema last
        for entry in self.extra:
            search.append("extra", entry)
        search.get_path().append(schema)
        return ConfigLoaderImpl(search).load_configuration(self.name, list(self.overrides), RunMode.RUN)


@contextmanager
def composed(request: Request) -> Iterator[DictConfig]:
    """The configuration without its ``hydra`` node, which ``${hydra:...}`` can nevertheless read meanwhile."""
    cfg = request.compose()
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(cfg)
    try:
        with read_write(cfg), open_dict(cfg):
            del cfg["hydra"]
        yield cfg
    finally:
        HydraConfig.instance().cfg = before


# Running.


class Task:
    """A verb's function, imported when the first job runs; wherever it is unpickled, the resolvers are registered too.

    Args:
        target: ``module:function``, or the function itself.
        spread: call the function with the keys that its parameters name instead of with the configuration, after checking it.
    """

    def __init__(self, target: str | Callable[..., Any], spread: bool = False) -> None:
        self.target, self.spread = target, spread
        self.__module__ = (
            target.partition(":")[0] if isinstance(target, str) else target.__module__
        )  # Hydra names the job after it

    def __call__(self, cfg: DictConfig) -> Any:
        try:
            return self._spread(cfg) if self.spread else self.function(cfg)
        except Exception as error:
            if HydraConfig.get().mode == RunMode.RUN:
                raise Failed(error) from error
            raise  # a sweep goes on with its other cells

    def _spread(self, cfg: DictConfig) -> Any:
        from posegen.config.check import require_valid

        require_valid(cfg)
        names = inspect.signature(self.function).parameters
        return self.function(**{name: cfg[name] for name in names if name in cfg})

    @property
    def function(self) -> Callable[..., Any]:
        if not isinstance(self.target, str):
            return self.target
        module, _, name = self.target.partition(":")
        return getattr(import_module(module), name)


class Failed(BaseException):
    """Takes a job's error past Hydra, which would put its own heading above it."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def run_hydra(verb: str, task: str | Callable[..., Any], argv: Sequence[str], spread: bool = False) -> int:
    """Runs a verb as a Hydra application, with all of Hydra's flags.

    Args:
        verb: name of the primary configuration.
        task: ``module:function`` or a function; it gets the composed configuration.
        argv: what stands behind the verb.
        spread: see `Task`.

    Returns:
        The exit code. Errors that a user can mend have been printed as one message.
    """
    traced, before = traceback_wanted(), sys.argv
    try:
        if {"--help", "-h"} & set(argv):
            print(help_of(Request.parse(verb, argv)))
            return 0
        sys.argv = [before[0], "--config-name", verb, *arranged(argv)]  # what Lightning's other processes run again
        # Hydra hands errors on instead of printing them; processes that start from here remember what the user wanted.
        with env_override({"HYDRA_FULL_ERROR": "1", "POSEGEN_TRACEBACK": str(int(traced))}):
            hydra.main(version_base="1.3", config_path=str(listing.conf_dir()), config_name=verb)(Task(task, spread))()
        return 0
    except Failed as failed:
        return tell(failed.error, verb, argv, traced)
    except Exception as error:
        return tell(error, verb, argv, traced)
    finally:
        sys.argv = before
        GlobalHydra.instance().clear()


def arranged(argv: Sequence[str]) -> list[str]:
    """Flags first, then overrides: argparse understands overrides on one side of the flags only.

    Raises:
        UserError: a flag is misspelt.
    """
    actions = {flag: action for action in get_args_parser()._actions for flag in action.option_strings}
    flags: list[str] = []
    overrides: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            overrides.append(quoted(word))
            continue
        action = actions.get(word.partition("=")[0])
        if action is None:
            raise UserError(
                str(
                    misspelt(
                        word,
                        "no such flag",
                        word.partition("=")[0],
                        (flag for flag in actions if flag.startswith("--")),
                    )
                )
            )
        flags.append(word)
        if (
            action.nargs != 0
            and "=" not in word
            and words
            and (action.nargs is None or words[0] in (action.choices or ()))
        ):
            flags.append(words.pop(0))
    return flags + overrides


def quoted(override: str) -> str:
    """An override whose value is an existing path with characters of Hydra's grammar in it (a cell's folder, say), with quotes around it."""
    key, _, value = override.partition("=")
    return f"{key}='{value}'" if set(value) & set("=,") and Path(value).exists() else override


def help_of(request: Request) -> str:
    """A verb's help: Hydra's template, with the groups from the file tree because Hydra itself takes a second to list them."""
    groups = listing.groups(request.roots)
    chosen = any(word.startswith("hydra/help=") for word in request.overrides) or request.name not in groups.get(
        "hydra/help", {}
    )
    cfg = request.having(*request.overrides, *([] if chosen else [f"hydra/help={request.name}"])).compose()
    template = Template(cfg.hydra.help.template)
    with read_write(cfg), open_dict(cfg):
        del cfg["hydra"]
    shown = {name: options for name, options in groups.items() if not name.startswith("hydra/")}
    return template.safe_substitute(APP_CONFIG_GROUPS=listing.overview(shown), CONFIG=OmegaConf.to_yaml(cfg))


# Errors.


def traceback_wanted() -> bool:
    return os.environ.get("POSEGEN_TRACEBACK", os.environ.get("HYDRA_FULL_ERROR", "0")) not in ("", "0")


def tell(error: Exception, verb: str, argv: Sequence[str], traced: bool = False) -> int:
    """Prints an error: one message where the user can mend it, the traceback where not or where it is wanted.

    Returns:
        The exit code.
    """
    if isinstance(error, BrokenPipeError):
        raise error
    if traced or not isinstance(_cause(error), EXPECTED):
        traceback.print_exception(error)
        if traced:
            return 1
    message = explain(error, verb, argv)
    known = isinstance(error, UserError) or (
        isinstance(error, HydraException) and not isinstance(error, InstantiationException)
    )
    hint = "" if known or not isinstance(_cause(error), EXPECTED) else "\nPOSEGEN_TRACEBACK=1 shows where it happened."
    print(f"posegen {verb}: {message}{hint}", file=sys.stderr)
    return 1


def explain(error: Exception, verb: str, argv: Sequence[str]) -> str:
    """What is wrong, with the nearest right names where a name is misspelt."""
    if isinstance(error, HydraException) and not isinstance(error, InstantiationException):
        from posegen.config.overrides import examine

        request = Request.parse(verb, argv)
        if request.name not in listing.primaries(request.roots):
            return f"there is no {request.name}.yaml in {request.main}"
        problems, _ = examine(request)
        return report(problems) if problems else hydra_message(error)
    cause = _cause(error)
    message = str(cause.args[0]) if isinstance(cause, KeyError) and cause.args else str(cause)
    key = (
        str(error).rpartition("full_key: ")[2].strip()
        if isinstance(error, InstantiationException) and "full_key: " in str(error)
        else ""
    )
    named = (
        message
        if isinstance(cause, (UserError, OSError)) or type(cause) is ValueError
        else f"{type(cause).__name__}: {message}"
    )
    return f"{key}: {named}" if key else named


def _cause(error: BaseException) -> BaseException:
    """What went wrong inside an instantiated class, for errors that Hydra wrapped."""
    return _cause(error.__cause__) if isinstance(error, InstantiationException) and error.__cause__ else error


def hydra_message(error: Exception) -> str:
    """Hydra's own message without the folders it looked in, and the extra that brings what it did not find."""
    cause = f"\n{error.__cause__}" if isinstance(error.__cause__, OmegaConfBaseException) else ""
    text = str(error).partition("Config search path")[0].rstrip()
    return f"{text}{cause}" + (bringing(text.rpartition("/")[2]) if "hydra/" in text else "")


def bringing(option: str) -> str:
    """The command that brings an option of Hydra's plugins, if it is one."""
    extra = next((extra for start, extra in EXTRAS.items() if option.startswith(start)), None)
    return f" (pip install 'posegen[{extra}]' brings some)" if extra else ""
