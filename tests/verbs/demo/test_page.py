"""The page in a real browser: typing, dragging, generating, and nothing from other machines."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from posegen.demo.pose_editor import to_keypoints
from posegen.demo.session import DemoPicture, DemoRequest, DemoSession, OnStep
from posegen.errors import UserError
from posegen.poses.reading import read_poses
from tests.browser import CHROMIUM, FLAGS, needs_browser
from tests.tiny import configured
from tests.verbs.demo.conftest import PROMPT

pytestmark = needs_browser
WAIT = 60_000.0  # ms, on a machine that is busy


class Recording(DemoSession):
    """Keeps what it was asked for, and counts what it has finished."""

    finished = 0

    def draw(self, request: DemoRequest, on_step: OnStep = lambda method, done, total: None) -> Iterator[DemoPicture]:
        self.asked = request
        yield from super().draw(request, on_step)
        self.finished += 1


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install 'posegen[test]'")
    with playwright.sync_playwright() as driver:
        own = driver.chromium.launch(executable_path=str(CHROMIUM), args=list(FLAGS), headless=True)
        yield own
        own.close()


@pytest.fixture
def tab(browser: Any) -> Iterator[Any]:
    """An empty page that fails the test where anything is asked of another machine, or a script fails."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    asked_for: list[str] = []
    failures: list[str] = []
    page.on("request", lambda request: asked_for.append(request.url))
    page.on("pageerror", lambda error: failures.append(str(error)))
    yield page
    page.close()
    hosts = {urlsplit(url).hostname for url in asked_for if urlsplit(url).scheme not in ("data", "blob")}
    assert hosts == {"127.0.0.1"}
    assert not failures


@contextmanager
def served(studio: DemoSession, tab: Any) -> Iterator[None]:
    """Opens the page in the tab, once it can be used."""
    pytest.importorskip("gradio", reason="gradio is missing: pip install 'posegen[demo]'")
    from posegen.demo.page import serve

    app, url = serve(studio, None, block=False)
    try:
        assert urlsplit(url).hostname == "127.0.0.1"
        tab.goto(url)
        tab.wait_for_selector(".pe-joint", timeout=WAIT)
        tab.wait_for_selector("#methods input:checked", timeout=WAIT)
        yield
    finally:
        app.close(verbose=False)


@pytest.fixture
def opened(world: list[str], outputs: Path, tab: Any) -> Iterator[tuple[Any, Recording]]:
    """The page with a trained method, and what serves it."""
    with configured("demo", *world, f"paths.output={outputs}") as cfg, served(studio := Recording(cfg), tab):
        yield tab, studio


def reachable(page: Any) -> int:
    """A joint of the selected person that no other one covers."""
    script = """joints => joints.filter(joint => { const box = joint.getBoundingClientRect();
        return document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2) === joint;
        }).map(joint => Number(joint.dataset.joint))"""
    return page.locator(".pe-selected .pe-joint").evaluate_all(script)[-1]


def centre(page: Any, joint: int) -> tuple[float, float]:
    box = page.locator(f'.pe-selected .pe-joint[data-joint="{joint}"]').bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def drag(page: Any, joint: int, right: float, down: float) -> None:
    x, y = centre(page, joint)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + right / 2, y + down / 2)
    page.mouse.move(x + right, y + down)
    page.mouse.up()


def generate(page: Any, studio: Recording) -> None:
    before, end = studio.finished, time.monotonic() + WAIT / 1000
    page.click("#generate")
    while studio.finished == before:
        assert time.monotonic() < end, page.inner_text("#results")
        page.wait_for_timeout(50)
    page.wait_for_selector(".pg-card", timeout=WAIT)
    page.wait_for_function("!document.querySelector('#results .pg-progress')", timeout=WAIT)


def test_type_drag_generate(opened: tuple[Any, Recording]) -> None:
    page, studio = opened
    page.fill("#prompt textarea", PROMPT)
    page.fill("#steps input[type=number]", "2")
    page.press("#steps input[type=number]", "Enter")
    generate(page, studio)
    before = studio.asked
    assert before.prompt == PROMPT and before.steps == 2 and before.pose == studio.presets[0].pose
    joint = reachable(page)
    drag(page, joint, 30, -20)
    assert not page.locator('button[data-act="undo"]').is_disabled()
    page.click('button[data-act="duplicate"]')
    generate(page, studio)
    person, twin = studio.asked.pose["people"]
    side = page.locator(".pe-frame").bounding_box()["width"]
    old = before.pose["people"][0]
    expected = [old[joint][0] + 30 / side, old[joint][1] - 20 / side]
    assert person[joint][:2] == pytest.approx(expected, abs=0.01), "the joint followed the mouse"
    assert [spot for i, spot in enumerate(person) if i != joint] == [
        spot for i, spot in enumerate(old) if i != joint
    ], "and no other one"
    assert [spot[2] for spot in twin] == [spot[2] for spot in person]
    assert page.locator(".pg-card").count() == 2
    sizes = page.locator(".pg-card img").evaluate_all(
        "images => images.map(image => image.complete && image.naturalWidth)"
    )
    assert len(sizes) == 4 and min(sizes) >= 64, "every method has its picture and the pose that was found in it"
    scores = page.locator(".pg-card .pg-score").all_inner_texts()
    assert len(scores) == 4 and all(re.match(r"(PCK@0\.1|OKS) \d+", text) for text in scores)


def test_people_are_edited_with_buttons_and_keys(opened: tuple[Any, Recording]) -> None:
    page, _ = opened
    many = page.locator(".pe-person")
    first = many.count()
    page.click('button[data-act="add"]')
    assert many.count() == first + 1
    old = centre(page, 0)
    page.focus(".pe-canvas")
    page.keyboard.press("Shift+ArrowRight")
    assert centre(page, 0)[0] > old[0] + 10
    page.locator(f'.pe-selected .pe-joint[data-joint="{reachable(page)}"]').dblclick()
    assert page.locator(".pe-joint.pe-hidden").count() == 1
    page.keyboard.press("Delete")
    assert many.count() == first
    for _ in range(4):
        page.click('button[data-act="undo"]')
    assert many.count() == first and page.locator('button[data-act="undo"]').is_disabled(), "back to the beginning"


def test_what_is_saved_is_what_is_drawn(opened: tuple[Any, Recording], tmp_path: Path) -> None:
    page, studio = opened
    with page.expect_download() as download:
        page.click(".pe-save")
    download.value.save_as(tmp_path / "pose.json")
    (saved,) = read_poses(tmp_path / "pose.json")
    assert saved.size == studio.size
    assert np.abs(saved.keypoints - to_keypoints(studio.presets[0].pose, studio.size)).max() < 1e-2


def test_other_ways_to_a_pose(opened: tuple[Any, Recording], tmp_path: Path) -> None:
    page, studio = opened
    page.click("#sources button")
    page.click("#imagine")
    page.wait_for_selector("#pose-said .pg-bad", timeout=WAIT)
    assert "posegen train adapter=gunet" in page.inner_text("#pose-said")
    person = [value for _ in range(17) for value in (8, 16, 2)]
    file = tmp_path / "pose.json"
    file.write_text(
        '{"images": [{"id": 1, "height": 32, "width": 32}], '
        f'"annotations": [{{"image_id": 1, "keypoints": {person}}}]}}'
    )
    page.set_input_files("#sources input[type=file][accept*=json], input[type=file][accept*=json]", str(file))
    page.wait_for_selector("#pose-said .pg-note:not(.pg-bad)", timeout=WAIT)
    generate(page, studio)
    (joints,) = studio.asked.pose["people"]
    assert joints[0][:2] == pytest.approx([8.5 / 32, 16.5 / 32], abs=1e-3)


def test_where_nothing_is_trained_a_benchmark_is_offered(world: list[str], tmp_path: Path, tab: Any) -> None:
    with configured("demo", *world, f"paths.output={tmp_path}") as cfg, served(DemoSession(cfg), tab):
        tab.wait_for_selector("#practice", timeout=WAIT)
        assert "benchmark=smoke" in tab.inner_text("#practice-which")
        tab.click("#practice")
        tab.wait_for_selector("#practice-state .pg-progress", timeout=WAIT)
        tab.click("#practice-cancel")
        tab.wait_for_selector("#practice-state .pg-note", timeout=WAIT)
        assert "stopped" in tab.inner_text("#practice-state")


def test_a_port_that_is_taken_is_told(studio: DemoSession) -> None:
    pytest.importorskip("gradio", reason="gradio is missing: pip install 'posegen[demo]'")
    from posegen.demo.page import serve

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"127.0.0.1:{port} is taken; choose another"):
            serve(studio, port, block=False)


def test_the_page_answers_to_its_names_alone_and_keeps_uploads_private(
    world: list[str], outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another site can give this machine's address a name of its own, and then read what the page shows."""
    pytest.importorskip("gradio", reason="gradio is missing: pip install 'posegen[demo]'")
    import httpx

    from posegen.demo.page import serve

    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    with configured("demo", *world, f"paths.output={outputs}", "hosts=[tunnel.example]") as cfg:
        app, url = serve(DemoSession(cfg), None, block=False)
    try:
        port = urlsplit(url).port
        codes = {}
        for host in ("127.0.0.1", "localhost", "tunnel.example", "evil.example", "127.0.0.1.evil.example", ""):
            codes[host] = httpx.get(url, headers={"host": f"{host}:{port}"}).status_code
        assert codes == {
            **dict.fromkeys(("127.0.0.1", "localhost", "tunnel.example"), 200),
            **dict.fromkeys(("evil.example", "127.0.0.1.evil.example", ""), 400),
        }
        files = {"files": ("me.png", b"private", "image/png")}
        (kept,) = httpx.post(f"{url}gradio_api/upload", files=files).json()
        assert Path(kept).read_bytes() == b"private"
        folder = Path(kept).parents[1]
        assert folder.stat().st_mode & 0o077 == 0, f"others can read {folder}"
    finally:
        app.close(verbose=False)
