"""The findings of ``posegen prepare``: the condition of a split, and the faults of its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


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
