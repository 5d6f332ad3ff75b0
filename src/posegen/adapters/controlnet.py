"""ControlNet: residuals from a trainable copy of the encoder, the backbone frozen (Zhang, Rao, Agrawala 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from torch import Tensor

from posegen.adapters.base import Adapter, Official, Paper, State
from posegen.backbones.base import Backbone, Injection
from posegen.backbones.blocks.encoder_copy import EncoderCopy, scaled
from posegen.backbones.loading import ldm_keys as ldm
from posegen.data.base import PoseBatch
from posegen.io.weights import UnknownKeys
from posegen.poses.drawing import PoseDrawing

HUMANSD_FIGURE = "results figure of IDEA-Research/HumanSD's README, its own evaluation"
GRPOSE_TABLE = "table on the GRPose project page, trained on Human-Art"
GRPOSE_RELEASED = "table on the GRPose project page, released weights"
GUESS_DECAY = 0.825  # per residual from the middle block upwards, gradio_pose2image.py


class ControlNet(Adapter):
    """A copy of the U-Net's encoder and middle block reads the noisy latents and the drawn pose.

    Section 3.1, equations 2 and 3: every block F(x) of the copy is joined to the frozen network by a zero convolution Z, y = F(x) + Z(F_c(x + Z(c))),
    so that training starts from the backbone itself. Section 3.2: the pose c enters through a small convolutional network, after the first
    convolution; the copy's outputs are added to the skip connections and to the middle block.

    Args:
        style: how poses are drawn, ``openpose`` as in the released weights or ``humansd``.
        strength: factor of all residuals.
        scales: a factor for each residual, finest first and the middle's last; None is 1 for all.
        only_mid: use the middle block's residual alone.
        guess_mode: residuals decay towards the finest, and the branch without text sees no pose either.
    """

    needs = frozenset({"hint"})
    paper = Paper(
        "Adding Conditional Control to Text-to-Image Diffusion Models",
        "arXiv:2302.05543",
        "lllyasviel/ControlNet@ed85cd1e25a5",
        published=(
            ("Human-Art", "AP", 18.45, HUMANSD_FIGURE),
            ("Human-Art", "CAP", 57.18, HUMANSD_FIGURE),
            ("Human-Art", "PCE", 2.47, HUMANSD_FIGURE),
            ("Human-Art", "FID of four-panel strips", 27.24, HUMANSD_FIGURE),
            ("Human-Art", "CLIP", 33.16, HUMANSD_FIGURE),
            ("Human-Art", "AP", 39.52, GRPOSE_TABLE),
            ("Human-Art", "CAP", 69.19, GRPOSE_TABLE),
            ("Human-Art", "PCE", 1.54, GRPOSE_TABLE),
            ("Human-Art", "FID", 11.01, GRPOSE_TABLE),
            ("Human-Art", "KID", 2.23, GRPOSE_TABLE),
            ("Human-Art", "CLIP", 32.65, GRPOSE_TABLE),
            ("LAION-Human", "AP", 44.90, GRPOSE_RELEASED),
            ("LAION-Human", "CAP", 66.74, GRPOSE_RELEASED),
            ("LAION-Human", "PCE", 1.55, GRPOSE_RELEASED),
            ("LAION-Human", "FID", 7.53, GRPOSE_RELEASED),
            ("LAION-Human", "CLIP", 32.31, GRPOSE_RELEASED),
        ),
    )
    official = Official(guidance="sequential", encodes_every_pass=True, decoder_gradients=True)
    #: Parts of an official file that `convert` leaves out: beginning of the keys -> why.
    beside: ClassVar[Mapping[str, str]] = {
        "model.diffusion_model": "the file's own U-Net; the method runs on that of the configured backbone",
        **ldm.BESIDE,
    }

    def __init__(
        self,
        style: Literal["openpose", "humansd"] = "openpose",
        strength: float = 1.0,
        scales: Sequence[float] | None = None,
        only_mid: bool = False,
        guess_mode: bool = False,
    ) -> None:
        super().__init__()
        self.hint = PoseDrawing(style, range=(0.0, 1.0))
        self.style = style
        self.strength, self.scales, self.only_mid, self.guess_mode = strength, scales, only_mid, guess_mode

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        self.branch = EncoderCopy(backbone.unet, backbone.geometry.latent_factor)  # type: ignore[arg-type]

    def encode(self, batch: PoseBatch) -> State:
        assert batch.hint is not None
        features = self.branch.hint_features(batch.hint)
        return self.text_state(batch).having(hint=features, on=features.new_ones(len(batch), 1, 1, 1))

    def inject(self, state: State, latents: Tensor, timesteps: Tensor) -> Injection:
        down, mid = self.branch(latents, timesteps, state.text, state.conditions["hint"])
        down, mid = scaled(down, mid, self.factors(len(down) + 1))
        if self.guess_mode:
            on = state.conditions["on"]
            down, mid = tuple(r * on for r in down), mid * on
        return Injection(mid=mid) if self.only_mid else Injection(down=down, mid=mid)

    def factors(self, residuals: int) -> list[float]:
        """One factor per residual, the middle's last."""
        own = [1.0] * residuals if self.scales is None else list(self.scales)
        decay = [GUESS_DECAY ** (residuals - 1 - i) if self.guess_mode else 1.0 for i in range(residuals)]
        return [self.strength * a * b for a, b in zip(own, decay, strict=True)]

    def branches(self, state: State, guidance: float) -> list[tuple[float, State]]:
        """Guidance on the text; in guess mode the branch without text has no pose either."""
        weighted = super().branches(state, guidance)
        if not self.guess_mode:
            return weighted
        return [(w, s if i == 0 else s.having(on=s.conditions["on"] * 0)) for i, (w, s) in enumerate(weighted)]

    def convert(self, official: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of the original program, bare or within a whole model, or of a diffusers ``ControlNetModel``, as ``adapter.branch.network.*``.

        Raises:
            UnknownKeys: names the keys that have no place.
        """
        place, name = "adapter.branch.network.", type(self).__name__
        if ldm.has_prefix(official, "controlnet_"):  # diffusers' names are this project's
            if unknown := official.keys() - self.branch.network.state_dict().keys():
                raise UnknownKeys(unknown, name)
            return {place + key: value for key, value in official.items()}
        backbone: Backbone = self.backbone  # type: ignore[assignment]
        prefix = ldm.CONTROL if ldm.has_prefix(official, ldm.CONTROL) else ""
        return ldm.placed(official, prefix, ldm.control_table(backbone.geometry), place, self.beside, name)
