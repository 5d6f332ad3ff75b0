"""The page; the only module that imports gradio."""

from __future__ import annotations

import logging
import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

# Before the import: gradio reports nothing and looks for no newer version.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

try:
    import gradio as gr
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
except ImportError:  # an extra; the verb says how to install it
    gr = None  # type: ignore[assignment]

from posegen.demo.first_benchmark import FirstBenchmark
from posegen.demo.html_fragments import fragments, results_html
from posegen.demo.loaded_methods import NONE
from posegen.demo.pose_editor import skeleton_facts, standing_pose
from posegen.demo.session import DemoPicture, DemoRequest, DemoSession, Preset, Stopped
from posegen.errors import UserError

HERE = Path(__file__).parent
empty, note, progress_bar = fragments.empty, fragments.note, fragments.progress_bar  # type: ignore[attr-defined]
QUIETLY: dict[str, Any] = {"show_progress": "hidden"}
HOST = "127.0.0.1"  # this machine alone: whoever reaches the page runs programs with its owner's rights
TICK = 0.1  # seconds between looks at what is going on


def serve(
    session: DemoSession, port: int | None, open_browser: bool = False, block: bool = True
) -> tuple[gr.Blocks, str]:
    """Serves the page to this machine; returns the application and its address. A taken port is a `UserError`.

    It answers under its address, as localhost and under the names in ``cfg.hosts``.
    """
    os.environ.setdefault("GRADIO_TEMP_DIR", private_folder().name)
    page = build(session)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # gradio asks its own server whether it is there
    os.environ["GRADIO_NUM_PORTS"] = "100"  # that are tried, from gradio's first, 7860
    try:
        # Other sites can give this address a name of theirs, and then read the page.
        names = [session.cfg.hosts] if isinstance(session.cfg.hosts, str) else session.cfg.hosts
        only = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost", *map(str, names)])
        place: dict[str, Any] = {"server_name": HOST, "server_port": port, "inbrowser": open_browser}
        place |= {"app_kwargs": {"middleware": [only]}}
        off = ("share", "ssr_mode", "mcp_server", "pwa", "enable_monitoring", "run_history")
        how = {**dict.fromkeys(off, False), "quiet": True, "prevent_thread_lock": True, "footer_links": []}
        font, mono = ["ui-sans-serif", "system-ui", "sans-serif"], ["ui-monospace", "Consolas", "monospace"]
        theme = gr.themes.Soft(primary_hue="indigo", neutral_hue="slate", font=font, font_mono=mono)
        _, url, _ = page.launch(**place, **how, theme=theme, css_paths=[HERE / "page.css"])
    except OSError as error:
        why = f"{HOST}:{port} is taken" if port else error
        raise UserError(f"port={port}: {why}; choose another, or port=null for the first free one") from error
    print(f"posegen demo: {url} (Ctrl+C ends it)", flush=True)
    if block:
        page.block_thread()
    return page, url


@cache
def private_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder for uploads that no other user can read, until the process ends."""
    return tempfile.TemporaryDirectory(prefix="posegen-demo-")


def build(session: DemoSession) -> gr.Blocks:
    """All components, and what happens when they are used."""
    with gr.Blocks(title="posegen demo", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        title = "<h1>posegen</h1><p>One prompt, one pose, the same noise: what each method makes of it.</p>"
        gr.HTML(title, elem_id="title")
        with gr.Row():
            with gr.Column(scale=5, min_width=380):
                prompt, pose = asking(session)
            with gr.Column(scale=7, min_width=420):
                only_backbone = len(session.loaded.methods()) == 1
                first = gr.Column(visible=only_backbone, elem_id="practising")
                every = f"every trained cell below {session.cfg.paths.output}, newest first"
                where = "those of checkpoints=" if session.cfg.checkpoints else every
                methods = gr.CheckboxGroup(label="Methods", elem_id="methods", info=where)
                control, guidance, steps, seed = settings(session)
                with gr.Row():
                    go = gr.Button("Generate", variant="primary", elem_id="generate", scale=3)
                    halt = gr.Button("Stop", elem_id="stop", scale=1, min_width=80)
                    again = gr.Button("Look again", elem_id="refresh", scale=1, min_width=100)
                left_out = gr.HTML(elem_id="left-out")
                results = gr.HTML(empty(), elem_id="results", apply_default_css=False)
                label = "A person to draw, for methods that take one from a picture (DNAF)"
                with gr.Accordion(label, open=False, elem_id="person"):
                    source = picture_input("Picture of a person", 220)
        with first:
            benchmark_offer(session, methods, first, left_out)

        gr.on([page.load, again.click], lambda: method_choices(session), None, [methods, first, left_out], **QUIETLY)
        inputs = [prompt, pose, methods, seed, steps, guidance, control, source]
        once: Any = {"concurrency_limit": 1, "trigger_mode": "once", **QUIETLY}
        gr.on([go.click, prompt.submit], drawing(session), inputs, results, **once)
        halt.click(session.stop.set, None, None, queue=False, **QUIETLY)
    return page


def asking(session: DemoSession) -> tuple[gr.Textbox, gr.HTML]:
    """Prompt and pose, and the ways to them: scenes, the editor, a picture, a file, the prior."""
    presets = {preset.label: preset for preset in session.presets}
    first = next(iter(presets.values()), Preset("", "", standing_pose()))
    prompt = gr.Textbox(first.prompt, label="Prompt", lines=2, max_lines=4, elem_id="prompt")
    scene = gr.Dropdown(list(presets), value=first.label or None, label="Scene to begin with", elem_id="scene")
    html, script = ((HERE / f"editor.{end}").read_text(encoding="utf-8") for end in ("html", "js"))
    facts = {**skeleton_facts(), "size": list(session.size), "apply_default_css": False}
    pose = gr.HTML(first.pose, html_template=html, js_on_load=script, elem_id="pose", **facts)
    said = gr.HTML(elem_id="pose-said")
    with gr.Accordion("Take the pose from a picture, a file or the prompt", open=False, elem_id="sources"):
        gr.HTML(note(warning := session.estimator.warning()), elem_id="unseen", visible=bool(warning))
        picture = picture_input("Picture with people", 200, elem_id="picture")
        with gr.Row():
            file = gr.UploadButton("COCO or OpenPose json", file_types=[".json"], elem_id="pose-file")
            imagine = gr.Button("Invent from the prompt", elem_id="imagine")
        invented = gr.Number(0, label="Seed of the invented pose", precision=0, minimum=0)

    chosen = [prompt, pose, said]
    scene.input(lambda label: (presets[label].prompt, presets[label].pose, ""), scene, chosen, **QUIETLY)
    read = f"The estimator's reading of the picture. {warning}"
    picture.upload(posing(session.read_picture, read), picture, [pose, said])
    file.upload(posing(session.read_file, "The pose of the file."), file, [pose, said])
    imagine.click(posing(session.imagine, "Invented by the prior."), [prompt, invented], [pose, said])
    return prompt, pose


def posing(source: Callable[..., dict[str, Any]], done: str) -> Callable[..., tuple[Any, str]]:
    """A source of poses whose errors stand below the editor, which then keeps its pose."""

    def take(*given: Any) -> tuple[Any, str]:
        try:
            return source(*given), note(done)
        except (ValueError, OSError) as error:
            return gr.skip(), note(str(error), bad=True)

    return take


def settings(session: DemoSession) -> tuple[gr.Slider, gr.Slider, gr.Slider, gr.Number]:
    """The numbers that all methods share."""
    sampler = session.cfg.sampler
    with gr.Row():
        label, info = "Control strength", "1 is what was trained"
        control = gr.Slider(0, 2, 1, step=0.05, label=label, info=info, elem_id="control")
        usual, info = float(sampler.guidance), "of the text"
        guidance = gr.Slider(1, 15, usual, step=0.5, label="Guidance", info=info, elem_id="guidance")
        steps = gr.Slider(1, 100, int(sampler.steps), step=1, label="Steps", info="of the sampler", elem_id="steps")
        seed = gr.Number(0, label="Seed", info="of the noise", precision=0, minimum=0, elem_id="seed", min_width=100)
    return control, guidance, steps, seed


def picture_input(label: str, height: int, **settings: Any) -> gr.Image:
    """The file as it came, because gradio would cut 16 bits off and blacken what is transparent."""
    how: dict[str, Any] = {"type": "filepath", "image_mode": None, "sources": ["upload", "clipboard"]}
    return gr.Image(label=label, height=height, **how, **settings)


def method_choices(session: DemoSession) -> tuple[Any, Any, Any]:
    """The methods with the newest cell of each chosen, whether a benchmark is offered, and who is left out."""
    labels = [method.label for method in session.loaded.methods()]
    newest = {label.partition(" · ")[0]: label for label in reversed(labels) if label != NONE}
    ticked = [*list(newest.values())[::-1][:4], NONE]  # four are chosen at first
    left = "; ".join(session.loaded.left_out)
    chosen = gr.update(choices=labels, value=[label for label in labels if label in ticked])
    return chosen, gr.update(visible=labels == [NONE]), note(f"Left out: {left}" if left else "")


def benchmark_offer(session: DemoSession, methods: gr.CheckboxGroup, group: gr.Column, left_out: gr.HTML) -> None:
    """Offers to train something where nothing is trained."""
    practice = session.cfg.practice.items()
    offers = {f"{say} (posegen benchmark {' '.join(words)})": list(words) for say, words in practice}
    ways = "Run a benchmark here, or train from the command line and press 'Look again'."
    gr.HTML(note(f"No method is trained yet below the output folder. {ways}"))
    which = gr.Radio(list(offers), value=next(iter(offers), None), label="Benchmark", elem_id="practice-which")
    with gr.Row():
        start = gr.Button("Run the benchmark", variant="primary", elem_id="practice")
        end = gr.Button("Cancel", elem_id="practice-cancel")
    state = gr.HTML(elem_id="practice-state", apply_default_css=False)
    running: list[FirstBenchmark] = []
    unchanged = (gr.skip(), gr.skip(), gr.skip())

    def run(label: str) -> Iterator[tuple[Any, ...]]:
        if running and running[0].report().state == "running":
            yield progress_bar(0, "it runs already"), *unchanged
            return
        paths = [f"paths.{name}={session.cfg.paths[name]}" for name in ("output", "cache")]
        try:
            running[:] = [FirstBenchmark([*offers[label], *paths])]
        except Exception as error:  # a configuration that does not compose
            yield note(str(error), bad=True), *unchanged
            return
        while (report := running[0].report()).state == "running":
            yield progress_bar(report.share, report.text), *unchanged
            time.sleep(5 * TICK)
        yield note(report.text, bad=report.state == "failed"), *method_choices(session)

    def cancel() -> None:
        for benchmark in running:
            benchmark.stop()

    start.click(run, which, [state, methods, group, left_out], concurrency_limit=1, **QUIETLY)
    end.click(cancel, None, None, queue=False, **QUIETLY)


def drawing(session: DemoSession) -> Callable[..., Iterator[str]]:
    """Draws the pictures in a thread, and shows every step and every picture as it comes."""

    def draw(
        prompt: str, pose: Any, labels: list[str], seed: int, steps: int, guidance: float, control: float, source: Any
    ) -> Iterator[str]:
        request = DemoRequest(prompt or "", pose, labels or [], seed or 0, steps, guidance, control, source=source)
        events: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=draw_into, args=(session, request, events), daemon=True).start()
        pictures: list[DemoPicture] = []
        total, bar, seen = max(1, len(request.labels)), progress_bar(0, "loading"), 0.0
        try:
            yield results_html(pictures, bar)
            while (event := events.get()) is not None:
                if isinstance(event, DemoPicture):
                    pictures.append(event)
                elif isinstance(event, str):
                    yield results_html(pictures, note(event, bad=event != "stopped"))
                    return
                else:
                    method, done, of = event
                    bar = progress_bar((len(pictures) + done / of) / total, f"{method.label}: step {done} of {of}")
                    if time.monotonic() - seen < TICK:
                        continue
                seen = time.monotonic()
                yield results_html(pictures, bar)
            yield results_html(pictures)
        finally:
            session.stop.set()  # also where the reader has gone

    return draw


def draw_into(session: DemoSession, request: DemoRequest, events: queue.Queue[Any]) -> None:
    """Puts into ``events`` every step (method, done, total), every picture, a message where it ends early, and None."""
    try:
        for picture in session.draw(request, lambda *step: events.put(step)):
            events.put(picture)
        events.put(None)
    except Stopped:
        events.put("stopped")
    except UserError as error:
        events.put(str(error))
    except Exception as error:
        events.put(f"{type(error).__name__}: {error}")
        raise
