"""HumanSD: the drawn pose as latents beside the noisy latents, the whole U-Net finetuned (Ju et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from posegen.adapters.base import STRIPS, Adapter, Paper, Published, State
from posegen.backbones.base import Backbone, Injection, Step
from posegen.backbones.loading import ldm_keys as ldm
from posegen.data.base import PoseBatch
from posegen.poses.drawing import Occlusion, PoseDrawing
from posegen.ranges import NotNegative

README_FIGURE = "results figure of the official README, its own evaluation"
GRPOSE_TABLE = "table on the GRPose project page"
LossKind = Literal["plain", "heatmap_reference", "heatmap_corrected"]


class PoseLatents(Adapter):
    """The part of a method that reads the drawn pose as latents of the backbone's autoencoder."""

    needs = frozenset({"hint"})

    def __init__(
        self,
        style: Literal["humansd", "openpose"],
        pose_latent: Literal["sample", "mode"],
        occlusion: Occlusion,
    ) -> None:
        super().__init__()
        self.hint = PoseDrawing(style, range=(-1.0, 1.0), occlusion=occlusion)
        self.style, self.pose_latent, self.occlusion = style, pose_latent, occlusion

    @torch.no_grad()
    def encode(self, batch: PoseBatch) -> State:
        assert batch.hint is not None
        generators = batch.generators("pose latents") if self.pose_latent == "sample" else None
        return self.text_state(batch).having(pose=self.backbone.to_latents(batch.hint, generators))


class PoseChannels(PoseLatents):
    """The part of a method that has these latents as additional input channels of the backbone."""

    places = frozenset({"latents"})

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        backbone.widen(backbone.geometry.latent_channels)

    def inject(self, state: State, latents: Tensor, timesteps: Tensor) -> Injection:
        return Injection(latents=state["pose"])


class HumanSD(PoseChannels):
    """The autoencoder encodes the drawn skeleton, and the U-Net takes its latents as additional input channels.

    Section 3.2: the new channels start at zero, so that finetuning starts from the backbone, and sampling costs no
    more. Section 3.3: the heatmap-guided loss weighs the squared error by a pose estimator's heatmaps. ``loss_kind``:

    * ``plain``: weight 1;
    * ``heatmap_reference``: 1 + ``loss_weight`` * E(c) as released: c counts the joints that the teacher does *not* see
      in the decoded noise error, and E is the autoencoder's encoder, so the weight has any sign;
    * ``heatmap_corrected``: 1 + ``loss_weight`` * M as in the paper's figure: M is the area-resized mask of the joints
      that the teacher sees in the predicted clean image.

    ``pose_latent``: sample the posterior of the skeleton's latents, as published, or take its mode. ``teacher`` is an
    estimator with ``heatmaps``, HigherHRNet in the paper; pixels above ``threshold`` there belong to a joint."""

    divisible = True
    paper = Paper(
        "HumanSD: A Native Skeleton-Guided Diffusion Model for Human Image Generation",
        "arXiv:2304.04269",
        "IDEA-Research/HumanSD@c5db29d",
        published=(
            *Published.of("Human-Art", README_FIGURE, AP=31.85, CAP=59.11, PCE=1.61, **{STRIPS: 26.28}, CLIP=32.98),
            *Published.of("Human-Art", GRPOSE_TABLE, AP=44.57, CAP=69.68, PCE=1.37, FID=10.03, KID=2.70, CLIP=32.24),
            *Published.of("LAION-Human", GRPOSE_TABLE, AP=50.95, CAP=65.84, PCE=1.25, FID=5.62, CLIP=30.85),
        ),
    )
    beside: ClassVar[Mapping[str, str]] = {"mmpose_model": "the pose network of the training loss", **ldm.LEFT_OUT}

    def __init__(
        self,
        style: Literal["humansd", "openpose"] = "humansd",
        pose_latent: Literal["sample", "mode"] = "sample",
        loss_kind: LossKind = "plain",
        teacher: Any = None,
        threshold: float = 0.05,
        loss_weight: NotNegative = 0.1,
        occlusion: Occlusion = "drawn",
    ) -> None:
        super().__init__(style, pose_latent, occlusion)
        if loss_kind not in get_args(LossKind):
            raise ValueError(f"adapter.loss_kind is {loss_kind!r}; expected one of {', '.join(get_args(LossKind))}")
        self.loss_kind, self.threshold, self.loss_weight = loss_kind, threshold, loss_weight
        object.__setattr__(self, "teacher", teacher)  # not a sub-module: it is neither trained nor saved

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        backbone.network.requires_grad_(True)

    def loss(self, step: Step, state: State, batch: PoseBatch) -> dict[str, Tensor]:
        """Squared error with the weight of ``loss_kind`` (equation 6)."""
        error = (step.prediction.float() - step.target.float()).square()
        if self.loss_kind == "plain":
            return {"loss": error.mean()}
        if self.teacher is None:  # said here, because a trained method is loaded and sampled without it
            needs = f"adapter.loss_kind={self.loss_kind} needs a pose estimator"
            raise ValueError(f"{needs}: adapter.teacher='${{estimator}}'")
        if isinstance(self.teacher, nn.Module):
            self.teacher.to(error.device)
        return {"loss": (error * self.weight(step, batch)).mean(), "plain": error.mean().detach()}

    @torch.no_grad()
    def weight(self, step: Step, batch: PoseBatch) -> Tensor:
        """The factor of the squared error in the heatmap losses."""
        released = self.loss_kind == "heatmap_reference"
        return 1 + self.loss_weight * (self.reference_weight(step, batch) if released else self.corrected_weight(step))

    def reference_weight(self, step: Step, batch: PoseBatch) -> Tensor:
        """``[B, c, h, w]`` as released: latents of how many joints the teacher misses in the decoded noise error."""
        # The released code scales the error to [0, 1] and does not normalise it as the pose network expects.
        difference = ((self.backbone.from_latents(step.prediction.float() - step.target.float()) + 1) / 2).clamp(0, 1)
        unseen = (self.teacher.raw_heatmaps(difference) <= self.threshold).float().sum(1, keepdim=True)
        image = F.interpolate(unseen, difference.shape[-2:], mode="bicubic", align_corners=False).expand(-1, 3, -1, -1)
        return self.backbone.to_latents(image, batch.generators("loss weight"))

    def corrected_weight(self, step: Step) -> Tensor:
        """``[B, 1, h, w]`` share of each latent cell that the teacher sees joints in, in the predicted clean image."""
        clean = self.backbone.process.clean(step.noisy, step.prediction, step.timesteps)
        image = self.backbone.from_latents(clean.float()).clamp(-1, 1)
        seen = (self.teacher.heatmaps(image).amax(1, keepdim=True) > self.threshold).float()
        return F.interpolate(seen, step.noisy.shape[-2:], mode="area")

    def convert(self, official: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The finetuned U-Net of an original checkpoint as ``backbone.unet.*``; the adapter itself has no weights."""
        table = ldm.unet_table(self.backbone.geometry)
        return ldm.placed(official, ldm.UNET, table, "backbone.unet.", self.beside, type(self).__name__)
