"""How far two sets of features overlap, by balls around each image that reach its k-th nearest neighbour: precision and
recall (Kynkaanniemi et al. 2019, arXiv:1904.06991), density and coverage (Naeem et al. 2020, arXiv:2002.09797).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from posegen.metrics.math.frechet import TILE, feature_sets, one_thread


def manifold_overlap(
    found: np.ndarray, real: np.ndarray, weights: np.ndarray, neighbours: int
) -> dict[str, np.ndarray]:
    """``precision``, ``recall``, ``density`` and ``coverage`` ``[R]`` of ``found [n, D]`` under ``weights [R, n]``
    against ``real [m, D]``; a ValueError where a set has no more images than ``neighbours``.

    The balls are those of the whole sets: in a resample, which repeats images, they would shrink to nothing."""
    if min(len(found), len(real)) <= neighbours:
        raise ValueError(f"{neighbours} neighbours need more images than {min(len(found), len(real))}")
    with one_thread():
        x, y = feature_sets(found, real)
        w = torch.as_tensor(weights, dtype=torch.float64)
        there = (w > 0).float()
        mine, theirs = squared_radii(x, neighbours), squared_radii(y, neighbours)
        precise, dense = x.new_zeros(len(x)), x.new_zeros(len(x))
        recalled, covered = x.new_zeros(len(w)), x.new_zeros(len(w))
        for i in range(0, len(y), TILE):
            squares, reach = squared_distances(y[i : i + TILE], x), theirs[i : i + TILE, None]
            precise = precise.maximum((squares <= reach).any(0).double())
            dense += (squares < reach).sum(0)
            recalled += (there @ (squares <= mine).float().T > 0).sum(1)
            covered += (there @ (squares < reach).float().T > 0).sum(1)
        total = w.sum(1)
        values = {"precision": w @ precise / total, "recall": recalled / len(y)}
        values |= {"density": w @ dense / total / neighbours, "coverage": covered / len(y)}
        return {name: value.numpy() for name, value in values.items()}


def squared_radii(x: Tensor, neighbours: int) -> Tensor:
    """``[n]`` squared distance of each row of ``x [n, D]`` to the k-th nearest other row."""
    tiles = (squared_distances(x[i : i + TILE], x) for i in range(0, len(x), TILE))
    return torch.cat([tile.kthvalue(neighbours + 1, dim=1).values for tile in tiles])


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """``[n, m]`` of ``x [n, D]`` and ``y [m, D]``."""
    return (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp_min_(0)


def spread_within(features: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """``[n]`` mean cosine distance of each row of ``features [n, D]`` to the others of its group, of ``groups [n]``;
    NaN where it is alone."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    spread = np.full(len(unit), np.nan)
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        if len(rows) > 1:
            spread[rows] = (1 - unit[rows] @ unit[rows].T).sum(1) / (len(rows) - 1)
    return spread
