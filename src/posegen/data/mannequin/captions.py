"""Captions of the mannequin world, as values and as sentences of a 44-word vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

STYLES = ("photo", "cartoon", "sketch", "shadow")
ACTIONS = ("standing", "waving", "running", "sitting", "tpose", "kicking", "dancing", "lying", "jumping", "pointing")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
PLACES = {
    "park": "in the park",
    "beach": "at the beach",
    "room": "in the room",
    "street": "in the street",
    "studio": "in the studio",
    "night": "at night",
}
SCENES = tuple(PLACES)
COLOURED_STYLES = ("photo", "cartoon")
NUMBERS = {1: "one person", 2: "two people", 3: "three people"}

_WORDS = " ".join(
    (
        *STYLES,
        "of one two three person people",
        *PLACES.values(),
        ": ,",
        *ACTIONS,
        "in",
        *COLOURS,
        "shirt and trousers",
    )
)
VOCABULARY = tuple(dict.fromkeys(_WORDS.split()))
EXAMPLE = "photo of one person in the park : one running in red shirt and blue trousers"


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
        return f"{self.style} of {NUMBERS[len(self.people)]} {PLACES[self.scene]} : " + " , ".join(
            map(str, self.people)
        )

    @property
    def attributes(self) -> dict[str, object]:
        """The caption's facts as plain values; ``colours`` holds (shirt, trousers) pairs, none in sketch and shadow."""
        coloured = self.style in COLOURED_STYLES
        return {
            "style": self.style,
            "scene": self.scene,
            "count": len(self.people),
            "actions": tuple(look.action for look in self.people),
            "colours": tuple((look.shirt, look.trousers) for look in self.people) if coloured else (),
        }


def parse(prompt: str) -> Description:
    """The description in a caption.

    Raises:
        ValueError: the prompt is no caption of the mannequin world; the message names the wrong part.
    """
    head, colon, tail = prompt.partition(" : ")
    words = head.split(" ")
    place = " ".join(words[4:])
    scenes = {phrase: scene for scene, phrase in PLACES.items()}
    counts = {number: count for count, number in NUMBERS.items()}
    if not colon or words[0] not in STYLES or words[1:2] != ["of"]:
        raise _foreign(prompt, f"it must begin with a style of {', '.join(STYLES)}, as in '{EXAMPLE}'")
    if " ".join(words[2:4]) not in counts:
        raise _foreign(prompt, f"'{' '.join(words[2:4])}' is not one of {', '.join(counts)}")
    if place not in scenes:
        raise _foreign(prompt, f"'{place}' is not one of {', '.join(scenes)}")
    people = tuple(_parse_look(part, words[0] in COLOURED_STYLES, prompt) for part in tail.split(" , "))
    if len(people) != counts[" ".join(words[2:4])]:
        raise _foreign(prompt, f"it announces {' '.join(words[2:4])} and describes {len(people)}")
    return Description(words[0], scenes[place], people)


def _parse_look(part: str, coloured: bool, prompt: str) -> PersonCaption:
    words = part.split(" ")
    frame = ["one", "in", "shirt", "and", "trousers"] if coloured else ["one"]
    found = [*words[0:1], *words[2:3], *words[4:6], *words[7:]] if coloured else [*words[0:1], *words[2:]]
    if found != frame or len(words) != (8 if coloured else 2):
        pattern = "one ACTION in COLOUR shirt and COLOUR trousers" if coloured else "one ACTION"
        raise _foreign(prompt, f"'{part}' does not read '{pattern}'")
    if words[1] not in ACTIONS:
        raise _foreign(prompt, f"'{words[1]}' is not one of the actions {', '.join(ACTIONS)}")
    if not coloured:
        return PersonCaption(words[1])
    for colour in (words[3], words[6]):
        if colour not in COLOURS:
            raise _foreign(prompt, f"'{colour}' is not one of the colours {', '.join(COLOURS)}")
    return PersonCaption(words[1], words[3], words[6])


def _foreign(prompt: str, reason: str) -> ValueError:
    return ValueError(f"not a caption of the mannequin world: {prompt!r}: {reason}")
