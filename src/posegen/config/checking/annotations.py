"""Values compared with annotations by pydantic in strict mode, and annotations in words.

The words come from the JSON schema that pydantic derives, so that a range or a choice is written once, in a signature
or in `posegen.config.schema`, and the check, the documentation and the tests read it there.
"""

from __future__ import annotations

import functools
import inspect
import json
import operator
import types
import typing
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, Literal, Union

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.json_schema import GenerateJsonSchema

#: Errors that say that plain values cannot tell: many a class takes them (an array, a dtype, a device).
UNDECIDABLE = ("needs_python_object", "is_instance_of", "is_subclass_of", "callable_type")
#: Errors that say that a list is expected.
LISTS = ("list_type", "tuple_type", "set_type", "frozen_set_type", "iterable_type", "sequence_str")
#: Types of JSON -> one of them, several of them.
NOUNS = {
    "integer": ("an integer", "integers"),
    "number": ("a number", "numbers"),
    "boolean": ("true or false", "true or false"),
    "string": ("a string", "strings"),
    "array": ("a list", "lists"),
    "object": ("a mapping", "mappings"),
    "null": ("null", "null"),
}
#: Where a value stands inside another one, what was expected there, the value, allowed names.
Mismatch = tuple[tuple[str, ...], str, Any, list[str]]


class WordsSchema(GenerateJsonSchema):
    """pydantic's JSON schema, in which what JSON cannot hold is anything."""

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> dict[str, Any]:
        return {}


@functools.lru_cache(maxsize=4096)
def _adapter(annotation: Any, finite: bool) -> TypeAdapter[Any] | None:
    """None for a type that pydantic cannot describe, or one with rules of its own."""
    try:
        rules = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=not finite)
        return TypeAdapter(_names_for_enums(annotation), config=rules)
    except Exception:  # foreign annotations may raise anything
        return None


def json_schema(annotation: Any) -> Mapping[str, Any]:
    """What an annotation allows as a JSON schema, empty where that is anything."""
    adapter = _adapter(annotation, True)
    try:
        found = adapter.json_schema(schema_generator=WordsSchema) if adapter else {}
    except Exception:  # as above
        return {}
    return _inlined(found, found.get("$defs", {}))


def _inlined(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """A schema with its definitions where it refers to them; one that contains itself is a mapping of anything."""
    if isinstance(schema, list):
        return [_inlined(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    name = str(schema.get("$ref", "")).rpartition("/")[2]
    others = {key: value for key, value in definitions.items() if key != name}
    if name:
        return _inlined(definitions[name], others) if name in definitions else {"type": "object"}
    return {key: _inlined(part, definitions) for key, part in schema.items() if key != "$defs"}


def mismatches(value: Any, annotation: Any, finite: bool = False) -> Iterator[Mismatch]:
    """Where an annotation is not met; ``finite``: NaN and infinity are no numbers."""
    adapter = _adapter(annotation, finite)
    if adapter is None:
        return
    try:  # in JSON a list may become a tuple and a string a path
        adapter.validate_json(json.dumps(value, default=str), strict=True)
        return
    except ValidationError as error:
        errors = error.errors(include_url=False)
    members = [member for member in _members(annotation) if member is not type(None)]
    null = " or null" if len(members) < len(_members(annotation)) else ""
    schema = json_schema(annotation)
    if any(e["type"] in UNDECIDABLE for e in errors):
        ours = [m for m in members if inspect.isclass(m) and m.__module__.startswith("posegen")]
        plain = [words(each) for each in map(json_schema, members) if each]
        if value is None or (len(ours) + len(plain) == len(members) and not isinstance(value, Mapping)):
            named = [*plain, *(f"a {kind.__name__}" for kind in ours)]
            yield (), f"{' or '.join(named) or 'a value'}{null}", value, [n for e in errors for n in _literal_names(e)]
    elif len(members) > 1:  # pydantic lists an error for each member
        said = next(filter(None, map(_reason, errors)), None) or words(schema)
        if isinstance(value, str) and any(option.get("type") == "array" for option in options_of(schema)):
            said += f", for instance [{value}]"
        yield (), said, value, [name for e in errors for name in _literal_names(e)]
    else:
        for e in errors:
            missing = e["type"] == "missing"
            place = e["loc"][:-1] if missing else e["loc"]
            expected = "one more value" if missing else _reason(e) or words(_inner(schema, place))
            if e["type"] == "extra_forbidden":
                known = [name for o in options_of(_inner(schema, place[:-1])) for name in o.get("properties", ())]
                expected = f"no such key, but some of {', '.join(known)}"
            if e["type"] in LISTS and isinstance(e["input"], str):
                expected += f", for instance [{e['input']}]"
            yield tuple(map(str, place)), expected, e["input"], _literal_names(e)


def _members(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) is typing.Annotated and _members(annotation.__origin__)[1:]:
        return _members(annotation.__origin__)
    union = typing.get_origin(annotation) in (Union, types.UnionType)
    return typing.get_args(annotation) if union else (annotation,)


def _reason(error: Mapping[str, Any]) -> str | None:
    """What a validator of ours or of a third party says, or pydantic on what is not finite."""
    if error["type"] in ("value_error", "assertion_error"):
        return str(error["ctx"]["error"])
    return "a finite number" if error["type"] == "finite_number" else None


def _literal_names(error: Mapping[str, Any]) -> list[str]:
    if error["type"] != "literal_error":
        return []
    return [part.strip("'") for part in error["ctx"]["expected"].replace(" or ", ", ").split(", ")]


def _names_for_enums(annotation: Any) -> Any:
    """Enumerations are given by the names of their members, as OmegaConf reads them."""
    if inspect.isclass(annotation) and issubclass(annotation, Enum):
        return Literal[tuple(annotation.__members__)]
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return functools.reduce(operator.or_, map(_names_for_enums, typing.get_args(annotation)))
    return annotation


# Words.


def options_of(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The alternatives of a schema; a schema without alternatives is its only one."""
    return list(schema.get("anyOf", [schema]))


def names_in(schema: Mapping[str, Any]) -> list[Any]:
    """The values that a schema lists one by one."""
    listed = (option.get("enum", [option["const"]] if "const" in option else []) for option in options_of(schema))
    return [name for names in listed for name in names]


def words(schema: Mapping[str, Any], several: bool = False) -> str:
    """``an integer of at least 1, or null``; empty where anything is allowed ``several`` times."""
    if "anyOf" in schema:
        ordered = sorted(schema["anyOf"], key=lambda option: option.get("type") == "null")
        *first, last = dict.fromkeys(words(option, several) for option in ordered)
        comma = "," if any(" " in part.removeprefix("an ").removeprefix("a ") for part in first) else ""
        return f"{' or '.join(first)}{comma} or {last}" if first else last
    if names := names_in(schema):
        shown = [str(name).lower() if isinstance(name, bool) else str(name) for name in names]
        return shown[0] if len(shown) == 1 else f"one of {', '.join(shown)}"
    kind = schema.get("type")
    if kind is None:
        return "values" if several else "a value"
    text = "paths" if several else "a path"
    text = text if schema.get("format") == "path" else NOUNS[kind][several]
    if kind in ("integer", "number"):
        text += range_words(schema)
    elif kind == "array":
        text += _items(schema)
    elif kind == "string" and schema.get("minLength"):
        text += " that is not empty"
    return text


def range_words(schema: Mapping[str, Any]) -> str:
    """`` from 0 to 1``, `` of at least 1``, `` above 0``; empty without a range."""
    least, most = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if schema.get("type") == "integer":  # pydantic's PositiveInt is above 0
        least, above = (above + 1, None) if above is not None else (least, None)
        most, below = (below - 1, None) if below is not None else (most, None)
    if least is not None and most is not None:
        text = f" from {_short(least)} to {_short(most)}"
    else:
        ends = {" of at least ": least, " above ": above, " of at most ": most, " below ": below}
        text = " and".join(f"{word}{_short(end)}" for word, end in ends.items() if end is not None)
    return text + (f" in steps of {step}" if (step := schema.get("multipleOf")) else "")


def _short(number: float) -> str:
    return f"{number:g}" if isinstance(number, float) else str(number)


def _items(schema: Mapping[str, Any]) -> str:
    first = schema.get("prefixItems", [])
    of = words(first[0] if first else schema.get("items") or {}, several=True)
    if first and any(item != first[0] for item in first):
        return f" of {', '.join(words(item) for item in first)}"
    count = f"{len(first)} " if first else "at least 1 " if schema.get("minItems") == 1 else ""
    return f" of {count}{of}" if count or of != "values" else ""


def _inner(schema: Mapping[str, Any], place: tuple[Any, ...]) -> Mapping[str, Any]:
    """The schema of what stands at ``place`` inside a value."""
    for part in place:
        options = [option for option in options_of(schema) if option.get("type") in ("array", "object")]
        schema = options[0] if options else {}
        first = schema.get("prefixItems", [])
        within = first[part] if isinstance(part, int) and part < len(first) else schema.get("items")
        schema = within or schema.get("properties", {}).get(part) or schema.get("additionalProperties") or {}
    return schema if isinstance(schema, Mapping) else {}
