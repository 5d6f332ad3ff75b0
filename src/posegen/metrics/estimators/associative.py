"""Associative embedding: heatmaps and tag maps to people (Newell et al. 2017, arXiv:1611.05424), as in mmpose.

Joints whose tags are alike belong to one person. All joints and images are decoded at once; only the assignment goes
joint by joint, because each joint changes the people that the next one is assigned to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

JOINTS = 17
ORDER = (0, 1, 2, 3, 4, 5, 6, 11, 12, 7, 8, 9, 10, 13, 14, 15, 16)  # the torso before the limbs
TAG_WEIGHT = 100  # of a rounded tag distance against a score, in the cost of an assignment
NOBODY = 1e10  # the cost of a peak that joins nobody
LOWEST, HIGHEST = 0.001, 50.0  # heat that has a logarithm here
EPSILON = float(np.finfo(np.float32).eps)
CHUNK = 8  # missing joints that are looked for together; their maps stay in the processor's cache


@dataclass(frozen=True)
class Decoding:
    """How maps are decoded; the defaults are those of the published evaluations.

    ``cpu_quirk`` reproduces a flaw of mmpose on the processor, where refining overwrites the heatmaps by their
    logarithms before missing joints are looked for, so that hardly any is found. No published number comes from it."""

    kernel: int = 5  # a peak is the largest value of a square of so many cells around it; odd
    candidates: int = 30  # most peaks of a joint
    detection_threshold: float = 0.1  # a peak is higher than this
    tag_threshold: float = 1.0  # a peak belongs to a person whose mean tag is nearer than this
    fill: bool = True  # look for a person's missing joints, too
    cpu_quirk: bool = False


PUBLISHED = Decoding()


@torch.no_grad()
def decode(heatmaps: Tensor, tags: Tensor, decoding: Decoding = PUBLISHED) -> list[tuple[np.ndarray, np.ndarray]]:
    """The people of B images, from ``heatmaps [B, 17, h, w]`` and ``tags [B, 17, h, w, n]``, n numbers per cell.

    Per image ``[P, 17, 3] float32`` (x, y in cells of the maps, score; 0 for a joint that is not found) and ``[P]
    float32`` person scores, the mean over all joints before missing ones are looked for, in the order in which people
    were begun. A peak that is not finite is a ValueError."""
    heatmaps, tags = heatmaps.float(), tags.float()
    found, embeddings = (values.cpu().numpy() for values in tagged_peaks(heatmaps, tags, decoding))
    if not (np.isfinite(found).all() and np.isfinite(embeddings).all()):
        reason = "the maps of the pose network are not finite, so nobody can be found in them"
        raise ValueError(f"{reason}; its weights or the images are damaged")
    groups = [group_people(*candidates, decoding) for candidates in zip(found, embeddings, strict=True)]
    people = np.concatenate([np.zeros((0, JOINTS, 3), np.float32), *groups])
    image = np.repeat(np.arange(len(groups)), [len(g) for g in groups])
    scores = people[..., 2].mean(1)
    if len(people):
        people[..., :2] = refined(heatmaps, image, people[..., :2])
        if decoding.fill:
            people = filled(log_heat(heatmaps) if decoding.cpu_quirk else heatmaps, tags, image, people)
    return [(people[image == i], scores[image == i]) for i in range(len(groups))]


def tagged_peaks(heatmaps: Tensor, tags: Tensor, decoding: Decoding) -> tuple[Tensor, Tensor]:
    """``[B, 17, k, 3]`` (x, y, height) of the highest local maxima, or cells of height 0; tags ``[B, 17, k, n]``."""
    summits = heatmaps * (heatmaps == highest_around(heatmaps, decoding.kernel))
    height, width = heatmaps.shape[-2:]
    heights, cells = summits.flatten(2).topk(min(decoding.candidates, height * width), dim=2)
    own = torch.take_along_dim(tags.flatten(2, 3), cells[..., None], dim=2)
    return torch.stack([(cells % width).float(), (cells // width).float(), heights], -1), own


def highest_around(maps: Tensor, kernel: int) -> Tensor:
    """The largest value of ``kernel`` squared cells around each; rows and columns apart, faster than pooling."""
    h, w = maps.shape[-2:]
    padded = F.pad(maps, (kernel // 2,) * 4, value=-torch.inf)
    across = reduce(torch.maximum, (padded[..., i : i + w] for i in range(kernel)))
    return reduce(torch.maximum, (across[..., i : i + h, :] for i in range(kernel)))


def group_people(candidates: np.ndarray, tags: np.ndarray, decoding: Decoding) -> np.ndarray:
    """People ``[P, 17, 3]`` of one image from ``candidates [17, k, 3]`` (x, y, height) and their ``tags [17, k, n]``.

    Unclaimed joints are zero. A peak with the very tag that a person began with replaces that joint and the tags."""
    high = candidates[..., 2] > decoding.detection_threshold
    people = np.zeros((int(high.sum()), JOINTS, 3), np.float32)
    sums, counts = np.zeros((len(people), tags.shape[-1]), np.float32), np.zeros((len(people), 1), np.float32)
    rows: dict[float, int] = {}
    for joint in ORDER:
        own, joints, n = tags[joint, high[joint]], candidates[joint, high[joint]], len(rows)
        for peak, person in enumerate(assigned(joints[:, 2], own, sums[:n] / counts[:n], decoding.tag_threshold)):
            if person < 0:
                person = rows.setdefault(float(own[peak, 0]), len(rows))
                sums[person] = counts[person] = 0
            people[person, joint] = joints[peak]
            sums[person] += own[peak]
            counts[person] += 1
    return people[: len(rows)]


def assigned(heights: np.ndarray, tags: np.ndarray, means: np.ndarray, threshold: float) -> list[int]:
    """The person of each of k peaks (``heights [k]``, ``tags [k, n]``), -1 where it begins a new one.

    The sum of the rounded tag distances to the people's ``means [P, n]`` decides, then the heights, then the order in
    which the solver looks, so it gets the square matrix that released programs solve: surplus peaks meet people who
    cost too much. A person's tag is nearer than ``threshold``."""
    distance = np.linalg.norm(tags[:, None].astype(float) - means[None], axis=2)
    beyond = (0, 0), (0, max(0, len(tags) - len(means)))
    cost = np.rint(distance) * TAG_WEIGHT - heights[:, None]
    peak, person = linear_sum_assignment(np.pad(cost, beyond, constant_values=NOBODY))
    distance = np.pad(distance, beyond, constant_values=np.inf)
    owner = np.full(len(heights), -1)
    near = distance[peak, person] < threshold
    owner[peak[near]] = person[near]
    return owner.tolist()


def smoothed_maps(maps: Tensor) -> Tensor:
    """``maps [..., h, w]`` under the binomial window of 3x3, where it fits: ``[..., h - 2, w - 2]``."""
    rows = (maps[..., :-2] + maps[..., 2:]) / 4 + maps[..., 1:-1] / 2
    return (rows[..., :-2, :] + rows[..., 2:, :]) / 4 + rows[..., 1:-1, :] / 2


def log_heat(heatmaps: Tensor) -> Tensor:
    """Logarithms of smoothed ``heatmaps [B, 17, h, w]``, which continue beyond their borders as their mirror images."""
    return smoothed_maps(F.pad(heatmaps, (1, 1, 1, 1), mode="reflect")).clamp(LOWEST, HIGHEST).log()


def refined(heatmaps: Tensor, image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Peaks between cells: one Newton step on the logarithm of the smoothed heat, that of a Gaussian being a paraboloid
    (DARK, arXiv:1910.06278, eq. 7). Only the cells around the ``points [N, 17, 2]``, x, y in whole cells, are smoothed.
    """
    heat = np.moveaxis(around(heatmaps, image, points), (-2, -1), (0, 1))
    (corner, above, _), (left, centre, right), (_, below, far) = heat
    dx, dy, dxx, dyy = (right - left) / 2, (below - above) / 2, right - 2 * centre + left, below - 2 * centre + above
    dxy = (far - right - below + 2 * centre - left - above + corner) / 2
    # A tiny multiple of the identity keeps flat places where they are; it only counts in double precision.
    dxx, dyy, dxy = EPSILON + dxx.astype(float), EPSILON + dyy.astype(float), dxy.astype(float)
    determinant = dxx * dyy - dxy * dxy
    divisor = np.where(determinant == 0, np.inf, determinant)[..., None]
    return (points - np.stack([dyy * dx - dxy * dy, dxx * dy - dxy * dx], -1) / divisor).astype(np.float32)


def around(heatmaps: Tensor, image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """`log_heat` in the 3x3 cells around each of ``points [N, 17, 2]``, as ``[N, 17, 3, 3]``; the border continues."""
    h, w = heatmaps.shape[-2:]
    offsets, lines = np.arange(-1, 2), []
    for axis, last in enumerate((w - 1, h - 1)):  # the three lines smoothed for each of three, [N, 17, 3, 3]
        wanted = np.clip(points[..., axis].astype(int)[..., None] + offsets, 0, last)[..., None] + offsets
        lines.append(last - np.abs(last - np.abs(wanted)))
    columns, rows = lines[0][:, :, None, :, None, :], lines[1][:, :, :, None, :, None]
    maps = (image[:, None] * JOINTS + np.arange(JOINTS))[..., None, None, None, None]
    windows = heatmaps.flatten()[torch.from_numpy(maps * h * w + rows * w + columns).to(heatmaps.device)]
    return np.log(smoothed_maps(windows)[..., 0, 0].clamp(LOWEST, HIGHEST).cpu().numpy())


def filled(heatmaps: Tensor, tags: Tensor, image: np.ndarray, people: np.ndarray) -> np.ndarray:
    """``people [N, 17, 3]`` with their missing joints where heat less the rounded tag distance is largest, a quarter
    cell uphill; a joint is found where its heat is positive. ``image [N]`` is the image of each person."""
    person, joint = np.nonzero(people[..., 2] == 0)
    if not len(person):
        return people
    maps, device = image[person] * JOINTS + joint, heatmaps.device
    means = torch.from_numpy(mean_tags(tags, image, people)[person]).to(device)
    heat, planes = heatmaps.flatten(0, 1), [plane.flatten(0, 1) for plane in tags.unbind(-1)]
    parts = zip(torch.from_numpy(maps).to(device).split(CHUNK), means.split(CHUNK), strict=True)
    places = [best_places(heat[index], [plane[index] for plane in planes], mean) for index, mean in parts]
    found, complete = torch.cat(places).cpu().numpy(), people.copy()
    complete[person, joint] = np.where(found[:, 2:] > 0, found, people[person, joint])
    return complete


def mean_tags(tags: Tensor, image: np.ndarray, people: np.ndarray) -> np.ndarray:
    """``[N, n]`` the mean tag of each person's joints, read in the cells that they were refined to."""
    h, w = tags.shape[2:4]
    x, y = np.clip(people[..., :2], 0, (w - 1, h - 1)).astype(int).transpose(2, 0, 1)  # flat heat leads far away
    cells = ((image[:, None] * JOINTS + np.arange(JOINTS)) * h + y) * w + x
    own = tags.flatten(0, 3)[torch.from_numpy(cells).to(tags.device)].cpu().numpy()
    seen = people[..., 2:] > 0
    return (own * seen).sum(1) / seen.sum(1).astype(np.float32)


def best_places(heat: Tensor, tags: Sequence[Tensor], mean: Tensor) -> Tensor:
    """``[k, 3]`` x, y, heat of the best places in k maps, ``heat`` and n ``tags [k, h, w]``, near ``mean [k, n]``."""
    h, w = heat.shape[1:]
    squares = sum((plane - mean[:, i, None, None]).square_() for i, plane in enumerate(tags))
    cell = (heat - squares.sqrt_().round_()).flatten(1).argmax(1)
    row, x, y = torch.arange(len(heat), device=heat.device), cell % w, cell // w
    right = heat[row, y, (x + 1).clamp_max(w - 1)] > heat[row, y, (x - 1).clamp_min(0)]
    below = heat[row, (y + 1).clamp_max(h - 1), x] > heat[row, (y - 1).clamp_min(0), x]
    return torch.stack([x + (right * 0.5 - 0.25), y + (below * 0.5 - 0.25), heat[row, y, x]], -1)
