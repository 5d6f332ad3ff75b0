"""Token control: the drawn pose as further tokens in the joint attention of a transformer (Tan et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from posegen.adapters.base import Paper, State
from posegen.adapters.humansd import PoseLatents
from posegen.backbones.base import Backbone, Injection
from posegen.backbones.blocks.low_rank import require_peft
from posegen.data.base import PoseBatch
from posegen.io.weights import UnknownKeys
from posegen.poses.drawing import Occlusion
from posegen.ranges import Positive, Width, ZeroToOne

#: The layers of the official configurations; the second is the input layer of Stable Diffusion 3.
OFFICIAL_TARGETS = (
    "x_embedder", "pos_embed.proj", "norm1.linear", "norm.linear", "to_q", "to_k", "to_v", "to_out.0", "ff.net.2",
    "proj_mlp", "proj_out",
)  # fmt: skip


class TokenControl(PoseLatents):
    """The drawn pose passes the autoencoder and the transformer's own input layer, and its tokens take part in the
    joint attention, at the positions of the image.

    Low-rank weights, the only ones that train, act on these tokens alone: image and text pass the transformer as it is,
    and differ by what they read of the tokens. The tokens are modulated as clean ones, at time 0, with the pooled text
    of the image. They are read from the start, so training starts with an influence, although the products are zero.

    Args:
        style, occlusion, pose_latent: see `HumanSD`.
        rank: of the products; officially 4 for aligned tasks, and 16 for subjects.
        alpha: products are multiplied by ``alpha / rank``; null: the rank.
        targets: the layers, by the ends of their names; null: those of the official configurations.
        independent: the tokens see neither image nor text, so that their keys and values are computed in the first step
            of sampling and kept for the others (``feature_reuse`` in the official configurations).
        drop_pose: share of images in training whose drawing is replaced by a black one.
    """

    places = frozenset({"tokens"})
    starts_neutral = False
    paper = Paper(
        "OminiControl: Minimal and Universal Control for Diffusion Transformer",
        "arXiv:2411.15098",
        "Yuanshi9815/OminiControl@331dd34e3b06",
        "Apache-2.0",
    )

    def __init__(
        self,
        style: Literal["humansd", "openpose"] = "openpose",
        pose_latent: Literal["sample", "mode"] = "sample",
        rank: Width = 4,
        alpha: Positive | None = None,
        targets: Sequence[str] | None = None,
        independent: bool = False,
        drop_pose: ZeroToOne = 0.1,
        occlusion: Occlusion = "drawn",
    ) -> None:
        super().__init__(style, pose_latent, occlusion)
        require_peft("token_control")
        self.rank, self.alpha, self.targets = rank, alpha, targets
        self.independent, self.drop_pose = independent, drop_pose

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        targets = OFFICIAL_TARGETS if self.targets is None else self.targets
        branch = backbone.token_branch(targets, self.rank, self.rank if self.alpha is None else self.alpha)
        self.add_module(backbone.network_name, branch)
        self.__dict__.update(branch=branch, kept=WeakKeyDictionary())

    @torch.no_grad()
    def encode(self, batch: PoseBatch) -> State:
        state, black = super().encode(batch), batch.hint[:1].new_full((), -1.0).expand_as(batch.hint[:1])  # type: ignore[index]
        nobody = self.backbone.to_latents(black).expand_as(state["pose"])
        return state.having(nobody=nobody, chance=batch.rand("dropped pose").to(nobody.device))

    def inject(self, state: State, latents: Tensor, timesteps: Tensor) -> Injection:
        again = self.independent and not torch.is_grad_enabled()
        if again and state in self.kept:
            return Injection(tokens=(self.kept[state],))
        tokens = self.branch.start(state["pose"], state.text, self.independent)
        if again:
            self.kept[state] = tokens  # for the other steps of sampling, which bring the same state
        return Injection(tokens=(tokens,))

    def drop(self, state: State, keep: Tensor) -> State:
        """The text where ``keep`` is false, and by each image's chance the pose."""
        drawn = (state["chance"] >= self.drop_pose).view(-1, 1, 1, 1)
        return super().drop(state, keep).having(pose=torch.where(drawn, state["pose"], state["nobody"]))

    @property
    def left_out(self) -> Mapping[str, str]:
        return {f"{self.backbone.network_name}.{name}": "nothing reads it" for name in self.branch.unread}

    def convert(self, official: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A LoRA file of the official program; what it has behind the last keys and values is left out."""
        own, beside = self.state_dict().keys(), tuple(f"{name}." for name in self.left_out)
        taken = {key: value for key, value in official.items() if not key.startswith(beside)}
        if unknown := taken.keys() - own:
            raise UnknownKeys(unknown, type(self).__name__)
        return {f"adapter.{key}": value for key, value in taken.items()}
