"""Real data sets, as their users have them on disk: what is known of each picture before it is opened.

A data set is a `Source` that lists its entries; everything that follows (checking, the index, crops, samples) is the same for all of them.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Place(NamedTuple):
    """Where the bytes of a picture are: a file, or a part of one (the member of a tar).

    Attributes:
        file: relative to the source's root.
        offset: of the first byte.
        length: in bytes; 0 is all of the file from ``offset`` on.
    """

    file: str
    offset: int = 0
    length: int = 0


class Defect(NamedTuple):
    """Something wrong with one file or entry of a data set, for the report of ``posegen prepare``.

    Attributes:
        file: the file, relative to the root, with the entry's key where one file holds many.
        problem: what is wrong, in a few words: ``missing``, ``cannot be decoded (truncated)``.
        fatal: whether the entry is left out; False for a remark about an entry that is kept.
    """

    file: str
    problem: str
    fatal: bool = True


@dataclass(frozen=True, eq=False)
class Entry:
    """One stored picture.

    Attributes:
        id: stable and unique within the data set, for instance ``human_art/2000000001648``.
        prompt: the caption.
        place: where the picture is.
        size: (height, width) in pixels, None where only the picture itself tells.
        keypoints: ``[P, 17, 3] float32`` on the stored picture: x, y, and a score or COCO visibility, 0 where a joint is missing.
        areas: ``[P]`` in square pixels, None where the data set has none.
        attributes: facts to group by (``scenario``) and to record.
        frame: (height, width) of the canvas that the keypoints are on where it is not the stored picture's; the picture is that canvas, stretched.
    """

    id: str
    prompt: str
    place: Place
    size: tuple[int, int] | None
    keypoints: np.ndarray
    areas: np.ndarray | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    frame: tuple[int, int] | None = None

    def on(self, size: tuple[int, int]) -> Entry:
        """The entry with its keypoints on the picture, which turned out to have this (height, width)."""
        if self.frame is None:
            return self
        scale = np.divide(size[::-1], self.frame[::-1])
        points = np.where(self.keypoints[..., 2:] > 0, (self.keypoints[..., :2] + 0.5) * scale - 0.5, 0.0)
        keypoints = np.concatenate([points, self.keypoints[..., 2:]], -1).astype(np.float32)
        return replace(
            self, keypoints=keypoints, areas=None if self.areas is None else self.areas * scale.prod(), frame=None
        )


@dataclass(frozen=True)
class Condition:
    """What the preparation of a split found.

    Attributes:
        facts: counts, sizes, hashes, versions, for the record.
        warnings: what is suspicious about the split as a whole.
        defects: what is wrong with single files.
    """

    facts: Mapping[str, Any]
    warnings: Sequence[str] = ()
    defects: Sequence[Defect] = ()


#: Takes a defect down; reading goes on with the next entry.
Report = Callable[[Defect], None]


class Source(ABC):
    """One data set in one of its layouts.

    Attributes:
        name: of the data set.
        root: the folder that the user names; never guessed.
    """

    name: str
    root: Path

    @abstractmethod
    def entries(self, split: str, report: Report) -> Iterator[Entry]:
        """The entries of a split in a stable order, without opening the pictures; what cannot be read is reported and left out.

        Raises:
            FileNotFoundError: the list of the split is missing; names the file that was expected and how the user gets it.
        """

    @abstractmethod
    def identity(self, split: str) -> dict[str, Any]:
        """What the entries depend on, as plain values: the options, and a hash of the split's list of files."""

    def expected(self, split: str) -> Mapping[str, Any]:
        """Known counts and hashes to compare with.

        ``entries``: their number; ``scenarios``: number of entries by scenario; ``sha256``: how that of the sorted picture paths, joined by newlines, begins;
        ``shape``: (height, width) that pictures are a multiple of, about, and ``otherwise``: what is wrong where they are not.
        """
        return {}

    def suspicions(self, split: str) -> list[str]:
        """What is suspicious about the lists of a split."""
        return []


def json_mapping(file: Path, expected: str) -> dict[str, Any]:
    """The content of one of a data set's json files.

    Args:
        expected: what it should hold, for the message.

    Raises:
        ValueError: it is damaged, or holds no mapping; names it.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is not a readable json file ({error}); get it again") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{file} holds a {type(content).__name__}; expected {expected}: is it another file of that name?"
        )
    return content


def share(key: str) -> float:
    """A number in [0, 1) that belongs to a key, by its SHA-1: the rule by which splits are made where a data set brings none."""
    return int.from_bytes(hashlib.sha1(key.encode()).digest()[:8], "big") / 2**64
