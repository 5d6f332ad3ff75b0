"""The page of files and data sets names every option that reads one, with its key, and the hashes that the code checks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatch

import pytest

from posegen.config import groups as listing
from posegen.data.formats.deepfashion import RELEASED_LISTS
from posegen.data.formats.human_art import VALIDATION_LIST
from posegen.metrics.feature_networks import PYTORCH_SHA256, TORCHSCRIPT_SHA256
from tests.docs.blocks import DOCS

PAGE = (DOCS / "what-to-fetch.md").read_text(encoding="utf-8")
GROUPS = ("adapter", "data", "estimator", "backbone", "protocol")
LINE = re.compile(r"^\s*(\w+): +('?\?\?\?'?|null|\$\{oc\.select:files\.\w+,null\})\s*(#.*)?$", re.MULTILINE)
A_FILE = re.compile(r"\b(file|folder|weights|inception|layers of)\b|\.pth?\b", re.IGNORECASE)
#: Keys whose comments name files, but which are found inside the folder that another key names, or are no weights.
INSIDE = {"prompts", "images", "mapping", "strip_prefix", "exclude", "vision", "timm_model", "sequences", "folders"}
INSIDE |= {"vision_train", "names", "teacher", "per_clip", "prediction_type", "topology"}


def needs() -> Iterator[tuple[str, str, str]]:
    """(group, option, key) of everything that reads a file or a folder: what must be set, and what may be."""
    for group in GROUPS:
        for name, option in listing.groups()[group].items():
            for key, value, comment in LINE.findall(option.file.read_text(encoding="utf-8")):
                if key not in INSIDE and ("?" in value or "files." in value or A_FILE.search(comment)):
                    yield group, name, key


def is_named(group: str, option: str, key: str) -> bool:
    """Whether a row of the page names the option and the key."""
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and f"`{group}.{key}`" in line]
    names = [name.removeprefix(f"{group}=") for row in rows for name in re.findall(r"`([\w/*=]+)`", row.split("|")[1])]
    return any(fnmatch(option, name) for name in names)


@pytest.mark.parametrize("need", sorted(set(needs())), ids=" ".join)
def test_every_option_that_reads_a_file_is_on_the_page(need: tuple[str, str, str]) -> None:
    group, option, key = need
    if option == "reference/folder":
        assert "`adapter.path`" in PAGE
    else:
        assert is_named(group, option, key), f"{group}={option} reads {group}.{key}, which docs/what-to-fetch.md lacks"


def test_the_needs_are_found_and_a_missing_one_is_seen() -> None:
    assert len(set(needs())) > 30 and ("estimator", "higherhrnet", "path") in needs()
    assert ("protocol", "clean", "inception") in needs() and ("adapter", "dnaf", "vision_weights") in needs()
    assert not is_named("protocol", "clean", "alexnet") and not is_named("data", "another_set", "root")


def test_methods_with_official_weights_are_on_the_page() -> None:
    methods = {name for name in listing.groups()["adapter"] if "/" not in name and name != "none"}
    assert [name for name in methods if f"| `{name}` |" not in PAGE] == []


def test_hashes_are_those_that_the_code_checks() -> None:
    known = [
        TORCHSCRIPT_SHA256,
        PYTORCH_SHA256,
        VALIDATION_LIST["sha256"],
        *(sha for _, sha in RELEASED_LISTS.values()),
    ]
    assert [sha for sha in known if f"`{sha}`" not in PAGE] == []
    assert set(re.findall(r"`([0-9a-f]{16,})`", PAGE)) == set(known), "a hash that no code knows"
