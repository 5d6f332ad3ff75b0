"""The findings of ``posegen prepare``: the condition of a split, and the faults of its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class Defect(NamedTuple):
    """A fault of one file or image, for the report of ``posegen prepare``."""

    file: str  # the file, relative to the root, with the key of the image where one file holds many
    problem: str  # the fault in a few words: ``missing``, ``cannot be decoded (truncated)``
    fatal: bool = True  # whether the image is left out; False for a remark about an image that is kept


@dataclass(frozen=True)
class Condition:
    """The findings of the preparation of a split."""

    facts: Mapping[str, Any]  # counts, sizes, hashes, versions, for the record
    warnings: Sequence[str] = ()  # suspicions about the split as a whole
    defects: Sequence[Defect] = ()  # faults of single files
