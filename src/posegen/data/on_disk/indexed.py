"""Any real data set as samples: its source lists the pictures, here they are checked once, indexed, cut to size and read."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from posegen.data.base import PoseData, Sample
from posegen.data.on_disk import dataset_checks as checking
from posegen.data.on_disk import images as pictures
from posegen.data.on_disk.image_scan import Looks, cores, stamp
from posegen.data.on_disk.source import Condition, Defect, Entry, Source, share
from posegen.data.on_disk.split_index import VERSION, Index
from posegen.data.on_disk.transforms import Transform, transform_of
from posegen.io.atomic import replacing


class RealData(PoseData):
    """A split of a real data set.

    What is prepared lies in ``<cache>/prepared/<name>/<split>-<hash>``: ``index.npz``, ``condition.json`` (what was found, and what it was found in) and
    ``looks.jsonl``. The hash is of the root, the source's options and its lists; the identity of the data is that of the content of the index.

    Args:
        source: the data set on disk.
        split: train, validation or test.
        size: (height, width) of the samples, or the side of a square; multiples of 8.
        transform: how pictures are cut: ``corrected``, ``reference``, ``stable_pose``, ``humansd``, or a `Transform`.
        count: take only so many, evenly from the whole split: those whose ids have the lowest hashes, so that a smaller choice is part of a larger; None: all.
        cache: folder for what is prepared.
        workers: processes that check pictures; None takes one per core.

    Raises:
        ValueError: the size, the count or the transform cannot be.
    """

    def __init__(
        self,
        source: Source,
        split: str,
        size: int | Sequence[int] = 512,
        transform: str | Transform = "corrected",
        count: int | None = None,
        cache: str | Path = "~/.cache/posegen",
        workers: int | None = None,
    ) -> None:
        self.source, self.split, self.name, self.count = source, split, source.name, count
        self.size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        if any(side < 8 or side % 8 for side in self.size):
            raise ValueError(f"data.{split}.size={size}: expected a multiple of 8, or (height, width) of such")
        if count is not None and count < 1:
            raise ValueError(f"data.{split}.count={count}: at least one sample is needed; null takes all")
        self.transform = transform_of(transform)
        self.varies = self.transform.varies
        self.cache, self.workers = Path(cache).expanduser() / "prepared" / self.name, workers or cores()
        self._read: tuple[Index, str, Sequence[int]] | None = None

    # What is prepared.

    @cached_property
    def key(self) -> dict[str, Any]:
        """What the prepared files belong to."""
        return {
            "version": VERSION,
            "root": str(self.source.root.resolve()),
            "split": self.split,
            "source": self.source.identity(self.split),
        }

    @property
    def folder(self) -> Path:
        return self.cache / f"{self.split}-{_digest(self.key)}"

    @property
    def condition(self) -> Condition:
        """What the last preparation found; empty where there was none."""
        found = _json(self.folder / "condition.json")
        defects = [Defect(*row) for row in found.get("defects", ())]
        return Condition(found.get("facts", {}), found.get("warnings", ()), defects)

    def prepare(self) -> None:
        """Opens all pictures that are new or changed since the last time, reports what is wrong with any, and writes the index of the others.

        Raises:
            OSError: the list of the split is missing.
            ValueError: no picture at all can be used, or fewer than ``count``.
        """
        with _locked(self.folder):
            if not self._unchanged():
                self._read = None
                self._prepare()
        if not len(self):
            raise ValueError(f"data.{self.split}: no picture of {self.source.root} can be used; {self._reasons()}")

    def _unchanged(self) -> bool:
        """Whether all files are as they were when the index was made."""
        found = _json(self.folder / "condition.json")
        if not found or not (self.folder / "index.npz").is_file():
            return False
        looks = self.folder / "looks.jsonl"
        if tuple(found["looks"]) != stamp(looks)[:1]:  # of a later preparation, which was interrupted
            return False
        seen = Looks(looks, self.source.root)
        return not seen.missing(seen.seen) and all(
            stamp(self.source.root / file) == tuple(was) for file, was in found["stamps"].items()
        )

    def _prepare(self) -> None:
        defects: list[Defect] = []
        listed = list(checking.sound(self.source.entries(self.split, defects.append), defects.append))
        refused = {defect.file: stamp(self.source.root / defect.file) for defect in defects}
        wanted = [(entry.place, entry.size) for entry in listed]
        looks = Looks(self.folder / "looks.jsonl", self.source.root).complete(
            wanted, self.workers, f"{self.name} {self.split}"
        )
        pairs = list(zip(listed, looks, strict=True))
        defects += [Defect(entry.place.file, look.problem) for entry, look in pairs if look.problem]
        good = [(entry.on(look.size), look) for entry, look in pairs if not look.problem]
        defects += [remark for pair in good for remark in checking.remarks(*pair)]
        kept, seen = [entry for entry, _ in good], [look for _, look in good]
        index = Index.of(kept, [look.size for look in seen], [look.sha for look in seen])
        index.save(self.folder / "index.npz")
        facts = checking.facts(kept, seen, listed)
        found = {
            "facts": {
                **facts,
                "content": index.content,
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                **self.key,
            },
            "warnings": checking.warnings(facts, self.source, self.split),
            "defects": defects,
            "stamps": refused,
            "looks": stamp(self.folder / "looks.jsonl")[:1],
        }
        with replacing(self.folder / "condition.json") as temporary:
            temporary.write_text(json.dumps(found, indent=1, default=str), encoding="utf-8")

    def _reasons(self) -> str:
        fatal = [defect for defect in self.condition.defects if defect.fatal]
        if not fatal:
            return f"the list of {self.split} is empty"
        return f"{len(fatal)} defects, such as {fatal[0].file}: {fatal[0].problem}"

    # What is read.

    @property
    def read(self) -> tuple[Index, str, Sequence[int]]:
        """The index, the hash of its content, and the rows that are taken; prepared first where nothing is."""
        if self._read is None:
            path = self.folder / "index.npz"
            if not path.is_file():
                self.prepare()
            index, content = Index.load(path)
            self._read = index, content, self._rows(index)
        return self._read

    def _rows(self, index: Index) -> Sequence[int]:
        if self.count is None:
            return range(len(index))
        if self.count > len(index):
            raise ValueError(
                f"data.{self.split}.count={self.count}: {self.name} has {len(index)} pictures that can be used; lower it, or null for all"
            )
        shares = [share(id) for id in index.ids]
        return np.sort(np.argsort(shares, kind="stable")[: self.count]).tolist()

    @property
    def identity(self) -> dict[str, Any]:
        """Where the pictures lie does not count; ``first`` is no plain count, because fewer are no prefix of more."""
        _, content, _ = self.read
        return {
            "name": self.name,
            "split": self.split,
            "content": content,
            "first": self.count,
            "size": self.size,
            "transform": self.transform.identity,
        }

    @property
    def prompts(self) -> list[str]:
        index, _, rows = self.read
        every = index.prompts
        return [every[row] for row in rows]

    def __len__(self) -> int:
        return len(self.read[2])

    def __getitem__(self, index: int) -> Sample:
        return self.seen(index)

    def seen(self, index: int, visit: int = 0, image: bool = True) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return self.row(self.read[2][index], visit, image)

    def row(self, row: int, visit: int = 0, image: bool = True, chance: str | None = None) -> Sample:
        """The sample of a row of the index; what is random about it belongs to ``chance``, by default to its id."""
        entry = self.read[0][row]
        assert entry.size is not None and entry.areas is not None  # which an index has of all
        view = self.transform.view(chance or entry.id, visit, entry.size, self.size)
        joints, areas, there = self.transform.people(entry.keypoints, entry.areas, view)
        whole = partial(pictures.read, self.source.root, entry.place, entry.size)
        pixels = view.pixels(whole()) if image else None
        return Sample(
            entry.id, entry.prompt, joints, areas, pixels, self.size, {**_of(there, entry), "crop": view.crop}, whole
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_read": None}  # another process reads the index itself


def _of(there: np.ndarray, entry: Entry) -> dict[str, Any]:
    """The attributes of the people who are there; as everywhere, a list with one item per person is about people."""
    many = len(there)
    return {
        name: [item for item, is_there in zip(value, there, strict=True) if is_there]
        if isinstance(value, list | tuple) and len(value) == many
        else value
        for name, value in entry.attributes.items()
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _json(path: Path) -> dict[str, Any]:
    """The content of a json file; empty where it is missing or damaged, since it can be made anew."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lets one process at a time prepare a split; the lock dies with the process."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting: another process prepares {folder}", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
