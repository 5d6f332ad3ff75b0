"""No pose guidance: the backbone and its text, the floor that every method must leave."""

from __future__ import annotations

from torch import Tensor

from posegen.adapters.base import Adapter, Paper, State
from posegen.backbones.base import Injection
from posegen.data.base import PoseBatch

HUMANSD_FIGURE = "results figure of IDEA-Research/HumanSD's README, its own evaluation"
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
            ("Human-Art", "AP", 0.09, HUMANSD_FIGURE),
            ("Human-Art", "CAP", 49.05, HUMANSD_FIGURE),
            ("Human-Art", "PCE", 1.76, HUMANSD_FIGURE),
            ("Human-Art", "FID of four-panel strips", 41.55, HUMANSD_FIGURE),
            ("Human-Art", "CLIP", 33.86, HUMANSD_FIGURE),
            ("Human-Art", "AP", 0.24, GRPOSE_TABLE),
            ("Human-Art", "CAP", 55.71, GRPOSE_TABLE),
            ("Human-Art", "PCE", 2.30, GRPOSE_TABLE),
            ("Human-Art", "FID", 11.53, GRPOSE_TABLE),
            ("Human-Art", "KID", 3.36, GRPOSE_TABLE),
            ("Human-Art", "CLIP", 33.33, GRPOSE_TABLE),
            ("LAION-Human", "AP", 0.73, GRPOSE_TABLE),
            ("LAION-Human", "CAP", 44.47, GRPOSE_TABLE),
            ("LAION-Human", "PCE", 2.45, GRPOSE_TABLE),
            ("LAION-Human", "FID", 4.53, GRPOSE_TABLE),
            ("LAION-Human", "CLIP", 32.32, GRPOSE_TABLE),
        ),
    )

    def encode(self, batch: PoseBatch) -> State:
        return self.text_state(batch)

    def inject(self, state: State, latents: Tensor, timesteps: Tensor) -> Injection:
        return Injection()
