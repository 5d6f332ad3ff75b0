"""Renders pairs: one person twice, in the same clothes before the same scene, in two poses.

The target is the image that a perfect method paints from the source image and the target's pose, but for the ground
shadow and a stool. Since it exists, appearance can be compared pixel by pixel.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np

from posegen.data.mannequin import world as plain_world
from posegen.data.mannequin.body import Body, Build, random_body, random_bones, random_roundness
from posegen.data.mannequin.canvas import Canvas
from posegen.data.mannequin.captions import ACTIONS, SCENES, STYLES, Description, PersonCaption, garment_colours
from posegen.data.mannequin.figure import random_outfit
from posegen.data.mannequin.rng import Dice
from posegen.data.mannequin.scene import paint_scene
from posegen.data.mannequin.world import DESCRIPTION, REALISATION, SPLIT_STREAMS, STYLE_SHARES, WORLD_VERSION, World

PAIRS_VERSION = 1  # raise it whenever a pixel, a caption or a keypoint of a pair changes and WORLD_VERSION does not
SCENERY, PERSON, SIZE, TARGET, SOURCE, PLACE = range(6)  # independent random streams within a realisation
PAIRS = 1  # separates all of them from the streams of the plain world


class Targets(World):
    """Renders the targets of the pairs, each with its caption."""

    name, version = "mannequin_pairs", f"{WORLD_VERSION}.{PAIRS_VERSION}"
    member = TARGET

    def describe(self, split: str, index: int) -> Description:
        """The caption of this member; those of a pair differ in the action alone."""
        dice = self._stream(split, index, DESCRIPTION)
        style, scene = dice.choice(STYLES, STYLE_SHARES), dice.choice(SCENES)
        actions = {TARGET: dice.choice(ACTIONS), SOURCE: dice.choice(ACTIONS)}
        colours = garment_colours(style, dice.integer(0, 9), dice.integer(1, 9))
        return Description(style, scene, (PersonCaption(actions[self.member], *colours),))

    def _stream(self, split: str, index: int, *streams: int) -> Dice:
        self._dice(split, index, DESCRIPTION)  # refuses unknown splits and negative indices
        return Dice(WORLD_VERSION, self.seed, SPLIT_STREAMS[split], index, *streams, PAIRS, PAIRS_VERSION)

    def garment(self, split: str, index: int, part: str) -> np.ndarray:
        """Mask ``[size, size] bool`` of the ``shirt`` or ``trousers`` of an image: pixels that follow their colour."""
        images = (self._paint(split, index, REALISATION, **{part: (tone,) * 3})[0] for tone in (0, 255))
        size = self.size, self.size
        black, white = (cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in images)
        return (black != white).any(-1)

    def _paint(self, split: str, index: int, stream: int, **worn: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        description = self.describe(split, index)
        (look,) = description.people
        person = self._stream(split, index, stream, PERSON)
        outfit = replace(random_outfit(description.style, look.shirt, look.trousers, person), **worn)
        build = Build(random_bones(person), *random_roundness(person))
        canvas = Canvas(description.style)
        horizon = paint_scene(canvas, description.scene, self._stream(split, index, stream, SCENERY))
        size = self.seed, self.size
        bodies = {member: world(*size).body(split, index, stream, build) for member, world in MEMBERS.items()}
        units = [
            plain_world.largest_units([body], self._stream(split, index, stream, SIZE))[0] for body in bodies.values()
        ]
        place = self._stream(split, index, stream, self.member, PLACE)
        people = plain_world.side_by_side(
            [bodies[self.member]], [outfit], [min(units)], horizon, place
        )  # one size in both images
        return plain_world.paint_people(canvas, people)

    def body(self, split: str, index: int, stream: int, build: Build) -> Body:
        (look,) = self.describe(split, index).people
        return random_body(look.action, self._stream(split, index, stream, self.member), build)


class Sources(Targets):
    """Renders the other images of the same people."""

    name = "mannequin_pairs_source"
    member = SOURCE


MEMBERS: dict[int, type[Targets]] = {TARGET: Targets, SOURCE: Sources}
