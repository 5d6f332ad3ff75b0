"""HigherHRNet: heatmaps and associative-embedding tags at two resolutions (Cheng et al. 2020, arXiv:1908.10357).

The judge of the published Human-Art tables, and the teacher of the losses of HumanSD and GRPose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posegen.data.base import to_tensor, to_uint8
from posegen.io.hub import local_place
from posegen.io.weights import read_tensors
from posegen.metrics.base import Estimator, Poses
from posegen.metrics.estimators.associative import JOINTS, PUBLISHED, Decoding, decode
from posegen.metrics.estimators.bottom_up import keep_distinct, people_gaussians
from posegen.metrics.estimators.hrnet import STRIDE, Basic, HRNet, Stage, published
from posegen.metrics.network_weights import load_every_weight
from posegen.poses.topology import COCO_FLIP, COCO_SIGMAS
from posegen.ranges import Width, ZeroToOne

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's images in [0, 1], RGB
SIGMA = 2.0  # cells; of the Gaussians that the published weights were trained to show
SIDE, MULTIPLE = 512, 64  # shorter side of the network's input, and what both sides are multiples of


@dataclass(frozen=True)
class HeadShape:
    """The shape of the head, which doubles the resolution once per entry of ``filters``."""

    filters: tuple[int, ...] = (48,)  # width after each doubling
    kernels: tuple[int, ...] = (4,)  # size of each transposed convolution
    blocks: int = 4  # residual blocks after each
    joined: tuple[bool, ...] = (True,)  # whether the maps found so far are an input of each doubling
    tags: tuple[bool, ...] = (True, False)  # whether the maps of each resolution have tags beside the heatmaps
    final_kernel: int = 1  # size of the convolutions that give the maps


class Head(nn.Module):
    """Features ``[B, C, h, w]`` to maps at each resolution, coarsest first: 17 heatmaps, then 17 tags where tagged."""

    def __init__(self, width: int, shape: HeadShape) -> None:
        super().__init__()
        self.joined = shape.joined
        widths, maps, k = (width, *shape.filters), [JOINTS * (1 + tagged) for tagged in shape.tags], shape.final_kernel
        self.final_layers = nn.ModuleList(nn.Conv2d(w, m, k, padding=k // 2) for w, m in zip(widths, maps, strict=True))
        inputs = [w + m * joined for w, m, joined in zip(widths[:-1], maps[:-1], shape.joined, strict=True)]
        steps = zip(inputs, shape.filters, shape.kernels, strict=True)
        self.deconv_layers = nn.ModuleList(doubling(*step, shape.blocks) for step in steps)

    def forward(self, x: Tensor) -> list[Tensor]:
        found = [self.final_layers[0](x)]
        for joined, deconvolution, final in zip(self.joined, self.deconv_layers, self.final_layers[1:], strict=True):
            x = deconvolution(torch.cat([x, found[-1]], dim=1) if joined else x)
            found.append(final(x))
        return found


def doubling(inputs: int, width: int, kernel: int, blocks: int) -> nn.Sequential:
    """A transposed convolution of stride 2, then residual blocks."""
    enlarge = nn.ConvTranspose2d(inputs, width, kernel, 2, (kernel - 1) // 2, output_padding=kernel % 2, bias=False)
    residuals = (nn.Sequential(Basic(width, width)) for _ in range(blocks))
    return nn.Sequential(nn.Sequential(enlarge, nn.BatchNorm2d(width), nn.ReLU()), *residuals)


class HigherHRNet(nn.Module, Estimator):
    """The network in mmpose's layout of weights, its preprocessing and its decoding; it has no pooled features.

    Args:
        stages: the shape of the trunk; that of HRNet-W48 by default.
        stem: width of the trunk's first convolutions.
        size: images are resized to this shorter side, in pixels.
        channel_order: order of the colour channels that the network expects; published weights expect ``rgb``.
        flip_test: look at the mirrored image, too, and take the mean heatmaps.
        score_threshold: least score of a person; the published evaluations have none: a stray peak is a person.
        nms_threshold: a person more similar than this to a better one is dropped; 1, as published, drops nobody.
        decoding: how people are found in the maps.
    """

    def __init__(
        self,
        stages: Sequence[Stage] = published(),
        stem: int = 64,
        head: HeadShape = HeadShape(),
        size: int = SIDE,
        channel_order: Literal["rgb", "bgr"] = "rgb",
        flip_test: bool = True,
        score_threshold: ZeroToOne = 0.0,
        nms_threshold: ZeroToOne = 1.0,
        decoding: Decoding = PUBLISHED,
    ) -> None:
        super().__init__()
        if channel_order not in ("rgb", "bgr"):
            expected = "expected rgb, or bgr for a network that learned from swapped colours"
            raise ValueError(f"estimator.channel_order={channel_order} is unknown; {expected}")
        self.backbone = HRNet(stages, stem)
        self.keypoint_head = Head(stages[-1].channels[0], head)
        self.multiple = STRIDE * 2 ** (len(stages) - 1)
        self.size, self.channel_order, self.flip_test = size, channel_order, flip_test
        self.score_threshold, self.nms_threshold, self.decoding = score_threshold, nms_threshold, decoding
        for name, values in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, inputs: Tensor) -> list[Tensor]:
        """Maps ``[B, 17 or 34, h, w]`` of normalised ``inputs [B, 3, H, W]``, at a quarter, then at half of their size;
        raises ValueError where the branches of the trunk do not fit each other."""
        if any(side % self.multiple for side in inputs.shape[-2:]):
            fix = f"choose sides that are multiples of {self.multiple}"
            raise ValueError(f"HigherHRNet cannot look at images of {tuple(inputs.shape[-2:])}; {fix}")
        return self.keypoint_head(self.backbone(inputs))

    def normalised(self, images: Tensor) -> Tensor:
        """What the network takes, of images in [-1, 1]."""
        ordered = images.flip(1) if self.channel_order == "bgr" else images
        return ((ordered + 1) / 2 - self.mean) / self.std

    def heatmaps(self, images: Tensor) -> Tensor:
        """``[B, 17, H/2, W/2]``, about 1 at joints and 0 elsewhere, from one pass; differentiable."""
        return self.raw_heatmaps(self.normalised(images))

    def expected_heatmaps(self, people: Tensor, size: tuple[int, int]) -> Tensor:
        """The mean of Gaussians of `SIGMA` cells at both resolutions, which are what the network learns to show."""
        coarse, fine = ([side // stride for side in size] for stride in (STRIDE, STRIDE // 2))
        cells = people.new_tensor([(fine[i] - 1) / (size[i] - 1) for i in (1, 0)]) * people[..., :2]
        wide = SIGMA * (fine[1] - 1) / (coarse[1] - 1)  # of a cell of the coarse maps, in fine ones
        seen = (people_gaussians(cells, people[..., 2] > 0, (fine[0], fine[1]), sigma) for sigma in (wide, SIGMA))
        return sum(seen) / 2

    def raw_heatmaps(self, inputs: Tensor) -> Tensor:
        return aggregated(self(inputs))[0]

    def flip_tested(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean heatmaps of normalised ``inputs`` and their mirror images, and tags ``[B, 17, h, w, n]`` of both."""
        count = len(inputs)
        both = self(torch.cat([inputs, inputs.flip(-1)]))
        heatmaps, tags = aggregated([maps[:count] for maps in both])
        mirrored, mirrored_tags = aggregated([maps[count:].flip(-1) for maps in both])
        return (heatmaps + mirrored[:, COCO_FLIP]) / 2, torch.cat([tags, mirrored_tags[:, COCO_FLIP]], dim=-1)

    @torch.no_grad()
    def estimate(self, images: Tensor) -> list[Poses]:
        """The people in images ``[B, 3, H, W]`` in [-1, 1], in their pixels; ValueError where maps are not finite."""
        if not len(images):
            return []
        fit = Fit.of(images.shape[-2], images.shape[-1], self.size)
        inputs = self.normalised(fit.applied(images.to(self.mean.device)))
        heatmaps, tags = self.flip_tested(inputs) if self.flip_test else aggregated(self(inputs))
        grid, found = heatmaps.shape[-2:], decode(heatmaps, tags, self.decoding)
        return [self.chosen(to_pixels(people, grid, fit.region), scores) for people, scores in found]

    def chosen(self, keypoints: np.ndarray, scores: np.ndarray) -> Poses:
        """People ``[P, 17, 3]`` by falling score, without poor ones and repetitions."""
        order = np.argsort(-scores, kind="stable")
        keypoints, scores = keypoints[order], scores[order]
        keep = scores >= self.score_threshold
        if self.nms_threshold < 1:
            places, sigmas = torch.from_numpy(keypoints[None, ..., :2]), torch.tensor(COCO_SIGMAS, dtype=torch.float32)
            keep &= keep_distinct(places, torch.from_numpy(scores[None]), sigmas, self.nms_threshold)[0].numpy()
        return Poses(keypoints[keep], scores[keep])

    def fill(self, tensors: Mapping[str, Tensor], source: str) -> HigherHRNet:
        """The network with these weights, frozen and in evaluation mode; see `load_every_weight` for its errors."""
        return load_every_weight(self, tensors, f"{source} does not hold this HigherHRNet", "check the width")

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        width: Width = 48,
        size: Width = SIDE,
        channel_order: Literal["rgb", "bgr"] = "rgb",
        flip_test: bool = True,
        score_threshold: ZeroToOne = 0.0,
        nms_threshold: ZeroToOne = 1.0,
    ) -> HigherHRNet:
        """mmpose's HigherHRNet-W``width`` (32 and 48 are published) from its ``.pth`` file, which is not run, or from
        safetensors; frozen. The other arguments are those of the class. Raises FileNotFoundError where there is no such
        file, ValueError where it cannot be read, or holds another network."""
        file = local_place(path)
        if not file.is_file():
            expected = "mmpose's weights of HigherHRNet (a .pth or .safetensors file)"
            raise FileNotFoundError(f"{file} is missing; estimator.path expects {expected}")
        options = {"size": size, "channel_order": channel_order, "flip_test": flip_test}
        network = cls.from_width(width, score_threshold=score_threshold, nms_threshold=nms_threshold, **options)
        return network.fill(read_tensors(file), str(path))

    @classmethod
    def from_width(cls, width: int = 48, **options: Any) -> HigherHRNet:
        """HigherHRNet-W``width`` with new weights; ``options`` are the class's, without the shapes."""
        return cls(published(width), head=HeadShape(filters=(width,)), **options)


def aggregated(outputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Maps at the finest resolution: mean heatmaps ``[B, 17, h, w]``, and tags ``[B, 17, h, w, n]``."""
    size = outputs[-1].shape[-2:]
    maps = [F.interpolate(maps, size, mode="bilinear", align_corners=True) for maps in outputs[:-1]] + [outputs[-1]]
    heatmaps = torch.stack([m[:, :JOINTS] for m in maps]).mean(0)
    return heatmaps, torch.stack([m[:, JOINTS:] for m in maps if m.shape[1] > JOINTS], dim=-1)


@dataclass(frozen=True)
class Fit:
    """How an image is brought to a size that the network can look at; all are (height, width).

    The shorter side becomes ``side``, both are rounded up to multiples of 64, which leaves a black margin on the longer
    one, and the centres of the corner pixels stay corners (Huang et al. 2020, arXiv:1911.07524)."""

    given: tuple[int, int]  # of the image
    size: tuple[int, int]  # of the network's input
    region: tuple[float, float]  # of what the input shows, in pixels, between the centres of the outermost ones

    @classmethod
    def of(cls, height: int, width: int, side: int = SIDE) -> Fit:
        short = ceil(side / MULTIPLE) * MULTIPLE
        long = ceil(short / min(height, width) * max(height, width) / MULTIPLE) * MULTIPLE
        region = (min(height, width) - 1.0, (long - 1) / (short - 1) * (min(height, width) - 1))
        if width < height:
            return cls((height, width), (long, short), region[::-1])
        return cls((height, width), (short, long), region)

    def warped(self, image: np.ndarray) -> np.ndarray:
        """An image ``[H, W, 3] uint8`` as ``[*size, 3]``."""
        y, x = (np.array(self.size) - 1.0) / self.region
        scaling = np.array([[x, 0, 0], [0, y, 0]], np.float32)
        return cv2.warpAffine(image, scaling, self.size[::-1], flags=cv2.INTER_LINEAR)

    def applied(self, images: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` in [-1, 1] at ``size``; resized ones are rounded to whole colours."""
        if self.given == self.size:
            return images
        return torch.stack([to_tensor(self.warped(image)) for image in to_uint8(images)]).to(images.device)


def to_pixels(people: np.ndarray, grid: Sequence[int], region: Sequence[float]) -> np.ndarray:
    """People ``[P, 17, 3]`` on maps of ``grid`` (height, width) that show a ``region``, in its pixels."""
    return (people * [region[1] / (grid[1] - 1), region[0] / (grid[0] - 1), 1.0]).astype(np.float32)


def fitted(image: np.ndarray, side: int = SIDE) -> np.ndarray:
    """An image ``[H, W, 3] uint8`` at the size that mmpose gives the network, see `Fit`."""
    return Fit.of(image.shape[0], image.shape[1], side).warped(image)
