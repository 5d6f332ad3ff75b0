"""HRNet: a trunk whose finest resolution exchanges features with ever coarser ones (Sun et al. 2019, arXiv:1902.09212).

Modules have the names of mmpose's checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

STRIDE = 4  # image pixels per cell of the finest branch


@dataclass(frozen=True)
class Stage:
    """The shape of one stage; the first has one branch of bottlenecks, each later one a coarser branch more."""

    modules: int  # exchanges between the branches
    blocks: tuple[int, ...]  # residual blocks of each branch between two exchanges
    channels: tuple[int, ...]  # width of each branch, finest first; bottlenecks return four times theirs


def published(width: int = 48) -> tuple[Stage, ...]:
    """HRNet-W32, W48 and so on: each branch is twice as wide as the next finer one."""
    widths = tuple(width * 2**i for i in range(4))
    return Stage(1, (4,), (64,)), *(Stage(modules, (4,) * n, widths[:n]) for n, modules in ((2, 1), (3, 4), (4, 3)))


class HRNet(nn.Module):
    """``[B, 3, H, W]`` to the finest branch ``[B, C, H/4, W/4]``; ``stem`` is the first two convolutions' width."""

    def __init__(self, stages: Sequence[Stage] = published(), stem: int = 64) -> None:
        super().__init__()
        if any(len(stage.channels) != i or len(stage.blocks) != i for i, stage in enumerate(stages, 1)):
            branches = [len(stage.channels) for stage in stages]
            raise ValueError(f"HRNet's stages have {branches} branches; expected one more in each, from 1")
        self.conv1, self.bn1 = convolution(3, stem, 3, stride=2), nn.BatchNorm2d(stem)
        self.conv2, self.bn2 = convolution(stem, stem, 3, stride=2), nn.BatchNorm2d(stem)
        first = stages[0]
        self.layer1 = residual(Bottleneck, stem, first.channels[0], first.blocks[0])
        self.stages = range(2, len(stages) + 1)
        widths: tuple[int, ...] = (first.channels[0] * Bottleneck.expansion,)
        for number, stage in zip(self.stages, stages[1:], strict=True):
            self.add_module(f"transition{number - 1}", transition(widths, stage.channels))
            only_finest = [number == len(stages) and i == stage.modules - 1 for i in range(stage.modules)]
            exchanges = (Exchange(stage, 1 if only else len(stage.channels)) for only in only_finest)
            self.add_module(f"stage{number}", nn.Sequential(*exchanges))
            widths = stage.channels

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        x = F.relu(self.bn2(self.conv2(x)))
        branches = [self.layer1(x)]
        for number in self.stages:
            branches = [*branches, branches[-1]]  # the new branch grows from the coarsest
            branches = [step(x) for step, x in zip(getattr(self, f"transition{number - 1}"), branches, strict=True)]
            branches = getattr(self, f"stage{number}")(branches)
        return branches[0]


class Exchange(nn.Module):
    """Residual blocks on every branch; then each of the first ``outputs`` branches takes the sum of all, resized."""

    def __init__(self, stage: Stage, outputs: int) -> None:
        super().__init__()
        widths = stage.channels
        branches = (residual(Basic, w, w, blocks) for w, blocks in zip(widths, stage.blocks, strict=True))
        self.branches = nn.ModuleList(branches)
        fusions = (nn.ModuleList(brought(widths, j, i) for j in range(len(widths))) for i in range(outputs))
        self.fuse_layers = nn.ModuleList(fusions)

    def forward(self, branches: Sequence[Tensor]) -> list[Tensor]:
        own = [blocks(x) for blocks, x in zip(self.branches, branches, strict=True)]
        return [F.relu(sum(layer(x) for layer, x in zip(layers, own, strict=True))) for layers in self.fuse_layers]


class Basic(nn.Module):
    """Two 3x3 convolutions around which the input goes."""

    expansion = 1

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = convolution(inputs, width, 3), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = convolution(width, width, 3), nn.BatchNorm2d(width)
        self.downsample = shortcut(inputs, width)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class Bottleneck(nn.Module):
    """A 3x3 convolution between two of 1x1, the last of which widens; the input goes around them."""

    expansion = 4

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = convolution(inputs, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = convolution(width, width, 3), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = convolution(width, width * self.expansion, 1), nn.BatchNorm2d(width * self.expansion)
        self.downsample = shortcut(inputs, width * self.expansion)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


def residual(block: type[Basic] | type[Bottleneck], inputs: int, width: int, count: int) -> nn.Sequential:
    widths = [inputs] + [width * block.expansion] * count
    return nn.Sequential(*(block(before, width) for before in widths[:-1]))


def shortcut(inputs: int, outputs: int) -> nn.Module:
    """The way around a residual block, a 1x1 convolution where the width changes."""
    if inputs == outputs:
        return nn.Identity()
    return nn.Sequential(convolution(inputs, outputs, 1), nn.BatchNorm2d(outputs))


def transition(before: Sequence[int], after: Sequence[int]) -> nn.ModuleList:
    """From the branches of a stage to those of the next, the last of which is new and half as fine."""
    pairs = zip(before, after, strict=False)
    layers = [nn.Identity() if old == new else nn.Sequential(*conv_bn(old, new), nn.ReLU()) for old, new in pairs]
    return nn.ModuleList([*layers, nn.Sequential(nn.Sequential(*conv_bn(before[-1], after[-1], stride=2), nn.ReLU()))])


def brought(widths: Sequence[int], source: int, target: int) -> nn.Module:
    """From the width and size of branch ``source`` to those of branch ``target``."""
    if source == target:
        return nn.Identity()
    if source > target:
        enlarge = nn.Upsample(scale_factor=2 ** (source - target), mode="nearest")
        return nn.Sequential(convolution(widths[source], widths[target], 1), nn.BatchNorm2d(widths[target]), enlarge)
    steps = [*([widths[source]] * (target - source)), widths[target]]
    halvings = [nn.Sequential(*conv_bn(old, new, stride=2), nn.ReLU()) for old, new in pairwise(steps)]
    return nn.Sequential(*halvings[:-1], halvings[-1][:2])  # the sum is activated, not its terms


def conv_bn(inputs: int, outputs: int, stride: int = 1) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    return convolution(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)


def convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    """Without bias, which the normalisation behind it has."""
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
