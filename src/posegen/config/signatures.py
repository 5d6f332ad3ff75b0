"""Compares plain values with the annotations of the parameters they are meant for."""

from __future__ import annotations

import collections.abc
import inspect
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, Literal, Union

#: What Hydra reads itself.
HYDRA_KEYS = frozenset({"_target_", "_partial_", "_recursive_", "_convert_", "_args_"})
NUMBERS = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a string",
    type(None): "null",
    os.PathLike: "a path",
}
SEQUENCES = (
    list,
    tuple,
    set,
    frozenset,
    collections.abc.Sequence,
    collections.abc.Iterable,
    collections.abc.Collection,
    collections.abc.Set,
)
MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


def parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter] | None:
    """A callable's parameters by name with evaluated annotations; None where Python cannot tell or where any name is accepted."""
    try:
        found = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_KEYWORD for p in found.values()):
        return None
    function = target.__init__ if inspect.isclass(target) else target
    scope = getattr(inspect.unwrap(function), "__globals__", {})
    named = {n: p for n, p in found.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return {name: p.replace(annotation=_evaluated(p.annotation, scope)) for name, p in named.items()}


def _evaluated(annotation: Any, scope: Mapping[str, Any]) -> Any:
    """An annotation as an object; `Any` where it names something that is imported for type checkers only."""
    if annotation is inspect.Parameter.empty:
        return Any
    try:
        return typing.get_type_hints(types.SimpleNamespace(__annotations__={"value": annotation}), dict(scope))["value"]
    except (NameError, TypeError, AttributeError, SyntaxError):
        return Any


def expectation(value: Any, annotation: Any) -> str | None:
    """What the annotation asks for, in words, if ``value`` is not that; None if it is, or if one cannot tell.

    Args:
        value: plain values, lists and mappings, as a configuration resolves them.
        annotation: an evaluated type annotation.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any or isinstance(annotation, (typing.TypeVar, typing.ParamSpec)) or annotation is object:
        return None
    if origin in (Union, types.UnionType):
        return None if any(expectation(value, a) is None for a in arguments) else " or ".join(map(describe, arguments))
    if origin is typing.Annotated:
        return expectation(value, arguments[0])
    if origin is Literal:
        return None if any(value == a and type(value) is type(a) for a in arguments) else describe(annotation)
    if (origin or annotation) in MAPPINGS:
        return _in_mapping(value, annotation, arguments)
    if (origin or annotation) in SEQUENCES:
        return _in_sequence(value, annotation, arguments)
    return None if _fits_class(value, origin or annotation) else describe(annotation)


def _in_mapping(value: Any, annotation: Any, arguments: Sequence[Any]) -> str | None:
    if not isinstance(value, Mapping):
        return describe(annotation)
    wrong = next((v for v in value.values() if len(arguments) == 2 and expectation(v, arguments[1])), None)
    return f"{describe(annotation)}, but it holds {wrong!r}" if wrong is not None else None


def _in_sequence(value: Any, annotation: Any, arguments: Sequence[Any]) -> str | None:
    if not isinstance(value, (list, tuple)):
        return describe(annotation)
    fixed = typing.get_origin(annotation) is tuple and arguments and Ellipsis not in arguments
    if fixed and len(value) != len(arguments):
        return f"{describe(annotation)}, but it holds {len(value)}"
    expected = arguments if fixed else [a for a in arguments if a is not Ellipsis][:1] * len(value)
    wrong = [f"{v!r}" for v, a in zip(value, expected, strict=False) if expectation(v, a)]
    return f"{describe(annotation)}, but it holds {wrong[0]}" if wrong else None


def _fits_class(value: Any, wanted: Any) -> bool:
    """Whether a value is one of a class; where the class is not a plain one only a plain value can be told to be wrong."""
    if wanted is None or wanted is type(None):
        return value is None
    if wanted is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if wanted in (bool, str):
        return isinstance(value, wanted)
    if not inspect.isclass(wanted):
        return True
    if issubclass(wanted, os.PathLike):
        return isinstance(value, (str, os.PathLike))
    if issubclass(wanted, Enum):
        return isinstance(value, wanted) or value in wanted.__members__
    return value is not None and (isinstance(value, (wanted, Mapping)) or _unknowable(wanted))


def _unknowable(wanted: type) -> bool:
    """Classes outside posegen, which may well accept plain values (an array, a dtype, a device)."""
    return not wanted.__module__.startswith("posegen")


def describe(annotation: Any) -> str:
    """An annotation in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in NUMBERS:
        return NUMBERS[annotation]
    if annotation is None:
        return "null"
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}" if len(arguments) > 1 else str(arguments[0])
    if origin in (Union, types.UnionType):
        return " or ".join(map(describe, arguments))
    if (origin or annotation) in MAPPINGS:
        return "a mapping"
    if (origin or annotation) in SEQUENCES:
        inner = [describe(a) for a in arguments if a is not Ellipsis]
        if origin is tuple and inner and Ellipsis not in arguments:
            return f"a list of {len(inner)} ({', '.join(inner)})"
        return f"a list, each {inner[0]}" if inner else "a list"
    if inspect.isclass(annotation) and issubclass(annotation, os.PathLike):
        return "a path"
    if inspect.isclass(annotation) and issubclass(annotation, Enum):
        return f"one of {', '.join(annotation.__members__)}"
    return f"a {annotation.__name__}" if inspect.isclass(annotation) else str(annotation)


def options(annotation: Any) -> list[str]:
    """The names that an annotation allows, for suggestions: literals and members of enumerations."""
    if typing.get_origin(annotation) is Literal:
        return [a for a in typing.get_args(annotation) if isinstance(a, str)]
    if inspect.isclass(annotation) and issubclass(annotation, Enum):
        return list(annotation.__members__)
    return [
        name
        for a in typing.get_args(annotation)
        if typing.get_origin(annotation) in (Union, types.UnionType)
        for name in options(a)
    ]


def is_subclass(target: Any, wanted: Any) -> bool:
    return inspect.isclass(target) and inspect.isclass(wanted) and issubclass(target, wanted)
