"""Poses as joint maps and back: the encoding of GUNet's released program as it is coded, and a plain one.

Poses are ``[B, 17, 3]``: x and y from -1 (left, top edge) to 1 (right, bottom edge) of the person's square, and a
confidence, 0 for an absent joint. Maps are ``[B, 17, h, w]``; cell i of n has its centre at (2 i + 1) / n - 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from posegen.ranges import NotNegative, Positive, Width

STORED, SPREAD = 64, 2.0  # side of the stored maps, and the joints' standard deviation on it
MOST_VARIANCE = 0.2  # a map that varies more is taken for an absent joint's
LOWEST, LEAST_AREA = 0.05, 5  # share of a map's pixels for its joint, and the area that an outline must exceed
LEAST_HEIGHT = 0.3  # of the peak of a plain map that counts as a joint
FLOOR = 1e-3  # heights below it tell nothing about where a peak is


@dataclass(frozen=True)
class Encoding:
    """A way from poses ``[B, 17, 3]`` to maps ``[B, 17, grid, grid]`` and, from maps and sigma, back."""

    encode: Callable[[Tensor, int, float], Tensor]
    decode: Callable[[Tensor, float], Tensor]


def joint_gaussians(centres: Tensor, grid: int, sigma: float) -> Tensor:
    """``[B, J, grid, grid]``: exp(-|p - c|^2 / (2 sigma^2)) at every cell p, for centres c ``[B, J, 2]`` in cells."""
    cells = torch.arange(grid, dtype=centres.dtype, device=centres.device)
    x, y = (torch.exp(-((cells - centres[..., axis, None]) ** 2) / (2 * sigma**2)) for axis in (0, 1))
    return y[..., :, None] * x[..., None, :]


def joint_vectors(
    poses: Tensor, size: Width = STORED, sigma: Positive = SPREAD, most: NotNegative = MOST_VARIANCE
) -> Tensor:
    """The released program's stored maps ``[B, 17, size, size]``: a plateau of -1 on a background of 1, 0 for no joint.

    Each map 2 h - 1 is divided by its negative sum, so that joints become minima; then all maps are scaled to [-1, 1]
    pixel by pixel, across the joints. Maps that vary more than ``most`` are zeroed as absent joints. (With all 17
    joints labelled rounding decides the background, and joints are lost.)"""
    labelled = (poses[..., 2] > 0).double()[..., None, None]
    shares = 2 * (joint_gaussians((poses[..., :2].double() + 1) / 2 * size, size, sigma) * labelled) - 1
    shares = shares / shares.sum((-2, -1), keepdim=True)
    low, high = shares.amin(1, keepdim=True), shares.amax(1, keepdim=True)
    maps = torch.where(high > low, 2 * (shares - low) / (high - low).clamp_min(1e-300) - 1, 1.0)
    return torch.where(maps.var((-2, -1), correction=0, keepdim=True) >= most, 0.0, maps).to(poses.dtype)


def shrunk(vectors: Tensor, grid: int) -> Tensor:
    """Stored maps at the resolution that the U-Net sees."""
    return F.interpolate(vectors, (grid, grid), mode="bilinear", align_corners=False)


def cells(maps: Tensor, least_area: float = LEAST_AREA) -> np.ndarray:
    """Whole cells (x, y) ``[B, 17, 2] int64`` of the joints in released maps; (0, 0) means absent.

    The lowest twentieth of a map is outlined, and the first outline in OpenCV's order that is larger than
    ``least_area`` gives the joint by its truncated centroid."""
    single = maps.detach().float().cpu().numpy()
    found = [[_cell(joint, least_area) for joint in pose] for pose in single]
    return np.array(found, np.int64).reshape(*single.shape[:2], 2)


def _cell(joint: np.ndarray, least_area: float) -> tuple[int, int]:
    threshold = np.sort(joint, axis=None)[int(LOWEST * joint.size)]
    outlines, _ = cv2.findContours((joint <= threshold).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    first = next((outline for outline in outlines if cv2.contourArea(outline) > least_area), None)
    if first is None:
        return 0, 0
    moments = cv2.moments(first)
    return int(moments["m10"] / moments["m00"]), int(moments["m01"] / moments["m00"])


def encode_released(poses: Tensor, grid: int, sigma: float) -> Tensor:
    return shrunk(joint_vectors(poses), grid)


def decode_released(maps: Tensor, sigma: float) -> Tensor:
    found = torch.from_numpy(cells(maps)).to(maps)
    size = torch.tensor([maps.shape[-1], maps.shape[-2]]).to(maps)
    present = (found != 0).any(-1, keepdim=True)
    return torch.cat([(2 * found + 1) / size - 1, torch.ones_like(found[..., :1])], -1) * present


def encode_plain(poses: Tensor, grid: int, sigma: float) -> Tensor:
    """Gaussians of ``sigma`` cells between -1 and 1; an absent joint is -1 everywhere."""
    centres = (poses[..., :2] + 1) / 2 * grid - 0.5
    return 2 * joint_gaussians(centres, grid, sigma) * (poses[..., 2] > 0)[..., None, None] - 1


def decode_plain(maps: Tensor, sigma: float) -> Tensor:
    """The highest cell of each map, refined between cells; its height is the confidence, and a low one means absent.

    By the parabola of its logarithm, a peak between heights a and b is at sigma^2 / 2 * log(b / a) from the cell's
    centre; on a border the peak itself stands in for the missing side."""
    heights = (maps.float() + 1) / 2
    size = heights.shape[-2:]
    top, place = heights.flatten(2).max(-1)
    peak = torch.stack([place % size[1], place // size[1]], -1)
    # The 3 x 3 heights around each peak, 0 beyond the border.
    padded, steps = F.pad(heights, (1, 1, 1, 1)), torch.arange(3, device=heights.device)
    columns, rows = peak[..., 0, None, None] + steps, peak[..., 1, None, None] + steps[:, None]
    near = (rows * padded.shape[-1] + columns).flatten(2)
    around = padded.flatten(2).gather(2, near).unflatten(2, (3, 3))
    axes = (_offset(around.sum(axis - 2), peak[..., axis], size[1 - axis], sigma) for axis in (0, 1))
    offset = torch.stack(list(axes), -1)
    extent = torch.tensor([size[1], size[0]]).to(heights)
    confidence = top.clamp(0, 1)[..., None]
    return torch.cat([(2 * (peak + offset) + 1) / extent - 1, confidence], -1) * (confidence >= LEAST_HEIGHT)


def _offset(heights: Tensor, peak: Tensor, size: int, sigma: float) -> Tensor:
    """The peak between cells, from the heights ``[B, 17, 3]`` before, at and after the highest cell along one axis."""
    before, middle, after = heights.clamp_min(FLOOR).log().unbind(-1)
    inside, first, last = after - before, sigma**2 * (after - middle) + 0.5, sigma**2 * (middle - before) - 0.5
    return torch.where(peak == 0, first, torch.where(peak == size - 1, last, sigma**2 / 2 * inside)).clamp(-1, 1)


def moments(grid: int, sigma: float) -> tuple[float, float]:
    """(mean, standard deviation) over the cells of a plain map with a joint well inside it."""
    area = math.pi * (sigma / grid) ** 2
    return 4 * area - 1, 2 * math.sqrt(area - 4 * area**2)


def encode_scaled(poses: Tensor, grid: int, sigma: float) -> Tensor:
    """Plain maps at mean 0 and variance 1, for which noise processes are made."""
    mean, std = moments(grid, sigma)
    return (encode_plain(poses, grid, sigma) - mean) / std


def decode_scaled(maps: Tensor, sigma: float) -> Tensor:
    mean, std = moments(maps.shape[-1], sigma)
    return decode_plain(maps * std + mean, sigma)


ENCODINGS = {
    "reference": Encoding(encode_released, decode_released),
    "corrected": Encoding(encode_scaled, decode_scaled),
}
