"""What is wrong with single nodes of a configuration: values that are missing, keys that nothing reads, arguments that no class takes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, TypeGuard

from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from posegen.config import signatures
from posegen.config.problems import Problem, misspelt, nearest, plain
from posegen.errors import UserError

#: Groups whose classes the runner gives further arguments, so that none can be said to be missing.
COMPLETED = ("task", "logger")
#: Values of an adapter's yaml that are no arguments.
NO_ARGUMENTS = tuple(f"{where}.{name}" for where in ("adapter", "prior.adapter") for name in ("recipes", "faithful"))


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
    if has_target(node):
        yield key, node
    for name, child in children(node):
        if inside(key, name) not in NO_ARGUMENTS:
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


# Values.


def unresolved(node: Any, key: str = "") -> list[Problem]:
    """Mandatory values that nobody gave, and interpolations that lead nowhere."""
    problems = []
    for name, child in children(node):
        path = inside(key, name)
        if child._is_missing():
            problems.append(Problem(path, f"a value is missing; give one with {path}=VALUE", "???"))
        elif child._is_interpolation():
            try:
                value_of(child)
            except InterpolationToMissingValueError:
                continue  # the value itself is missing, which is one problem and no more
            except (OmegaConfBaseException, UserError) as error:
                problems.append(Problem(path, str(error).splitlines()[0], child._value()))
        else:
            problems += unresolved(child, path)
    return problems


def unknown(cfg: DictConfig, usual: DictConfig, roots: Collection[str], key: str = "") -> list[Problem]:
    """Keys and kinds of values that the files do not have, in nodes that no class describes.

    Args:
        cfg: the configuration.
        usual: what the chosen files alone make.
        roots: groups, which may appear at the root although ``usual`` lacks them.
        key: where ``cfg`` stands.
    """
    problems = []
    for name, child in children(cfg):
        path, there = inside(key, name), usual._get_node(name, validate_access=False)
        if there is None:
            names = [str(k) for k in usual] + ([] if key else list(roots))
            if key or name not in roots:
                problems.append(misspelt(path, "no such key", name, names, value=value_or_none(child)))
        elif isinstance(child, DictConfig) and isinstance(there, DictConfig):
            if len(there) and not has_target(child) and not has_target(there):  # an empty mapping takes any key
                problems += unknown(child, there, (), path)
        elif expected := _other_kind(value := value_or_none(child), value_or_none(there)):
            problems.append(Problem(path, f"expected {expected}; usually it is {plain(value_or_none(there))}", value))
    return problems


def _other_kind(value: Any, usual: Any) -> str | None:
    """What a value should have been if it is clearly of another kind than usual; ``auto`` stands in for any number."""
    if isinstance(usual, bool):
        return None if isinstance(value, bool) else "true or false"
    if not isinstance(usual, (int, float)):
        return None
    if isinstance(value, bool) or (isinstance(value, str) and value != "auto"):
        return "a number"
    return "an integer" if isinstance(usual, int) and isinstance(value, float) else None


# Arguments.


def signature(key: str, node: DictConfig) -> list[Problem]:
    """What is wrong with the arguments of one ``_target_``."""
    target = locate(target_of(node))
    if isinstance(target, str):
        return [Problem(f"{key}._target_", target, target_of(node))]
    accepted = signatures.parameters(target)
    if accepted is None:
        return []
    given = {
        name: child
        for name, child in children(node)
        if name not in signatures.HYDRA_KEYS and inside(key, name) not in NO_ARGUMENTS
    }
    title = getattr(target, "__qualname__", str(target))
    problems = []
    for name, child in given.items():
        if name in accepted:
            problems += _argument(f"{key}.{name}", child, accepted[name])
        else:
            problems.append(
                misspelt(f"{key}.{name}", f"{title} takes no such argument", name, accepted, value=value_or_none(child))
            )
    required = [
        name for name, parameter in accepted.items() if parameter.default is parameter.empty and name not in given
    ]
    if key.split(".")[0] in COMPLETED or node.get("_partial_") or "_args_" in node:
        required = []
    return problems + [
        Problem(f"{key}.{name}", f"{title} needs this argument; give it with +{key}.{name}=VALUE") for name in required
    ]


def _argument(key: str, node: Any, parameter: Any) -> list[Problem]:
    """What is wrong with the value of one argument."""
    if has_target(node):
        built, wanted = locate(target_of(node)), parameter.annotation
        wrong = (
            isinstance(built, type)
            and isinstance(wanted, type)
            and wanted.__module__.startswith("posegen")
            and not issubclass(built, wanted)
        )
        return [Problem(f"{key}._target_", f"expected a {wanted.__name__}", target_of(node))] if wrong else []
    if node._is_missing() or any(True for _ in targets(node, key)):
        return []
    try:
        value = value_of(node)
    except (OmegaConfBaseException, UserError):
        return []  # reported by `unresolved`
    if value is None and parameter.default is None:
        return []
    expected = signatures.expectation(value, parameter.annotation)
    return (
        [Problem(key, f"expected {expected}", value, nearest(str(value), signatures.options(parameter.annotation)))]
        if expected
        else []
    )


def locate(path: Any) -> Callable[..., Any] | str:
    """The class or function of a dotted path, or why there is none."""
    log = logging.getLogger("hydra.utils")
    before, log.disabled = log.disabled, True  # the reason is returned, not logged
    try:
        return get_object(path)
    except Exception as error:  # importing foreign code may raise anything
        module, _, name = str(path).rpartition(".")
        names = vars(sys.modules[module]) if module in sys.modules else {}
        found = nearest(name, (n for n in names if not n.startswith("_")))
        return f"cannot be imported: {str(error.__cause__ or error).splitlines()[0]}" + (
            f"; did you mean {module}.{found}?" if found else ""
        )
    finally:
        log.disabled = before
