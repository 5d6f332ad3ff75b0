"""One person on the canvas: clothes, and where the joints are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from posegen.data.mannequin.body import Body, J
from posegen.data.mannequin.canvas import Colour, shade
from posegen.data.mannequin.rng import Dice

GARMENTS: dict[str, Colour] = {
    "red": (214, 42, 46), "orange": (243, 134, 28), "yellow": (246, 212, 48), "green": (46, 152, 62),
    "blue": (44, 88, 214), "purple": (138, 56, 176), "pink": (246, 130, 178), "brown": (126, 78, 42),
    "black": (54, 54, 60), "white": (240, 240, 242),
}  # fmt: skip
SKINS: tuple[Colour, ...] = ((250, 214, 186), (238, 188, 148), (212, 156, 112), (160, 106, 70), (112, 72, 48))
HAIRS: tuple[Colour, ...] = ((44, 36, 34), (92, 58, 34), (150, 88, 40), (226, 186, 96), (150, 148, 146))
SHOES: tuple[Colour, ...] = ((70, 52, 44), (52, 52, 62), (206, 204, 206), (150, 54, 44))
DUSK: Colour = (60, 58, 68)  # a shadow figure


@dataclass(frozen=True)
class Outfit:
    """A person's looks apart from the pose; ``hair_style`` is short, long or bun."""

    skin: Colour
    hair: Colour
    shirt: Colour
    trousers: Colour
    shoes: Colour
    long_sleeves: bool
    hair_style: str


def random_outfit(style: str, shirt: str | None, trousers: str | None, dice: Dice) -> Outfit:
    """An outfit in the caption's colours; sketch and shadow figures wear the tones of their style."""
    skin, hair, shoes = dice.choice(SKINS), dice.choice(HAIRS), dice.choice(SHOES)
    sleeves, hair_style = dice.chance(0.45), dice.choice(("short", "long", "bun"), (0.6, 0.25, 0.15))
    shirt_factor, trousers_factor = (dice.about(1, 0.08) for _ in range(2))
    if style == "sketch":
        grey = (70 + hair[0] // 2,) * 3
        return Outfit((255,) * 3, grey, (255,) * 3, (255,) * 3, (255,) * 3, sleeves, hair_style)
    if style == "shadow":
        return Outfit(DUSK, shade(DUSK, 0.7), DUSK, DUSK, DUSK, sleeves, hair_style)
    assert shirt and trousers, "photo and cartoon captions name the colours"
    clothes = shade(GARMENTS[shirt], shirt_factor), shade(GARMENTS[trousers], trousers_factor)
    return Outfit(skin, hair, *clothes, shoes, sleeves, hair_style)


class Figure:
    """A body placed on the canvas with its pelvis at ``origin`` (x, y), ``unit`` pixels per body height."""

    def __init__(self, body: Body, outfit: Outfit, origin: tuple[float, float], unit: float):
        self.body, self.outfit, self.unit = body, outfit, unit
        self.joints = np.array(origin) + body.joints[:, :2] * (unit, -unit)  # [22, 2] in canvas pixels
        self.depth = body.joints[:, 2] * unit  # [22] nearness to the viewer in pixels

    def project(self, joint: str, offset: np.ndarray | None = None) -> np.ndarray:
        """Canvas position ``[2]`` of a joint, or of a point ``offset`` (body heights, ``[3]``) away from it."""
        point = self.joints[J[joint]]
        return point if offset is None else point + offset[:2] * (self.unit, -self.unit)
