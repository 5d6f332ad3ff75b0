"""ControlNet: residuals from a trainable copy of the encoder, the backbone frozen (Zhang, Rao, Agrawala 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from torch import Tensor

from posegen.adapters.base import HUMANSD_FIGURE, STRIPS, Adapter, Paper, Published, State
from posegen.backbones.base import Backbone, Injection
from posegen.backbones.loading import ldm_keys as ldm
from posegen.data.base import PoseBatch
from posegen.poses.drawing import Occlusion, Part, PoseDrawing
from posegen.ranges import AtLeastOne, NotNegative

GRPOSE_TABLE = "table on the GRPose project page, trained on Human-Art"
GRPOSE_RELEASED = "table on the GRPose project page, released weights"
GUESS_DECAY = 0.825  # per residual from the middle block upwards, gradio_pose2image.py


class ControlNet(Adapter):
    """A copy of the U-Net's encoder and middle block reads the noisy latents and the drawn pose.

    Section 3.1, equations 2 and 3: zero convolutions Z join every block F_c of the copy to the frozen network, y = F(x)
    + Z(F_c(x + Z(c))), so that training starts from the backbone itself. Section 3.2: the pose c enters through a small
    convolutional network; the copy's outputs are added to the skip connections and to the middle block.

    Poses are drawn in the ``style`` of the released weights, ``openpose``, with hands and face as ``dwpose``, or as
    ``humansd``; ``parts`` and ``occlusion`` are those of `PoseDrawing`. ``strength`` is a factor
    of all residuals, ``scales`` one for each, finest first and the middle's last; ``only_mid`` uses that alone. In
    ``guess_mode`` residuals decay towards the finest, and the branch without text sees no pose either. Of a transformer
    the first ``layers`` blocks are copied, by default as many as in released ones."""

    needs = frozenset({"hint"})
    places = frozenset({"control_copy"})
    paper = Paper(
        "Adding Conditional Control to Text-to-Image Diffusion Models",
        "arXiv:2302.05543",
        "lllyasviel/ControlNet@ed85cd1e25a5",
        published=(
            *Published.of("Human-Art", HUMANSD_FIGURE, AP=18.45, CAP=57.18, PCE=2.47, **{STRIPS: 27.24}, CLIP=33.16),
            *Published.of("Human-Art", GRPOSE_TABLE, AP=39.52, CAP=69.19, PCE=1.54, FID=11.01, KID=2.23, CLIP=32.65),
            *Published.of("LAION-Human", GRPOSE_RELEASED, AP=44.90, CAP=66.74, PCE=1.55, FID=7.53, CLIP=32.31),
        ),
    )
    beside = ldm.LEFT_OUT_FROZEN

    def __init__(
        self,
        style: Literal["openpose", "humansd", "dwpose"] = "openpose",
        strength: NotNegative = 1.0,
        scales: Sequence[NotNegative] | None = None,
        only_mid: bool = False,
        guess_mode: bool = False,
        layers: AtLeastOne | None = None,
        parts: Sequence[Part] | None = None,
        occlusion: Occlusion = "drawn",
    ) -> None:
        super().__init__()
        self.hint = PoseDrawing(style, range=(0.0, 1.0), parts=parts, occlusion=occlusion)
        self.style, self.parts, self.occlusion = style, parts, occlusion
        self.strength, self.scales, self.only_mid, self.guess_mode = strength, scales, only_mid, guess_mode
        self.layers = layers

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        if self.only_mid and "mid" not in backbone.places:
            raise ValueError(
                f"adapter.only_mid=true: {type(backbone).__name__} has no middle block; use adapter.scales"
            )
        self.branch = backbone.control_copy(layers=self.layers)

    def encode(self, batch: PoseBatch) -> State:
        assert batch.hint is not None
        features = self.branch.hint_features(batch.hint)
        return self.text_state(batch).having(hint=features, on=features.new_ones(len(batch), 1, 1, 1))

    def inject(self, state: State, latents: Tensor, timesteps: Tensor) -> Injection:
        added = self.branch(latents, timesteps, state.text, state["hint"])
        added = added.weighted(self.factors(len(added.residuals)))
        if self.guess_mode:
            added = added.weighted([state["on"].view(-1, *[1] * (r.ndim - 1)) for r in added.residuals])
        return replace(added, down=None) if self.only_mid else added

    def factors(self, residuals: int) -> list[float]:
        """One factor per residual, the middle's last."""
        scales = [1.0] * residuals if self.scales is None else list(self.scales)
        if len(scales) != residuals:
            raise ValueError(f"adapter.scales has {len(scales)} factors; this backbone has {residuals} residuals")
        decay = [GUESS_DECAY ** (residuals - 1 - i) if self.guess_mode else 1.0 for i in range(residuals)]
        return [self.strength * a * b for a, b in zip(scales, decay, strict=True)]

    def branches(self, state: State, guidance: float) -> list[tuple[float, State]]:
        """Guidance on the text; in guess mode the branch without text has no pose either."""
        weighted = super().branches(state, guidance)
        if not self.guess_mode:
            return weighted
        return [(w, s if i == 0 else s.having(on=s["on"] * 0)) for i, (w, s) in enumerate(weighted)]

    def convert(self, official: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of the original program, bare or within a whole model, or of diffusers' class."""
        placed = self.branch.placed(official, self.beside, type(self).__name__)
        return {f"adapter.branch.{key}": value for key, value in placed.items()}
