"""A folder of pictures from any program as a row, judged like the samples of a method."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

import cv2
import numpy as np
import torch
from torch import Tensor

from posegen.adapters.base import Adapter
from posegen.adapters.reference import Reference
from posegen.data.base import PoseBatch, Sample, to_tensor
from posegen.io.foreign_files import csv_rows
from posegen.io.pictures import pictures_below
from posegen.ranges import AtLeastZero, Width

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
DIGITS = 8  # least digits of a picture's name that may end a sample's id (Human-Art's begin with the scenario)
PAIRINGS = ("_2_", "_to_", "___")  # between the names of source and target
INNER = re.compile(r"\.(jpe?g|png)(?=___|_2_|_to_|$)", re.IGNORECASE)
Naming = Literal["auto", "id", "index"]


class Folder(Reference):
    """The pictures of a folder.

    A picture finds its sample by a list (``names``), by its name (the sample's id or the end of it; for pairs
    ``SOURCE_2_TARGET``, ``SOURCE_to_TARGET`` or ``SOURCE___TARGET``, also with ``_vis`` behind it), or by its number
    (``000000.png`` is the first sample of the split, as in the folders of this project).

    Args:
        path: the folder; folders inside it are searched too.
        names: a csv file with the columns ``file`` (relative to ``path``) and ``id`` (of the sample).
        by: whether names are ids or indices; ``auto`` takes the way that fits more samples.
        panels: pictures side by side in one file, as several released programs save them.
        panel: which of them is the generated one, counted from 0.
        resize: resize pictures of the data's aspect ratio; otherwise another size is an error.
        allow_missing: samples without a picture count as black, and the table says so; otherwise they are an error.
    """

    needs = frozenset({"population"})
    population = "test"

    def __init__(
        self,
        path: str | None = None,
        names: str | None = None,
        by: Naming = "auto",
        panels: Width = 1,
        panel: AtLeastZero = 0,
        resize: bool = False,
        allow_missing: bool = False,
    ) -> None:
        super().__init__()
        if by not in get_args(Naming):
            raise ValueError(f"adapter.by is {by!r}; expected one of {', '.join(get_args(Naming))}")
        if not 0 <= panel < panels:
            raise ValueError(f"adapter.panel={panel} is none of adapter.panels={panels} pictures, counted from 0")
        self.path, self.names, self.by = path, names, by
        self.panels, self.panel, self.resize, self.allow_missing = panels, panel, resize, allow_missing
        self._remark = ""

    @property
    def remark(self) -> str:
        return self._remark

    def generate(self, batch: PoseBatch, sampler: Callable[[Adapter, PoseBatch], Tensor]) -> Tensor:
        if not hasattr(self, "files"):
            self.files = self.assigned(batch.population or batch.samples)
        black = torch.full((3, *batch.size), -1.0)
        return torch.stack([self.picture(self.files[i], batch.size) if i in self.files else black for i in batch.ids])

    def assigned(self, samples: Sequence[Sample]) -> dict[str, Path]:
        """Sample id -> picture, of all samples of the split."""
        root = Path(self.path or "")
        if not self.path or not root.is_dir():
            raise ValueError(f"adapter.path is {self.path!r}; expected a folder of generated pictures")
        pictures = [file for file in pictures_below(root) if file.suffix.lower() in SUFFIXES]
        files = sorted(file.relative_to(root).as_posix() for file in pictures)
        if self.names is not None:
            found = by_list(Path(self.names), files)
        else:
            ways = {"id": by_id, "index": by_index}
            choices = [way(files, samples) for name, way in ways.items() if self.by in (name, "auto")]
            found = max(choices, key=lambda choice: len(choice.keys() & {s.id for s in samples}))
        for sample, claims in found.items():
            if len(claims) > 1:
                twice = f"{root} has {len(claims)} pictures of sample {sample}: {', '.join(claims[:3])}"
                raise ValueError(f"{twice}; leave one, or say which in adapter.names")
        self.report([s.id for s in samples if s.id not in found], len(samples), len(files))
        return {sample: root / claims[0] for sample, claims in found.items()}

    def report(self, missing: Sequence[str], samples: int, files: int) -> None:
        """Refuses missing pictures, or remarks on them where they are allowed."""
        if not missing:
            return
        first = f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}"
        text = f"{self.path} lacks {len(missing)} of {samples} pictures: {first}"
        if not self.allow_missing or len(missing) == samples:
            raise ValueError(
                f"{text}; it holds {files} pictures. Name them by sample ids or by index (000000.png), list them in "
                "adapter.names (columns file,id), or set adapter.allow_missing=true for a row that is not comparable"
            )
        self._remark = f"{text}; they count as black pictures and the row is not comparable"

    def picture(self, file: Path, size: tuple[int, int]) -> Tensor:
        """``[3, H, W]`` in [-1, 1]."""
        image = cv2.imread(str(file), cv2.IMREAD_COLOR)
        if image is None:
            raise ValueError(f"{file} is no readable picture; replace or delete it")
        width = image.shape[1]
        if width % self.panels:
            raise ValueError(f"{file} is {width} pixels wide, no multiple of adapter.panels={self.panels}")
        image = np.split(image, self.panels, axis=1)[self.panel]
        image = image if image.shape[:2] == size else self.resized(image, size, file)
        return to_tensor(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))

    def resized(self, image: np.ndarray, size: tuple[int, int], file: Path) -> np.ndarray:
        (height, width), (rows, columns) = image.shape[:2], size
        text = f"{file}: its picture is {width} x {height} pixels, the data's are {columns} x {rows}"
        if height * columns != width * rows:
            several = f"; a file of several pictures needs adapter.panels={width // height}"
            hint = several if width > height and width % height == 0 else ""
            raise ValueError(f"{text}, another shape: the poses would not fit it{hint}")
        if not self.resize:
            raise ValueError(f"{text}; set adapter.resize=true, or data.test.size to theirs")
        return cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA if width > columns else cv2.INTER_CUBIC)


Claims = Mapping[str, list[str]]


def by_list(table: Path, files: Sequence[str]) -> Claims:
    """Sample id -> files, as a csv file says."""
    lines = [line for _, line in csv_rows(table)]
    rows = [dict(zip_longest(lines[0], line[: len(lines[0])], fillvalue="")) for line in lines[1:]]
    if not rows or not {"file", "id"} <= rows[0].keys():
        there = ", ".join(rows[0]) if rows else "no row"
        raise ValueError(f"adapter.names={table} needs the columns file,id and a row per picture; it has {there}")
    if absent := sorted({row["file"] for row in rows} - set(files)):
        lists = f"adapter.names={table} lists {len(absent)} files"
        raise ValueError(f"{lists} that are not in adapter.path: {', '.join(absent[:5])}")
    claims = defaultdict(list)
    for row in rows:
        claims[row["id"]].append(row["file"])
    return claims


def by_index(files: Sequence[str], samples: Sequence[Sample]) -> Claims:
    """Sample id -> files whose name is the sample's position in the split, in six digits."""
    claims = defaultdict(list)
    for file in files:
        stem = PurePosixPath(file).stem
        if len(stem) == 6 and stem.isdecimal() and int(stem) < len(samples):
            claims[samples[int(stem)].id].append(file)
    return claims


def by_id(files: Sequence[str], samples: Sequence[Sample]) -> Claims:
    """Sample id -> files named after it: by the id, its last part, a long number at its end, or the names of a pair.

    Where a name fits several samples, its folders decide: they name the scenario or a part of the id."""
    stems = [PurePosixPath(file).stem for file in files]
    lengths = {len(stem) for stem in stems if stem.isdecimal() and len(stem) >= DIGITS}
    known: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        tail, about, keys = sample.id.rpartition("/")[2], sample.attributes, {sample.id.replace("/", "_")}
        if {"source", "target"} <= about.keys():
            keys |= {f"{about['source']}{between}{about['target']}" for between in PAIRINGS}
        for key in keys | {tail, *(tail[-length:] for length in lengths)}:
            known[key].append(sample)
    claims = defaultdict(list)
    for file in files:
        place = PurePosixPath(file)
        # A pair's name may hold the suffixes of its pictures, and ends in ``_vis`` in several programs.
        fitting = known.get(place.stem) or known.get(INNER.sub("", place.stem.removesuffix("_vis")), [])
        if len(fitting) > 1:
            fitting = [sample for sample in fitting if set(place.parent.parts) & folders_of(sample)]
        if len(fitting) == 1:
            claims[fitting[0].id].append(file)
    return claims


def folders_of(sample: Sample) -> set[str]:
    """Names of folders that a sample's picture may lie in."""
    scenario = str(sample.attributes.get("scenario", ""))
    return {scenario, scenario.replace(" ", "_"), scenario.replace("_", " "), *sample.id.split("/")[:-1]} - {""}
