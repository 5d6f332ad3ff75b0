"""Any real data set as samples: its source lists the images; here they are checked once, indexed, cropped and read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cached_property, partial
from itertools import compress
from pathlib import Path
from typing import Any

from posegen.data.base import PoseData, Sample
from posegen.data.condition import Condition, Defect
from posegen.data.on_disk.dataset_checks import (
    canvas_remarks,
    image_remarks,
    split_facts,
    split_warnings,
    usable_entries,
)
from posegen.data.on_disk.image_scan import ImageScan, file_stamp
from posegen.data.on_disk.images import read_image
from posegen.data.on_disk.source import Source, lowest_hashes, require_count
from posegen.data.on_disk.split_index import INDEX_VERSION, SplitIndex
from posegen.data.on_disk.transforms import Transform, TransformName, transform_of
from posegen.io.atomic import explained, read_json_or_empty, write_text
from posegen.io.cores import cores
from posegen.io.hashes import value_hash
from posegen.io.locks import locked
from posegen.ranges import AtLeastOne, Width, Workers


class RealData(PoseData):
    """A split of a real data set.

    ``<cache>/prepared/<name>/<split>-<hash>`` holds ``index.npz``, ``condition.json`` (the findings, and the files they
    belong to) and ``looks.jsonl`` (the scanned images). The hash is that of the root, the source's options and its
    lists; the identity of the data is the content of the index. Raises ValueError: an option is invalid.
    """

    checkable = True  # the constructor loads nothing, see `posegen.config.checking.check.refused`

    def __init__(
        self,
        source: Source,
        split: str,
        size: Width | tuple[Width, Width] = 512,  # (height, width), or the side of a square; multiples of 8
        transform: TransformName | Transform = "corrected",  # the crop, or its name in `TRANSFORMS`
        count: AtLeastOne | None = None,  # the ids with the lowest hashes, so spread over the whole split; None: all
        cache: str | Path = "~/.cache/posegen",  # folder for the prepared files
        workers: Workers | None = None,  # processes that check images; None: one per core
    ) -> None:
        self.source, self.split, self.name, self.count = source, split, source.name, count
        self.size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        if any(side < 8 or side % 8 for side in self.size):
            raise ValueError(f"data.{split}.size={size}: expected a multiple of 8, or (height, width) of such")
        require_count(split, count)
        self.transform = transform_of(transform)
        self.varies = self.transform.varies
        self.cache = Path(cache).expanduser() / "prepared" / self.name
        self.workers = workers or cores()
        self._read: tuple[SplitIndex, str, Sequence[int]] | None = None

    @cached_property
    def key(self) -> dict[str, Any]:
        about = {"version": INDEX_VERSION, "root": str(self.source.root.resolve()), "split": self.split}
        return {**about, "source": self.source.identity(self.split)}

    @property
    def folder(self) -> Path:
        return self.cache / f"{self.split}-{value_hash(self.key, 12)}"

    @property
    def condition(self) -> Condition:
        """The findings of the last preparation; empty where there was none."""
        found = self._found()
        defects = [Defect(*row) for row in found.get("defects", ())]
        return Condition(found.get("facts", {}), found.get("warnings", ()), defects)

    def prepare(self) -> None:
        """Scans and indexes the images. Raises OSError: no list of the split; ValueError: too few are usable."""
        if not self._unchanged():  # first without the lock: the cache of others can be read-only
            with locked(self.folder / ".lock"):
                if not self._unchanged():
                    if not self._found() and (self.folder / "condition.json").exists():
                        print(f"{self.folder} is damaged or of an earlier version: {self.split} is checked again")
                    self._read = None
                    self._prepare()
        if not len(self):
            fatal = [defect for defect in self.condition.defects if defect.fatal]
            reason = f"the list of {self.split} is empty"
            if fatal:
                reason = f"{len(fatal)} defects, such as {fatal[0].file}: {fatal[0].problem}"
            raise ValueError(f"data.{self.split}: no picture of {self.source.root} can be used; {reason}")

    def _found(self) -> dict[str, Any]:
        """``condition.json``, empty where it is missing or damaged."""
        found = read_json_or_empty(self.folder / "condition.json")
        return found if found.pop("checksum", "") == value_hash(found) else {}

    def _unchanged(self) -> bool:
        """Whether all files are as they were when the index was written."""
        found = self._found()
        if not found or not (self.folder / "index.npz").is_file():
            return False
        looks, root = self.folder / "looks.jsonl", self.source.root
        if tuple(found["looks"]) != file_stamp(looks)[:1]:  # of a later preparation, which was interrupted
            return False
        scan, stamps = ImageScan(looks, root), found["stamps"].items()
        return not scan.missing(scan.seen) and all(file_stamp(root / file) == tuple(then) for file, then in stamps)

    def _prepare(self) -> None:
        defects: list[Defect] = []
        root, looks = self.source.root, self.folder / "looks.jsonl"
        listed = list(usable_entries(self.source.entries(self.split, defects.append), defects.append))
        refused = {defect.file: file_stamp(root / defect.file) for defect in defects}
        wanted = [(entry.place, entry.size) for entry in listed]
        scans = ImageScan(looks, root).complete(wanted, self.workers, f"{self.name} {self.split}")
        pairs = list(zip(listed, scans, strict=True))
        defects += [Defect(entry.place.file, scanned.problem) for entry, scanned in pairs if scanned.problem]
        good = [(entry.on(scanned.size), scanned) for entry, scanned in pairs if not scanned.problem]
        defects += [remark for pair in good for remark in image_remarks(*pair)]
        if self.source.canvases_fit:
            framed = [pair for pair in pairs if pair[0].frame and not pair[1].problem]
            defects += [remark for pair in framed for remark in canvas_remarks(*pair)]
        kept, seen = [entry for entry, _ in good], [scanned for _, scanned in good]
        index = SplitIndex.of(kept, [scanned.size for scanned in seen], [scanned.sha for scanned in seen])
        index.save(self.folder / "index.npz")
        facts = split_facts(kept, seen, listed)
        about = {"content": index.content, "date": datetime.now(UTC).isoformat(timespec="seconds")}
        warnings = split_warnings(facts, self.source, self.split)
        found: dict[str, Any] = {"facts": {**facts, **about, **self.key}, "warnings": warnings, "defects": defects}
        found |= {"stamps": refused, "looks": file_stamp(looks)[:1]}
        plain = json.loads(json.dumps(found, default=str))
        write_text(self.folder / "condition.json", json.dumps(plain | {"checksum": value_hash(plain)}, indent=1))

    @property
    def read(self) -> tuple[SplitIndex, str, Sequence[int]]:
        """The index, the hash of its content, and the chosen rows; prepares the split where that is missing."""
        if self._read is None:
            path = self.folder / "index.npz"
            if (stored := SplitIndex.load(path)) is None:
                if path.exists():
                    with explained(path):
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
                self.prepare()
                stored = SplitIndex.load(path)
                assert stored is not None
            index, content = stored
            rows: Sequence[int] = range(len(index))
            if self.count is not None:
                option, available = f"data.{self.split}.count", f"{self.name} has {{}} pictures"
                rows = lowest_hashes(index.ids, self.count, option, available)
            self._read = index, content, rows
        return self._read

    @property
    def identity(self) -> dict[str, Any]:
        """The place of the images does not count; ``first`` is the count, under a key without prefix rules."""
        about = {"name": self.name, "split": self.split, "content": self.read[1], "first": self.count}
        return {**about, "size": self.size, "transform": self.transform.identity}

    @property
    def prompts(self) -> list[str]:
        every = self.read[0].prompts
        return [every[row] for row in self.read[2]]

    def __len__(self) -> int:
        return len(self.read[2])

    def __getitem__(self, index: int) -> Sample:
        return self.seen(index)

    def seen(self, index: int, visit: int = 0, image: bool = True) -> Sample:
        return self.row(self.read[2][self.checked(index)], visit, image)

    def row(self, row: int, visit: int = 0, image: bool = True, chance: str | None = None) -> Sample:
        """The sample of a row of the index; its random choices belong to ``chance``, by default to its id."""
        entry = self.read[0][row]
        assert entry.size is not None and entry.areas is not None  # an index has both for every image
        view = self.transform.view(chance or entry.id, visit, entry.size, self.size)
        joints, areas, visible = self.transform.people(entry.keypoints, entry.areas, view)
        whole = partial(read_image, self.source.root, entry.place, entry.size)
        pixels = view.pixels(whole()) if image else None
        attributes = {**entry.attributes, "crop": view.crop}
        for name, value in entry.attributes.items():  # lists with an item per person keep those of visible people
            if isinstance(value, list | tuple) and len(value) == len(visible):
                attributes[name] = list(compress(value, visible))
        sizes = (*view.stored, view.top, view.left, *view.size)
        return Sample(entry.id, entry.prompt, joints, areas, pixels, self.size, attributes, whole, sizes=sizes)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_read": None}  # another process reads the index again
