"""The report: a page that needs nothing else, its charts as files, and a report of W&B as an object."""

from __future__ import annotations

import base64
import json
import re
import shutil
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from posegen.cli import main as posegen
from posegen.errors import UserError
from posegen.io.atomic import write_text
from posegen.report.html import results_page
from posegen.report.image_grids import shown_indices
from posegen.report.plots import (
    COLOURS,
    INK,
    Mark,
    all_plots,
    curves_of,
    mean_curve,
    plot_curves,
    plot_marks,
    smoothed_curve,
)
from posegen.report.table import build_table
from posegen.report.wandb import WandbPlace, place_of, wandb_report
from posegen.runner.images import picture, write_png


@pytest.fixture(scope="module")
def study(world: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("study")
    live = [
        "validation.every=3",
        "validation.images=4",
        "trainer.log_every_n_steps=1",
        "seed=0,1",
        f"paths.output={output}",
    ]
    assert posegen(["benchmark", *world, "adapter=controlnet,reference/real", "hydra/launcher=serial", *live]) == 0
    return output / "benchmark/mannequin"


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_needs_nothing_else_and_has_every_section(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert posegen(["report", str(study), "poses=4"]) == 0
    text = (study / "report.html").read_text()
    page = Page(text)
    addresses = [
        value
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "href", "action", "data") and value
    ]
    assert addresses and all(re.match("#|data:image/(png|webp);base64,", value) for value in addresses)
    assert not re.search(r"@import|url\((?!#)", text) and "link" not in [tag for tag, _ in page.tags]
    sections = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    assert sections == [
        "table",
        "curves",
        "accuracy--quality-and-cost",
        "errors",
        "by-action",
        "by-people",
        "pictures",
        "cells",
    ]
    labels = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg" and "aria-label" in attributes]
    assert (
        labels[0] == "Loss of the training"
        and "PCK@0.1 on validation images" in labels
        and "Quality beside pose accuracy" in labels
    )
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 4 * (
        1 + 2 * 2
    )  # the pose, and of both rows' first seeds the sample and what was found in it
    assert all(picture["alt"] for picture in pictures) and pictures[0]["alt"] == "target pose of picture 0"
    assert "default-src 'none'" in text
    assert sum(attributes.get("scope") == "row" for tag, attributes in page.tags if tag == "th") >= 2
    assert "report.html" in capsys.readouterr().out
    for file in (study / "figures").glob("*.svg"):
        assert ET.fromstring(file.read_text()).tag.endswith("svg")
    assert {"train_loss.svg", "quality.svg"} <= {file.name for file in (study / "figures").iterdir()}


def test_a_cell_that_did_not_finish_is_shown_with_its_reason(study: Path) -> None:
    plan = json.loads((study / "cells.json").read_text())
    try:
        (study / "cells.json").write_text(
            json.dumps(
                {**plan, "cells": [*plan["cells"], {"folder": "lost/seed0", "method": "lost", "seed": 0, "hash": "0"}]}
            )
        )
        assert posegen(["report", str(study), "poses=0"]) == 0
        text = (study / "report.html").read_text()
        assert re.search(
            r"Not finished</th></tr>\s*<tr><th scope='row'>lost</th>\s*"
            r"<td class='reason' colspan='\d+'>missing: never started</td>\s*</tr>",
            text,
        )
        assert "4 of 5 finished" in text and "<section id='pictures'>" not in text
    finally:
        (study / "cells.json").write_text(json.dumps(plan))


def test_pictures_are_no_larger_than_asked_for_and_every_row_has_its_own(study: Path) -> None:
    table = build_table(study)
    for cell in table.cells:
        cell["row"] = f"{cell['method']} ({cell['seed']})"  # as where the rows of a method differ in a setting
    text = results_page(table, 3, side=24)
    sizes = [
        cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR).shape[:2]
        for data in re.findall("base64,([^']+)'", text)
    ]
    assert len(sizes) == 3 * (1 + 4 * 2) and {max(size) for size in sizes} == {24}
    assert [name in text for name in ("controlnet (1)</th>", "real (0)</th>")] == [True, True]


def test_more_lines_than_a_grid_has_by_default_and_every_scenario_first(tmp_path: Path) -> None:
    for i in range(40):
        write_png(picture(tmp_path / "samples", i), np.zeros((2, 2, 3), np.uint8))
    assert shown_indices([tmp_path], [], 33) == list(range(33))
    labels = ["cartoon"] * 20 + ["oil painting"] * 20
    for i in (3, 25):
        write_png(picture(tmp_path / "judged", i), np.zeros((2, 6, 3), np.uint8))
    assert shown_indices([tmp_path], labels, 4) == [3, 25, 0, 20]


def test_a_method_looks_alike_in_all_plots_and_shapes_follow_colours(study: Path) -> None:
    plots = all_plots(build_table(study))
    assert {"train_loss", "live_PCK@0.1", "quality", "sample_images_per_s"} <= plots.keys()
    assert all(COLOURS[0] in plot.svg and "controlnet" in plot.svg for plot in plots.values())
    assert COLOURS[1] in plots["quality"].svg and COLOURS[1] not in plots["train_loss"].svg, "real images do not train"
    shapes = [
        set(marker_shapes(plot_marks("t", [Mark("a", 1, 1, number)], ("x", "y")).svg)) for number in (0, 6, 7, 14)
    ]
    assert shapes[0] == shapes[1] and len({frozenset(found) for found in shapes}) == 3


def marker_shapes(svg: str) -> list[str]:
    """The outlines of the ticks and of the shapes that a plot puts at points."""
    return re.findall(r"<path id=\"m\w+\" d=\"([^\"]*)\"", svg)


def test_equal_plots_have_equal_bytes_and_take_the_colours_of_the_page() -> None:
    one, two = (plot_marks("t", [Mark("<a>", 1, 2, 0, across=(0.5, 1.5))], ("x", "y")) for _ in range(2))
    assert one is not None and one == two
    assert "currentColor" in one.inline() and INK not in one.inline() + one.file() and "://" not in one.inline()
    assert "<title>&lt;a&gt;: 1, 2</title>" in one.inline() and "<style" not in one.svg
    assert ET.fromstring(one.file())[0].attrib["fill"] == "#ffffff"


def test_curves_of_several_runs_are_one_and_newer_points_win(tmp_path: Path) -> None:
    folder = tmp_path / "curves"
    folder.mkdir()
    (folder / "metrics-1.csv").write_text("epoch,step,train/loss\n0,1,5.0\n0,2,4.0\n0,3,9.0\n")
    (folder / "metrics.csv").write_text("step,train/loss,live/AP\n3,3.0,\n4,2.0,10\n4,,nan\n")
    assert curves_of(tmp_path) == {"train/loss": [(1, 5), (2, 4), (3, 3), (4, 2)], "live/AP": [(4, 10)]}
    assert curves_of(tmp_path / "nothing") == {}
    assert smoothed_curve([(i, float(i)) for i in range(1, 6)], 2) == [(2, 1.5), (4, 3.5)] and smoothed_curve(
        [(1, 2.0)], 5
    ) == [(1, 2.0)]


def test_plots_have_what_they_are_given() -> None:
    runs = {"a": [[(0, 1), (1, 3)], [(0, 3), (1, 5)]], "<b>": [[(0, 0), (2, 2)]], "none": []}
    two = plot_curves("t", runs, {"a": 0, "<b>": 1, "none": 2}, ("x", "y"))
    assert two is not None and two.svg.count(f"stroke: {COLOURS[0]}") == 3 + 1, "two seeds, their mean, and the legend"
    assert "&lt;b&gt;" in two.svg and "<b>" not in two.svg and "none</text>" not in two.svg
    assert mean_curve([[(0, 1), (1, 3)], [(0, 3)]]) == [(0, 2)]
    assert plot_curves("t", {"a": []}, {"a": 0}, ("x", "y")) is None
    assert plot_curves("t", {"a": [[(1, 2)]]}, {"a": 0}, ("x", "y")) is not None
    assert plot_curves("t", {"a": [[(1, 2)], [(3, 4)]]}, {"a": 0}, ("x", "y")) is not None
    assert plot_marks("t", [Mark("a", float("nan"), 1, 0)], ("x", "y")) is None
    point = plot_marks("t", [Mark("a", 1, 2, 0, across=(0.5, 1.5), up=(1, 3)), Mark("r", 2, 2, 1, True)], ("x", "y"))
    assert point is not None and point.svg.count("<title>") == 2 and point.svg.count("stroke-opacity: 0.6") == 2
    assert (
        "fill-opacity: 0;" in point.svg
        and f"fill: {COLOURS[0]}" in point.svg
        and f"fill: {COLOURS[1]}" not in point.svg
    )


def test_the_report_of_wandb_is_composed_without_a_network(study: Path) -> None:
    from wandb_workspaces.expr import expr_to_filters

    table = build_table(study)
    place = place_of(table, "someone/poses")
    assert place == WandbPlace("someone", "poses", "benchmark/mannequin")
    report = wandb_report(table, place)
    kinds = [type(block).__name__ for block in report.blocks if type(block).__name__ != "UnorderedList"]
    assert (
        report.entity == "someone"
        and kinds == ["MarkdownBlock", "P", *["H2", "PanelGrid"] * 3]
        and "controlnet" in report.blocks[0].text
    )
    curves, values, pictures = (block for block in report.blocks if type(block).__name__ == "PanelGrid")
    (runs,) = curves.runsets
    assert runs.filters == "JobType == 'benchmark/mannequin'" and runs.groupby == ["Group"]
    assert [panel.title for panel in curves.panels][:2] == ["train/loss", "live/PCK@0.1"]
    assert values.panels[0].metrics == ["test/PCK@0.1"] and values.panels[-1].y.name == "test/judge_frechet"
    assert pictures.panels[-1].table_name == "images"
    # What would go to the account, as far as it can be made without one.
    sent = [
        json.dumps(panel._to_model().model_dump(by_alias=True, mode="json"))
        for block in (curves, values, pictures)
        for panel in block.panels
    ]
    assert (
        "live/PCK@0.1" in sent[1]
        and any('"summary:test/judge_frechet"' in text for text in sent)
        and '"images"' in sent[-1]
    )
    assert "jobType" in str(expr_to_filters(runs.filters))


def test_where_the_runs_are_is_what_the_cells_say(study: Path, tmp_path: Path) -> None:
    table = build_table(study)
    with pytest.raises(UserError, match=r"wandb=true: no cell of .* was logged to W&B \(logger=wandb\)"):
        place_of(table, True)
    logger = {"_target_": "lightning.pytorch.loggers.WandbLogger", "project": "poses", "entity": "us"}
    write_text(
        tmp_path / "a/seed0/config.yaml", json.dumps({"method": "a", "seed": 0, "study": "mine", "logger": logger})
    )
    table.folder, table.cells = tmp_path, [{**table.cells[0], "folder": "a/seed0"}]
    assert place_of(table, True) == WandbPlace("us", "poses", "mine")


def test_a_missing_extra_is_named(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("wandb_workspaces")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert posegen(["report", str(study), "poses=0", "wandb=me/poses"]) == 1
    assert "pip install 'posegen[wandb]'" in capsys.readouterr().err
    assert (study / "report.html").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pose=3"], "pose=3: no such group or key; did you mean poses"),
        (["--wandb", "me/mine"], "--wandb: no such flag"),
        (["poses=many"], "poses=many: expected an integer"),
        (["poses=-1"], "poses=-1: expected an integer"),
        (["side=0"], "side=0: expected an integer from 16 to"),
        (["wandb=me"], "wandb=me: expected ENTITY/PROJECT"),
        ([], "outputs/benchmark holds no benchmark; run posegen benchmark first"),
    ],
)
def test_wrong_words_are_named(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert posegen(["report", *words]) == 1
    assert re.search(message, capsys.readouterr().err)


def test_a_folder_without_cells_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert posegen(["report", str(tmp_path)]) == 1
    assert f"{tmp_path} holds no cells" in capsys.readouterr().err


def test_a_sweep_that_no_benchmark_planned_has_a_page(study: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "train"
    shutil.copytree(study, sweep, ignore=shutil.ignore_patterns("cells.json"))
    assert posegen(["report", str(sweep), "poses=1"]) == 0
    assert (
        "Study train" in (sweep / "report.html").read_text() and "id='pictures'" in (sweep / "report.html").read_text()
    )
    for records in sweep.rglob("records.csv"):
        records.unlink()  # as posegen train leaves its cells
    assert posegen(["report", str(sweep), "poses=1"]) == 0
    text = (sweep / "report.html").read_text()
    assert (
        "not judged: trained, not judged; posegen evaluate judges it" in text and "PCK@0.1 on validation images" in text
    )


def test_cells_that_were_judged_differently_are_no_study(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "evaluate"
    shutil.copytree(study, sweep, ignore=shutil.ignore_patterns("cells.json"))
    status = next(sweep.rglob("controlnet/**/status.json"))
    facts = json.loads(status.read_text())
    status.write_text(json.dumps({**facts, "identity": {**facts["identity"], "estimator": "another"}}))
    assert posegen(["report", str(sweep)]) == 1
    assert "differ in estimator, so their images are not paired" in capsys.readouterr().err
