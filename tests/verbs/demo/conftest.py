"""A trained method of the tiny world, and the page's logic over it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from posegen.cli import main
from posegen.demo.session import DemoSession
from tests.tiny import configured

PROMPT = "photo of one person in the park : one dancing in red shirt and blue trousers"


@pytest.fixture(scope="session")
def outputs(world: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with a finished ControlNet, and a cell that never finished."""
    folder = tmp_path_factory.mktemp("demo") / "outputs"
    assert main(["train", *world, f"paths.output={folder}"]) == 0
    broken = folder / "train" / "humansd" / "mannequin" / "seed0"
    broken.mkdir(parents=True)
    (broken / "status.json").write_text('{"state": "running"}')
    return folder


@pytest.fixture
def studio(world: list[str], outputs: Path) -> Iterator[DemoSession]:
    with configured("demo", *world, f"paths.output={outputs}") as cfg:
        yield DemoSession(cfg)
