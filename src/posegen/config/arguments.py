"""The arguments of a ``_target_``, compared with its signature by pydantic in strict mode."""

from __future__ import annotations

import functools
import inspect
import json
import logging
import operator
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Any, Literal, Union

from hydra.utils import get_object
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, TypeAdapter, ValidationError

from posegen.config.nodes import children, has_target, target_nodes, target_path, value_of, value_or_none
from posegen.config.problems import Problem, misspelt, nearest
from posegen.errors import UserError

#: What Hydra reads itself.
HYDRA_KEYS = frozenset({"_target_", "_partial_", "_recursive_", "_convert_", "_args_"})
#: pydantic's errors -> the words for what was expected.
LISTS = ("list_type", "tuple_type", "set_type", "frozen_set_type", "iterable_type", "sequence_str")
WORDS = {
    **dict.fromkeys(("int_type", "int_from_float"), "an integer"),
    **dict.fromkeys(("dict_type", "mapping_type"), "a mapping"),
    **dict.fromkeys(LISTS, "a list"),
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a string",
    "none_required": "null",
    "path_type": "a path",
}
#: Errors that say that plain values cannot tell: many a class takes them (an array, a dtype, a device).
UNDECIDABLE = ("needs_python_object", "is_instance_of", "is_subclass_of", "callable_type")


def argument_problems(key: str, node: DictConfig) -> list[Problem]:
    """What is wrong with the arguments of the ``_target_`` of ``node``, which stands at ``key``."""
    target = locate(target_path(node))
    if isinstance(target, str):
        return [Problem(f"{key}._target_", target, target_path(node))]
    try:
        signature = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return []  # Python cannot tell
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.values())
    accepted = {n: p for n, p in signature.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    others = HYDRA_KEYS | (set(getattr(target, "declared", ())) - accepted.keys())  # attributes, say of adapters
    given = {name: child for name, child in children(node) if name not in others}
    title = getattr(target, "__qualname__", str(target))
    problems = []
    for name, child in given.items():
        if name in accepted:
            problems += _value_problems(f"{key}.{name}", child, accepted[name], target)
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


def _value_problems(key: str, node: Any, parameter: inspect.Parameter, target: Any) -> list[Problem]:
    wanted = evaluated(parameter.annotation, target)
    if has_target(node):
        built = locate(target_path(node))
        ours = isinstance(wanted, type) and wanted.__module__.startswith("posegen")
        wrong = ours and isinstance(built, type) and not issubclass(built, wanted)
        return [Problem(f"{key}._target_", f"expected a {wanted.__name__}", target_path(node))] if wrong else []
    if node._is_missing() or any(True for _ in target_nodes(node, key)):
        return []
    try:
        value = value_of(node)
    except (OmegaConfBaseException, UserError):
        return []  # reported by `unresolved`
    if value is None and parameter.default is None:
        return []
    return [
        Problem(".".join((key, *place)), f"expected {expected}", wrong, nearest(str(wrong), options))
        for place, expected, wrong, options in mismatches(value, wanted)
    ]


def mismatches(value: Any, annotation: Any) -> Iterator[tuple[tuple[str, ...], str, Any, list[str]]]:
    """(place inside the value, what was expected, the value there, allowed names) where an annotation is not met."""
    wanted = _names_for_enums(annotation)
    try:
        adapter = TypeAdapter(wanted, config=ConfigDict(arbitrary_types_allowed=True))
    except Exception:  # a type that pydantic cannot describe, or one with rules of its own
        return
    try:  # in JSON a list may become a tuple and a string a path
        adapter.validate_json(json.dumps(value, default=str), strict=True)
        return
    except ValidationError as error:
        errors = error.errors(include_url=False)
    union = typing.get_origin(wanted) in (Union, types.UnionType)
    members = [member for member in (typing.get_args(wanted) if union else (wanted,)) if member is not type(None)]
    null = " or null" if union and type(None) in typing.get_args(wanted) else ""
    if any(e["type"] in UNDECIDABLE for e in errors):
        ours = [m.__name__ for m in members if inspect.isclass(m) and m.__module__.startswith("posegen")]
        if value is None or (len(ours) == len(members) and not isinstance(value, Mapping)):
            yield (), f"{' or '.join(f'a {name}' for name in ours) or 'a value'}{null}", value, []
    elif len(members) > 1:  # pydantic lists an error for each member
        told = dict.fromkeys(map(_expected, errors))
        yield (), f"{' or '.join(told)}{null}", value, [name for e in errors for name in _literal_names(e)]
    else:
        for e in errors:
            place = tuple(map(str, e["loc"][:-1] if e["type"] == "missing" else e["loc"]))
            yield place, f"{_expected(e)}{'' if e['loc'] else null}", e["input"], _literal_names(e)


def _expected(error: Mapping[str, Any]) -> str:
    if options := _literal_names(error):
        return f"one of {', '.join(options)}" if len(options) > 1 else options[0]
    if error["type"] == "missing":
        return "one more value"
    return WORDS.get(error["type"]) or error["msg"].removeprefix("Input should be ")


def _literal_names(error: Mapping[str, Any]) -> list[str]:
    return re.findall(r"'([^']*)'", error["ctx"]["expected"]) if error["type"] == "literal_error" else []


def _names_for_enums(annotation: Any) -> Any:
    """Enumerations are given by the names of their members, as OmegaConf reads them."""
    if inspect.isclass(annotation) and issubclass(annotation, Enum):
        return Literal[tuple(annotation.__members__)]
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return functools.reduce(operator.or_, map(_names_for_enums, typing.get_args(annotation)))
    return annotation


def evaluated(annotation: Any, target: Any) -> Any:
    """An annotation of a callable as an object; `Any` where it names something imported for type checkers only."""
    if annotation is inspect.Parameter.empty:
        return Any
    function = target.__init__ if inspect.isclass(target) else target
    scope = getattr(inspect.unwrap(function), "__globals__", {})
    try:
        return typing.get_type_hints(types.SimpleNamespace(__annotations__={"value": annotation}), dict(scope))["value"]
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
