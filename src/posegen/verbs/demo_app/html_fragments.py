"""What the page shows of pictures and progress, as HTML; everything that somebody typed or named is escaped."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from html import escape

import cv2
import numpy as np

from posegen.poses.drawing import overlay
from posegen.poses.topology import COCO_BARS, COCO_LIMBS
from posegen.runner.images import enlarged, visible
from posegen.verbs.demo_app.session import Made

SIDE = 384  # least side, in pixels, at which a skeleton is drawn over a picture
EMPTY = (
    '<div class="pg-empty">Choose a scene or drag the joints, tick methods, and press <b>Generate</b>.<br>Every method starts from the same noise; under '
    "each picture is the pose that the estimator finds in it.</div>"
)


def page_of(made: Sequence[Made], progress: str = "") -> str:
    """The cards of pictures below a progress bar."""
    best = best_scores(made)
    unknown = list(dict.fromkeys(word for entry in made for word in entry.unknown))
    told = (
        note(
            f"No caption of this world has: {', '.join(unknown)}. The scenes show how its captions read; the backbone knows no other words."
        )
        if unknown
        else ""
    )
    cards = "".join(card(entry, best) for entry in made)
    return progress + told + (f'<div class="pg-cards">{cards}</div>' if cards else "")


def best_scores(made: Sequence[Made]) -> dict[str, float]:
    """The highest value of each column, where several methods have one and they differ."""
    columns = {column for entry in made for column in entry.scores}
    values = {
        column: [e.scores[column] for e in made if not math.isnan(e.scores.get(column, math.nan))] for column in columns
    }
    return {column: max(own) for column, own in values.items() if len(set(own)) > 1}


def card(made: Made, best: dict[str, float]) -> str:
    """One method: its picture, the picture with the pose that was found, and how well that agrees with the one asked for."""
    name, _, rest = made.label.partition(" · ")
    head = f"<header><b>{escape(name)}</b><span>{escape(rest) or ('the backbone and the prompt alone' if name == 'none' else '&nbsp;')}</span></header>"
    if made.picture is None:
        return f'<article class="pg-card">{head}<div class="pg-error" role="alert">{escape(made.error)}</div></article>'
    zoom = max(1, -(-SIDE // min(made.picture.shape[:2])))
    large = cv2.resize(made.picture, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
    found = overlay((large * 0.55).astype(np.uint8), enlarged(visible(made.found.keypoints), zoom))
    figures = (
        f'<figure><img alt="picture by {escape(made.label)}" src="{data_url(made.picture)}"></figure>'
        f'<figure><img alt="the pose found in it" src="{data_url(found)}">{outline(made)}<figcaption>{count(made)}</figcaption></figure>'
    )
    scores = "".join(score(column, value, best) for column, value in made.scores.items())
    return f'<article class="pg-card">{head}{figures}<div class="pg-scores">{scores or "no pose was asked for"}</div></article>'


def count(made: Made) -> str:
    found, asked = len(made.found), len(made.asked)
    return f"{found} found" + (f", {asked} asked for" if asked else "")


def outline(made: Made) -> str:
    """The pose asked for as thin lines over the picture."""
    height, width = made.picture.shape[:2]  # type: ignore[union-attr]
    lines = "".join(
        f'<line x1="{person[a, 0] + 0.5:.2f}" y1="{person[a, 1] + 0.5:.2f}" x2="{person[b, 0] + 0.5:.2f}" y2="{person[b, 1] + 0.5:.2f}"/>'
        for person in made.asked
        for a, b in (*COCO_BARS, *COCO_LIMBS)
        if person[a, 2] > 0 and person[b, 2] > 0
    )
    return f'<svg class="pg-asked" viewBox="0 0 {width} {height}" stroke-width="{min(width, height) / 160:.3f}" aria-hidden="true">{lines}</svg>'


def score(column: str, value: float, best: dict[str, float]) -> str:
    """A value in percent with its bar; the highest of several is marked."""
    if math.isnan(value):
        return f'<div class="pg-score">{escape(column)} <b>–</b></div>'
    mark = ' class="pg-best"' if best.get(column) == value else ""
    return (
        f'<div class="pg-score" data-column="{escape(column)}">{escape(column)} <b{mark}>{value:.0f}</b>'
        f'<div class="pg-bar"><i style="width:{max(0.0, min(100.0, value)):.1f}%"></i></div></div>'
    )


def progress_bar(share: float, text: str) -> str:
    return f'<div class="pg-progress" role="status">{escape(text)}<div class="pg-bar"><i style="width:{100 * min(1.0, share):.1f}%"></i></div></div>'


def note(text: str, bad: bool = False) -> str:
    return f'<p class="pg-note{" pg-bad" if bad else ""}" role="status">{escape(text)}</p>' if text else ""


def data_url(image: np.ndarray) -> str:
    """``[H, W, 3] uint8`` RGB as an address that holds the picture itself."""
    ok, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    assert ok
    return f"data:image/png;base64,{base64.b64encode(data.tobytes()).decode()}"
