"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381) as a pose network's trunk, with the weights of mmpose 0.x.

The teacher of GRPose's perception loss, there with the trunk of mmpose's ``mobilenetv2_coco_512x512``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Interval
from torch import Tensor, nn

from posegen.io.hub import local_place
from posegen.io.weights import read_tensors
from posegen.metrics.base import Estimator, Poses
from posegen.metrics.network_weights import load_every_weight
from posegen.ranges import Positive, Width

#: Table 2: expansion, channels, blocks and stride of the first block of each stage.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
STEM, LAST = 32, 1280
PREFIXES = ("mmpose_model.backbone.", "backbone.")  # within a whole GRPose model, and within a pose model
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class MobileNetV2(nn.Module, Estimator):
    """Feature maps of images at strides 2 to 32; modules are named as in mmpose's backbone.

    Args:
        widen_factor: factor of all widths; of the last convolution only above 1.
        out_indices: which layers `feature_maps` returns: 0 to 6 are the stages, 7 is the last convolution.
        bn_eps: epsilon of the batch normalisations.
        size: images are resized so that their shorter side has this many pixels; None takes them as they are.
        mean, std: of the training images' channels, RGB in [0, 1].
    """

    def __init__(
        self,
        widen_factor: Positive = 1.0,
        out_indices: Sequence[int] = (7,),
        bn_eps: Positive = 1e-5,
        size: Width | None = 512,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        if not out_indices or not set(out_indices) <= set(range(len(STAGES) + 1)):
            raise ValueError(f"out_indices is {list(out_indices)}; expected some of the layers 0 to {len(STAGES)}")
        self.out_indices, self.size = tuple(out_indices), size
        width = divisible(STEM * widen_factor)
        self.conv1 = conv_unit(3, width, 3, bn_eps, stride=2)
        for stage, (expansion, channels, blocks, stride) in enumerate(STAGES, 1):
            layers = []
            for block in range(blocks):
                before, width = width, divisible(channels * widen_factor)
                layers.append(InvertedResidual(before, width, expansion, stride if block == 0 else 1, bn_eps))
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
        self.conv2 = conv_unit(width, int(LAST * max(1.0, widen_factor)), 1, bn_eps)
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        widen_factor: Positive = 1.0,
        out_indices: Sequence[Annotated[int, Interval(ge=0, le=7)]] = (7,),
        bn_eps: Positive = 1e-5,
        size: Width | None = 512,
    ) -> MobileNetV2:
        """A frozen network in evaluation mode with the weights of a file of mmpose 0.x (``.pth``) or of safetensors. It
        holds a pose model whose trunk this is; its head is left out. Nothing in it is run. Raises FileNotFoundError
        where there is none, ValueError where it cannot be read, or its weights are of another network."""
        file = local_place(path)
        network = cls(widen_factor, out_indices, bn_eps, size)
        if not file.is_file():
            expected = "the weights of an mmpose 0.x model with a MobileNetV2 trunk (.pth or .safetensors)"
            raise FileNotFoundError(f"{file}: no such file; expected {expected}")
        network.load_trunk(read_tensors(file), str(file))
        return network

    def load_trunk(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Takes the trunk's weights out of a whole model's; a ValueError names ``source`` where they do not fit."""
        prefix = next((p for p in PREFIXES if any(key.startswith(p) for key in tensors)), "")
        given = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        fix = "take an mmpose model with this trunk and widen_factor"
        load_every_weight(self, given, f"{source} holds no MobileNetV2 of this size", fix)

    def feature_maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """``images [B, 3, H, W]`` in [-1, 1] to one ``[B, C, h, w]`` per layer of ``out_indices``; differentiable."""
        x = self.conv1(self.prepared(images))
        maps = []
        for layer in [*(self.get_submodule(f"layer{i}") for i in range(1, len(STAGES) + 1)), self.conv2]:
            maps.append(x := layer(x))
        return tuple(maps[i] for i in self.out_indices)

    def prepared(self, images: Tensor) -> Tensor:
        """Images in the size and the units that the network was trained with."""
        if self.size is not None and min(images.shape[-2:]) != self.size:
            scale = self.size / min(images.shape[-2:])
            size = [round(side * scale) for side in images.shape[-2:]]
            images = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
        return ((images + 1) / 2 - self.mean) / self.std

    def features(self, images: Tensor) -> Tensor:
        """``[B, C]`` means of the last of the feature maps."""
        return self.feature_maps(images)[-1].mean((2, 3))

    def estimate(self, images: Tensor) -> list[Poses]:
        reason = "MobileNetV2 is a trunk without a keypoint head: it can teach a loss, not judge poses"
        raise TypeError(f"{reason}; choose another estimator=")


def conv_unit(
    inputs: int, outputs: int, kernel: int, eps: float, stride: int = 1, groups: int = 1, active: bool = True
) -> nn.Sequential:
    """Convolution and batch normalisation under mmcv's names, and ReLU6 where it is not the end of a bottleneck."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    layers: dict[str, nn.Module] = {"conv": conv, "bn": nn.BatchNorm2d(outputs, eps=eps)}
    return nn.Sequential(OrderedDict(layers | ({"activate": nn.ReLU6()} if active else {})))


class InvertedResidual(nn.Module):
    """Section 3.3: expand by a pointwise, filter by a depthwise, project by a linear convolution; a shortcut."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int, eps: float) -> None:
        super().__init__()
        hidden = inputs * expansion
        expand = [conv_unit(inputs, hidden, 1, eps)] if expansion > 1 else []
        depthwise = conv_unit(hidden, hidden, 3, eps, stride, groups=hidden)
        self.conv = nn.Sequential(*expand, depthwise, conv_unit(hidden, outputs, 1, eps, active=False))
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.shortcut else self.conv(x)


def divisible(width: float, by: int = 8, least: float = 0.9) -> int:
    """The multiple of ``by`` nearest to a width, or the next one where that would take more than a tenth of it."""
    nearest = max(by, int(width + by / 2) // by * by)
    return nearest if nearest >= least * width else nearest + by
