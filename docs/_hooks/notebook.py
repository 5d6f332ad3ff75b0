"""A notebook as a page: its text, its code, and what the code printed and drew when it was last run."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any


def pages(file: Path) -> dict[str, str | bytes]:
    """Path -> content of the notebook's page and of its pictures."""
    parts: list[str] = []
    made: dict[str, str | bytes] = {}
    for number, cell in enumerate(json.loads(file.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for place, output in enumerate(cell.get("outputs", [])):
            picture = output.get("data", {}).get("image/png")
            if picture:
                name = f"{file.stem}_{number}_{place}.png"
                made[name] = base64.b64decode(picture)
                parts.append(f"![What the code above draws]({name})")
            elif text := printed(output):
                parts.append(f"```text\n{text}\n```")
    return {file.with_suffix(".md").name: "\n\n".join(parts) + "\n", **made}


def printed(output: dict[str, Any]) -> str:
    """The text of an output."""
    return "".join(output.get("text") or output.get("data", {}).get("text/plain") or "").rstrip()
