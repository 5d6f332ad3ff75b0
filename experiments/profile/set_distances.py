"""Distances between sets of features: posegen's against scipy's matrix square root and a loop over random subsets.

Both sides compute in double precision from the same features; posegen's keeps to one thread, the others use as many as
numpy is given.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import numpy as np

from experiments.profile.timing import Timing
from posegen.metrics.math.frechet import Draws, frechet_distance, kernel_distance_subsets, random_subsets

FRECHET_TARGET, KERNEL_TARGET = 4.0, 3.0


def measure_distances(
    repetitions: int, images: int = 5000, dimensions: int = 2048, subsets: int = 100, size: int = 1000
) -> list[Timing]:
    """The Frechet and the kernel distance of two sets of ``images``, ``repetitions`` times each way, in turns."""
    a, b = invented_features(images, dimensions)
    draws = random_subsets(images, images, subsets, size)
    sets = f"of {images:,} and {images:,} images, {dimensions:,} features"
    return [
        compared_distance(
            f"Frechet distance {sets} against scipy's sqrtm",
            lambda: frechet_distance(a, b),
            lambda: by_sqrtm(a, b),
            FRECHET_TARGET,
            repetitions,
        ),
        compared_distance(
            f"kernel distance over {subsets} subsets of {draws[0].shape[1]:,} {sets} against a loop",
            lambda: float(kernel_distance_subsets(a, b, draws).mean()),
            lambda: by_loop(a, b, draws),
            KERNEL_TARGET,
            repetitions,
        ),
    ]


def compared_distance(
    name: str, ours: Callable[[], float], theirs: Callable[[], float], target: float, repetitions: int
) -> Timing:
    seconds: tuple[list[float], list[float]] = ([], [])
    agreement = 0.0
    for _ in range(max(1, repetitions)):
        values = []
        for run, spent in zip((ours, theirs), seconds, strict=True):
            start = time.perf_counter()
            values.append(run())
            spent.append(time.perf_counter() - start)
        agreement = max(agreement, abs(values[0] - values[1]))
    return Timing(name, median(seconds[0]), median(seconds[1]), target, agreement)


def by_sqrtm(a: np.ndarray, b: np.ndarray) -> float:
    """The Frechet distance as its formula reads."""
    from scipy.linalg import sqrtm

    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    shared = np.trace(sqrtm(first @ second)).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first) + np.trace(second) - 2 * shared)


def by_loop(a: np.ndarray, b: np.ndarray, draws: Draws) -> float:
    """The mean of the kernel distances of the subsets, one after the other."""
    values = []
    for rows_a, rows_b in zip(*draws, strict=True):
        x, y = a[rows_a], b[rows_b]
        within, among, across = ((p @ q.T / p.shape[1] + 1) ** 3 for p, q in ((x, x), (y, y), (x, y)))
        own, real = ((k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (within, among))
        values.append(own + real - 2 * across.mean())
    return float(np.mean(values))


def invented_features(images: int, dimensions: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of correlated features that are not negative, as those of a network's last layer."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(dimensions, dimensions)) / np.sqrt(dimensions)
    a, b = (np.maximum(rng.normal(size=(images, dimensions)) @ mix + shift, 0) for shift in (0.0, 0.1))
    return a, b
