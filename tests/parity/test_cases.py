"""Every reference case at hand whose method can be computed, through what ``posegen parity`` does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posegen.parity.case import Case
from posegen.parity.compare import compare, port_of
from tests.adapters.cases import ABSENT, FOLDER


def cases() -> list[object]:
    found = sorted(file.parent for file in FOLDER.rglob("case.json")) if FOLDER else []
    methods = {folder: json.loads((folder / "case.json").read_text())["method"] for folder in found}
    computable = [folder for folder in found if port_of(methods[folder])]
    return [pytest.param(folder, id=folder.name) for folder in computable]


@pytest.mark.skipif(FOLDER is None, reason=ABSENT)
@pytest.mark.parametrize("folder", cases())
def test_every_output_agrees(folder: Path) -> None:
    found = compare(Case.read(folder))
    assert found.verdict == "passed", "\n".join(["", found.reason, *map(str, found.lines)])
