"""Reference rows of text-to-pose models, from the poses of the training split alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from posegen.adapters.base import Adapter
from posegen.adapters.reference import Reference
from posegen.data.base import PoseBatch, Sample


class MeanPose(Reference):
    """The mean of all training poses, of joints that half of them have: the best answer without the caption."""

    needs = frozenset({"population"})
    sample = "pose"

    def generate(self, batch: PoseBatch, sampler: Callable[[Adapter, PoseBatch], Tensor]) -> Tensor:
        if not hasattr(self, "mean"):
            self.mean = mean_pose(batch.population or ())
        return self.mean.expand(len(batch), -1, -1)


class OtherPose(Reference):
    """The pose of a random training sample with the same request: the level of a model that knows the poses exactly.

    ``same`` is the main person's attribute that is the request; where no training sample has it, any will do."""

    needs = frozenset({"population"})
    sample = "pose"

    def __init__(self, same: str = "actions") -> None:
        super().__init__()
        self.same = same

    def generate(self, batch: PoseBatch, sampler: Callable[[Adapter, PoseBatch], Tensor]) -> Tensor:
        if not hasattr(self, "requests"):
            self.requests: dict[object, list[Sample]] = {}
            for sample in batch.population or ():
                self.requests.setdefault(self.request(sample), []).append(sample)
        everyone = list(batch.population or ())
        choices = [self.requests.get(self.request(sample), everyone) for sample in batch.samples]
        draws = zip(batch.rand("other pose").tolist(), choices, strict=True)
        return torch.stack([chosen[int(u * len(chosen))].pose for u, chosen in draws])

    def request(self, sample: Sample) -> object:
        return sample.about_main.get(self.same)


def mean_pose(samples: Sequence[Sample]) -> Tensor:
    """``[17, 3]``: the mean position of every joint, and the share of poses that have it, 0 below one half."""
    if not samples:
        raise ValueError("there is no training pose to take the mean of; raise data.train.count")
    poses = torch.stack([sample.pose for sample in samples])
    there = poses[..., 2:] > 0
    share = there.float().mean(0)
    places = (poses[..., :2] * there).sum(0) / there.sum(0).clamp_min(1)
    return torch.cat([places, share], -1) * (share >= 0.5)
