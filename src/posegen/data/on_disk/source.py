"""Real data sets as they lie on disk: a `Source` lists their images before these are opened."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from posegen.data.condition import Defect
from posegen.io.atomic import read_json
from posegen.io.hashes import hash_fraction

ImageSize = tuple[int, int]  # height, width


class FileSpan(NamedTuple):
    """The bytes of an image: a file, or a part of one (a member of a tar)."""

    file: str  # relative to the source's root
    offset: int = 0  # of the first byte
    length: int = 0  # in bytes; 0 means to the end of the file


@dataclass(frozen=True, eq=False)
class StoredImage:
    id: str  # stable and unique within the data set, for instance ``human_art/2000000001648``
    prompt: str  # the caption
    place: FileSpan  # where its bytes are
    size: tuple[int, int] | None  # (height, width) in pixels; None where only the file shows it
    keypoints: np.ndarray  # ``[P, 17, 3] float32`` on the stored image: x, y, score or visibility, 0 if missing
    areas: np.ndarray | None = None  # ``[P]`` in square pixels; None where the data set has none
    attributes: Mapping[str, Any] = field(default_factory=dict)  # facts to group by (``scenario``) and to record
    #: (height, width) of the canvas of the keypoints where it differs; the image is that canvas, stretched
    frame: tuple[int, int] | None = None

    def on(self, size: tuple[int, int]) -> StoredImage:
        """The same with its keypoints moved from ``frame`` to the image, whose (height, width) is now known."""
        if self.frame is None:
            return self
        scale = np.divide(size[::-1], self.frame[::-1])
        points = np.where(self.keypoints[..., 2:] > 0, (self.keypoints[..., :2] + 0.5) * scale - 0.5, 0.0)
        keypoints = np.concatenate([points, self.keypoints[..., 2:]], -1).astype(np.float32)
        areas = None if self.areas is None else self.areas * scale.prod()
        return replace(self, keypoints=keypoints, areas=areas, frame=None)


ReportDefect = Callable[[Defect], None]  # records a defect; reading continues with the next image


class Source(ABC):
    """One data set in one of its layouts."""

    name: str  # of the data set
    root: Path  # the folder that the user names
    checkable = True  # the constructor loads nothing, see `posegen.config.checking.check.refused`
    canvases_fit: bool = False  # a pose's ``frame`` has the shape of its image, or something is wrong

    @abstractmethod
    def entries(self, split: str, report: ReportDefect) -> Iterator[StoredImage]:
        """The images in a stable order, unopened; unreadable ones are reported. Raises FileNotFoundError: no list."""

    @abstractmethod
    def identity(self, split: str) -> dict[str, Any]:
        """All that the entries depend on, as plain values: the options, and a hash of the split's list of files."""

    def expected(self, split: str) -> Mapping[str, Any]:
        """Published facts: number of ``entries``; ``scenarios``, their number by scenario; ``sha256``, first digits of
        the hash of the sorted image paths, joined by newlines; ``shape``, (height, width) of which images are about a
        multiple, and ``otherwise``, the probable fault where they are not.
        """
        return {}

    def suspicions(self, split: str) -> list[str]:
        return []


def existing_root(root: str | Path, fix: str = "") -> Path:
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise ValueError(f"data.root={root}: no such folder{fix and f'; {fix}'}")
    return folder


def require_option(key: str, value: Any, options: Collection[Any]) -> None:
    """Refuses a value that is not among the options. Raises ValueError: names the key, the value and the options."""
    if value not in options:
        shown = ", ".join("null" if option is None else str(option) for option in options)
        raise ValueError(f"data.{key}={value}: expected one of {shown}")


def json_mapping(file: Path, expected: str) -> dict[str, Any]:
    """The content of a json file. Raises ValueError: it is damaged, or holds no mapping as ``expected`` in words."""
    content = read_json(file, "get it again")
    if isinstance(content, dict):
        return content
    kind = type(content).__name__
    raise ValueError(f"{file} holds a {kind}; expected {expected}: is it another file of that name?")


def require_count(split: str, count: int | None) -> None:
    if count is not None and count < 1:
        raise ValueError(f"data.{split}.count={count}: at least one sample is needed; null takes all")


def lowest_hashes(keys: Sequence[str], count: int, option: str, available: str) -> list[int]:
    """Indices of the lowest hashes: evenly spread, part of larger choices. Raises ValueError: too few keys."""
    if count > len(keys):
        raise ValueError(f"{option}={count}: {available.format(len(keys))} that can be used; lower it, or null for all")
    fractions = [hash_fraction(key) for key in keys]
    return np.sort(np.argsort(fractions, kind="stable")[:count]).tolist()
