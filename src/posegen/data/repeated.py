"""Several images of every pose: each sample of a data set comes more than once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from posegen.data.base import PoseData, Sample
from posegen.data.condition import Condition
from posegen.ranges import AtLeastOne


class Repeated(PoseData):
    """``times`` copies of each sample of ``data``, one after the other. Their ids differ, from which noise derives; the
    attribute ``pose`` is the id of the sample that they are copies of. For test splits."""

    checkable = True  # the constructor loads nothing, see `posegen.config.checking.check.refused`

    def __init__(self, data: PoseData, times: AtLeastOne = 4) -> None:
        self.data, self.times = data, times
        self.name, self.split, self.size, self.varies = data.name, data.split, data.size, data.varies

    def __len__(self) -> int:
        return len(self.data) * self.times

    def __getitem__(self, index: int) -> Sample:
        return self.seen(index)

    def seen(self, index: int, visit: int = 0, image: bool = True) -> Sample:
        index, copy = divmod(self.checked(index), self.times)
        sample = self.data.seen(index, visit, image)
        facts = {**sample.attributes, "pose": sample.id}
        return replace(sample, id=f"{sample.id}#{copy}" if copy else sample.id, attributes=facts)

    @property
    def prompts(self) -> Sequence[str]:
        return [prompt for prompt in self.data.prompts for _ in range(self.times)]

    def twin(self, index: int) -> Sample:
        return self.data.twin(index // self.times)

    def sources_of(self, index: int, visit: int = 0) -> Sequence[Sample]:
        return self.data.sources_of(index // self.times, visit)

    @property
    def identity(self) -> dict[str, Any]:
        return {**self.data.identity, "repeats": self.times}

    def prepare(self) -> None:
        self.data.prepare()

    @property
    def condition(self) -> Condition:
        return self.data.condition
