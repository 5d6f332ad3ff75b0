"""Captions of the mannequin world, as values and as sentences of a 44-word vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

STYLES = ("photo", "cartoon", "sketch", "shadow")
ACTIONS = ("standing", "waving", "running", "sitting", "tpose", "kicking", "dancing", "lying", "jumping", "pointing")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
PLACES = {
    "park": "in the park", "beach": "at the beach", "room": "in the room", "street": "in the street",
    "studio": "in the studio", "night": "at night",
}  # fmt: skip
SCENES = tuple(PLACES)
COLOURED_STYLES = ("photo", "cartoon")
COUNT_PHRASES = {1: "one person", 2: "two people", 3: "three people"}

_WORDS = (*STYLES, "of one two three person people", *PLACES.values(), ": ,", *ACTIONS, *COLOURS, "shirt and trousers")
VOCABULARY = tuple(dict.fromkeys(" ".join(_WORDS).split()))


def garment_colours(style: str, shirt: int, further: int) -> tuple[str | None, str | None]:
    """Colours of shirt and trousers by the number of the first and how far the other is from it; None without."""
    return (COLOURS[shirt], COLOURS[(shirt + further) % 10]) if style in COLOURED_STYLES else (None, None)


@dataclass(frozen=True)
class PersonCaption:
    """One person in a caption; the colours are None in styles without colours."""

    action: str
    shirt: str | None = None
    trousers: str | None = None

    def __str__(self) -> str:
        if self.shirt is None:
            return f"one {self.action}"
        return f"one {self.action} in {self.shirt} shirt and {self.trousers} trousers"


@dataclass(frozen=True)
class Description:
    """The content of a caption; people stand from left to right."""

    style: str
    scene: str
    people: tuple[PersonCaption, ...]

    def __str__(self) -> str:
        people = " , ".join(map(str, self.people))
        return f"{self.style} of {COUNT_PHRASES[len(self.people)]} {PLACES[self.scene]} : {people}"

    @property
    def attributes(self) -> dict[str, object]:
        """The caption's facts as plain values; ``colours`` holds (shirt, trousers) pairs, none in sketch and shadow."""
        coloured, actions = self.style in COLOURED_STYLES, tuple(look.action for look in self.people)
        colours = tuple((look.shirt, look.trousers) for look in self.people) if coloured else ()
        about = {"style": self.style, "scene": self.scene, "count": len(self.people)}
        return {**about, "actions": actions, "colours": colours}
