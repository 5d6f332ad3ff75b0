"""Every command in the README, pages, studies and help passes `posegen check`; links and names lead somewhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from posegen.config import groups as listing
from posegen.config.app import Command
from posegen.config.verb_files import verbs
from tests.docs.blocks import DOCS, shell_commands

ROOT = DOCS.parent
TEXTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted(DOCS.glob("*.md")),
    *sorted((ROOT / "experiments").glob("*/README.md")),
]
#: Pages whose blocks other tests run: wrong on purpose, or with a package of the reader's.
RUN_ELSEWHERE = {"troubleshooting.md", "add-your-method.md", "bring-your-data.md"}
#: Problems of files and folders that only the reader has.
READERS = re.compile(
    r"no such file or folder|no such folder|a value is missing|there is no folder|no readable|interpolation"
)
#: Names in running text that stand for any verb, any words, or an option of the reader's.
PLACEHOLDERS = re.compile(r"\.\.\.|\bVERB\b|\bGROUP\b|\bmine\b|\byours\b|adapter=NAME")
#: Commands that this version no longer has.
OLD = {"posegen profile compare=true", "posegen profile what=metrics"}


def commands_of(file: Path) -> Iterator[str]:
    """The commands of a page: in blocks of a shell, and in running text."""
    text = file.read_text(encoding="utf-8")
    if file.name not in RUN_ELSEWHERE:
        for block in re.findall(r"^```(?:bash)?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            lines = re.findall(r"^(?:.*&& )?(posegen\b.*)$", block.replace("\\\n", " "), re.MULTILINE)
            yield from (shlex.join(words) for line in lines for words in shell_commands(line))
    yield from re.findall(r"`(posegen [^`]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def commands_of_help(verb: str) -> Iterator[str]:
    """The examples in a verb's help; a description stands behind three spaces or more."""
    node = yaml.safe_load((listing.conf_dir() / f"{verb}.yaml").read_text(encoding="utf-8"))
    for line in node["hydra"]["help"]["header"].splitlines():
        yield from (re.split(r" {3,}", example)[0] for example in re.findall(r"^ {2}(posegen .*)$", line))


def all_commands() -> list[tuple[str, str]]:
    """(where it first stands, command) of every command, once."""
    found: dict[str, str] = {}
    for file in TEXTS:
        for command in commands_of(file):
            found.setdefault(command, file.relative_to(ROOT).as_posix())
    for verb in verbs():
        for command in commands_of_help(verb):
            found.setdefault(command, f"conf/{verb}.yaml")
    return [
        (place, command) for command, place in found.items() if command not in OLD and not PLACEHOLDERS.search(command)
    ]


@cache
def problems_of(verb: str, words: tuple[str, ...]) -> list[str]:
    """What `posegen check VERB WORDS` finds, but for files that only the reader has."""
    problems, _ = Command.read(verb, words).check()
    return [str(problem) for problem in problems if not READERS.search(str(problem))]


def cases() -> list[Any]:
    """The commands of the README and the pages, and as slow tests the many of the studies and the help."""
    marks = {True: (), False: (pytest.mark.slow,)}
    return [
        pytest.param(place, command, marks=marks[place.startswith(("README", "docs/"))], id=f"{place}: {command}")
        for place, command in all_commands()
    ]


@pytest.mark.parametrize(("place", "command"), cases())
def test_commands_pass_the_check(place: str, command: str) -> None:
    words = shlex.split(command)
    ends = [words.index(mark) for mark in ("#", "|") if mark in words]
    _, verb, *rest = words[: min(ends, default=None)]
    if verb == "check":
        verb, *rest = rest or ["train"]
    assert verb in verbs()
    wrong = "chanels" in command  # the help shows what the check finds
    assert bool(problems_of(verb, tuple(rest))) == wrong, problems_of(verb, tuple(rest))


def test_commands_are_found_everywhere() -> None:
    places = {place.partition("/")[0] for place, _ in all_commands()}
    assert {"README.md", "docs", "experiments", "conf"} <= places and len(all_commands()) > 100


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text())
    assert links and [link for link in links if not link.startswith("https://") and not (ROOT / link).exists()] == []


@pytest.mark.parametrize("page", sorted(file.name for file in DOCS.glob("*.md")))
def test_options_in_the_text_exist(page: str) -> None:
    """``group=option`` in the running text, of every group but those whose values are names of the reader's."""
    groups = listing.groups()
    theirs = {"mine", "NAME", "yours"}
    for group, names in re.findall(r"`(?:posegen \w+ )?((?:hydra/)?[a-z]+)=([\w/,]+)`", (DOCS / page).read_text()):
        for name in names.split(","):
            assert group not in groups or name in theirs or name in groups[group], f"{page}: {group}={name}"


def test_columns_on_the_page_of_metrics_exist() -> None:
    """The columns of the first table are those of the default protocol, all of them."""
    from posegen.runner.components import Components
    from tests.tiny import configured

    page = (DOCS / "metrics.md").read_text()
    table = page.partition("## The ones to trust")[2].partition("\n\n##")[0]
    told = [
        name
        for line in table.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`([^`]+)`", line.split("|")[1])
    ]
    with configured("train") as cfg:
        assert sorted(told) == sorted(Components(cfg).protocol.columns)
    known: set[str] = set()
    for protocol in ("all", "person_all", "pose_prior", "sets", "preference", "whole_body"):
        with configured("train", f"protocol={protocol}") as cfg:
            known |= set(Components(cfg).protocol.columns)
    told = re.findall(
        r"`((?:clean|paper|person|judge|colour)_\w+|PSNR|SSIM|AP\w*|diversity|validity"
        r"|CMMD|dinov2_[\w@]+|[\w.]+_wins|hand_PCK@0.2|\w+_AP)`",
        page.replace("`protocol=", ""),
    )
    assert len(told) > 20 and set(told) <= known | {"person_image", "person_all", "paper_pose"}
