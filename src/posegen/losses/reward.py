"""The consistency reward of ControlNet++ (Li et al. 2024, arXiv:2404.07987), with a pose network, for any method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from posegen.backbones.base import Backbone, Step
from posegen.backbones.process import NoiseProcess
from posegen.data.base import PoseBatch, PoseData
from posegen.errors import UserError
from posegen.losses.base import TrainingLoss
from posegen.metrics.base import Estimator
from posegen.ranges import AtLeastOne, NotNegative

Wanted = Literal["poses", "image"]
LOOKED_AT = 64  # samples of a split in which somebody must be labelled


class ConsistencyReward(TrainingLoss):
    """Adds ``weight`` times the error of the pose that a network reads in the clean image which a step predicts.

    Where little noise was added, one prediction shows the clean image. It is decoded, a frozen pose network looks at
    it, and the squared error of its heatmaps is the reward, with the gradient through the network and the decoder. Of
    a batch the steps count whose timesteps are in ``timesteps``.

    Args:
        teacher: an estimator with differentiable ``heatmaps``.
        wanted: the right heatmaps: those of the ``poses``, as of the published segmentation and depth, or those of the
            training ``image``, as of the published lineart.
        weight: of the reward; the released scripts have 0.2 to 1, none of them for poses.
        timesteps: first and last one that counts, in thousandths of the process.
        at_once: images that are decoded together. The backward pass decodes them again, so memory does not grow with
            the batch.
        faithful: the mean over the images of a pass that count, as released, where an image's share depends on the
            others beside it; otherwise over the number that is expected, so that a batch may be divided.

    Raises ValueError: an empty range of timesteps, another ``wanted``, or no such estimator."""

    def __init__(
        self,
        teacher: Any = None,
        wanted: Wanted = "poses",
        weight: NotNegative = 1.0,
        timesteps: tuple[NotNegative, NotNegative] = (0, 200),
        at_once: AtLeastOne = 4,
        faithful: bool = False,
    ) -> None:
        if wanted not in get_args(Wanted):
            raise ValueError(f"loss.wanted is {wanted!r}; expected one of {', '.join(get_args(Wanted))}")
        if timesteps[0] > timesteps[1]:
            raise ValueError(f"loss.timesteps is {list(timesteps)}; expected the first one and the last one")
        if sentence := blind(type(teacher)):
            raise UserError(sentence)
        if isinstance(teacher, nn.Module):
            teacher.requires_grad_(False).eval()
        self.teacher, self.wanted, self.weight = teacher, wanted, weight
        self.timesteps, self.at_once, self.faithful = timesteps, at_once, faithful
        self.reads = frozenset({"images"}) if wanted == "image" else frozenset()

    @classmethod
    def unserved(cls, task: Any, backbone: Any, teacher: Any) -> str | None:
        if not getattr(task, "rewardable", False):
            return "a reward is for what a pose-guidance method trains; choose task=adapter or loss=plain"
        if getattr(backbone, "sample", "image") != "image":
            return f"a reward looks at images, and {backbone.__name__} generates poses; choose loss=plain"
        return blind(teacher) if teacher is None or isinstance(teacher, type) else None

    def require(self, backbone: Backbone, data: PoseData) -> None:
        if not self.share(backbone, data.size):
            first, last = self.timesteps
            raise UserError(f"loss.timesteps=[{first},{last}] rewards no step of {backbone.weights.id}; raise the last")
        if self.wanted == "image":
            return
        fix = "take loss.wanted=image, which compares with the training images"
        if type(self.teacher).expected_heatmaps is Estimator.expected_heatmaps:
            unsaid = f"{type(self.teacher).__name__} does not say how its heatmaps show a pose"
            raise UserError(f"loss.wanted=poses: {unsaid}; {fix}, or choose another loss.teacher=")
        count = min(LOOKED_AT, len(data))
        some = (data.seen(i * len(data) // count, image=False) for i in range(count))
        if not any((sample.keypoints[..., 2] > 0).any() for sample in some):
            raise UserError(f"loss.wanted=poses: nobody is labelled in {count} samples of {data.name}; {fix}")

    def __call__(
        self, own: Mapping[str, Tensor], step: Step, batch: PoseBatch, backbone: Backbone
    ) -> dict[str, Tensor]:
        reward = self.reward(step, batch, backbone)
        return {**own, "loss": own["loss"] + self.weight * reward, "reward": reward.detach()}

    def reward(self, step: Step, batch: PoseBatch, backbone: Backbone) -> Tensor:
        """The mean error of the images that count; 0 where there are none."""
        counts = self.counts(step.timesteps, backbone.process)
        clean = backbone.process.clean(step.noisy, step.prediction.float(), step.timesteps)
        total, rows = clean.new_zeros(()), counts.nonzero()[:, 0]
        if isinstance(self.teacher, nn.Module):
            self.teacher.to(clean.device)
        for some in rows.split(self.at_once) if len(rows) else ():
            wanted, once = self.wanted_heatmaps(batch, some), {"use_reentrant": False, "preserve_rng_state": False}
            total = total + checkpoint(self.errors, clean[some], wanted, backbone, **once).sum()
        return total / (len(rows) + 1e-10 if self.faithful else len(counts) * self.share(backbone, batch.size))

    def errors(self, clean: Tensor, wanted: Tensor, backbone: Backbone) -> Tensor:
        """``[n]`` mean squared errors of the heatmaps of decoded latents; saturated pixels have no gradient."""
        found = self.teacher.heatmaps(backbone.from_latents(clean).clamp(-1, 1))
        if clean.requires_grad and not found.requires_grad:
            fix = "choose another loss.teacher="
            raise UserError(f"the heatmaps of {type(self.teacher).__name__} have no gradient, so nothing learns; {fix}")
        return (found.float() - wanted).square().mean(dim=(1, 2, 3))

    @torch.no_grad()
    def wanted_heatmaps(self, batch: PoseBatch, rows: Tensor) -> Tensor:
        """``[n, 17, h, w]`` of some images of a batch."""
        if self.wanted == "image":
            assert batch.images is not None
            return self.teacher.heatmaps(batch.images[rows]).float()
        people = pad_sequence([torch.from_numpy(batch.keypoints[i]) for i in rows.tolist()], batch_first=True)
        return self.teacher.expected_heatmaps(people.to(rows.device), batch.size)

    def counts(self, timesteps: Tensor, process: NoiseProcess) -> Tensor:
        """``[B]`` whether a step counts; both ends do."""
        thousandths = 1000 * timesteps / process.length
        return (thousandths >= self.timesteps[0]) & (thousandths <= self.timesteps[1])

    def share(self, backbone: Backbone, size: tuple[int, int]) -> float:
        """The share of a training's steps that count, on images of (height, width) pixels."""
        process, evenly = backbone.process, (torch.arange(10_000) + 0.5) / 10_000
        return float(self.counts(process.sample_times(evenly, backbone.tokens(size)), process).float().mean())


def blind(teacher: Any) -> str | None:
    """Why a class of estimators cannot reward; None where it can."""
    if teacher in (None, type(None)):
        return "a reward needs a pose network that reads images: loss.teacher='${estimator}'"
    if getattr(teacher, "heatmaps", Estimator.heatmaps) is not Estimator.heatmaps:
        return None
    fix = "choose an estimator with heatmaps as loss.teacher=, such as mannequin or higherhrnet"
    return f"a reward needs heatmaps with gradients, and {teacher.__name__} has none; {fix}"
