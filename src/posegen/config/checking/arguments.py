"""The arguments of a ``_target_``: the signature of its class says which there are and what they may be."""

from __future__ import annotations

import inspect
import logging
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig

from posegen.config.nodes import children, has_target, target_path, value_or_none
from posegen.config.problems import Problem, misspelt, nearest

#: What Hydra reads itself.
HYDRA_KEYS = frozenset({"_target_", "_partial_", "_recursive_", "_convert_", "_args_"})


def argument_problems(key: str, node: DictConfig) -> list[Problem]:
    """What is wrong with the names of the arguments of the ``_target_`` of ``node``, which stands at ``key``, and with
    the classes of those that are built themselves; `posegen.config.checking.settings` judges values."""
    target = locate(target_path(node))
    if isinstance(target, str):
        return [Problem(f"{key}._target_", target, target_path(node))]
    signature = _signature(target)
    if signature is None:
        return []
    accepted, open_ended = signature
    others = HYDRA_KEYS | (set(getattr(target, "declared", ())) - accepted.keys())  # attributes, say of adapters
    given = {name: child for name, child in children(node) if name not in others}
    title = getattr(target, "__qualname__", str(target))
    problems = []
    for name, child in given.items():
        if name in accepted:
            problems += _class_problems(f"{key}.{name}", child, evaluated(accepted[name].annotation, target))
        elif not open_ended:
            value, text = value_or_none(child), f"{title} takes no such argument"
            problems.append(misspelt(f"{key}.{name}", text, name, accepted, value=value))
    if node.get("_partial_") or "_args_" in node:  # the rest comes later, or without a name
        return problems
    return problems + [
        Problem(f"{key}.{name}", f"{title} needs this argument; give it with +{key}.{name}=VALUE")
        for name, parameter in accepted.items()
        if parameter.default is parameter.empty and name not in given
    ]


def argument_types(node: DictConfig) -> Iterator[tuple[str, Any, Any, bool]]:
    """(name, child node, annotation, whether the class is posegen's) of every argument in a node with a ``_target_``
    that the signature names."""
    target = locate(target_path(node))
    accepted = {} if isinstance(target, str) else _inherited(target)
    for name, child in children(node):
        if name in accepted:
            parameter, owner = accepted[name]
            kind = evaluated(parameter.annotation, owner, null=parameter.default is None)
            yield name, child, kind, str(getattr(target, "__module__", "")).startswith("posegen.")


def _signature(target: Any) -> tuple[Mapping[str, inspect.Parameter], bool] | None:
    """(the arguments that have a name, whether there may be others); None where Python cannot tell."""
    try:
        signature = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return None
    named = {n: p for n, p in signature.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return named, any(p.kind is p.VAR_KEYWORD for p in signature.values())


def _inherited(target: Any) -> dict[str, tuple[inspect.Parameter, Any]]:
    """Name -> (argument, the class whose constructor has it), where ``**others`` go on to the constructors of bases."""
    found: dict[str, tuple[inspect.Parameter, Any]] = {}
    for owner in target.__mro__[:-1] if inspect.isclass(target) else (target,):
        named, open_ended = _signature(owner) or ({}, False)
        found |= {name: (parameter, owner) for name, parameter in named.items() if name not in found}
        if not open_ended:
            break
    return found


def _class_problems(key: str, node: Any, wanted: Any) -> list[Problem]:
    if not has_target(node):
        return []
    built = locate(target_path(node))
    ours = isinstance(wanted, type) and wanted.__module__.startswith("posegen")
    wrong = ours and isinstance(built, type) and not issubclass(built, wanted)
    return [Problem(f"{key}._target_", f"expected a {wanted.__name__}", target_path(node))] if wrong else []


def evaluated(annotation: Any, target: Any, null: bool = False) -> Any:
    """An annotation of a callable as an object, with ``null`` one that allows None; `Any` where it names something
    imported for type checkers only."""
    if annotation is inspect.Parameter.empty:
        return Any
    function = target.__init__ if inspect.isclass(target) else target
    scope = getattr(inspect.unwrap(function), "__globals__", {})
    try:
        holder = types.SimpleNamespace(__annotations__={"value": annotation})
        found = typing.get_type_hints(holder, dict(scope), include_extras=True)["value"]
        return found | None if null else found
    except (NameError, TypeError, AttributeError, SyntaxError):
        return Any


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
        hint = f"; did you mean {module}.{found}?" if found else ""
        return f"cannot be imported: {str(error.__cause__ or error).splitlines()[0]}{hint}"
    finally:
        log.disabled = before


def class_of(cfg: DictConfig, group: str) -> Any:
    """The class behind a group's ``_target_``, also where that is one of its class methods."""
    node = cfg.get(group)
    target = locate(target_path(node)) if has_target(node) else None
    return getattr(target, "__self__", target) if not isinstance(target, str) else None
