"""Judges a command line's overrides one by one, so that all misspelt names are found at once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError

from posegen.config.groups import Option, groups, shown
from posegen.config.problems import Problem, misspelt, nearest
from posegen.config.sweep import Axis

Groups = Mapping[str, Mapping[str, Option]]
#: Extras that bring options of Hydra's own groups, by how the options' names begin.
EXTRAS = {"submitit": "sweep", "ray": "ray", "optuna": "optuna"}


def judge_overrides(
    words: Sequence[str], compose: Callable[[Sequence[str]], DictConfig], roots: Sequence[Path]
) -> tuple[list[Problem], list[str]]:
    """What is wrong with single overrides.

    Args:
        words: the overrides.
        compose: composes the configuration of some of them.
        roots: folders with groups.

    Returns:
        The problems, and the overrides that have none.

    Raises:
        HydraException: the files alone do not compose.
    """
    known = groups(roots)
    wrong: dict[str, list[Problem]] = {}
    choices: list[str] = []
    keys: dict[str, Override] = {}
    for word in words:
        try:
            [override] = OverridesParser.create().parse_overrides([word])
        except OverrideParseException as error:
            wrong[word] = [_unreadable(word, known, error)]
            continue
        group = override.key_or_group
        if group not in known and not group.startswith("hydra/"):
            keys[word] = override
        elif problems := _options(override, {*known.get(group, ()), *_brought_by_hydra(group)}):
            wrong[word] = problems
        else:
            choices.append(Axis.of(override).words[0])
    judged = {word: override for word, override in keys.items() if not override.key_or_group.startswith("hydra.")}
    if judged:
        cfg = compose(choices)
        wrong |= {word: [found] for word, override in judged.items() if (found := _key(override, cfg, known))}
    return [problem for problems in wrong.values() for problem in problems], [w for w in words if w not in wrong]


def _options(override: Override, options: Collection[str]) -> list[Problem]:
    """Problems of ``group=option``."""
    if override.is_delete() or override.value() is None:
        return []
    values = override.sweep_string_iterator() if override.is_sweep_override() else [override.get_value_string()]
    names = {name for value in values for name in str(value).strip("[]'\"").split(",")} - {"null", ""}
    group = override.key_or_group
    return [
        misspelt(f"{group}={name}", f"no such option{bringing(name)}", name, options)
        for name in sorted(names - set(options))
    ]


def _brought_by_hydra(group: str) -> list[str]:
    """Options that Hydra and its installed plugins bring to Hydra's groups."""
    if not group.startswith("hydra/"):
        return []
    files = Path(hydra.__file__).parent.joinpath("conf", group).glob("*.yaml")
    try:
        stored = ConfigStore.instance().list(group)  # filled by the plugins
    except OSError:
        stored = []
    return [*(file.stem for file in files), *(name.removesuffix(".yaml") for name in stored)]


def _key(override: Override, cfg: DictConfig, known: Groups) -> Problem | None:
    """The problem of ``key=value`` in the configuration that the chosen options give."""
    key = override.key_or_group
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent, throw_on_resolution_failure=False) if parent else cfg
    if not isinstance(node, DictConfig):
        return None if OmegaConf.is_list(node) else _parent(override, parent, cfg, known)
    if name in node.keys():  # noqa: SIM118  (a node does not "contain" keys whose value is missing)
        return None
    if override.is_add() or override.is_force_add():
        return None  # the check knows whether anything reads it
    siblings = {*_names(node), *(() if parent else (g for g in known if "/" not in g))}
    found = nearest(name, siblings)
    return Problem(
        key,
        "no such key" if parent else "no such group or key",
        nearest=f"{parent}.{found}" if parent and found else found,
        available=sorted(siblings),
        file=_file_of(key, cfg, known),
    )


def _parent(override: Override, parent: str, cfg: DictConfig, known: Groups) -> Problem | None:
    """The problem of a key whose parent does not exist: the parent is misspelt."""
    key = override.key_or_group
    above, _, name = parent.rpartition(".")
    node = OmegaConf.select(cfg, above, throw_on_resolution_failure=False) if above else cfg
    if node is None:
        return _parent(override, above, cfg, known)
    if not isinstance(node, DictConfig):
        return Problem(key, f"{above} is {node!r} and holds no keys")
    if name in node and node[name] is not None:
        return Problem(key, f"{parent} is {node[name]!r} and holds no keys", file=_file_of(parent, cfg, known))
    if name in node or override.is_add() or override.is_force_add():
        return None
    found = nearest(name, _names(node))
    near = ".".join(filter(None, (above, found))) if found else None
    return Problem(key, f"there is no {parent}", nearest=near, available=sorted(_names(node)))


def _names(node: DictConfig) -> list[str]:
    return [str(key) for key in node if key != "hydra" and not str(key).startswith("_")]


def _unreadable(word: str, known: Groups, error: Exception) -> Problem:
    """The problem of a word that is no override; it may be an option without its group."""
    if "=" in word:
        return Problem(word, f"cannot be read: {error}")
    exact = [f"{group}={word}" for group in known if word in known[group]]
    close = [f"{group}={near}" for group in known if (near := nearest(word, known[group]))]
    return Problem(word, "expected group=option or key=value", nearest=" or ".join(exact or close[:1]) or None)


def _file_of(key: str, cfg: DictConfig, known: Groups) -> str | None:
    """The file of the option that was chosen for a key's group."""
    group = key.split(".")[0]
    option = known.get(group, {}).get(str(cfg.hydra.runtime.choices.get(group)))
    return shown(option) if option else None


def hydra_message(error: BaseException) -> str:
    """Hydra's message without the folders it looked in, and the extra that brings what it did not find; of a broken yaml, its place."""
    if isinstance(error, MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return f"{mark.name}, line {mark.line + 1}: this is no yaml: {error.problem}"
    cause = f"\n{error.__cause__}" if isinstance(error.__cause__, OmegaConfBaseException) else ""
    text = str(error).partition("Config search path")[0].rstrip()
    return f"{text}{cause}" + (bringing(text.rpartition("/")[2]) if "hydra/" in text else "")


def bringing(option: str) -> str:
    """The command that brings an option of Hydra's plugins, if it is one."""
    extra = next((extra for start, extra in EXTRAS.items() if option.startswith(start)), None)
    return f" (pip install 'posegen[{extra}]' brings some)" if extra else ""
