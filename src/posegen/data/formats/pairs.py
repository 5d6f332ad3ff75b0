"""Pairs of photographs of one person: the second image is generated from the first and the pose of the second."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch

from posegen.data.base import PoseData, Sample, generator
from posegen.data.condition import Condition, Defect
from posegen.data.formats.pair_files import Pair, pairs_in
from posegen.data.on_disk.indexed import RealData
from posegen.data.on_disk.source import ReportDefect, Source, lowest_hashes, require_count, require_option
from posegen.data.on_disk.transforms import Stretch
from posegen.io.hashes import hash_fraction, joint_hash, text_hash
from posegen.ranges import AtLeastOne, BelowOne, Width, Workers, ZeroToOne

Expand = Literal["all", "random"]
PAIR_LISTS = {"train": "train", "validation": "train", "test": "test"}  # the list that a split is a part of


class PairSource(Source):
    """A data set of pairs."""

    bars: float = 0.0  # width of each of two bars at the sides of an image, as a fraction of the image's
    grouped: str  # the groups of `group` in the plural, for messages
    released_pairs: ClassVar[Mapping[str, int]]  # number of pairs of the released lists

    @abstractmethod
    def pair_file(self, split: str) -> Path:
        """The list of pairs."""

    @staticmethod
    @abstractmethod
    def image_name(text: str) -> str | None:
        """The name of an image in any spelling; None where the text is no name."""

    @abstractmethod
    def group(self, name: str) -> str:
        """The group of an image: pairs join images of one group, and groups are held out whole."""

    def pairs(self, split: str, report: ReportDefect) -> Iterator[Pair]:
        """The pairs of a list, by image names; an image's id is ``<name of the data set>/<name of the image>``."""
        return pairs_in(self.pair_file(split), self.image_name, report)

    def pair_facts(self, split: str) -> dict[str, Any]:  # for the record
        file = self.pair_file(split)
        return {"pair_file": file.name, "pair_file_sha256": joint_hash([file])}

    def pair_suspicions(self, split: str, pairs: Sequence[Pair]) -> list[str]:
        found, released = len(pairs), self.released_pairs[split]
        remark = f"{self.pair_file(split).name} has {found:,} pairs; the released list has {released:,}"
        return [] if found == released else [remark]


class Pictures(RealData):
    """The single images of a whole list, ``train`` or ``test``: the reference set of distances between sets."""

    source: PairSource

    def __init__(
        self,
        source: PairSource,
        split: str = "train",
        size: Width | tuple[Width, Width] = 512,
        mirror: ZeroToOne = 0.0,
        count: AtLeastOne | None = None,
        cache: str | Path = "~/.cache/posegen",
        workers: Workers | None = None,
    ) -> None:
        super().__init__(source, split, size, Stretch(mirror, source.bars), count, cache, workers)


@dataclass(frozen=True, eq=False)
class PairRows:
    targets: np.ndarray  # ``[N] int64``
    sources: np.ndarray  # ``[M] int64`` of all pairs, one after the other
    ends: np.ndarray  # ``[N] int64`` where the sources of each pair end
    content: str  # a hash of the names
    condition: Condition  # the findings about the pairs

    def sources_of(self, index: int) -> np.ndarray:
        return self.sources[self.ends[index - 1] if index else 0 : self.ends[index]]


class Pairs(PoseData):
    """A split of a data set of pairs; a sample is a target, `source_of` the image that it is generated from.
    Raises ValueError: an option is invalid.
    """

    def __init__(
        self,
        source: PairSource,
        split: str = "train",  # train, validation (the held-out part of the training list) or test
        size: Width | tuple[Width, Width] = 512,  # (height, width), to which images are stretched
        prompt: str = "",  # of all
        holdout: BelowOne = 0.02,  # fraction of the training list's groups for validation, by the SHA-1 of the group
        expand: Expand = "all",  # of a line with several sources: a pair with each, or one with another on each visit
        mirror: ZeroToOne = 0.0,  # fraction of the visits with both images mirrored and joints exchanged; for training
        count: AtLeastOne | None = None,  # of pairs, those whose ids have the lowest hashes; None: all
        cache: str | Path = "~/.cache/posegen",
        workers: Workers | None = None,
    ) -> None:
        if split not in PAIR_LISTS:
            raise ValueError(f"data.{split}: expected one of {', '.join(PAIR_LISTS)}")
        require_option("expand", expand, get_args(Expand))
        if not 0 <= holdout < 1 or not 0 <= mirror <= 1:
            given = f"holdout={holdout} and mirror={mirror}"
            raise ValueError(f"data.{split}: {given}: expected 0 <= holdout < 1 and 0 <= mirror <= 1")
        require_count(split, count)
        self.source, self.split, self.name, self.prompt = source, split, source.name, prompt
        self.holdout, self.expand, self.count = holdout, expand, count
        self.pictures = Pictures(source, PAIR_LISTS[split], size, mirror, None, cache, workers)
        self.size, self.varies = self.pictures.size, self.pictures.varies

    def prepare(self) -> None:
        """Checks images and pairs. Raises OSError: a list is missing; ValueError: see `chosen`."""
        self.pictures.prepare()
        for name in ("chosen", "_known"):
            self.__dict__.pop(name, None)
        self.chosen  # noqa: B018 - reads the pairs

    @property
    def condition(self) -> Condition:
        """The findings about the pairs; those about the images are in `Pictures`."""
        return self.chosen.condition

    @cached_property
    def chosen(self) -> PairRows:
        """The usable pairs of this split. Raises ValueError: there are none, or fewer than ``count``."""
        defects: list[Defect] = []
        listed = list(self.source.pairs(self.pictures.split, defects.append))
        flat = [Pair(target, (source,)) for target, sources in listed for source in sources]
        warnings = self.source.pair_suspicions(self.pictures.split, flat)
        mixed = sum(self.source.group(target) != self.source.group(source) for target, (source,) in flat)
        if mixed:
            warnings.append(f"{mixed:,} of {len(flat):,} pairs join pictures of different {self.source.grouped}")
        group, start = self.source.group, f"data.{self.split}"
        everyone, want_held_out = PAIR_LISTS[self.split] == "test", self.split == "validation"
        mine = flat if self.expand == "all" else listed
        mine = [p for p in mine if everyone or (hash_fraction(group(p.target)) < self.holdout) == want_held_out]
        usable = list(self._usable(mine, defects))
        if self.count is not None:
            names = [pair_name(pair.sources[0], pair.target) for pair in usable]
            rows = lowest_hashes(names, self.count, f"{start}.count", f"{self.name} has {{}} pairs")
            usable = [usable[i] for i in rows]
        if not usable:
            reasons = f"the list has {len(listed):,}"
            if defects:
                reasons = f"{len(defects)} defects, such as {defects[0].file}: {defects[0].problem}"
            raise ValueError(f"{start}: no pair of {self.source.root} can be used; {reasons}")
        pictures = {name for target, sources in usable for name in (target, *sources)}
        facts = {"pairs": len(usable), "listed_pairs": len(flat), "pictures": len(pictures)}
        facts |= {self.source.grouped: len({group(pair.target) for pair in usable})}
        facts |= self.source.pair_facts(self.pictures.split)
        known = self._known
        return PairRows(
            np.array([known[pair.target] for pair in usable], np.int64),
            np.array([known[source] for pair in usable for source in pair.sources], np.int64),
            np.cumsum([len(pair.sources) for pair in usable], dtype=np.int64),
            text_hash("\n".join(f"{target} {' '.join(sources)}" for target, sources in usable)),
            Condition(facts, warnings, defects),
        )

    @cached_property
    def _known(self) -> dict[str, int]:
        """The row of each image in the index."""
        return {id.removeprefix(f"{self.name}/"): row for row, id in enumerate(self.pictures.read[0].ids)}

    def _usable(self, pairs: Sequence[Pair], defects: list[Defect]) -> Iterator[Pair]:
        """Pairs whose target is there with a pose, with the sources that are there; others are reported."""
        people, there, seen = np.diff(self.pictures.read[0].people, prepend=0), self._known, set[str]()
        for target, sources in pairs:
            left = tuple(source for source in sources if source in there)
            lost = [f"{name} is no usable picture of the list" for name in (target, *sources) if name not in there]
            problem = lost[0] if target not in there or not left else ""
            problem = problem or ("" if people[there[target]] else "the target has no pose")
            if not problem and pair_name(left[0], target) in seen:
                problem = f"pair {pair_name(left[0], target)} is listed twice"
            if problem or lost:
                defects.append(Defect(pair_name(sources[0], target), problem or lost[0], fatal=bool(problem)))
            if not problem:
                seen.add(pair_name(left[0], target))
                yield Pair(target, left)

    @property
    def identity(self) -> dict[str, Any]:
        about = {name: getattr(self, name) for name in ("name", "split", "prompt", "expand", "size")}
        content = [self.pictures.read[1], self.chosen.content]
        return {**about, "content": content, "first": self.count, "transform": self.pictures.transform.identity}

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] * len(self)

    def __len__(self) -> int:
        return len(self.chosen.targets)

    def __getitem__(self, index: int) -> Sample:
        return self.seen(index)

    def seen(self, index: int, visit: int = 0, image: bool = True) -> Sample:
        id, source, target = self._pair(index, visit)
        sample = self.pictures.row(target, visit, image, id)
        attributes = {**sample.attributes, "source": self._name(source), "target": self._name(target)}
        return replace(sample, id=id, prompt=self.prompt, attributes=attributes)

    def source_of(self, index: int, visit: int = 0) -> Sample:
        """The source of a pair, mirrored where the target is."""
        id, source, _ = self._pair(index, visit)
        return replace(self.pictures.row(source, visit, True, id), prompt=self.prompt)

    def _pair(self, index: int, visit: int) -> tuple[str, int, int]:
        """(id, row of the source, row of the target) of a pair; the source is a function of pair and visit alone."""
        index = self.checked(index)
        sources, target, choice = self.chosen.sources_of(index).tolist(), int(self.chosen.targets[index]), 0
        first, name = self._name(sources[0]), self._name(target)
        if len(sources) > 1:
            chance = generator(name, first, visit, "source")
            choice = int(torch.randint(len(sources), (), generator=chance))
        return f"{self.name}/{pair_name(first, name)}", sources[choice], target

    def _name(self, row: int) -> str:
        return self.pictures.read[0].id(row).removeprefix(f"{self.name}/")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_known"}


def pair_name(source: str, target: str) -> str:
    """As in the file names of published results."""
    return f"{source}_2_{target}"
