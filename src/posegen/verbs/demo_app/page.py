"""The page itself, the only module that imports gradio."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before the import: nothing is to be reported to anybody, and no newer version looked for.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr

from posegen.errors import UserError
from posegen.verbs.demo_app.editor import facts, standing
from posegen.verbs.demo_app.first_benchmark import Practice
from posegen.verbs.demo_app.html_fragments import EMPTY, note, page_of, progress_bar
from posegen.verbs.demo_app.loaded_methods import NONE, Method
from posegen.verbs.demo_app.session import Asked, Made, Stopped, Studio

HERE = Path(__file__).parent
HOST = "127.0.0.1"  # whoever can reach the page runs programs with its owner's rights, so nobody else may
PORTS = 100  # from gradio's first, 7860, that are tried
TICKED = 4  # methods that are chosen at first
TICK = 0.1  # seconds between looks at what is going on
FONT = ["ui-sans-serif", "system-ui", "sans-serif"]
MONO = ["ui-monospace", "Consolas", "monospace"]


def serve(studio: Studio, port: int | None, open_browser: bool = False, block: bool = True) -> tuple[gr.Blocks, str]:
    """Serves the page to this machine.

    Returns:
        The application, and the page's address.

    Raises:
        UserError: the port is taken.
    """
    page = build(studio)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # gradio asks its own server whether it is there
    os.environ["GRADIO_NUM_PORTS"] = str(PORTS)
    try:
        _, url, _ = page.launch(
            server_name=HOST,
            server_port=port,
            inbrowser=open_browser,
            share=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            enable_monitoring=False,
            run_history=False,
            footer_links=[],
            quiet=True,
            prevent_thread_lock=True,
            theme=gr.themes.Soft(primary_hue="indigo", neutral_hue="slate", font=FONT, font_mono=MONO),
            css_paths=[HERE / "page.css"],
        )
    except OSError as error:
        raise UserError(
            f"port={port}: {f'{HOST}:{port} is taken' if port else error}; choose another, or port=null for the first free one"
        ) from error
    print(f"posegen demo: {url} (Ctrl+C ends it)", flush=True)
    if block:
        page.block_thread()
    return page, url


def build(studio: Studio) -> gr.Blocks:
    """All components, and what happens when they are used."""
    with gr.Blocks(title="posegen demo", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.HTML(
            "<h1>posegen</h1><p>One prompt, one pose, the same noise: what each method makes of it.</p>",
            elem_id="title",
        )
        with gr.Row():
            with gr.Column(scale=5, min_width=380):
                prompt, pose = asking(studio)
            with gr.Column(scale=7, min_width=420):
                practising = gr.Column(visible=not trained(studio.shelf.methods()), elem_id="practising")
                where = (
                    "those of checkpoints="
                    if studio.cfg.checkpoints
                    else f"every trained cell below {studio.cfg.paths.output}, newest first"
                )
                methods = gr.CheckboxGroup(label="Methods", elem_id="methods", info=where)
                control, guidance, steps, seed = settings(studio)
                with gr.Row():
                    go = gr.Button("Generate", variant="primary", elem_id="generate", scale=3)
                    halt = gr.Button("Stop", elem_id="stop", scale=1, min_width=80)
                    again = gr.Button("Look again", elem_id="refresh", scale=1, min_width=100)
                left_out = gr.HTML(elem_id="left-out")
                results = gr.HTML(EMPTY, elem_id="results", apply_default_css=False)
                with gr.Accordion(
                    "A person to draw, for methods that take one from a picture (DNAF)", open=False, elem_id="person"
                ):
                    source = gr.Image(
                        label="Picture of a person", type="numpy", sources=["upload", "clipboard"], height=220
                    )
        with practising:
            practice(studio, methods, practising, left_out)

        def ticked() -> tuple[Any, Any, Any]:
            return shown(studio)

        page.load(ticked, None, [methods, practising, left_out], show_progress="hidden")
        again.click(ticked, None, [methods, practising, left_out], show_progress="hidden")
        made = making(studio)
        inputs = [prompt, pose, methods, seed, steps, guidance, control, source]
        gr.on(
            [go.click, prompt.submit],
            made,
            inputs,
            results,
            concurrency_limit=1,
            show_progress="hidden",
            trigger_mode="once",
        )
        halt.click(studio.stop.set, None, None, queue=False, show_progress="hidden")
    return page


def asking(studio: Studio) -> tuple[gr.Textbox, gr.HTML]:
    """Prompt and pose, and the ways to them: scenes, the editor, a picture, a file, the prior."""
    presets = {preset.label: preset for preset in studio.presets}
    first = next(iter(presets.values()), None)
    prompt = gr.Textbox(first.prompt if first else "", label="Prompt", lines=2, max_lines=4, elem_id="prompt")
    scene = gr.Dropdown(
        list(presets), value=first.label if first else None, label="Scene to begin with", elem_id="scene"
    )
    pose = gr.HTML(
        first.pose if first else standing(),
        html_template=(HERE / "editor.html").read_text(encoding="utf-8"),
        js_on_load=(HERE / "editor.js").read_text(encoding="utf-8"),
        apply_default_css=False,
        elem_id="pose",
        size=list(studio.size),
        **facts(),
    )
    said = gr.HTML(elem_id="pose-said")
    with gr.Accordion("Take the pose from a picture, a file or the prompt", open=False, elem_id="sources"):
        picture = gr.Image(
            label="Picture with people", type="numpy", sources=["upload", "clipboard"], height=200, elem_id="picture"
        )
        with gr.Row():
            file = gr.UploadButton("COCO or OpenPose json", file_types=[".json"], elem_id="pose-file")
            imagine = gr.Button("Invent from the prompt", elem_id="imagine")
        invented = gr.Number(0, label="Seed of the invented pose", precision=0, minimum=0)

    def choose(label: str) -> tuple[str, Any, str]:
        return presets[label].prompt, presets[label].pose, ""

    scene.input(choose, scene, [prompt, pose, said], show_progress="hidden")
    picture.upload(posing(studio.read, "The estimator's reading of the picture."), picture, [pose, said])
    file.upload(posing(studio.read_file, "The pose of the file."), file, [pose, said])
    imagine.click(posing(studio.imagine, "Invented by the prior."), [prompt, invented], [pose, said])
    return prompt, pose


def posing(source: Callable[..., dict[str, Any]], done: str) -> Callable[..., tuple[Any, str]]:
    """A source of poses whose errors are told below the editor, which then keeps its pose."""

    def take(*given: Any) -> tuple[Any, str]:
        try:
            return source(*given), note(done)
        except (ValueError, OSError) as error:
            return gr.skip(), note(str(error), bad=True)

    return take


def settings(studio: Studio) -> tuple[gr.Slider, gr.Slider, gr.Slider, gr.Number]:
    """The numbers that all methods share."""
    sampler = studio.cfg.sampler
    with gr.Row():
        control = gr.Slider(
            0, 2, 1, step=0.05, label="Control strength", info="1 is what was trained", elem_id="control"
        )
        guidance = gr.Slider(
            1, 15, float(sampler.guidance), step=0.5, label="Guidance", info="of the text", elem_id="guidance"
        )
        steps = gr.Slider(1, 100, int(sampler.steps), step=1, label="Steps", info="of the sampler", elem_id="steps")
        seed = gr.Number(0, label="Seed", info="of the noise", precision=0, minimum=0, elem_id="seed", min_width=100)
    return control, guidance, steps, seed


def trained(methods: list[Method]) -> bool:
    return any(method.folder is not None for method in methods)


def shown(studio: Studio) -> tuple[Any, Any, Any]:
    """The methods with the newest cell of each chosen, whether practice is offered, and who is left out."""
    methods = studio.shelf.methods()
    newest = list(
        {
            method.label.partition(" · ")[0]: method.label for method in reversed(methods) if method.label != NONE
        }.values()
    )[::-1]
    labels = [method.label for method in methods]
    chosen = [label for label in labels if label in newest[:TICKED] or label == NONE]
    left = "; ".join(studio.shelf.left_out)
    return (
        gr.update(choices=labels, value=chosen),
        gr.update(visible=not trained(methods)),
        note(f"Left out: {left}" if left else ""),
    )


def practice(studio: Studio, methods: gr.CheckboxGroup, group: gr.Column, left_out: gr.HTML) -> None:
    """Offers to train something where nothing is trained."""
    offers = {f"{say} (posegen benchmark {' '.join(words)})": list(words) for say, words in studio.cfg.practice.items()}
    gr.HTML(
        note(
            "No method is trained yet below the output folder. Run a benchmark here, or train from the command line and press 'Look again'."
        )
    )
    which = gr.Radio(list(offers), value=next(iter(offers), None), label="Benchmark", elem_id="practice-which")
    with gr.Row():
        start = gr.Button("Run the benchmark", variant="primary", elem_id="practice")
        end = gr.Button("Cancel", elem_id="practice-cancel")
    state = gr.HTML(elem_id="practice-state", apply_default_css=False)
    running: list[Practice] = []

    def run(label: str) -> Iterator[tuple[Any, ...]]:
        if running and running[0].report().state == "running":
            yield progress_bar(0, "it runs already"), gr.skip(), gr.skip(), gr.skip()
            return
        paths = [f"paths.{name}={studio.cfg.paths[name]}" for name in ("output", "cache")]
        try:
            running[:] = [Practice([*offers[label], *paths])]
        except Exception as error:  # a configuration that does not compose
            yield note(str(error), bad=True), gr.skip(), gr.skip(), gr.skip()
            return
        while (report := running[0].report()).state == "running":
            yield progress_bar(report.share, report.text), gr.skip(), gr.skip(), gr.skip()
            time.sleep(5 * TICK)
        yield note(report.text, bad=report.state == "failed"), *shown(studio)

    def cancel() -> None:
        for own in running:
            own.stop()

    start.click(run, which, [state, methods, group, left_out], concurrency_limit=1, show_progress="hidden")
    end.click(cancel, None, None, queue=False, show_progress="hidden")


def making(studio: Studio) -> Callable[..., Iterator[str]]:
    """Makes the pictures in a thread of their own, and shows every step and every picture as it comes."""

    def make(
        prompt: str,
        pose: Any,
        labels: list[str],
        seed: int,
        steps: int,
        guidance: float,
        control: float,
        source: Any = None,
    ) -> Iterator[str]:
        asked = Asked(prompt or "", pose, labels or [], seed or 0, steps, guidance, control, source=source)
        events: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=work, args=(studio, asked, events), daemon=True).start()
        made: list[Made] = []
        total, bar, seen = max(1, len(asked.labels)), progress_bar(0, "loading"), 0.0
        try:
            yield page_of(made, bar)
            while (event := events.get()) is not None:
                if isinstance(event, Made):
                    made.append(event)
                elif isinstance(event, str):
                    yield page_of(made, note(event, bad=event != "stopped"))
                    return
                else:
                    method, done, steps_of = event
                    bar = progress_bar(
                        (len(made) + done / steps_of) / total, f"{method.label}: step {done} of {steps_of}"
                    )
                    if time.monotonic() - seen < TICK:
                        continue
                seen = time.monotonic()
                yield page_of(made, bar)
            yield page_of(made)
        finally:
            studio.stop.set()  # also where the reader has gone

    return make


def work(studio: Studio, asked: Asked, events: queue.Queue[Any]) -> None:
    """Puts into ``events`` every step (method, done, total), every picture, a message where it ends early, and None at the end."""
    try:
        for made in studio.make(asked, lambda *step: events.put(step)):
            events.put(made)
        events.put(None)
    except Stopped:
        events.put("stopped")
    except UserError as error:
        events.put(str(error))
    except Exception as error:
        events.put(f"{type(error).__name__}: {error}")
        raise
