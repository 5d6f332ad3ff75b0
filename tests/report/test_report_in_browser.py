"""The report in a real browser: columns sort, the best first, groups of rows apart, and nothing is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from posegen.io.atomic import write_json
from posegen.report.html import results_page
from posegen.report.table import build_table
from posegen.runner.images import picture, write_png
from tests.browser import CHROMIUM, FLAGS, needs_browser
from tests.report.test_table import PROTOCOL, finished

pytestmark = needs_browser


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    shifts = {"middle": 3.5, "near": 0.2, "far": 9.0, "reference/real": 0.0, "reference/reconstruction": 12.0}
    cells = [finished(folder, name, shift) for name, shift in shifts.items()]
    cells.append({"folder": "absent/world/seed0", "method": "absent", "seed": 0, "hash": "absent"})
    for cell in cells[:-1]:
        write_png(picture(folder / cell["folder"] / "judged", 0), np.zeros((8, 24, 3), np.uint8))
    write_json(folder / "cells.json", {"title": "Sorting", "baseline": None, "protocol": PROTOCOL, "cells": cells})
    (folder / "report.html").write_text(results_page(build_table(folder)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tab(study: Path) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install 'posegen[test]'")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=list(FLAGS), headless=True)
        opened, asked, failures = browser.new_page(viewport={"width": 1200, "height": 900}), [], []
        opened.on("request", lambda request: asked.append(request.url))
        opened.on("pageerror", lambda error: failures.append(str(error)))
        opened.on("console", lambda message: failures.append(message.text) if message.type == "error" else None)
        opened.goto((study / "report.html").as_uri())
        yield opened
        browser.close()
    assert not failures and {url.partition(":")[0] for url in asked} <= {"file", "data"}


def names(tab: Any) -> list[str]:
    return [text.strip() for text in tab.locator("#table tbody tr:not(.label) th").all_inner_texts()]


def test_a_click_puts_the_best_on_top_and_another_turns_it(tab: Any) -> None:
    head = tab.locator("#table thead th", has_text="PCK@0.1")
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending" and names(tab) == [
        "near",
        "middle",
        "far",
        "absent",
        "reference/real",
        "reference/reconstruction",
    ]
    head.locator("button").press("Enter")
    assert head.get_attribute("aria-sort") == "ascending" and names(tab) == [
        "far",
        "middle",
        "near",
        "absent",
        "reference/reconstruction",
        "reference/real",
    ]
    count = tab.locator("#table thead th", has_text="judge_frechet")
    count.locator("button").click()
    assert (
        count.get_attribute("aria-sort") == "ascending" and head.get_attribute("aria-sort") is None
    )  # of which less is better
    tab.locator("#table thead button").first.click()
    assert names(tab)[:3] == ["far", "middle", "near"]


def test_the_poses_that_were_found_can_be_shown(tab: Any) -> None:
    found = tab.locator(".grid img.found").first
    assert not found.is_visible()
    tab.check("#found")
    assert found.is_visible()


SCROLLS = "e => [e.scrollWidth > e.clientWidth + 1, getComputedStyle(e, '::before').content.includes('scroll')]"


def test_the_table_fits_a_window_of_1400_pixels(tab: Any) -> None:
    tab.set_viewport_size({"width": 1400, "height": 900})
    boxes = tab.locator(".scroll")
    assert boxes.count() == 7 and tab.locator("#table thead th").count() == 15
    assert [boxes.nth(i).evaluate(SCROLLS) for i in range(3)] == [[False, False]] * 3


def test_a_table_that_is_wider_than_the_window_says_so_and_scrolls(tab: Any) -> None:
    tab.set_viewport_size({"width": 400, "height": 800})
    table, last = tab.locator("#table .scroll"), tab.locator("#table thead th").last
    tab.locator("#table .wide").wait_for()
    assert table.evaluate(SCROLLS) == [True, True]
    assert tab.evaluate("document.documentElement.scrollWidth") <= 400
    assert last.bounding_box()["x"] > 400
    table.focus()
    tab.keyboard.press("End")
    for _ in range(40):
        tab.keyboard.press("ArrowRight")
    tab.wait_for_function("document.querySelector('#table .scroll').scrollLeft > 0")
    name = tab.locator("#table tbody th[scope=row]").first
    assert 0 <= name.bounding_box()["x"] < 40, "the names of the methods stay"


def test_a_phone_shows_the_page_without_scrolling_sideways(tab: Any) -> None:
    tab.set_viewport_size({"width": 390, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    boxes = tab.evaluate("[...document.querySelectorAll('.grid td')].map(e => e.getBoundingClientRect().right)")
    assert len(boxes) == 6 and max(boxes) <= 390, "the pose and all five rows are within the screen"
