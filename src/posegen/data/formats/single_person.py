"""The samples of any data set that show one person; models of single poses learn from these."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import islice
from typing import Any

from posegen.data.base import PoseData, Sample
from posegen.data.condition import Condition
from posegen.ranges import AtLeastOne, JointCount


class SinglePerson(PoseData):
    """The first ``count`` samples (None: all) of ``data`` with exactly one person and at least so many labelled
    ``joints``: GUNet's choice (arXiv:2409.11689).
    """

    checkable = True  # the constructor loads nothing, see `posegen.config.checking.check.refused`

    def __init__(self, data: PoseData, count: AtLeastOne | None = None, joints: JointCount = 8) -> None:
        self.data, self.count, self.joints = data, count, joints
        self.name, self.split, self.size, self.varies = f"{data.name}_single", data.split, data.size, data.varies

    @property
    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "count": self.count, "joints": self.joints, "data": self.data.identity}

    def prepare(self) -> None:
        self.data.prepare()

    @property
    def condition(self) -> Condition:
        return self.data.condition

    @cached_property
    def chosen(self) -> Sequence[int]:
        """Indices into ``data``, found at the first use. Raises ValueError: fewer than ``count`` qualify."""
        poses = ((i, self.data.seen(i, image=False).keypoints) for i in range(len(self.data)))
        fitting = (i for i, pose in poses if len(pose) == 1 and int((pose[0, :, 2] > 0).sum()) >= self.joints)
        chosen, key = list(islice(fitting, self.count)), f"data.{self.split}"
        if not chosen or (self.count or 0) > len(chosen):
            found = f"only {len(chosen)} of the {len(self.data)} samples of {self.data.name} show one person with"
            fix = f"{self.joints} labelled joints; raise {key}.data.count or lower {key}.count"
            raise ValueError(f"{key}.count={self.count}: {found} {fix}")
        return chosen

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
