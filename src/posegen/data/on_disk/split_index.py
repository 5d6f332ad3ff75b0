"""The index of a prepared split: all about its images but their pixels, in one file of plain arrays."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from posegen.data.on_disk.source import FileSpan, StoredImage
from posegen.io.arrays import read_arrays_or_none, write_arrays
from posegen.io.hashes import joint_hash

INDEX_VERSION = 1  # of the format, and of the checks before an image enters an index
INDEX_ARRAYS, INDEX_TEXTS = ("keypoints", "areas", "people", "sizes", "spans"), ("files", "records")


@dataclass(frozen=True, eq=False)
class PackedStrings(Sequence[str]):
    """Many strings in two arrays, so that an index of a million images holds no million objects."""

    letters: np.ndarray  # ``[n] uint8`` of all of them in UTF-8
    ends: np.ndarray  # ``[N] int64`` where each ends

    @classmethod
    def of(cls, strings: Iterable[str]) -> PackedStrings:
        parts = [text.encode() for text in strings]
        return cls(np.frombuffer(b"".join(parts), np.uint8), np.cumsum([len(part) for part in parts], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: Any) -> Any:
        start = self.ends[index - 1] if index else 0
        return self.letters[start : self.ends[index]].tobytes().decode()


@dataclass(frozen=True, eq=False)
class SplitIndex:
    """N images."""

    keypoints: np.ndarray  # ``[people of all images, 17, 3] float32``
    areas: np.ndarray  # ``[people of all images] float32``, NaN where the data set has none
    people: np.ndarray  # ``[N] int64`` where the people of each image end
    sizes: np.ndarray  # ``[N, 2] int64`` height and width
    spans: np.ndarray  # ``[N, 2] int64`` offset and length of each image in its file
    files: PackedStrings  # the files, relative to the root of the data set
    records: PackedStrings  # id, prompt, attributes and the hash of the bytes of each image, as json

    @classmethod
    def of(cls, entries: Sequence[StoredImage], sizes: Sequence[tuple[int, int]], hashes: Sequence[str]) -> SplitIndex:
        keypoints = [np.asarray(entry.keypoints, np.float32).reshape(-1, 17, 3) for entry in entries]
        areas = [np.full(len(e.keypoints), np.nan) if e.areas is None else e.areas for e in entries]
        records = ((e.id, e.prompt, dict(e.attributes), sha) for e, sha in zip(entries, hashes, strict=True))
        return cls(
            np.concatenate([*keypoints, np.zeros((0, 17, 3), np.float32)]),
            np.concatenate([*areas, np.zeros(0)]).astype(np.float32),
            np.cumsum([len(k) for k in keypoints], dtype=np.int64),
            np.array(sizes, np.int64).reshape(-1, 2),
            np.array([entry.place[1:] for entry in entries], np.int64).reshape(-1, 2),
            PackedStrings.of(entry.place.file for entry in entries),
            PackedStrings.of(json.dumps(row, sort_keys=True, default=str, ensure_ascii=False) for row in records),
        )

    def __len__(self) -> int:
        return len(self.people)

    def __getitem__(self, index: int) -> StoredImage:
        rows = slice(int(self.people[index - 1]) if index else 0, int(self.people[index]))
        id, prompt, attributes, _ = json.loads(self.records[index])
        height, width = self.sizes[index].tolist()
        place = FileSpan(self.files[index], *self.spans[index].tolist())
        return StoredImage(id, prompt, place, (height, width), self.keypoints[rows], self.areas[rows], attributes)

    def id(self, index: int) -> str:
        return json.loads(self.records[index])[0]

    @property
    def ids(self) -> list[str]:
        return [json.loads(record)[0] for record in self.records]

    @property
    def prompts(self) -> list[str]:
        return [json.loads(record)[1] for record in self.records]

    @property
    def content(self) -> str:
        """A hash of all that samples depend on: pixels, poses and captions, but not where they lie."""
        arrays = (self.keypoints, self.areas, self.people, self.sizes, self.records.letters, self.records.ends)
        return joint_hash(np.ascontiguousarray(array).tobytes() for array in arrays)

    def save(self, path: Path) -> None:
        packed = {name: vars(getattr(self, name)) for name in INDEX_TEXTS}
        texts = {f"{name}_{part}": array for name, parts in packed.items() for part, array in parts.items()}
        arrays = {name: getattr(self, name) for name in INDEX_ARRAYS}
        write_arrays(path, False, **arrays, **texts, content=np.array(self.content))

    @classmethod
    def load(cls, path: Path) -> tuple[SplitIndex, str] | None:
        """An index and the hash of its content; None, and a line that says so, where the file is damaged."""
        stored: Any = read_arrays_or_none(path)
        if stored is None:
            return None
        texts = [PackedStrings(stored[f"{name}_letters"], stored[f"{name}_ends"]) for name in INDEX_TEXTS]
        return cls(*(stored[name] for name in INDEX_ARRAYS), *texts), str(stored["content"])
