"""The page on data of one's own: its commands run on a folder of pictures, its class is a data set."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import pytest

from posegen.cli import main
from posegen.data.mannequin.dataset import MannequinData
from tests.docs.blocks import blocks, write_files

PAGE = "bring-your-data.md"


@pytest.mark.slow
def test_the_page_from_top_to_bottom(
    world: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("POSEGEN_CACHE", str(tmp_path / "cache"))
    assert len(list(write_files(PAGE, tmp_path))) == 4
    pictures(tmp_path / "pictures")
    own = [o for o in world if not o.startswith("data.")]
    for words in (words for block in blocks(PAGE) if block.language == "bash" for words in block.commands):
        verb = words[1]
        more = (
            own
            if verb in ("train", "evaluate")
            else [o for o in own if o.startswith("paths.")]
            if verb == "prepare"
            else []
        )
        assert main([*words[1:], *more, *(["optim.batch=2"] if verb in ("train", "evaluate") else [])]) == 0, (
            capsys.readouterr().err
        )
    found = json.loads((tmp_path / "pictures/poses.json").read_text())
    assert found["annotations"], "the shipped judge finds the shipped world's people"
    assert list((tmp_path / "outputs").rglob("records.csv"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        monkeypatch.delitem(sys.modules, name)


def pictures(folder: Path) -> None:
    """A reader's pictures: thirty of the rendered world, with prompts, and the file of the page's own format."""
    folder.mkdir()
    entries = []
    data = MannequinData(split="test", count=30, size=64, seed=0)
    for i in range(len(data)):
        sample = data[i]
        assert sample.image is not None
        cv2.imwrite(str(folder / f"{i}.png"), sample.image[..., ::-1])
        entries.append({"file": f"{i}.png", "prompt": sample.prompt, "people": sample.keypoints.tolist()})
    (folder / "mine.json").write_text(json.dumps(entries))
    (folder / "prompts.json").write_text(json.dumps({entry["file"]: entry["prompt"] for entry in entries}))
