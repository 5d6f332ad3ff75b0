"""A second judge of the mannequin world, of another architecture: does an order of methods depend on who judges?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from posegen.metrics.estimators.mannequin import (
    SCENES,
    STRIDE,
    STYLES,
    MannequinJudge,
    Up,
    conv_bn_relu,
)
from posegen.ranges import AtLeastOne, Positive, Width, ZeroToOne

PATCH = 8  # pixels along the side of a token


class MannequinTransformerJudge(MannequinJudge):
    """A vision transformer on tokens of 8 x 8 pixels (Dosovitskiy et al. 2021) between a few convolutions.

    Outputs, decoding and training loss are those of `MannequinJudge`.

    Args:
        width: of the tokens, and the dimension of `features`.
        layers, heads: of the transformer.
        stem: channels at stride 2; twice as many at stride 4.
    """

    def __init__(
        self,
        width: Width = 128,
        layers: AtLeastOne = 6,
        heads: AtLeastOne = 4,
        stem: Width = 32,
        styles: Sequence[str] = STYLES,
        scenes: Sequence[str] = SCENES,
        max_count: AtLeastOne = 3,
        max_people: AtLeastOne = 6,
        sigma: Positive = 1.0,
        score_threshold: ZeroToOne = 0.02,
        nms_threshold: ZeroToOne = 0.3,
    ) -> None:
        nn.Module.__init__(self)
        network = {"width": width, "layers": layers, "heads": heads, "stem": stem}
        self._configure(network, styles, scenes, max_count, max_people, sigma, score_threshold, nms_threshold)
        self.stem = conv_bn_relu(3 * STRIDE**2, stem)
        self.down4 = conv_bn_relu(stem, 2 * stem, stride=2)
        self.patches = nn.Conv2d(2 * stem, width, 2, stride=2)
        self.blocks = nn.Sequential(*(Block(width, heads, mlp_ratio=4, qkv_bias=True) for _ in range(layers)))
        self.norm, self.up4, self.up2 = nn.LayerNorm(width), Up(width, 2 * stem), Up(2 * stem, stem)
        self._add_heads(stem, 2 * stem, width)

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """Feature maps at strides 2, 4 and 8; the last rows and columns of other sides are repeated."""
        height, width = (-side % PATCH for side in images.shape[-2:])
        if height or width:
            images = F.pad(images, (0, width, 0, height), mode="replicate")
        x2 = self.stem(F.pixel_unshuffle(images, STRIDE))
        x8 = self.patches(x4 := self.down4(x2))
        rows, columns = x8.shape[-2:]
        tokens = x8.flatten(2).transpose(1, 2) + positions(rows, columns, x8.shape[1]).to(x8)
        return x2, x4, self.norm(self.blocks(tokens)).transpose(1, 2).unflatten(2, (rows, columns))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x2, x4, x8 = self.encode(images)
        u4 = self.up4(x8, x4)
        return self._read(self.up2(u4, x2), u4, x8.mean((2, 3)))


def positions(height: int, width: int, dim: int) -> Tensor:
    """``[height * width, dim]`` sines and cosines of each token's row and column (Vaswani et al. 2017, section 3.5)."""
    frequencies = torch.exp(-math.log(100.0) * torch.arange(dim // 4) / (dim // 4))
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    angles = torch.stack([rows.flatten(), columns.flatten()], -1)[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(1)
