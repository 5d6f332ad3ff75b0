"""Text and json files, whole or absent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from posegen.errors import UserError
from posegen.io.atomic import replacing


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, sort_keys=True, default=str) + "\n")


def read_json(path: Path) -> Any:
    """The content of a json file.

    Raises:
        UserError: the file is not json; names it and the fix.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a readable json file ({error}); delete it and run the command again") from error
