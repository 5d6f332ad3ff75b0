"""No pose guidance: the backbone and its text, the floor that every method must leave."""

from __future__ import annotations

from torch import Tensor

from posegen.adapters.base import HUMANSD_FIGURE, STRIPS, Adapter, Paper, Published, State
from posegen.backbones.base import Injection
from posegen.data.base import PoseBatch

GRPOSE_TABLE = "table on the GRPose project page, released weights of Stable Diffusion 1.5"


class NoAdapter(Adapter):
    """The backbone alone, conditioned on the prompt; there is nothing to train."""

    needs = frozenset()
    trainable = False
    paper = Paper(
        "High-Resolution Image Synthesis with Latent Diffusion Models",
        "arXiv:2112.10752",
        "CompVis/stable-diffusion",
        published=(
            *Published.of("Human-Art", HUMANSD_FIGURE, AP=0.09, CAP=49.05, PCE=1.76, **{STRIPS: 41.55}, CLIP=33.86),
            *Published.of("Human-Art", GRPOSE_TABLE, AP=0.24, CAP=55.71, PCE=2.30, FID=11.53, KID=3.36, CLIP=33.33),
            *Published.of("LAION-Human", GRPOSE_TABLE, AP=0.73, CAP=44.47, PCE=2.45, FID=4.53, CLIP=32.32),
        ),
    )

    def encode(self, batch: PoseBatch) -> State:
        return self.text_state(batch)

    def inject(self, state: State, latents: Tensor, timesteps: Tensor) -> Injection:
        return Injection()
