"""The one place where a name in a file becomes a class: nothing that the file names is imported or called unseen.

A results folder, a method folder or a backbone may come from someone else. The class that such a file names must
inherit from the class that is expected there, and its module must be imported already, belong to posegen, or to a
package that the user has put on the search path (POSEGEN_SEARCHPATH, ``hydra.searchpath``). Values are taken as they
stand: no ``${...}`` in a file is resolved.
"""

from __future__ import annotations

import inspect
import re
import sys
import typing
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from hydra.core.hydra_config import HydraConfig

from posegen.config import groups
from posegen.config.checking.annotations import mismatches
from posegen.config.checking.arguments import HYDRA_KEYS, evaluated
from posegen.errors import UserError

Kind = TypeVar("Kind")
TARGET = "_target_"


def on_search_path(name: str) -> bool:
    """Whether the dotted name belongs to posegen, to a package on the search path, or is named by a yaml file there."""
    top = name.partition(".")[0]
    entries = groups.third_party()
    if HydraConfig.initialized():
        sources = HydraConfig.get().runtime.config_sources
        others = ("hydra", "schema", "main", "posegen")
        entries += [f"{source.schema}://{source.path}" for source in sources if source.provider not in others]
    for scheme, _, path in (groups.searchable(entry).partition("://") for entry in entries):
        if scheme == "pkg" and path.replace("/", ".").strip(".").partition(".")[0] == top:
            return True
    folders = [folder for entry in entries if entry.startswith("file://") and (folder := groups.folder_of(entry))]
    files = (file for folder in folders for file in folder.rglob("*.yaml"))
    wanted = re.compile(rf"""_target_:\s*["']?{re.escape(name)}(?![\w.])""")
    return top == "posegen" or any(wanted.search(file.read_text("utf-8", "replace")) for file in files)


def found_class(name: str) -> Any:
    """The object of a dotted name; None where its module is neither imported nor on the search path, or lacks it."""
    module, _, attribute = name.rpartition(".")
    if module not in sys.modules and on_search_path(name):
        try:
            import_module(module)
        except Exception:  # a package may raise anything when it is imported
            return None
    return getattr(sys.modules.get(module), "__dict__", {}).get(attribute)


def named_class(name: Any, kind: type[Kind], what: str, file: Path) -> type[Kind]:
    """The class that a file names, if it inherits from ``kind``; ``what`` is the kind in words."""
    found = found_class(name) if isinstance(name, str) else None
    if not (isinstance(found, type) and issubclass(found, kind)):
        fix = "Import its package first, or put it on the search path (POSEGEN_SEARCHPATH=pkg://PACKAGE.conf)"
        raise UserError(f"{file} names the class {str(name)[:200]}, which is no {what}; nothing was run. {fix}")
    return found


def built(node: Any, kind: type[Kind], what: str, file: Path, key: str = "") -> Kind:
    """The object that a node of a file describes: a class by ``_target_``, and its arguments.

    Nodes inside are built where an argument's type names the class that they must be. A `UserError` names ``file`` and
    ``key`` where a class or an argument is another.
    """
    if not isinstance(node, Mapping):
        raise UserError(f"{file}: {key} is {repr(node)[:200]}; expected the description of a {what}")
    cls, given = named_class(node.get(TARGET), kind, what, file), {k: v for k, v in node.items() if k != TARGET}
    if orders := sorted(HYDRA_KEYS & given.keys()):
        raise UserError(f"{file}: {key} has {', '.join(orders)}, which no recorded object needs; nothing was run")
    inside = {name: f"{key}.{name}".lstrip(".") for name, value in given.items() if _has_target(value)}
    objects = {name: _built_inside(given[name], _annotation(cls, name), file, place) for name, place in inside.items()}
    return constructed(cls, {**given, **objects}, file, key)


def constructed(cls: type[Kind], arguments: Mapping[str, Any], file: Path, key: str = "") -> Kind:
    """An object of a class with the arguments that stand at ``key`` of a file; a `UserError` names a wrong one."""
    for name, value in arguments.items():
        place = f"{key}.{name}".lstrip(".")
        for inner, expected, wrong, _ in mismatches(value, _annotation(cls, name)) if _plain(value) else ():
            raise UserError(f"{file}: {'.'.join((place, *inner))} is {repr(wrong)[:200]}; expected {expected}")
    try:
        return cls(**arguments)
    except ValueError as error:
        raise UserError(f"{file}: {key or 'kwargs'}: {error}") from error
    except (TypeError, AttributeError, LookupError, ArithmeticError) as error:
        known = ", ".join(inspect.signature(cls).parameters)
        text = f"{key or 'kwargs'} does not fit {cls.__name__}, which takes {known}; write it again"
        raise UserError(f"{file}: {text}") from error


def _built_inside(value: Any, annotation: Any, file: Path, key: str) -> Any:
    """The objects inside an argument, in lists and mappings, too."""
    if isinstance(value, Mapping) and TARGET not in value:
        return {name: _built_inside(each, annotation, file, f"{key}.{name}") for name, each in value.items()}
    if isinstance(value, list):
        return [_built_inside(each, annotation, file, f"{key}.{i}") for i, each in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    kinds = [kind for kind in _classes(annotation) if on_search_path(f"{kind.__module__}.{kind.__qualname__}")]
    if not kinds:
        found = f"{key} names the class {str(value[TARGET])[:200]}"
        raise UserError(f"{file}: {found}, where none belongs; nothing was run")
    return built(value, kinds[0], kinds[0].__name__, file, key)


def _classes(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type) and not typing.get_args(annotation):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from _classes(inner)


def _plain(value: Any) -> bool:
    """Whether a value could stand in a file as it is."""
    if isinstance(value, Mapping | list):
        return all(map(_plain, value.values() if isinstance(value, Mapping) else value))
    return value is None or isinstance(value, str | int | float)


def _has_target(value: Any) -> bool:
    if isinstance(value, Mapping):
        return TARGET in value or any(map(_has_target, value.values()))
    return isinstance(value, list) and any(map(_has_target, value))


def _annotation(cls: type, name: str) -> Any:
    """The type of a constructor's argument; of one that only a base class's constructor names, that one's."""
    for base in cls.__mro__:
        if "__init__" in vars(base):
            parameter = inspect.signature(vars(base)["__init__"]).parameters.get(name)
            if parameter is not None:
                return evaluated(parameter.annotation, base)
    return Any
