"""The nodes of a configuration, and the problems of single values: missing ones, and keys that nothing reads."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any, TypeGuard

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from posegen.config.problems import NO_VALUE, Problem, misspelt, plain
from posegen.errors import UserError

#: Nodes inside a ``_target_`` that posegen reads and the class does not.
BESIDE_ARGUMENTS = ("recipes", "faithful")


# Walking.


def children(node: Any) -> Iterator[tuple[str, Any]]:
    """(name, child node) of a container, the child as it stands there, unresolved."""
    if isinstance(node, (DictConfig, ListConfig)) and not (
        node._is_none() or node._is_missing() or node._is_interpolation()
    ):
        names: Iterable[Any] = list(node.keys()) if isinstance(node, DictConfig) else range(len(node))
        yield from ((str(name), node._get_node(name)) for name in names)


def inside(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def targets(node: Any, key: str = "") -> Iterator[tuple[str, DictConfig]]:
    """All nodes with a ``_target_``."""
    built = has_target(node)
    if built:
        yield key, node
    for name, child in children(node):
        if not (built and name in BESIDE_ARGUMENTS):
            yield from targets(child, inside(key, name))


def has_target(node: Any) -> TypeGuard[DictConfig]:
    return isinstance(node, DictConfig) and any(name == "_target_" for name, _ in children(node))


def target_of(node: DictConfig) -> Any:
    return value_of(node._get_node("_target_"))


def value_of(node: Any) -> Any:
    """A node as plain values.

    Raises:
        OmegaConfBaseException: an interpolation in it leads nowhere.
    """
    node = node if OmegaConf.is_config(node) else node._dereference_node()
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node._value()


def value_or_none(node: Any) -> Any:
    try:
        return value_of(node)
    except (OmegaConfBaseException, UserError):
        return None  # reported by `unresolved`


# Problems.


def leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, node) of every value, interpolation and missing container."""
    for name, child in children(node):
        if OmegaConf.is_config(child) and not (child._is_missing() or child._is_interpolation()):
            yield from leaves(child, inside(key, name))
        else:
            yield inside(key, name), child


def unresolved(cfg: DictConfig) -> list[Problem]:
    """Mandatory values that nobody gave, and interpolations that lead nowhere."""
    problems = []
    for key, leaf in leaves(cfg):
        if leaf._is_missing():
            problems.append(Problem(key, f"a value is missing; give one with {key}=VALUE", "???"))
        elif leaf._is_interpolation():
            try:
                value_of(leaf)
            except InterpolationToMissingValueError:
                continue  # the missing value is one problem and no more
            except (OmegaConfBaseException, UserError) as error:
                problems.append(Problem(key, str(error).splitlines()[0], leaf._value()))
    return problems


def unknown(cfg: DictConfig, usual: DictConfig, roots: Collection[str], key: str = "") -> list[Problem]:
    """Keys and kinds of values that the files do not have, in nodes that no class describes.

    Args:
        cfg: the configuration.
        usual: the chosen files without overrides.
        roots: groups, which may appear at the root although ``usual`` lacks them.
        key: where ``cfg`` stands.
    """
    problems = []
    for name, child in children(cfg):
        path, there = inside(key, name), usual._get_node(name, validate_access=False)
        if there is None:
            names = [str(k) for k in usual] + ([] if key else list(roots))
            if key or name not in roots:
                kind = "no such key" if key else "no such group or key"
                problems.append(
                    misspelt(
                        path, kind, name, names, value=NO_VALUE if OmegaConf.is_config(child) else value_or_none(child)
                    )
                )
        elif isinstance(child, DictConfig) and isinstance(there, DictConfig):
            if len(there) and not has_target(child) and not has_target(there):  # an empty mapping takes any key
                problems += unknown(child, there, (), path)
        elif expected := _other_kind(value := value_or_none(child), usual_value := value_or_none(there)):
            problems.append(Problem(path, f"expected {expected}; usually it is {plain(usual_value)}", value))
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
