"""The fenced blocks of a page: what readers copy, and what the tests run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def shell_commands(text: str) -> list[list[str]]:
    """The commands of a shell's lines, as words; continued lines are joined, comments left out."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: ``bash``, ``python``, ``yaml``, ``text``, ...
        title: the file that it is, where the page says one.
        text: what stands in it.
    """

    language: str
    title: str
    text: str

    @property
    def commands(self) -> list[list[str]]:
        """The commands of a block of ``bash``, as words."""
        return shell_commands(self.text)


def blocks(page: str) -> list[Block]:
    """All blocks of a page of the documentation, in order."""
    found = re.findall(
        r'^```(\w+)(?: title="([^"]*)")?\n(.*?)^```$',
        (DOCS / page).read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
    return [Block(*each) for each in found]


def write_files(page: str, folder: Path) -> Iterator[Path]:
    """Writes the blocks that are files."""
    for block in blocks(page):
        if block.title:
            file = folder / block.title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, encoding="utf-8")
            yield file
