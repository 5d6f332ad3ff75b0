"""Pairs of photographs of one person: from the first and the pose of the second, the second is to be made.

A `PairSource` lists pictures, as any source does, and pairs of them. Pictures are checked and indexed once, however many pairs they are in.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from posegen.data.base import PoseData, Sample, generator
from posegen.data.formats.pair_files import Pair
from posegen.data.on_disk.indexed import RealData
from posegen.data.on_disk.source import Condition, Defect, Report, Source, share
from posegen.data.on_disk.transforms import Stretch

Expand = Literal["all", "random"]
#: The list of pictures and pairs that a split is a part of.
LISTS = {"train": "train", "validation": "train", "test": "test"}


class PairSource(Source):
    """A data set of pairs.

    Attributes:
        bars: share of a picture's width that each of two bars at its sides takes.
        grouped: what `group` tells apart, in the plural, for messages.
    """

    bars: float = 0.0
    grouped: str

    @abstractmethod
    def pairs(self, split: str, report: Report) -> Iterator[Pair]:
        """The pairs of a list, by the names of their pictures; entries have ``<name of the data set>/<name of the picture>`` as their ids."""

    @abstractmethod
    def group(self, name: str) -> str:
        """What the picture shows: pictures of one group are pairs and are held out together."""

    @abstractmethod
    def pair_facts(self, split: str) -> dict[str, Any]:
        """What is to be recorded of the files with the pairs."""

    def pair_suspicions(self, split: str, pairs: Sequence[Pair]) -> list[str]:
        """What is suspicious about the pairs that a list has."""
        return []


class Pictures(RealData):
    """The pictures themselves, each once: what the distances between sets compare with.

    Args:
        source: the data set on disk.
        split: train or test, all of the list.
        mirror: share of the visits on which they are mirrored.
    """

    source: PairSource

    def __init__(
        self,
        source: PairSource,
        split: str = "train",
        size: int | Sequence[int] = 512,
        mirror: float = 0.0,
        count: int | None = None,
        cache: str | Path = "~/.cache/posegen",
        workers: int | None = None,
    ) -> None:
        super().__init__(source, split, size, Stretch(mirror, source.bars), count, cache, workers)


@dataclass(frozen=True, eq=False)
class Chosen:
    """N pairs, as rows of the index of pictures.

    Attributes:
        targets: ``[N] int64``.
        sources: ``[M] int64`` of all pairs, one after the other.
        ends: ``[N] int64`` where the sources of each pair end.
        content: a hash of the names.
        condition: what was found on the way.
    """

    targets: np.ndarray
    sources: np.ndarray
    ends: np.ndarray
    content: str
    condition: Condition

    def of(self, index: int) -> np.ndarray:
        """The sources of a pair."""
        return self.sources[self.ends[index - 1] if index else 0 : self.ends[index]]


class Pairs(PoseData):
    """A split of a data set of pairs; a sample is a target, and `source_of` brings the picture it is to be made from.

    Args:
        source: the data set on disk.
        split: train, validation (the part of the training list that is held out) or test.
        size: (height, width) of the samples, to which pictures are stretched.
        prompt: the caption of all.
        holdout: share of the training list's groups that are ``validation``: where the SHA-1 of the group is below it.
        expand: where a line of the list names several sources, ``all`` makes a pair with each, ``random`` one pair that takes another source on each visit.
        mirror: share of the visits on which both pictures are mirrored, and left and right with them; for training.
        count: take only so many, those whose ids have the lowest hashes; None: all.
        cache: folder for what is prepared.
        workers: processes that check pictures; None takes one per core.

    Raises:
        ValueError: an option is none of those that there are.
    """

    def __init__(
        self,
        source: PairSource,
        split: str = "train",
        size: int | Sequence[int] = 512,
        prompt: str = "",
        holdout: float = 0.02,
        expand: Expand = "all",
        mirror: float = 0.0,
        count: int | None = None,
        cache: str | Path = "~/.cache/posegen",
        workers: int | None = None,
    ) -> None:
        if split not in LISTS:
            raise ValueError(f"data.{split}: expected one of {', '.join(LISTS)}")
        if expand not in get_args(Expand):
            raise ValueError(f"data.expand={expand}; expected one of {', '.join(get_args(Expand))}")
        if not 0 <= holdout < 1 or not 0 <= mirror <= 1:
            raise ValueError(
                f"data.{split}: holdout={holdout} and mirror={mirror} are shares between 0 and 1, and something must be left to train on"
            )
        if count is not None and count < 1:
            raise ValueError(f"data.{split}.count={count}: at least one pair is needed; null takes all")
        self.source, self.split, self.name, self.prompt = source, split, source.name, prompt
        self.holdout, self.expand, self.count = holdout, expand, count
        self.pictures = Pictures(source, LISTS[split], size, mirror, None, cache, workers)
        self.size, self.varies = self.pictures.size, self.pictures.varies

    # What is prepared.

    def prepare(self) -> None:
        """Checks the pictures, and that there are pairs of them.

        Raises:
            OSError: a list is missing.
            ValueError: no pair can be used, or fewer than ``count``.
        """
        self.pictures.prepare()
        for name in ("chosen", "_known"):
            self.__dict__.pop(name, None)
        self.chosen  # noqa: B018 - reads the pairs

    @property
    def condition(self) -> Condition:
        """What was found about the pairs; what was found about the pictures, `Pictures` says."""
        return self.chosen.condition

    @cached_property
    def chosen(self) -> Chosen:
        """The pairs of this split whose pictures can be used.

        Raises:
            ValueError: there are none, or fewer than ``count``.
        """
        defects: list[Defect] = []
        listed = list(self.source.pairs(self.pictures.split, defects.append))
        flat = [Pair(target, (source,)) for target, sources in listed for source in sources]
        warnings = self.source.pair_suspicions(self.pictures.split, flat)
        mixed = sum(self.source.group(pair.target) != self.source.group(pair.sources[0]) for pair in flat)
        if mixed:
            warnings.append(f"{mixed:,} of {len(flat):,} pairs join pictures of different {self.source.grouped}")
        own = [pair for pair in (flat if self.expand == "all" else listed) if self._is_mine(pair.target)]
        usable = self._cut(list(self._usable(own, defects)))
        if not usable:
            reasons = (
                f"{len(defects)} defects, such as {defects[0].file}: {defects[0].problem}"
                if defects
                else f"the list has {len(listed):,}"
            )
            raise ValueError(f"data.{self.split}: no pair of {self.source.root} can be used; {reasons}")
        groups = {self.source.group(pair.target) for pair in usable}
        pictures = {name for target, sources in usable for name in (target, *sources)}
        facts = {
            "pairs": len(usable),
            "listed_pairs": len(flat),
            "pictures": len(pictures),
            self.source.grouped: len(groups),
        }
        facts |= self.source.pair_facts(self.pictures.split)
        return self._rows(usable, Condition(facts, warnings, defects))

    def _is_mine(self, target: str) -> bool:
        return LISTS[self.split] == "test" or (share(self.source.group(target)) < self.holdout) == (
            self.split == "validation"
        )

    @cached_property
    def _known(self) -> dict[str, int]:
        """The row of each picture in the index."""
        return {id.removeprefix(f"{self.name}/"): row for row, id in enumerate(self.pictures.read[0].ids)}

    def _usable(self, pairs: Sequence[Pair], defects: list[Defect]) -> Iterator[Pair]:
        """The pairs whose pictures are there and whose targets have a pose, with the sources that are there; the others are reported."""
        people, there, seen = np.diff(self.pictures.read[0].people, prepend=0), self._known, set[str]()
        for target, sources in pairs:
            left = tuple(source for source in sources if source in there)
            lost = [name for name in (target, *sources) if name not in there]
            problem = f"{lost[0]} is no usable picture of the list" if target not in there or not left else ""
            problem = problem or ("" if people[there[target]] else "the target has no pose")
            problem = problem or (
                f"pair {name_of(left[0], target)} is listed twice" if name_of(left[0], target) in seen else ""
            )
            if problem or lost:
                defects.append(
                    Defect(
                        name_of(sources[0], target),
                        problem or f"{lost[0]} is no usable picture of the list",
                        fatal=bool(problem),
                    )
                )
            if not problem:
                seen.add(name_of(left[0], target))
                yield Pair(target, left)

    def _cut(self, pairs: list[Pair]) -> list[Pair]:
        if self.count is None:
            return pairs
        if self.count > len(pairs):
            raise ValueError(
                f"data.{self.split}.count={self.count}: {self.name} has {len(pairs)} pairs that can be used; lower it, or null for all"
            )
        shares = [share(name_of(pair.sources[0], pair.target)) for pair in pairs]
        return [pairs[i] for i in np.sort(np.argsort(shares, kind="stable")[: self.count])]

    def _rows(self, pairs: Sequence[Pair], condition: Condition) -> Chosen:
        known, sha = (
            self._known,
            hashlib.sha256("\n".join(f"{target} {' '.join(sources)}" for target, sources in pairs).encode()),
        )
        sources = np.array([known[source] for pair in pairs for source in pair.sources], np.int64)
        ends = np.cumsum([len(pair.sources) for pair in pairs], dtype=np.int64)
        return Chosen(
            np.array([known[pair.target] for pair in pairs], np.int64), sources, ends, sha.hexdigest()[:16], condition
        )

    # What is read.

    @property
    def identity(self) -> dict[str, Any]:
        """Where the pictures lie does not count."""
        about = {name: getattr(self, name) for name in ("name", "split", "prompt", "expand", "size")}
        transform = self.pictures.transform.identity
        return {
            **about,
            "content": [self.pictures.read[1], self.chosen.content],
            "first": self.count,
            "transform": transform,
        }

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] * len(self)

    def __len__(self) -> int:
        return len(self.chosen.targets)

    def __getitem__(self, index: int) -> Sample:
        return self.seen(index)

    def seen(self, index: int, visit: int = 0, image: bool = True) -> Sample:
        id, source, target = self._pair(index, visit)
        sample = self.pictures.row(int(self.chosen.targets[index]), visit, image, id)
        return replace(
            sample, id=id, prompt=self.prompt, attributes={**sample.attributes, "source": source, "target": target}
        )

    def source_of(self, index: int, visit: int = 0) -> Sample:
        """The source of a pair, mirrored where the target is."""
        id, _, _ = self._pair(index, visit)
        return replace(self.pictures.row(self._source_row(index, visit), visit, True, id), prompt=self.prompt)

    def _pair(self, index: int, visit: int) -> tuple[str, str, str]:
        """(id of a pair, name of its source on this visit, name of its target)."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        index %= len(self)
        first, source, target = (
            self._name(row)
            for row in (self.chosen.of(index)[0], self._source_row(index, visit), self.chosen.targets[index])
        )
        return f"{self.name}/{name_of(first, target)}", source, target

    def _source_row(self, index: int, visit: int) -> int:
        """One of a pair's sources; which, is a function of the pair and the visit alone."""
        index %= len(self)
        sources, target = self.chosen.of(index), self.chosen.targets[index]
        if len(sources) == 1:
            return int(sources[0])
        chance = generator(self._name(target), self._name(sources[0]), visit, "source")
        return int(sources[int(torch.randint(len(sources), (), generator=chance))])

    def _name(self, row: Any) -> str:
        return self.pictures.read[0].id(int(row)).removeprefix(f"{self.name}/")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_known"}


def name_of(source: str, target: str) -> str:
    """What a pair is called, as in the file names of published results."""
    return f"{source}_2_{target}"


def shared(names: Mapping[str, Sequence[str]], key: Any) -> tuple[int, int]:
    """(what the list ``test`` shares with the list ``train``, how much it has), by a key of their pictures."""
    ours, theirs = ({key(name) for name in names[split]} for split in ("test", "train"))
    return len(ours & theirs), len(ours)
