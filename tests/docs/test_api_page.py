"""The page of the Python interface comes from the code, and its imports work."""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any

import pytest

from posegen.adapters.base import Adapter
from posegen.pipeline import PoseGuidedPipeline
from tests.docs.blocks import DOCS, blocks


@pytest.fixture(scope="module")
def page() -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS / "_hooks"))
        import api  # type: ignore[import-not-found]

        text: str = api.pages()["api.md"]
    for name in ("api", "reference"):
        sys.modules.pop(name, None)
    return text


def test_every_argument_and_method_is_on_it(page: str) -> None:
    call = page.partition("#### `PoseGuidedPipeline.__call__`")[2].partition("\n#### ")[0]
    names = list(inspect.signature(PoseGuidedPipeline.__call__).parameters)[1:]
    assert [name for name in names if f"    {name}: " not in call] == []
    methods = [name for name, value in vars(Adapter).items() if inspect.isfunction(value) and not name.startswith("_")]
    assert methods and [name for name in methods if f"#### `Adapter.{name}`" not in page] == []
    assert "    *,\n" in call and "output_type" in call and "'pil'" in call


def test_its_imports_work_and_its_signatures_are_python(page: str) -> None:
    imports = re.findall(r"^from posegen.* import \w+$", page, re.MULTILINE)
    assert len(imports) > 20
    for line in imports:
        exec(line, {})
    code = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    for block in code:
        if (call := re.fullmatch(r"((?:@\w+\n)?)(\w+\(.*)", block.strip(), re.DOTALL)) and "<factory>" not in block:
            compile(f"{call[1]}def {call[2]}: ...", "api", "exec")


def test_what_the_guides_use_is_on_it(page: str) -> None:
    text = "".join(block.text for name in ("add-your-method.md", "bring-your-data.md") for block in blocks(name))
    used: set[str] = set()
    for names in re.findall(r"^from posegen\.[\w.]+ import (.+)$", text, re.MULTILINE):
        used |= {name.strip() for name in names.split(",")}
    assert used and [name for name in used if f"\n### {name}\n" not in page] == []


def test_docstrings_read_as_text(page: str) -> None:
    prose: Any = re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)
    assert "::\n" not in prose and "Args:" not in prose and "``" not in prose
