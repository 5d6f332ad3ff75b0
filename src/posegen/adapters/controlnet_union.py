"""ControlNet++ (union): one ControlNet for many kinds of pictures, told that this one is a pose (xinsir 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from diffusers import ControlNetUnionModel
from torch import Tensor, nn

from posegen.adapters.base import Paper
from posegen.adapters.controlnet import ControlNet
from posegen.backbones.base import Backbone
from posegen.backbones.blocks.encoder_copy import EncoderCopy
from posegen.backbones.text import Text
from posegen.errors import UserError
from posegen.ranges import AtLeastOne, AtLeastZero, NotNegative

KIND_WAVES = 256  # width of a kind's embedding where the U-Net says none


class ControlNetUnion(ControlNet):
    """ControlNet whose copy knows ``kinds`` of control pictures; here it gets one, the drawn pose, of kind ``mode``.

    A transformer layer reads the mean of the hint's features and an embedding of its kind; a zero layer adds the result
    to the features. The kinds that are used are embedded beside the timestep.

    Args:
        kinds: 6 as first published, 8 in the ``promax`` weights.
        mode: the number of the pose among the kinds.
        style, strength, scales, only_mid, guess_mode: see `ControlNet`.
    """

    places = frozenset({"control_copy", "mid"})
    paper = Paper(
        "ControlNet++: All-in-one ControlNet for image generations and editing",
        "xinsir6/ControlNetPlus",
        "xinsir6/ControlNetPlus",
    )

    def __init__(
        self,
        style: Literal["openpose", "humansd"] = "openpose",
        strength: NotNegative = 1.0,
        scales: Sequence[NotNegative] | None = None,
        only_mid: bool = False,
        guess_mode: bool = False,
        kinds: AtLeastOne = 6,
        mode: AtLeastZero = 0,
    ) -> None:
        super().__init__(style, strength, scales, only_mid, guess_mode)
        if not 0 <= mode < kinds:
            raise ValueError(f"adapter.mode is {mode}; expected one of the {kinds} kinds (adapter.kinds), from 0")
        self.kinds, self.mode = kinds, mode

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        self.branch = UnionCopy(self.branch, self.kinds, self.mode)

    def convert(self, official: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of diffusers' class, which are the published ones."""
        kinds = official.get("task_embedding")
        if kinds is not None and len(kinds) != self.kinds:
            raise UserError(
                f"the file knows {len(kinds)} kinds of pictures, not {self.kinds}: adapter.kinds={len(kinds)}"
            )
        return super().convert(official)


class UnionCopy(EncoderCopy):
    """A copy in diffusers' class for several ``kinds`` of hints, of which it reads the one of number ``mode``.

    The official attention runs over the images of a batch; here it sees each image alone, as there in batches of one.
    """

    def __init__(self, plain: EncoderCopy, kinds: int, mode: int) -> None:
        nn.Module.__init__(self)
        self.geometry, self.mode, width = plain.geometry, mode, plain.geometry.channels[0]
        known = {key: value for key, value in plain.network.config.items() if key != "mid_block_type"}
        waves = known["addition_time_embed_dim"] or KIND_WAVES
        sizes = {"num_control_type": kinds, "num_trans_channel": width, "num_proj_channel": width}
        self.network = ControlNetUnionModel.from_config({**known, **sizes, "addition_time_embed_dim": waves})
        self.network.load_state_dict(plain.network.state_dict(), strict=False)
        self.network.requires_grad_(True)
        self.network.train()

    def hint_features(self, hint: Tensor) -> Tensor:
        features, net = super().hint_features(hint), self.network
        mean = features.mean((2, 3)) + net.task_embedding[self.mode]
        for layer in net.transformer_layes:  # diffusers' spelling
            mean = layer(mean[None])[0]
        return features + net.spatial_ch_projs(mean)[:, :, None, None]

    def time(self, latents: Tensor, timesteps: Tensor, text: Text) -> Tensor:
        net = self.network
        used = torch.zeros(net.config.num_control_type, device=latents.device)
        used[self.mode] = 1
        kind = net.control_add_embedding(net.control_type_proj(used).flatten()[None].to(latents.dtype))
        return super().time(latents, timesteps, text) + kind
