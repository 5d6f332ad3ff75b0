"""Pictures, notes and progress as HTML, by the template ``fragments.html.j2``, which escapes everything."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from posegen.demo.session import DemoPicture
from posegen.poses.drawing import overlay
from posegen.poses.topology import COCO_BARS, COCO_LIMBS
from posegen.runner.images import enlarged, visible


def data_url(image: np.ndarray) -> str:
    """``[H, W, 3] uint8`` RGB as an address that holds the picture itself."""
    ok, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    assert ok
    return f"data:image/png;base64,{base64.b64encode(data.tobytes()).decode()}"


def found_overlay(picture: DemoPicture) -> np.ndarray:
    """The darkened picture with the people who were found in it, enlarged to sides of at least 384 pixels."""
    assert picture.pixels is not None
    zoom = max(1, -(-384 // min(picture.pixels.shape[:2])))
    large = cv2.resize(picture.pixels, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
    return overlay((large * 0.55).astype(np.uint8), enlarged(visible(picture.found.keypoints), zoom))


files = FileSystemLoader(Path(__file__).parent)
environment = Environment(loader=files, autoescape=True, trim_blocks=True, lstrip_blocks=True)
environment.globals |= {"data_url": data_url, "found_overlay": found_overlay, "limbs": [*COCO_BARS, *COCO_LIMBS]}
#: ``note(text, bad)``, ``progress_bar(share, text)`` and ``empty()`` return HTML.
fragments = environment.get_template("fragments.html.j2").module


def results_html(pictures: Sequence[DemoPicture], progress: str = "") -> Markup:
    """The cards of pictures below a progress bar, which is HTML."""
    unknown = list(dict.fromkeys(word for picture in pictures for word in picture.unknown))
    return fragments.results(pictures, Markup(progress), unknown, best_scores(pictures))  # type: ignore[attr-defined]


def best_scores(pictures: Sequence[DemoPicture]) -> dict[str, float]:
    """The highest value of each column, where several methods have one and they differ."""
    values: dict[str, set[float]] = {}
    for column, value in (score for picture in pictures for score in picture.scores.items()):
        values.setdefault(column, set()).update(() if math.isnan(value) else (value,))
    return {column: max(found) for column, found in values.items() if len(found) > 1}
