"""The tables of the page on quotes hold what arrives from a shell."""

from __future__ import annotations

import re
import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from posegen.config.app import Command
from posegen.config.typed_text import resolve_config
from tests.docs.blocks import DOCS

PAGE = (DOCS / "quoting.md").read_text(encoding="utf-8")


def table(heading: str) -> list[tuple[str, str]]:
    """The rows of the table under a heading that begins so, without the marks of code around the first column."""
    rows = re.findall(r"^\| `(.*)` \| (.*) \|$", PAGE.partition(f"| {heading} |")[2].partition("\n\n")[0], re.MULTILINE)
    assert len(rows) > 4
    return rows


def prompts(command: str) -> list[object]:
    """The prompt of each run of `posegen sample ...`."""
    words = shlex.split(command)[2:]
    read = Command.read("sample", words)
    (word,) = (key for key in read.keys if key.startswith("prompt="))
    parts = [axis.words for axis in read.axes() or () if axis.words[0].startswith("prompt=")] if "-m" in words else []
    return [value(each) for each in (parts[0] if parts else [word])]


def value(word: str) -> object:
    cfg = OmegaConf.create({"value": OverridesParser.create().parse_override(word).value()})
    resolve_config(cfg)
    return OmegaConf.to_container(cfg)["value"]


@pytest.mark.parametrize(("typed", "shown"), table("You type | The prompt is"))
def test_a_prompt_arrives_as_the_page_says(typed: str, shown: str) -> None:
    assert prompts(f"posegen sample {typed}") == [shown.strip("`")]


@pytest.mark.parametrize(("typed", "runs"), table("You type | Runs"))
def test_lists_and_sweeps_are_as_the_page_says(typed: str, runs: str) -> None:
    found = prompts(typed)
    assert len(found) == {"one": 1, "two": 2}[re.split(r"\W", runs)[0]]
    lists = [len(each) for each in found if isinstance(each, list)]
    assert lists == ([2] if "two prompts" in runs else [])


def test_words_for_hydra_are_read() -> None:
    for typed, _ in table("You type | Meaning"):
        (word,) = shlex.split(typed)
        OverridesParser.create().parse_override(word)
        assert word.startswith("hydra.") or Command.read("train", [word]).keys == (word,)
