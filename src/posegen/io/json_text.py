"""Json from anywhere, read within stated limits; whatever is wrong with it is one `UserError`."""

from __future__ import annotations

import json
from typing import Any

from posegen.errors import UserError

MAX_BYTES = 1 << 30
"""Largest json file that is read; COCO's keypoints are a quarter of it."""
MAX_DEPTH = 100
"""Deepest nesting; what works through the values may recurse."""
FIX = "mend it, or write it again"


def parse_json(content: bytes | str, name: str, fix: str = FIX, limit: int = MAX_BYTES) -> Any:
    """The value of a json text in UTF-8, or in UTF-16 or UTF-32; ``NaN`` and ``Infinity`` are numbers.

    Args:
        name: of the file, or what else the text is called in an error.
        fix: what to do about a bad one; ends the message.
        limit: largest size in bytes (of a str: characters).

    Raises:
        UserError: another encoding, no json, a name twice in one object, too large, too deep, or too many digits.
    """
    try:
        if len(content) > limit:
            raise ValueError(f"it is larger than {limit >> 20} MiB")
        text = decoded(content) if isinstance(content, bytes) else content.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")
        value = json.loads(text, object_pairs_hook=_object)
        _require_shallow(value)
        return value
    except RecursionError:
        reason = f"it nests deeper than {MAX_DEPTH} levels"
    except json.JSONDecodeError as error:
        rest, place = error.doc[error.pos :].strip(), f"line {error.lineno}, column {error.colno}"
        reason = f"{error.msg[:1].lower()}{error.msg[1:]}, {place}" if rest else f"it ends too early, in {place}"
        reason = reason if error.doc.strip() else "it is empty"
    except ValueError as error:
        reason = "it has a number of thousands of digits" if "digits" in str(error) else str(error)
    raise UserError(f"{name} is not a readable json file ({reason}); {fix}")


def decoded(content: bytes) -> str:
    """The text of bytes in UTF-8, or in UTF-16 or UTF-32; a ValueError names the first byte that is none."""
    try:
        return content.decode(json.detect_encoding(content))
    except UnicodeDecodeError as error:
        place = f"byte {error.start} is 0x{content[error.start]:02x}"
        raise ValueError(f"it is no text in UTF-8: {place}; an editor can save it in UTF-8") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"{twice[:80]!r} is there twice in one object")
    return found


def _require_shallow(value: Any) -> None:
    level, depth = [value], 0
    while level := [
        inner
        for outer in level
        for inner in (outer.values() if type(outer) is dict else outer if type(outer) is list else ())
        if type(inner) is dict or type(inner) is list
    ]:
        depth += 1
        if depth >= MAX_DEPTH:
            raise RecursionError
