"""The nodes of a configuration, and the problems of single values: missing ones, and keys that nothing reads."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any, TypeGuard

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, InterpolationToMissingValueError, OmegaConfBaseException

from posegen.config.problems import NO_VALUE, Problem, as_typed, misspelt
from posegen.errors import UserError

#: How OmegaConf begins the `UserError` of a resolver.
RESOLVER_ERROR = "UserError raised while resolving interpolation: "


def children(node: Any) -> Iterator[tuple[str, Any]]:
    """(name, child node) of a container, the child as it stands there, unresolved."""
    if isinstance(node, (DictConfig, ListConfig)) and not (
        node._is_none() or node._is_missing() or node._is_interpolation()
    ):
        names: Iterable[Any] = list(node.keys()) if isinstance(node, DictConfig) else range(len(node))
        yield from ((str(name), node._get_node(name)) for name in names)


def dotted(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def target_nodes(node: Any, key: str = "") -> Iterator[tuple[str, DictConfig]]:
    """All nodes with a ``_target_``."""
    if has_target(node):
        yield key, node
    for name, child in children(node):
        yield from target_nodes(child, dotted(key, name))


def has_target(node: Any) -> TypeGuard[DictConfig]:
    return isinstance(node, DictConfig) and any(name == "_target_" for name, _ in children(node))


def target_path(node: DictConfig) -> Any:
    return value_of(node._get_node("_target_"))


def value_of(node: Any) -> Any:
    """A node as plain values; raises OmegaConf's error where an interpolation in it leads nowhere."""
    node = node if OmegaConf.is_config(node) else node._dereference_node()
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node._value()


def value_or_none(node: Any) -> Any:
    try:
        return value_of(node)
    except (OmegaConfBaseException, UserError):
        return None  # reported by `unresolved`


def origin(node: Any, key: str) -> str:
    """The key that an interpolated value is taken from, else ``key``, where ``node`` stands."""
    try:
        return node._dereference_node()._get_full_key(None) if node._is_interpolation() else key
    except (OmegaConfBaseException, UserError):
        return key


def raw_value(cfg: DictConfig, key: str) -> Any:
    """The value at a dotted key as it is written, with its interpolations."""
    plain: Any = OmegaConf.to_container(cfg, resolve=False)
    for name in key.split("."):
        plain = plain[int(name)] if isinstance(plain, list) else plain[name]
    return plain


def leaf_nodes(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, node) of every value, interpolation and missing container."""
    for name, child in children(node):
        if OmegaConf.is_config(child) and not (child._is_missing() or child._is_interpolation()):
            yield from leaf_nodes(child, dotted(key, name))
        else:
            yield dotted(key, name), child


def unresolved(cfg: DictConfig, consequences: bool = True) -> list[Problem]:
    """Mandatory values that nobody gave, and interpolations that lead nowhere; with ``consequences`` also those whose
    function fails, which wrong values elsewhere can cause."""
    problems = []
    for key, leaf in leaf_nodes(cfg):
        if leaf._is_missing():
            problems.append(Problem(key, f"a value is missing; give one with {key}=VALUE", "???"))
        elif leaf._is_interpolation():
            try:
                value_of(leaf)
            except InterpolationToMissingValueError:
                continue  # the missing value is one problem and no more
            except (OmegaConfBaseException, UserError) as error:
                line = str(error).splitlines()[0]
                if line.startswith(RESOLVER_ERROR):  # of ours: it names the key that is wrong
                    problems.append(Problem("", line[len(RESOLVER_ERROR) :]))
                elif consequences or isinstance(error, InterpolationKeyError):
                    problems.append(Problem(key, line, leaf._value()))
    return problems


def unknown(cfg: DictConfig, usual: DictConfig, roots: Collection[str], key: str = "") -> list[Problem]:
    """Keys and kinds of values that the files alone (``usual``) lack, in nodes of no class; ``roots`` are groups."""
    problems = []
    for name, was in children(usual) if key else ():
        if cfg._get_node(name, validate_access=False) is None and not has_target(was):
            problems.append(Problem(dotted(key, name), f"this key is missing; leave out ~{dotted(key, name)}"))
    for name, child in children(cfg):
        path, there = dotted(key, name), usual._get_node(name, validate_access=False)
        if there is None:
            names = [str(k) for k in usual] + ([] if key else list(roots))
            if (key or name not in roots) and not (key and has_target(child)):  # a further object, as of callbacks
                kind = "no such key" if key else "no such group or key"
                value = NO_VALUE if OmegaConf.is_config(child) else value_or_none(child)
                problems.append(misspelt(path, kind, name, names, value=value))
        elif isinstance(child, DictConfig) and isinstance(there, DictConfig):
            if len(there) and not has_target(child) and not has_target(there):  # an empty mapping takes any key
                problems += unknown(child, there, (), path)
        elif expected := _other_kind(value := value_or_none(child), usual_value := value_or_none(there)):
            problems.append(Problem(path, f"expected {expected}; usually it is {as_typed(usual_value)}", value))
    return problems


def _other_kind(value: Any, usual: Any) -> str | None:
    """The expected kind of a value that is clearly of another; ``auto`` stands in for any number."""
    if isinstance(usual, bool):
        return None if isinstance(value, bool) else "true or false"
    if not isinstance(usual, (int, float)):
        return None
    if isinstance(value, bool) or (isinstance(value, str) and value != "auto"):
        return "a number"
    return "an integer" if isinstance(usual, int) and isinstance(value, float) else None
