"""Examines a command line's overrides one by one, so that all misspelt names are found at once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from posegen.config.app import Request, bringing, hydra_message
from posegen.config.groups import Option, groups
from posegen.config.problems import Problem, misspelt, nearest

Groups = Mapping[str, Mapping[str, Option]]


def examine(request: Request) -> tuple[list[Problem], Request]:
    """What is wrong with single overrides.

    Returns:
        The problems, and the request without the overrides that have one.
    """
    known = groups(request.roots)
    wrong: dict[str, list[Problem]] = {}
    choices, keys = [], []
    for word in request.overrides:
        try:
            [override] = OverridesParser.create().parse_overrides([word])
        except OverrideParseException as error:
            wrong[word] = [_unreadable(word, known, error)]
            continue
        group = override.key_or_group
        if group not in known and not group.startswith("hydra/"):
            keys.append((word, override))
        elif problems := _options(override, {*known.get(group, ()), *_brought_by_hydra(group)}):
            wrong[word] = problems
        else:
            choices.append(override)
    wrong |= _keys(request.having(*map(settled, choices)), keys, known)
    good = request.having(*(word for word in request.overrides if word not in wrong))
    return [problem for problems in wrong.values() for problem in problems], good


def settled(override: Override) -> str:
    """The override as it was given, or the first value of a sweep."""
    if not override.is_sweep_override():
        return override.input_line or ""
    return f"{override.get_key_element()}={next(iter(override.sweep_string_iterator()))}"


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
    """Options that Hydra and its installed plugins bring to its own groups."""
    if not group.startswith("hydra/"):
        return []
    files = Path(hydra.__file__).parent.joinpath("conf", group).glob("*.yaml")
    try:
        stored = ConfigStore.instance().list(group)  # filled by the plugins, which `hydra_app` has had discovered
    except OSError:
        stored = []
    return [*(file.stem for file in files), *(name.removesuffix(".yaml") for name in stored)]


def _keys(request: Request, overrides: Iterable[tuple[str, Override]], known: Groups) -> dict[str, list[Problem]]:
    """Problems of ``key=value`` by override, judged against the configuration that the chosen options make."""
    overrides = list(overrides)
    if not overrides:
        return {}
    try:
        cfg = request.compose()
    except (HydraException, OmegaConfBaseException) as error:
        return {"": [Problem(request.name, hydra_message(error))]}
    judged = {
        word: _key(override, cfg, known)
        for word, override in overrides
        if override.key_or_group.split(".")[0] != "hydra"
    }
    return {word: [problem] for word, problem in judged.items() if problem}


def _key(override: Override, cfg: DictConfig, known: Groups) -> Problem | None:
    key = override.key_or_group
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent, throw_on_resolution_failure=False) if parent else cfg
    if not isinstance(node, DictConfig):
        return None if OmegaConf.is_list(node) else _key_of(override, parent, cfg, known)
    if name in node.keys():  # noqa: SIM118  (a node does not "contain" keys whose value is missing)
        return None
    if override.is_add() or override.is_force_add():
        return None  # whether it is understood is for `check` to say, which looks at signatures
    siblings = {str(k) for k in node if k != "hydra" and not str(k).startswith("_")} | (
        set() if parent else {g for g in known if "/" not in g}
    )
    found = nearest(name, siblings)
    return Problem(
        key,
        "no such group or key" if not parent else "no such key",
        nearest=f"{parent}.{found}" if parent and found else found,
        available=sorted(siblings),
        file=file_of(key, cfg, known),
    )


def _key_of(override: Override, parent: str, cfg: DictConfig, known: Groups) -> Problem | None:
    """The problem of a key whose parent does not exist: it is the parent that is misspelt."""
    above, _, name = parent.rpartition(".")
    node = OmegaConf.select(cfg, above, throw_on_resolution_failure=False) if above else cfg
    if node is None:
        return _key_of(override, above, cfg, known)
    if not isinstance(node, DictConfig):
        return Problem(override.key_or_group, f"{above} is {node!r} and holds no keys")
    if name in node and node[name] is not None:
        return Problem(
            override.key_or_group, f"{parent} is {node[name]!r} and holds no keys", file=file_of(parent, cfg, known)
        )
    if name in node or override.is_add() or override.is_force_add():
        return None
    names = [str(k) for k in node if k != "hydra" and not str(k).startswith("_")]
    found = nearest(name, names)
    return Problem(
        override.key_or_group,
        f"there is no {parent}",
        nearest=found and ".".join(filter(None, (above, found))),
        available=sorted(names),
    )


def _unreadable(word: str, known: Groups, error: Exception) -> Problem:
    """The problem of a word that is no override, which may be an option without its group."""
    if "=" in word:
        return Problem(word, f"cannot be read: {error}")
    exact = [f"{group}={word}" for group in known if word in known[group]]
    close = [f"{group}={near}" for group in known if (near := nearest(word, known[group]))]
    found = " or ".join(exact or close[:1]) or None
    return Problem(word, "expected group=option or key=value", nearest=found)


def file_of(key: str, cfg: DictConfig, known: Groups) -> str | None:
    """The file that the group of a key was read from, as short as it can be said."""
    choices = dict(OmegaConf.select(cfg, "hydra.runtime.choices") or {})
    group = key.split(".")[0]
    option = known.get(group, {}).get(str(choices.get(group)))
    return shown(option) if option else None


def shown(option: Option) -> str:
    """``conf/adapter/controlnet.yaml``, or the folder it lies in where that is no ``conf``."""
    root = option.file.parents[len(option.name.split("/")) + len(option.group.split("/")) - 1]
    return str(option.file.relative_to(root.parent))
