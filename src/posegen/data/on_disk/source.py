"""Real data sets as they lie on disk: what is known of each image before it is opened.

A data set is a `Source` that lists its images. All that follows is the same for every data set: checks, index, crops,
samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from posegen.io.atomic import read_json
from posegen.io.hashes import hash_fraction


class FileSpan(NamedTuple):
    """The bytes of an image: a file, or a part of one (a member of a tar).

    Attributes:
        file: relative to the source's root.
        offset: of the first byte.
        length: in bytes; 0 means to the end of the file.
    """

    file: str
    offset: int = 0
    length: int = 0


class Defect(NamedTuple):
    """A fault of one file or image, for the report of ``posegen prepare``.

    Attributes:
        file: the file, relative to the root, with the key of the image where one file holds many.
        problem: the fault in a few words: ``missing``, ``cannot be decoded (truncated)``.
        fatal: whether the image is left out; False for a remark about an image that is kept.
    """

    file: str
    problem: str
    fatal: bool = True


@dataclass(frozen=True, eq=False)
class StoredImage:
    """One image of a data set.

    Attributes:
        id: stable and unique within the data set, for instance ``human_art/2000000001648``.
        prompt: the caption.
        place: where its bytes are.
        size: (height, width) in pixels; None where only the file shows it.
        keypoints: ``[P, 17, 3] float32`` on the stored image: x, y, and a score or COCO visibility, 0 if missing.
        areas: ``[P]`` in square pixels; None where the data set has none.
        attributes: facts to group by (``scenario``) and to record.
        frame: (height, width) of the canvas of the keypoints where it differs; the image is that canvas, stretched.
    """

    id: str
    prompt: str
    place: FileSpan
    size: tuple[int, int] | None
    keypoints: np.ndarray
    areas: np.ndarray | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
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


@dataclass(frozen=True)
class Condition:
    """The findings of the preparation of a split.

    Attributes:
        facts: counts, sizes, hashes, versions, for the record.
        warnings: suspicions about the split as a whole.
        defects: faults of single files.
    """

    facts: Mapping[str, Any]
    warnings: Sequence[str] = ()
    defects: Sequence[Defect] = ()


#: Records a defect; reading continues with the next image.
ReportDefect = Callable[[Defect], None]


class Source(ABC):
    """One data set in one of its layouts.

    Attributes:
        name: of the data set.
        root: the folder that the user names.
    """

    name: str
    root: Path

    @abstractmethod
    def entries(self, split: str, report: ReportDefect) -> Iterator[StoredImage]:
        """The images of a split in a stable order, without opening them; unreadable entries are reported and left out.

        Raises:
            FileNotFoundError: the list of the split is missing; names the file and how to get it.
        """

    @abstractmethod
    def identity(self, split: str) -> dict[str, Any]:
        """All that the entries depend on, as plain values: the options, and a hash of the split's list of files."""

    def expected(self, split: str) -> Mapping[str, Any]:
        """Published counts and hashes to compare with.

        ``entries``: their number; ``scenarios``: number of entries by scenario; ``sha256``: first digits of the hash of
        the sorted image paths, joined by newlines; ``shape``: (height, width) of which images are about a multiple, and
        ``otherwise``: the probable fault where they are not.
        """
        return {}

    def suspicions(self, split: str) -> list[str]:
        """Suspicions about the lists of a split."""
        return []


# Checks and choices that sources share.


def existing_root(root: str | Path, fix: str = "") -> Path:
    """The root of a data set.

    Raises:
        ValueError: there is no such folder.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise ValueError(f"data.root={root}: no such folder{fix and f'; {fix}'}")
    return folder


def require_option(key: str, value: Any, options: Collection[Any]) -> None:
    """Refuses a value that is not among the options.

    Raises:
        ValueError: names the key, the value and the options.
    """
    if value not in options:
        shown = ", ".join("null" if option is None else str(option) for option in options)
        raise ValueError(f"data.{key}={value}: expected one of {shown}")


def json_mapping(file: Path, expected: str) -> dict[str, Any]:
    """The content of one of a data set's json files.

    Args:
        expected: its content in words, for the message.

    Raises:
        ValueError: it is damaged, or holds no mapping; names it.
    """
    content = read_json(file, "get it again")
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise ValueError(f"{file} holds a {kind}; expected {expected}: is it another file of that name?")
    return content


def lowest_hashes(keys: Sequence[str], count: int) -> list[int]:
    """Indices of the ``count`` keys with the lowest hashes: evenly spread, and a part of every larger choice."""
    fractions = [hash_fraction(key) for key in keys]
    return np.sort(np.argsort(fractions, kind="stable")[:count]).tolist()
