"""Code of the README and of pages that no other test runs; the README's picture and table can be read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from posegen.cli import main
from posegen.config.app import Command
from tests.docs.blocks import DOCS, blocks

README = (DOCS.parent / "README.md").read_text(encoding="utf-8")


def test_the_pipeline_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = (block for block in blocks("../README.md") if block.language == "python")
    cell = re.search(r'"(outputs/[^"]+)"', block.text)
    assert cell
    words = ["adapter=controlnet", "backbone=mannequin", "source=null", f"target={cell[1]}/method"]
    assert main(["convert", *words]) == 0  # in the place of a training
    joints = np.random.default_rng(0).uniform(10, 54, (17, 2)).round(1)
    keypoints = [float(x) for joint in joints for x in (*joint, 2)]
    (tmp_path / "pose.json").write_text(json.dumps([{"image_id": 1, "category_id": 1, "keypoints": keypoints}]))
    names: dict[str, Any] = {}
    exec(compile(block.text.replace("num_inference_steps=30", "num_inference_steps=2"), "README", "exec"), names)
    assert names["image"].size == (64, 64)


def test_code_on_the_page_of_metrics_runs() -> None:
    for block in blocks("metrics.md"):
        if block.language == "python":
            names: dict[str, Any] = {}
            exec(compile(block.text, "metrics", "exec"), names)
            assert [str(column) for column in names["columns"]] == ["novelty", "novelty_raw"]


def test_the_page_on_papers_repeats_a_table_as_the_check_allows() -> None:
    (block,) = (block for block in blocks("reproduce-a-paper.md") if block.language == "yaml")
    node = yaml.safe_load(block.text)["reproduction"]
    assert {"source", "tolerance", "excluded"} == set(node)
    for added, wrong in ({}, 0), ({"tolerance": "loose"}, 1):
        words = f"reproduction={ {**node, **added} }".replace("'", "")
        problems, _ = Command.read("benchmark", [words]).check()
        assert len(problems) == wrong, problems


def test_the_picture_and_the_table_fit_a_page_of_838_pixels() -> None:
    (place,) = re.findall(r"^!\[[^]]+\]\(([^)]+)\)$", README, re.MULTILINE)
    width, height = Image.open(DOCS.parent / place).size
    assert width == 2 * 838 and height < width
    table = next(line for line in README.splitlines() if line.startswith("| method |"))
    assert table.strip("|").count("|") + 1 <= 5
