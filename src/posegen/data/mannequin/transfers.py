"""Clothes of one person of the mannequin world on another, whose every pixel is known: who is dressed as whom, and where the clothes are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from posegen.data.base import Garment, Sample, Transfers
from posegen.data.mannequin.captions import COLOURED_STYLES, Description, Look

if TYPE_CHECKING:
    from posegen.data.mannequin.pairs import MannequinPairs

PARTS = {"shirt": ("shirt",), "trousers": ("trousers",), "clothes": ("shirt", "trousers")}


class MannequinTransfers(Transfers):
    """Targets of pairs, each to be dressed as the person in the source of another pair.

    Only photos and cartoons have clothes of a colour. A person is dressed as the next one of the list (after the last comes the first) who is painted in the
    same style and wears another colour in each garment; the wrong style is the next one after whose colours differ from both. The caption tells no colours, so
    that they can come from the picture alone. Where it does, it is a control: a backbone that reads captions then paints what is to be worn anyway.

    Args:
        pairs: where the people come from.
        count: how many are dressed; None: all with clothes of a colour.
        garment: ``shirt``, ``trousers`` or ``clothes``.
        told: the captions tell the colours that are to be worn.

    Raises:
        ValueError: there is no such garment, or there are fewer people.
    """

    name = "mannequin_transfers"

    def __init__(
        self, pairs: MannequinPairs, count: int | None = None, garment: str = "clothes", told: bool = False
    ) -> None:
        if garment not in PARTS:
            raise ValueError(f"garment={garment!r}; expected one of {', '.join(PARTS)}")
        self.pairs, self.garment, self.told, self.split, self.size = pairs, garment, told, pairs.split, pairs.size
        looks = [pairs.seen(i, image=False).attributes for i in range(len(pairs))]
        coloured = [i for i, look in enumerate(looks) if look["style"] in COLOURED_STYLES]
        every = [
            found
            for place in range(len(coloured))
            if (found := chosen(coloured[place:] + coloured[:place], looks)) is not None
        ]
        if not every or (count is not None and not 1 <= count <= len(every)):
            raise ValueError(
                f"count={count}: the first {len(pairs)} pairs of {pairs.split} have {len(every)} people to dress; raise data.{pairs.split}.count"
            )
        self.people = every[:count]
        self._where = lru_cache(maxsize=64)(self._garment)

    @property
    def identity(self) -> dict[str, Any]:
        return {
            **self.pairs.identity,
            "name": self.name,
            "people": len(self.people),
            "garment": self.garment,
            "told": self.told,
        }

    def __len__(self) -> int:
        return len(self.people)

    def __getitem__(self, index: int) -> Sample:
        person, style, _ = self.people[index]
        sample, seen = self.pairs[person], self.pairs[person].attributes
        if self.pairs.prompt is not None and not self.told:
            return sample
        worn, wanted = (
            dict(zip(("shirt", "trousers"), self.pairs[each].attributes["colours"][0], strict=True))
            for each in (person, style)
        )
        colours = worn | {part: wanted[part] for part in PARTS[self.garment]} if self.told else {}
        return replace(
            sample, prompt=str(Description(seen["style"], seen["scene"], (Look(*seen["actions"], **colours),)))
        )

    def source_of(self, index: int, visit: int = 0) -> Sample:
        return self.pairs.source_of(self.people[index][1])

    def picture_of(self, index: int) -> np.ndarray:
        image = self[index].image
        assert image is not None
        return image

    def mask_of(self, index: int) -> np.ndarray:
        """The pixels in which the garment shows, also those that it shares with what lies behind it."""
        return np.any([each.mask for each in self._where(self.people[index][0], False)], axis=0)

    def garments_of(self, index: int) -> Mapping[str, Sequence[Garment]]:
        person, style, wrong = self.people[index]
        members = {
            "picture": (person, False),
            "style": (style, True),
            "style_again": (style, False),
            "wrong_style": (wrong, True),
        }
        return {who: self._where(*member) for who, member in members.items()}

    def _garment(self, pair: int, source: bool) -> list[Garment]:
        """The garments of a pair's person, in its source or in its target."""
        data, sample = (self.pairs.sources, self.pairs.source_of(pair)) if source else (self.pairs, self.pairs[pair])
        assert sample.image is not None
        return [Garment(sample.image, data.world.garment(self.split, pair, part)) for part in PARTS[self.garment]]  # type: ignore[attr-defined]


def chosen(others: Sequence[int], looks: Sequence[Mapping[str, Any]]) -> tuple[int, int, int] | None:
    """(person, style, wrong style): the first of ``others``, and who follows; None where nobody fits."""
    person, found = others[0], [others[0]]
    for other in others[1:]:
        colours = [looks[each]["colours"][0] for each in (*found, other)]
        if looks[other]["style"] == looks[person]["style"] and all(
            len(set(worn)) == len(colours) for worn in zip(*colours, strict=True)
        ):
            found.append(other)
        if len(found) == 3:
            return found[0], found[1], found[2]
    return None
