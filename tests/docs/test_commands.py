"""Every command on every page is one that the command line takes, and every page's links and names lead somewhere."""

from __future__ import annotations

import re
import shlex

import pytest

from posegen.config import groups as listing
from posegen.config.verb_files import verbs
from tests.docs.blocks import DOCS, blocks
from tests.tiny import require_right_names

RUN_ELSEWHERE = {
    "troubleshooting.md",
    "add-your-method.md",
    "bring-your-data.md",
}  # wrong on purpose; with packages of their own
PAGES = sorted(file.name for file in DOCS.glob("*.md") if file.name not in RUN_ELSEWHERE)
COMMANDS = [
    (page, words)
    for page in PAGES
    for block in blocks(page)
    if block.language == "bash"
    for words in block.commands
    if words[0] == "posegen"
]


@pytest.mark.parametrize(
    ("page", "words"), COMMANDS, ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_commands_name_what_there_is(page: str, words: list[str]) -> None:
    _, verb, *rest = words
    if verb == "check":
        verb, *rest = rest
    assert verb in verbs()
    if verb in listing.primaries():
        require_right_names(verb, rest)


README = [
    command
    for command in re.findall(r"`(posegen [^`]+)`", (DOCS.parent / "README.md").read_text())
    if "..." not in command
]


@pytest.mark.parametrize("command", README)
def test_commands_of_the_readme_name_what_there_is(command: str) -> None:
    test_commands_name_what_there_is("README.md", shlex.split(command))


def test_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (DOCS.parent / "README.md").read_text())
    assert [link for link in links if not link.startswith("https://") and not (DOCS.parent / link).exists()] == []


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
    for protocol in ("all", "person_all", "pose_prior"):
        with configured("train", f"protocol={protocol}") as cfg:
            known |= set(Components(cfg).protocol.columns)
    told = re.findall(
        r"`((?:clean|paper|person|judge|colour)_\w+|PSNR|SSIM|AP\w*|diversity|validity)`",
        page.replace("`protocol=", ""),
    )
    assert len(told) > 20 and set(told) <= known | {"person_image", "person_all", "paper_pose"}
