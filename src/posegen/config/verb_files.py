"""The verbs, found in the file tree: ``posegen/verbs/VERB.py`` does the work, ``conf/VERB.yaml`` has keys and help.

The first line of the file's docstring is the summary. The file has at least one of two functions:

- ``main(cfg)`` gets the checked and resolved configuration of one cell. It returns None, an exit code, or (for
  sweepers) the objective as a float.
- ``start(command)`` gets the command line (`posegen.config.app.Command`) and runs in place of Hydra. ``benchmark``
  plans its sweep there before ``command.run()``, ``check`` reads the command line of another verb.

``positional: KEY`` in the yaml collects the words that are no ``key=value`` in the list ``KEY``. Such verbs are not
swept, so ``key=a,b`` is a list there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from posegen.config import groups

VERB_FOLDER = Path(__file__).resolve().parents[1] / "verbs"


@dataclass(frozen=True)
class Verb:
    """One file of ``posegen/verbs``."""

    name: str

    @property
    def text(self) -> str:
        return (VERB_FOLDER / f"{self.name}.py").read_text(encoding="utf-8")

    @property
    def summary(self) -> str:
        """The docstring's first line."""
        found = re.match(r'\s*"""(.*)', self.text)
        return found[1].removesuffix('"""').rstrip(".") if found else ""

    @property
    def starts(self) -> bool:
        """Whether the verb reads its command line itself."""
        return re.search(r"^def start\(", self.text, re.MULTILINE) is not None

    @property
    def module(self) -> str:
        return f"posegen.verbs.{self.name}"


def verbs() -> dict[str, Verb]:
    """Name -> verb, sorted."""
    return {file.stem: Verb(file.stem) for file in sorted(VERB_FOLDER.glob("*.py")) if not file.stem.startswith("_")}


def positional(verb: str) -> str | None:
    """The list that takes the words of a verb that are no ``key=value``; None where there is none."""
    file = groups.conf_dir() / f"{verb}.yaml"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    found = re.search(r"^positional: *(\w+)", text, re.MULTILINE)
    return found[1] if found else None
