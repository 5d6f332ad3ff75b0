"""The tutorial's commands and code are run, in order and in one folder, as a reader types them; only the numbers of
steps and images are smaller."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import Block, blocks

#: What the page says -> what the test does.
SMALLER = {
    r"budget\.steps=\d+": "budget.steps=2",
    r"data\.train\.count=\d+": "data.train.count=32",
    r"data\.test\.count=\d+": "data.test.count=4",
}


def smaller(block: Block) -> str:
    text = block.text
    for pattern, replacement in SMALLER.items():
        text = re.sub(pattern, replacement, text)
    return text


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A shell that finds this ``posegen`` and has a cache of its own."""
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "posegen"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m posegen "$@"\n')
    command.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}",
        "POSEGEN_CACHE": str(tmp_path / "cache"),
    }


@pytest.mark.slow
def test_the_tutorial_runs_from_top_to_bottom(tmp_path: Path, environment: dict[str, str]) -> None:
    folder = tmp_path / "reader"
    folder.mkdir()
    for block in blocks("tutorial.md"):
        if block.language in ("bash", "python"):
            program = ["bash", "-e", "-c"] if block.language == "bash" else [sys.executable, "-c"]
            result = subprocess.run(
                [*program, smaller(block)], cwd=folder, env=environment, capture_output=True, text=True, check=False
            )
            assert result.returncode == 0, f"{block.text}\n{result.stderr[-3000:]}"
    assert (folder / "generated.png").is_file()
    assert (folder / "outputs/tutorial/report.html").is_file()
    table = (folder / "outputs/tutorial/table.md").read_text()
    assert all(f"| {method} |" in table for method in ("controlnet", "t2i_adapter", "none", "reference/real"))
    assert len(list((folder / "outputs/sample").rglob("*.png"))) >= 4


def test_the_test_runs_what_the_page_says() -> None:
    text = [smaller(block) for block in blocks("tutorial.md") if block.language == "bash"]
    assert sum("budget.steps=2 data.train.count=32" in each for each in text) == 2
    assert not any(re.search(r"(steps|count)=\d{2,}", each.replace("count=32", "")) for each in text)
