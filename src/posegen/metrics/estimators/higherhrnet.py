"""HigherHRNet: heatmaps and associative-embedding tags at two resolutions (Cheng et al. 2020, arXiv:1908.10357), with mmpose's weights.

The judge of the published Human-Art tables, and the teacher of HumanSD's loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from posegen.metrics.base import Estimator, Poses
from posegen.metrics.estimators.hrnet import STRIDE, Basic, HRNet, Stage, published

JOINTS = 17
MIRRORED = (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)  # the joint that each one is in a mirrored image
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's images in [0, 1], RGB
SIDE, MULTIPLE = 512, 64  # shorter side of the network's input, and what both sides are multiples of


@dataclass(frozen=True)
class HeadShape:
    """The shape of the head, which doubles the resolution once per entry of ``filters``.

    Attributes:
        filters: width after each doubling.
        kernels: size of each transposed convolution.
        blocks: residual blocks after each.
        joined: whether the maps found so far are an input of each doubling.
        tags: whether the maps of each resolution have tags beside the heatmaps.
        final_kernel: size of the convolutions that make the maps.
    """

    filters: tuple[int, ...] = (48,)
    kernels: tuple[int, ...] = (4,)
    blocks: int = 4
    joined: tuple[bool, ...] = (True,)
    tags: tuple[bool, ...] = (True, False)
    final_kernel: int = 1


class Head(nn.Module):
    """Features ``[B, C, h, w]`` to maps at their resolution and at each finer one, coarsest first: 17 heatmaps, then 17 tags where there are some."""

    def __init__(self, width: int, shape: HeadShape) -> None:
        super().__init__()
        self.joined = shape.joined
        widths, maps = (width, *shape.filters), [JOINTS * (1 + tagged) for tagged in shape.tags]
        self.final_layers = nn.ModuleList(nn.Conv2d(w, m, shape.final_kernel, padding=shape.final_kernel // 2) for w, m in zip(widths, maps, strict=True))
        inputs = [w + m * joined for w, m, joined in zip(widths[:-1], maps[:-1], shape.joined, strict=True)]
        self.deconv_layers = nn.ModuleList(doubling(i, f, k, shape.blocks) for i, f, k in zip(inputs, shape.filters, shape.kernels, strict=True))

    def forward(self, x: Tensor) -> list[Tensor]:
        found = [self.final_layers[0](x)]
        for joined, deconvolution, final in zip(self.joined, self.deconv_layers, self.final_layers[1:], strict=True):
            x = deconvolution(torch.cat([x, found[-1]], dim=1) if joined else x)
            found.append(final(x))
        return found


def doubling(inputs: int, width: int, kernel: int, blocks: int) -> nn.Sequential:
    """A transposed convolution of stride 2, then residual blocks."""
    enlarge = nn.ConvTranspose2d(inputs, width, kernel, 2, padding=(kernel - 1) // 2, output_padding=kernel % 2, bias=False)
    return nn.Sequential(nn.Sequential(enlarge, nn.BatchNorm2d(width), nn.ReLU()), *(nn.Sequential(Basic(width, width)) for _ in range(blocks)))


class HigherHRNet(nn.Module, Estimator):
    """The network in mmpose's layout of weights; it has heatmaps for losses, and does not group them into people.

    Args:
        stages: the shape of the trunk; that of HRNet-W48 by default.
        stem: width of the trunk's first convolutions.
        head: the shape of the head.
    """

    def __init__(self, stages: Sequence[Stage] = published(), stem: int = 64, head: HeadShape = HeadShape()) -> None:
        super().__init__()
        self.backbone = HRNet(stages, stem)
        self.keypoint_head = Head(stages[-1].channels[0], head)
        self.multiple = STRIDE * 2 ** (len(stages) - 1)
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    def forward(self, inputs: Tensor) -> list[Tensor]:
        """Maps ``[B, 17 or 34, h, w]`` of normalised ``inputs [B, 3, H, W]``, at a quarter, then at half of their size.

        Raises:
            ValueError: the branches of the trunk do not fit each other at this size.
        """
        if any(side % self.multiple for side in inputs.shape[-2:]):
            raise ValueError(f"HigherHRNet cannot look at images of {tuple(inputs.shape[-2:])}; choose sides that are multiples of {self.multiple}")
        return self.keypoint_head(self.backbone(inputs))

    def normalised(self, images: Tensor) -> Tensor:
        """What the network takes, of images in [-1, 1]."""
        return ((images + 1) / 2 - self.mean) / self.std

    def heatmaps(self, images: Tensor) -> Tensor:
        """``[B, 17, H/2, W/2]``, about 1 at joints and 0 elsewhere, from one pass; differentiable."""
        return self.raw_heatmaps(self.normalised(images))

    def raw_heatmaps(self, inputs: Tensor) -> Tensor:
        return aggregated(self(inputs))[0]

    def flip_tested(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The mean heatmaps of normalised ``inputs`` and of their mirror images, and the tags ``[B, 17, h, w, n]`` of both, mirrored back."""
        heatmaps, tags = aggregated(self(inputs))
        mirrored, mirrored_tags = aggregated([maps.flip(-1) for maps in self(inputs.flip(-1))])
        return (heatmaps + mirrored[:, MIRRORED]) / 2, torch.cat([tags, mirrored_tags[:, MIRRORED]], dim=-1)

    def estimate(self, images: Tensor) -> list[Poses]:
        """Raises a TypeError: the maps are not grouped into people."""
        raise TypeError("HigherHRNet gives heatmaps for losses here and finds no people; judge with another estimator=, for instance estimator=mannequin")

    def fill(self, tensors: Mapping[str, Tensor], source: str) -> HigherHRNet:
        """The network with these weights, frozen and in evaluation mode.

        Raises:
            ValueError: a weight is missing, unknown or of another shape; names ``source``.
        """
        own = self.state_dict()
        wrong = [f"{key} is missing" for key in own.keys() - tensors.keys()] + [f"{key} is unknown" for key in tensors.keys() - own.keys()]
        wrong += [f"{k} is {list(tensors[k].shape)}, not {list(own[k].shape)}" for k in own.keys() & tensors.keys() if own[k].shape != tensors[k].shape]
        if wrong:
            raise ValueError(f"{source} does not hold this HigherHRNet ({len(wrong)} tensors differ: {'; '.join(sorted(wrong)[:3])}); check the width")
        self.load_state_dict(tensors)
        return self.eval().requires_grad_(False)

    @classmethod
    def from_pretrained(cls, path: str | Path, width: int = 48) -> HigherHRNet:
        """mmpose's HigherHRNet-W``width`` from its ``.pth`` file, or from safetensors with the same names; frozen, in evaluation mode.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it cannot be read, or holds another network.
        """
        tensors = read_weights(Path(path).expanduser())
        return cls.from_width(width).fill(tensors, str(path))

    @classmethod
    def from_width(cls, width: int = 48) -> HigherHRNet:
        """HigherHRNet-W``width`` with new weights."""
        return cls(published(width), head=HeadShape(filters=(width,)))


def aggregated(outputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Maps of all resolutions at the finest one: mean heatmaps ``[B, 17, h, w]`` and tags ``[B, 17, h, w, n]`` of the n resolutions that have some."""
    size = outputs[-1].shape[-2:]
    maps = [F.interpolate(maps, size, mode="bilinear", align_corners=True) for maps in outputs[:-1]] + [outputs[-1]]
    heatmaps = torch.stack([m[:, :JOINTS] for m in maps]).mean(0)
    return heatmaps, torch.stack([m[:, JOINTS:] for m in maps if m.shape[1] > JOINTS], dim=-1)


def fitted(image: np.ndarray, side: int = SIDE) -> np.ndarray:
    """An image ``[H, W, 3] uint8`` at the size that mmpose gives the network.

    The shorter side becomes ``side``, both are rounded up to multiples of 64, and the centres of the corner pixels stay corners (the unbiased data
    processing of Huang et al. 2020, arXiv:1911.07524). The longer side is scaled like the shorter one, so its rounding leaves a black margin.
    """
    height, width = image.shape[:2]
    short = ceil(side / MULTIPLE) * MULTIPLE
    long = ceil(short / min(height, width) * max(height, width) / MULTIPLE) * MULTIPLE
    region = np.array([min(height, width) - 1.0, (long - 1) / (short - 1) * (min(height, width) - 1)])
    factors = (np.array([short, long]) - 1.0) / region
    (x, y), size = (factors, (short, long)) if width < height else (factors[::-1], (long, short))
    return cv2.warpAffine(image, np.array([[x, 0, 0], [0, y, 0]], np.float32), size, flags=cv2.INTER_LINEAR)


def read_weights(file: Path) -> dict[str, Tensor]:
    """The state dict of a torch file (bare or under ``state_dict``) or a safetensors file; nothing in it is run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; estimator.path expects mmpose's weights of HigherHRNet (a .pth or .safetensors file)")
    try:
        content = load_file(file) if file.suffix == ".safetensors" else torch.load(file, map_location="cpu", weights_only=True)
        return dict(content.get("state_dict", content))
    except Exception as error:  # safetensors and torch raise their own classes for every kind of damage
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{file} cannot be read as weights ({first}); nothing in it was run. Fetch it again, or save its state_dict alone") from error
