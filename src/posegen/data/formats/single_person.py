"""The samples of any data set that show one person; models of single poses learn from these."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

from posegen.data.base import PoseData, Sample
from posegen.data.condition import Condition


class SinglePerson(PoseData):
    """The samples of ``data`` with exactly one person and enough labelled joints: GUNet's choice (arXiv:2409.11689).

    Args:
        data: a split of another data set.
        count: take the first so many that qualify; None for all.
        joints: least number of labelled joints.
    """

    def __init__(self, data: PoseData, count: int | None = None, joints: int = 8) -> None:
        self.data, self.count, self.joints = data, count, joints
        self.name, self.split, self.size, self.varies = f"{data.name}_single", data.split, data.size, data.varies
        self._chosen: list[int] = []

    @property
    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "count": self.count, "joints": self.joints, "data": self.data.identity}

    def prepare(self) -> None:
        self.data.prepare()

    @property
    def condition(self) -> Condition:
        return self.data.condition

    @property
    def chosen(self) -> Sequence[int]:
        """Indices into ``data``, found at the first use. Raises ValueError: fewer than ``count`` qualify."""
        if not self._chosen:
            self._chosen = list(islice(filter(self._qualifies, range(len(self.data))), self.count))
            if not self._chosen or (self.count or 0) > len(self._chosen):
                raise ValueError(
                    f"data.{self.split}.count={self.count}: only {len(self._chosen)} of the {len(self.data)} samples "
                    f"of {self.data.name} show one person with {self.joints} labelled joints; "
                    f"raise data.{self.split}.data.count or lower data.{self.split}.count"
                )
        return self._chosen

    def _qualifies(self, index: int) -> bool:
        keypoints = self.data.seen(index, image=False).keypoints
        return len(keypoints) == 1 and int((keypoints[0, :, 2] > 0).sum()) >= self.joints

    def __len__(self) -> int:
        return self.count or len(self.chosen)

    def __getitem__(self, index: int) -> Sample:
        return self.data[self.chosen[index]]

    def seen(self, index: int, visit: int = 0, image: bool = True) -> Sample:
        return self.data.seen(self.chosen[index], visit, image)

    @property
    def prompts(self) -> Sequence[str]:
        every = self.data.prompts
        return [every[i] for i in self.chosen]

    def twin(self, index: int) -> Sample:
        return self.data.twin(self.chosen[index])
