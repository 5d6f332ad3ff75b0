"""The second rendering of the mannequin world, for 128 pixels: the same captions and people, better pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import numpy as np

from posegen.data.mannequin.canvas import CANVAS_SIDE, SUBPIXELS, Canvas, Colour, box, ellipse, fixed, mix, shade
from posegen.data.mannequin.captions import Description
from posegen.data.mannequin.figure import Figure, FigurePainter
from posegen.data.mannequin.soft_canvas import SoftCanvas
from posegen.data.mannequin.soft_figure import SoftFigure, SoftFigurePainter
from posegen.data.mannequin.world import WORLD_VERSION, Realisation, World

RENDERING_VERSION = 1  # raise it whenever a pixel or a visibility of this rendering changes and WORLD_VERSION does not
EXTRAS = 10  # added to the stream of an image: what this rendering alone shows
CLOSER = 0.2  # of the distance between people, by which they stand nearer to each other
OBSTACLES = 0.35  # share of images with a thing before the people


class SoftWorld(World):
    """`World` with shading, shadows, hands and faces. Captions and bodies are the same, and a single person is at the
    same place. People in groups stand nearer to each other, and things before them hide some joints."""

    name, version = "mannequin_v2", f"{WORLD_VERSION}.{RENDERING_VERSION}"
    figure: ClassVar[type[Figure]] = SoftFigure
    painter: ClassVar[FigurePainter] = SoftFigurePainter()

    def _blank(self, description: Description, split: str, index: int, stream: int) -> Canvas:
        return SoftCanvas(description.style, self._dice(split, index, stream + EXTRAS))

    def _populate(self, canvas: Canvas, people: Realisation) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        middle = sum(x for x, _ in people.origins) / len(people.origins)
        origins = [(x + (middle - x) * CLOSER if len(people.origins) > 1 else x, y) for x, y in people.origins]
        return super()._populate(canvas, replace(people, origins=origins))

    def _ground_shadow(self, canvas: Canvas, figure: Figure, ground: float) -> None:
        """The figure, laid on the ground away from the light."""
        assert isinstance(canvas, SoftCanvas)
        if canvas.style == "sketch":
            return
        outlines = self.painter.outlines(figure, self.painter.layers[canvas.style][:1])[0]
        foot = round(ground * SUBPIXELS)
        height = foot - outlines[..., 1]
        laid = np.stack((outlines[..., 0] + height * 3 // 8, foot - height // 5), -1).astype(np.int32)
        canvas.dim_outlines(laid, 90 if canvas.style != "shadow" else 50, 5, first=canvas.horizon)

    def _finish(self, canvas: Canvas, figures: list[Figure], ground: float) -> None:
        assert isinstance(canvas, SoftCanvas)
        dice = canvas.dice
        if not dice.chance(OBSTACLES):
            return
        figure, canvas.owner = dice.choice(figures), len(figures) + 1
        x = float(figure.project("pelvis")[0]) + dice.about(0, 0.3) * figure.unit
        foot = min(CANVAS_SIDE - 2, ground + dice.uniform(0, 8))
        r, g, b = canvas.pixels[round(foot), min(CANVAS_SIDE - 1, max(0, round(x))), :3].tolist()
        share = {"shadow": 1.0}.get(canvas.style, 0.6 if canvas.scene == "night" else 0.0)

        def hue(*options: Colour) -> Colour:
            """One of some colours, as it looks in the light of the picture."""
            return mix(dice.choice(options), shade((r, g, b), 0.75), share)

        size = dice.uniform(0.16, 0.28) * figure.unit
        if canvas.style != "sketch":
            canvas.dim_outlines(fixed(ellipse((x + 0.25 * size, foot), (0.7 * size, 0.14 * size)))[None], 90, 5)
        THINGS[canvas.scene](canvas, (x, foot), size, hue)


Hue = Callable[..., Colour]


def _bush(canvas: Canvas, foot: tuple[float, float], size: float, hue: Hue) -> None:
    blobs = ((-0.75, 0.42, 0.42), (0.72, 0.4, 0.4), (-0.2, 0.6, 0.45), (0.35, 0.62, 0.4), (0, 0.35, 0.4))
    leaf = hue((62, 130, 58), (84, 142, 60), (48, 112, 70))
    canvas.group([foot + ellipse((a * size, -b * size), (r * size,) * 2) for a, b, r in blobs], leaf)


def _ball(canvas: Canvas, foot: tuple[float, float], size: float, hue: Hue) -> None:
    radius = 0.42 * size
    for width, colour in ((1.0, hue((246, 244, 240))), (0.42, hue((226, 70, 62), (60, 120, 214), (250, 196, 60)))):
        canvas.group([foot + ellipse((0, -radius), (width * radius, radius * (1 if width == 1 else 0.96)))], colour)


def _plant(canvas: Canvas, foot: tuple[float, float], size: float, hue: Hue) -> None:
    leaves = ((-0.36, 0.72, 0.2, 0.3), (0.36, 0.74, 0.2, 0.28), (0, 0.9, 0.18, 0.36), (0, 0.6, 0.3, 0.2))
    leaf = hue((62, 140, 70), (88, 150, 82))
    canvas.group([foot + ellipse((a * size, -b * size), (c * size, d * size)) for a, b, c, d in leaves], leaf)
    pot = foot + box(-0.26 * size, -0.42 * size, 0.26 * size, 0)
    canvas.shape(pot, hue((190, 104, 70), (226, 222, 214), (84, 110, 150)))


def _bin(canvas: Canvas, foot: tuple[float, float], size: float, hue: Hue) -> None:
    colour = hue((92, 112, 96), (110, 116, 128), (150, 60, 54))
    canvas.shape(foot + box(-0.3 * size, -size, 0.3 * size, 0), colour)
    canvas.shape(foot + ellipse((0, -size), (0.33 * size, 0.1 * size)), shade(colour, 0.8))


def _block(canvas: Canvas, foot: tuple[float, float], size: float, hue: Hue) -> None:
    colour, side = hue((226, 224, 222), (196, 190, 200), (214, 196, 180)), 0.5 * size
    canvas.shape(foot + box(-side, -0.7 * size, side, 0), colour)
    top = np.array(((-0.64, -0.86), (1.36, -0.86), (1, -0.7), (-1, -0.7))) * (side, size)
    canvas.shape(foot + top, shade(colour, 1.06))


THINGS: dict[str, Callable[[Canvas, tuple[float, float], float, Hue], None]] = {
    "park": _bush, "beach": _ball, "room": _plant, "street": _bin, "studio": _block, "night": _bush,
}  # fmt: skip
