"""Pairs of the mannequin world: one person twice, in the same clothes before the same scene, in two poses.

The target is what a perfect method would paint from the source image and the target pose, but for where the ground shadow and a stool belong; it exists, so
appearance can be compared pixel by pixel.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np

from posegen.data.base import Sample, Transfers
from posegen.data.mannequin.body import Body, Build, bones, pose, roundness
from posegen.data.mannequin.canvas import Canvas
from posegen.data.mannequin.captions import ACTIONS, COLOURED_STYLES, COLOURS, SCENES, STYLES, Description, Look
from posegen.data.mannequin.dataset import MannequinData
from posegen.data.mannequin.figure import dress
from posegen.data.mannequin.rng import Dice
from posegen.data.mannequin.scene import paint_scene
from posegen.data.mannequin.world import (
    DESCRIPTION,
    REALISATION,
    SPLITS,
    STYLE_SHARES,
    WORLD_VERSION,
    World,
    largest_units,
    paint_people,
    placed,
)

PAIRS_VERSION = 1  # raise it whenever a pixel, a caption or a keypoint of a pair changes and WORLD_VERSION does not
SCENERY, PERSON, SIZE, TARGET, SOURCE, PLACE = range(6)  # independent random streams within a realisation
PAIRS = 1  # keeps all of them apart from those of the plain world


class Targets(World):
    """Renders the targets of the pairs, each with its own caption."""

    name, version = "mannequin_pairs", f"{WORLD_VERSION}.{PAIRS_VERSION}"
    member = TARGET

    def describe(self, split: str, index: int) -> Description:
        """What the caption of this member says; those of a pair differ in the action alone."""
        dice = self._stream(split, index, DESCRIPTION)
        style, scene = dice.choice(STYLES, STYLE_SHARES), dice.choice(SCENES)
        actions = {TARGET: dice.choice(ACTIONS), SOURCE: dice.choice(ACTIONS)}
        shirt, trousers = dice.integer(0, 9), dice.integer(1, 9)
        colours = (COLOURS[shirt], COLOURS[(shirt + trousers) % 10]) if style in COLOURED_STYLES else (None, None)
        return Description(style, scene, (Look(actions[self.member], *colours),))

    def _stream(self, split: str, index: int, *streams: int) -> Dice:
        self._dice(split, index, DESCRIPTION)  # refuses splits and indices that are none
        return Dice(WORLD_VERSION, self.seed, SPLITS[split], index, *streams, PAIRS, PAIRS_VERSION)

    def garment(self, split: str, index: int, part: str) -> np.ndarray:
        """Where the ``shirt`` or the ``trousers`` of image ``index`` show, ``[size, size] bool``: the pixels that change with their colour."""
        black, white = (
            self._paint(split, index, REALISATION, **{part: colour})[0] for colour in ((0, 0, 0), (255, 255, 255))
        )
        small = (self.size, self.size)
        return (
            cv2.resize(black, small, interpolation=cv2.INTER_AREA)
            != cv2.resize(white, small, interpolation=cv2.INTER_AREA)
        ).any(-1)

    def _paint(self, split: str, index: int, stream: int, **worn: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        description = self.describe(split, index)
        (look,) = description.people
        person = self._stream(split, index, stream, PERSON)
        outfit, build = (
            replace(dress(description.style, look.shirt, look.trousers, person), **worn),
            Build(bones(person), *roundness(person)),
        )
        canvas = Canvas(description.style)
        horizon = paint_scene(canvas, description.scene, self._stream(split, index, stream, SCENERY))
        bodies = {
            member: world(self.seed, self.size).body(split, index, stream, build) for member, world in MEMBERS.items()
        }
        unit = min(
            largest_units([body], self._stream(split, index, stream, SIZE))[0] for body in bodies.values()
        )  # as large in both images
        place = self._stream(split, index, stream, self.member, PLACE)
        return paint_people(canvas, placed([bodies[self.member]], [outfit], [unit], horizon, place))

    def body(self, split: str, index: int, stream: int, build: Build) -> Body:
        """The person in this member's pose."""
        (look,) = self.describe(split, index).people
        return pose(look.action, self._stream(split, index, stream, self.member), build)


class Sources(Targets):
    """Renders the other images of the same people."""

    name = "mannequin_pairs_source"
    member = SOURCE


MEMBERS: dict[int, type[Targets]] = {TARGET: Targets, SOURCE: Sources}


class SourceData(MannequinData):
    """The sources as a data set of their own, in the order of the pairs."""

    name = "mannequin_pairs_source"
    renders: ClassVar[type[World]] = Sources


class MannequinPairs(MannequinData):
    """The first ``count`` pairs of a split; a sample is a target, and `source_of` brings the other image of the same person.

    Args:
        split: train, validation or test.
        count: number of pairs.
        size: image side in pixels, 64 or 128.
        seed: the world's seed.
        cache: folder for the rendered shards.
        workers: rendering processes; None takes one per core.
        prompt: one text for all instead of the targets' captions, which tell the colours of the clothes; an empty one leaves all to the source.
    """

    name = "mannequin_pairs"
    renders: ClassVar[type[World]] = Targets

    def __init__(
        self,
        split: str = "train",
        count: int = 30000,
        size: int = 64,
        seed: int = 0,
        cache: str | Path = "~/.cache/posegen",
        workers: int | None = None,
        prompt: str | None = None,
    ):
        super().__init__(split, count, size, seed, cache, workers)
        self.sources, self.prompt = SourceData(split, count, size, seed, cache, workers), prompt

    @property
    def identity(self) -> dict[str, Any]:
        return {**super().identity, "version": self.renders.version, "prompt": self.prompt}

    def prepare(self) -> None:
        super().prepare()
        self.sources.prepare()

    def __getitem__(self, index: int) -> Sample:
        return self._worded(super().__getitem__(index))

    def source_of(self, index: int, visit: int = 0) -> Sample:
        return self._worded(self.sources[self._checked(index)])

    def transfers(self, count: int | None, garment: str, told: bool = False) -> Transfers:
        from posegen.data.mannequin.transfers import MannequinTransfers

        return MannequinTransfers(self, count, garment, told)

    def twin(self, index: int) -> Sample:
        return self._worded(super().twin(index))

    @property
    def prompts(self) -> list[str]:
        return super().prompts if self.prompt is None else [self.prompt] * len(self)

    def _worded(self, sample: Sample) -> Sample:
        return sample if self.prompt is None else replace(sample, prompt=self.prompt)
