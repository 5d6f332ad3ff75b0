"""The notebook runs from top to bottom with fewer images, and what is stored in it is what its own numbers of images
give."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.docs.blocks import DOCS
from tests.docs.test_site import hook

NOTEBOOK = DOCS / "pose_accuracy.ipynb"
CELLS: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def run(source: str, names: dict[str, Any]) -> tuple[str, Any]:
    """What a cell prints and what its last line is worth, as a notebook shows them."""
    tree = ast.parse(source)
    last = ast.Expression(tree.body.pop().value) if isinstance(tree.body[-1], ast.Expr) else None  # type: ignore[attr-defined]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, str(NOTEBOOK), "exec"), names)
        value = eval(compile(last, str(NOTEBOOK), "eval"), names) if last else None
    return printed.getvalue(), value


def executed(count: int | None) -> list[tuple[str, Any]]:
    """All cells of code in order, with this number of images or the notebook's own."""
    names: dict[str, Any] = {"__name__": "__main__"}
    sources = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]
    return [
        run(source if count is None else re.sub(r"COUNT = \d+", f"COUNT = {count}", source), names)
        for source in sources
    ]


def stored() -> list[str]:
    return [
        "".join("".join(out.get("text", "")) for out in cell["outputs"])
        for cell in CELLS
        if cell["cell_type"] == "code"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("count", [6, None], ids=["few images", "as stored"])
def test_the_notebook_runs(count: int | None) -> None:
    results = executed(count)
    assert [bool(text) or isinstance(value, Image.Image) for text, value in results] == [True] * len(results)
    if count is None:
        for (text, _), before in zip(
            results[:-1], stored()[:-1], strict=True
        ):  # the judge's last digits are the machine's
            assert text == before


def test_every_cell_of_code_has_its_output() -> None:
    for cell in CELLS:
        if cell["cell_type"] == "code":
            assert cell["outputs"] and not [out for out in cell["outputs"] if out["output_type"] == "error"]


def test_the_notebooks_page_has_text_code_and_pictures() -> None:
    made = hook("notebook").pages(Path(NOTEBOOK))
    page = made["pose_accuracy.md"]
    assert "# What pose accuracy means" in page and "```python\nimport numpy" in page and "judge on real images" in page
    pictures = {name: content for name, content in made.items() if name.endswith(".png")}
    assert pictures and all(name in page and content.startswith(b"\x89PNG") for name, content in pictures.items())
