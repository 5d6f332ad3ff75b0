"""The index of a prepared split: everything about its pictures but their pixels, in one file of plain arrays."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from posegen.data.on_disk.source import Entry, Place
from posegen.io.atomic import replacing

VERSION = 1  # of the format, and of what is checked before something gets into an index


class Texts(Sequence[str]):
    """Many strings in two arrays, so that an index of a million pictures costs no million objects.

    Attributes:
        letters: ``[n] uint8`` of all of them in UTF-8.
        ends: ``[N] int64`` where each ends.
    """

    def __init__(self, letters: np.ndarray, ends: np.ndarray) -> None:
        self.letters, self.ends = letters, ends

    @classmethod
    def of(cls, strings: Iterable[str]) -> Texts:
        parts = [text.encode() for text in strings]
        return cls(np.frombuffer(b"".join(parts), np.uint8), np.cumsum([len(part) for part in parts], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: Any) -> Any:
        start = self.ends[index - 1] if index else 0
        return self.letters[start : self.ends[index]].tobytes().decode()


@dataclass(frozen=True, eq=False)
class Index:
    """N pictures.

    Attributes:
        keypoints: ``[people of all pictures, 17, 3] float32``.
        areas: ``[people of all pictures] float32``, not a number where the data set has none.
        people: ``[N] int64`` where the people of each picture end.
        sizes: ``[N, 2] int64`` height and width.
        spans: ``[N, 2] int64`` offset and length of each picture in its file.
        files: the files, relative to the root of the data set.
        records: of each picture id, prompt, attributes and the hash of its bytes, as json.
    """

    keypoints: np.ndarray
    areas: np.ndarray
    people: np.ndarray
    sizes: np.ndarray
    spans: np.ndarray
    files: Texts
    records: Texts

    @classmethod
    def of(cls, entries: Sequence[Entry], sizes: Sequence[tuple[int, int]], hashes: Sequence[str]) -> Index:
        """The index of pictures, with the sizes and hashes that were found when they were opened."""
        keypoints = [np.asarray(entry.keypoints, np.float32).reshape(-1, 17, 3) for entry in entries]
        areas = [
            np.full(len(k), np.nan) if e.areas is None else e.areas for e, k in zip(entries, keypoints, strict=True)
        ]
        facts = (
            (entry.id, entry.prompt, dict(entry.attributes), sha) for entry, sha in zip(entries, hashes, strict=True)
        )
        return cls(
            np.concatenate([*keypoints, np.zeros((0, 17, 3), np.float32)]),
            np.concatenate([*areas, np.zeros(0)]).astype(np.float32),
            np.cumsum([len(k) for k in keypoints], dtype=np.int64),
            np.array(sizes, np.int64).reshape(-1, 2),
            np.array([entry.place[1:] for entry in entries], np.int64).reshape(-1, 2),
            Texts.of(entry.place.file for entry in entries),
            Texts.of(json.dumps(row, sort_keys=True, default=str, ensure_ascii=False) for row in facts),
        )

    def __len__(self) -> int:
        return len(self.people)

    def __getitem__(self, index: int) -> Entry:
        rows = slice(int(self.people[index - 1]) if index else 0, int(self.people[index]))
        id, prompt, attributes, _ = json.loads(self.records[index])
        height, width = self.sizes[index].tolist()
        return Entry(id, prompt, self.place(index), (height, width), self.keypoints[rows], self.areas[rows], attributes)

    def place(self, index: int) -> Place:
        return Place(self.files[index], *self.spans[index].tolist())

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
        sha = hashlib.sha256()
        for part in (self.keypoints, self.areas, self.people, self.sizes, self.records.letters, self.records.ends):
            sha.update(np.ascontiguousarray(part).tobytes())
        return sha.hexdigest()[:16]

    def save(self, path: Path) -> None:
        texts = {
            f"{name}_{part}": getattr(getattr(self, name), part)
            for name in ("files", "records")
            for part in ("letters", "ends")
        }
        arrays = {name: getattr(self, name) for name in ("keypoints", "areas", "people", "sizes", "spans")}
        with replacing(path) as temporary, temporary.open("wb") as file:  # numpy would add .npz to a name
            np.savez(file, **arrays, **texts, content=np.array(self.content))

    @classmethod
    def load(cls, path: Path) -> tuple[Index, str]:
        """An index and the hash of its content.

        Raises:
            ValueError: the file is damaged; names it and the fix.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                texts = [Texts(stored[f"{name}_letters"], stored[f"{name}_ends"]) for name in ("files", "records")]
                return cls(*(stored[name] for name in ("keypoints", "areas", "people", "sizes", "spans")), *texts), str(
                    stored["content"]
                )
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{path} cannot be read ({error}); delete the folder {path.parent} and run `posegen prepare` again"
            ) from error
