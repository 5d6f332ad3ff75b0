"""Pairs: one person twice, in the same clothes before the same scene, in two poses; and people who get others' clothes.

The target is the image that a perfect method paints from the source image and the target's pose, but for the ground
shadow and a stool. Since it exists, appearance can be compared pixel by pixel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np

from posegen.data.base import Garment, Sample, Transfers
from posegen.data.mannequin import captions
from posegen.data.mannequin import world as plain
from posegen.data.mannequin.body import Body, Build, random_body, random_bones, random_roundness
from posegen.data.mannequin.captions import ACTIONS, COLOURED_STYLES, Description, PersonCaption
from posegen.data.mannequin.dataset import MannequinData
from posegen.data.mannequin.figure import random_outfit
from posegen.data.mannequin.rng import Dice
from posegen.data.mannequin.scene import paint_scene
from posegen.data.mannequin.soft_world import RENDERING_VERSION, SoftWorld
from posegen.data.mannequin.world import DESCRIPTION, REALISATION, SPLIT_STREAMS, STYLE_SHARES, WORLD_VERSION, World
from posegen.ranges import AtLeastOne, Seed, Width, Workers

PAIRS_VERSION = 1  # raise it whenever a pixel, a caption or a keypoint of a pair changes and WORLD_VERSION does not
SCENERY, PERSON, SIZE, TARGET, SOURCE, PLACE = range(6)  # independent random streams within a realisation
PAIRS = 1  # separates all of them from the streams of the plain world
GARMENT_PARTS = {"shirt": ("shirt",), "trousers": ("trousers",), "clothes": ("shirt", "trousers")}


class Targets(World):
    """Renders the targets of the pairs, each with its caption."""

    name, version = "mannequin_pairs", f"{WORLD_VERSION}.{PAIRS_VERSION}"
    member = TARGET

    def describe(self, split: str, index: int) -> Description:
        """The caption of this member; those of a pair differ in the action alone."""
        dice = self._stream(split, index, DESCRIPTION)
        style, scene = dice.choice(captions.STYLES, STYLE_SHARES), dice.choice(captions.SCENES)
        actions = {TARGET: dice.choice(ACTIONS), SOURCE: dice.choice(ACTIONS)}
        colours = captions.garment_colours(style, dice.integer(0, 9), dice.integer(1, 9))
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
        canvas = self._blank(description, split, index, stream)
        horizon = paint_scene(canvas, description.scene, self._stream(split, index, stream, SCENERY))
        size = self.seed, self.size
        bodies = {member: world(*size).body(split, index, stream, build) for member, world in MEMBERS.items()}
        units = [plain.largest_units([body], self._stream(split, index, stream, SIZE))[0] for body in bodies.values()]
        place = self._stream(split, index, stream, self.member, PLACE)
        body, unit = bodies[self.member], min(units)  # one size in both images
        return self._populate(canvas, plain.side_by_side([body], [outfit], [unit], horizon, place))

    def body(self, split: str, index: int, stream: int, build: Build) -> Body:
        (look,) = self.describe(split, index).people
        return random_body(look.action, self._stream(split, index, stream, self.member), build)


class Sources(Targets):
    """Renders the other images of the same people."""

    name = "mannequin_pairs_source"
    member = SOURCE


MEMBERS: dict[int, type[Targets]] = {TARGET: Targets, SOURCE: Sources}


class SourceData(MannequinData):
    """The sources alone, in the order of the pairs."""

    name = "mannequin_pairs_source"
    renders: ClassVar[type[World]] = Sources


class MannequinPairs(MannequinData):
    """The first ``count`` pairs of a split; a sample is a target, `source_of` gives the other image of the person.

    ``prompt`` replaces all captions, which name the colours of the clothes; with an empty one the source alone shows
    them. Other arguments: see `MannequinData`.
    """

    name = "mannequin_pairs"
    version: ClassVar[int | str] = Targets.version
    renders: ClassVar[type[World]] = Targets
    source_data: ClassVar[type[MannequinData]] = SourceData

    def __init__(
        self,
        split: str = "train",
        count: AtLeastOne = 30000,
        size: Width = 64,
        seed: Seed = 0,
        cache: str | Path = "~/.cache/posegen",
        workers: Workers | None = None,
        prompt: str | None = None,
    ):
        super().__init__(split, count, size, seed, cache, workers)
        self.sources = self.source_data(split, count, size, seed, cache, workers)
        self.prompt = prompt

    @property
    def identity(self) -> dict[str, Any]:
        return {**super().identity, "prompt": self.prompt}

    def prepare(self) -> None:
        super().prepare()
        self.sources.prepare()

    def __getitem__(self, index: int) -> Sample:
        return self._with_prompt(super().__getitem__(index))

    def source_of(self, index: int, visit: int = 0) -> Sample:
        return self._with_prompt(self.sources[self.checked(index)])

    def transfers(self, count: int | None, garment: str, told: bool = False) -> Transfers:
        return MannequinTransfers(self, count, garment, told)

    def twin(self, index: int) -> Sample:
        return self._with_prompt(super().twin(index))

    @property
    def prompts(self) -> list[str]:
        return super().prompts if self.prompt is None else [self.prompt] * len(self)

    def _with_prompt(self, sample: Sample) -> Sample:
        return sample if self.prompt is None else replace(sample, prompt=self.prompt)


class SoftTargets(SoftWorld, Targets):
    name, version = "mannequin_v2_pairs", f"{Targets.version}.{RENDERING_VERSION}"


class SoftSources(SoftWorld, Sources):
    name, version = "mannequin_v2_pairs_source", SoftTargets.version


class SoftSourceData(SourceData):
    name = SoftSources.name
    version: ClassVar[int | str] = SoftSources.version
    renders: ClassVar[type[World]] = SoftSources


class SoftPairs(MannequinPairs):
    """The pairs of `MannequinPairs` in the second rendering, for 128 pixels."""

    name = SoftTargets.name
    version: ClassVar[int | str] = SoftTargets.version
    renders: ClassVar[type[World]] = SoftTargets
    source_data: ClassVar[type[MannequinData]] = SoftSourceData


class MannequinTransfers(Transfers):
    """Targets of pairs, each with the clothes of the person in the source of another pair. All masks are exact.

    Only photos and cartoons have coloured clothes. A person gets the clothes of the next person in the list (the first
    follows the last) with the same style and another colour of each garment. The wrong style is the next one after
    whose colours differ from both. The caption names no colours, so that they come from the picture alone. A caption
    that names them (``told``) is a control: a backbone that reads captions then paints the clothes without the picture.
    Raises ValueError: the ``garment`` is not in `GARMENT_PARTS`, or there are fewer people than ``count``.
    """

    name = "mannequin_transfers"

    def __init__(
        self, pairs: MannequinPairs, count: int | None = None, garment: str = "clothes", told: bool = False
    ) -> None:
        if garment not in GARMENT_PARTS:
            raise ValueError(f"garment={garment!r}; expected one of {', '.join(GARMENT_PARTS)}")
        self.pairs, self.garment, self.told, self.split, self.size = pairs, garment, told, pairs.split, pairs.size
        looks = [pairs.seen(i, image=False).attributes for i in range(len(pairs))]
        coloured = [i for i, look in enumerate(looks) if look["style"] in COLOURED_STYLES]
        triples = [_first_fitting(coloured[i:] + coloured[:i], looks) for i in range(len(coloured))]
        every = [triple for triple in triples if triple is not None]
        if not every or (count is not None and not 1 <= count <= len(every)):
            found = f"the first {len(pairs)} pairs of {pairs.split} have {len(every)} people to dress"
            raise ValueError(f"count={count}: {found}; raise data.{pairs.split}.count")
        self.people = every[:count]
        self._where = lru_cache(maxsize=64)(self._garment)

    @property
    def identity(self) -> dict[str, Any]:
        about = {"name": self.name, "people": len(self.people), "garment": self.garment, "told": self.told}
        return self.pairs.identity | about

    def __len__(self) -> int:
        return len(self.people)

    def __getitem__(self, index: int) -> Sample:
        person, style, _ = self.people[index]
        sample, seen = self.pairs[person], self.pairs[person].attributes
        if self.pairs.prompt is not None and not self.told:
            return sample
        every = (self.pairs[each].attributes["colours"][0] for each in (person, style))
        worn, wanted = (dict(zip(("shirt", "trousers"), colours, strict=True)) for colours in every)
        colours = worn | {part: wanted[part] for part in GARMENT_PARTS[self.garment]} if self.told else {}
        caption = Description(seen["style"], seen["scene"], (PersonCaption(*seen["actions"], **colours),))
        return replace(sample, prompt=str(caption))

    def source_of(self, index: int, visit: int = 0) -> Sample:
        return self.pairs.source_of(self.people[index][1])

    def picture_of(self, index: int) -> np.ndarray:
        image = self[index].image
        assert image is not None
        return image

    def mask_of(self, index: int) -> np.ndarray:
        """The pixels that show the garment, also those that show the background as well."""
        return np.any([each.mask for each in self._where(self.people[index][0], False)], axis=0)

    def garments_of(self, index: int) -> Mapping[str, Sequence[Garment]]:
        person, style, wrong = self.people[index]
        members = {"style": (style, True), "style_again": (style, False), "wrong_style": (wrong, True)}
        return {who: self._where(*member) for who, member in {"picture": (person, False), **members}.items()}

    def _garment(self, pair: int, source: bool) -> list[Garment]:
        """The garments of a pair's person, in its source or in its target."""
        data: MannequinData = self.pairs.sources if source else self.pairs
        image = (self.pairs.source_of(pair) if source else self.pairs[pair]).image
        assert image is not None and isinstance(data.world, Targets)
        return [Garment(image, data.world.garment(self.split, pair, part)) for part in GARMENT_PARTS[self.garment]]


def _first_fitting(others: Sequence[int], looks: Sequence[Mapping[str, Any]]) -> tuple[int, int, int] | None:
    """(person, style, wrong style): the first of ``others`` and the two that follow; None where nobody fits."""
    found = [others[0]]
    for other in others[1:]:
        colours = [looks[each]["colours"][0] for each in (*found, other)]
        differ = all(len(set(worn)) == len(colours) for worn in zip(*colours, strict=True))
        if differ and looks[other]["style"] == looks[found[0]]["style"]:
            found.append(other)
        if len(found) == 3:
            return found[0], found[1], found[2]
    return None
