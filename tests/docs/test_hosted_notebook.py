"""The notebook for a hosted GPU runs from top to bottom on a CPU: only the cells that need a network are left out, and
the backbone is a Stable Diffusion with small random parts."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image

from posegen.cli import main
from posegen.config.app import Command
from tests.backbones.models import SD1, parts_of
from tests.docs.blocks import DOCS

CELLS: list[dict[str, Any]] = json.loads((DOCS / "on_a_hosted_gpu.ipynb").read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]
OFFLINE = [
    "".join(cell["source"]).replace("\\\n", " ") for cell in CODE if "online" not in cell["metadata"].get("tags", ())
]
#: What the notebook says -> what the test does.
SMALLER = {
    r"hub:\S+": "weights/sd15",
    r"\b256\b": "64",
    r"count=4000": "count=8",
    r"budget\.steps=\d+": "budget.steps=2",
    r"optim\.batch=\d+": "optim.batch=4",
    r"num_inference_steps=\d+": "num_inference_steps=2",
}


def smaller(text: str) -> str:
    for pattern, replacement in SMALLER.items():
        text = re.sub(pattern, replacement, text)
    return text


def commands() -> list[list[str]]:
    """The commands of posegen, as words."""
    return [shlex.split(line)[1:] for text in OFFLINE for line in re.findall(r"^!(posegen .*)$", text, re.MULTILINE)]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_pass_the_check(words: list[str]) -> None:
    problems, _ = Command.read(words[0], tuple(words[1:])).check()
    assert not problems


def test_only_the_installation_needs_a_network() -> None:
    online = ["".join(cell["source"]) for cell in CODE if "online" in cell["metadata"].get("tags", ())]
    assert len(online) == 1 and "pip install" in online[0] and len(OFFLINE) == 7 and len(commands()) == 2
    assert not any(re.search(r"^[!%](?!posegen )", text, re.MULTILINE) for text in OFFLINE)
    assert not [cell for cell in CODE if cell["outputs"]], "no output that nobody has seen on a GPU"


@pytest.mark.slow
def test_the_notebook_runs_on_a_cpu(world: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    parts = parts_of(SD1)
    modules = (parts.autoencoder, parts.text_encoders["text_encoder"], parts.tokenizers["text_encoder"], parts.network)
    scheduler = DDIMScheduler.from_config(parts.scheduler)
    StableDiffusionPipeline(*modules, scheduler, None, None, requires_safety_checker=False).save_pretrained(
        tmp_path / "weights/sd15"
    )
    names: dict[str, Any] = {"__name__": "__main__"}
    for text in map(smaller, OFFLINE):
        for line in re.findall(r"^!(posegen .*)$", text, re.MULTILINE):
            verb, *rest = shlex.split(line)[1:]
            tiny = [word for word in world if verb == "benchmark" or not word.startswith(("backbone.", "data.train"))]
            assert main([verb, *tiny, *rest, *["hydra/launcher=serial"] * (verb == "benchmark")]) == 0, line
        exec(compile(re.sub(r"^!.*$", "", text, flags=re.MULTILINE), "on_a_hosted_gpu", "exec"), names)
    assert names["shown"].size == (192, 128) and len(set(names["shown"].tobytes())) > 10
    assert all(isinstance(image, Image.Image) for image in names["images"])
    assert (tmp_path / "kept" / "posegen.json").is_file()
