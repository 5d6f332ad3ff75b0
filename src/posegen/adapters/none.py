"""No pose guidance: the backbone and its text, the floor that every method must leave."""

from __future__ import annotations

from posegen.adapters.base import Adapter, Paper, State
from posegen.backbones.base import Injection
from posegen.data.base import PoseBatch
from torch import Tensor


class NoAdapter(Adapter):
    """The backbone alone, conditioned on the prompt; there is nothing to train."""

    needs = frozenset()
    trainable = False
    paper = Paper("High-Resolution Image Synthesis with Latent Diffusion Models", "arXiv:2112.10752", "CompVis/stable-diffusion")

    def encode(self, batch: PoseBatch) -> State:
        return self.text_state(batch)

    def inject(self, state: State, latents: Tensor, timesteps: Tensor) -> Injection:
        return Injection()
