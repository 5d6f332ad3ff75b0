"""Bootstrap intervals and tests.

Images are resampled; with several seeds, seeds are resampled on top and share the resampled images, because every seed was judged on the same ones (a hard
image is hard for all of them). The same seed gives the same resamples to every method, so differences between methods are paired by image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

#: Weights ``[R, n]`` to values ``[R]`` by name: a metric with its records filled in.
Compute = Callable[[np.ndarray], Mapping[str, np.ndarray]]
IMAGES, SEEDS = 0, 1  # independent random streams


def bootstrap(computes: Compute | Sequence[Compute], n_images: int, resamples: int = 1000, seed: int = 0) -> dict[str, np.ndarray]:
    """Bootstrap distributions of the mean over training seeds.

    Args:
        computes: one function per training seed, all over the same ``n_images`` images; one alone leaves only the images to chance.
        n_images: images that each function's weights refer to.
        resamples: R.
        seed: of the resampling.

    Returns:
        Column name -> ``[R]``.
    """
    computes = [computes] if callable(computes) else list(computes)
    images = resample(n_images, resamples, seed, IMAGES)
    values = [compute(images) for compute in computes]
    share = resample(len(computes), resamples, seed, SEEDS) / len(computes)
    return {name: np.einsum("rs,sr->r", share, np.stack([value[name] for value in values])) for name in values[0]}


def resample(n: int, resamples: int, seed: int, stream: int = IMAGES) -> np.ndarray:
    """How often each of n things is drawn in each of R resamples of size n, ``[R, n] float64``."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, stream])))
    drawn = generator.integers(0, n, (resamples, n)) + n * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * n).reshape(resamples, n).astype(float)


def interval(values: np.ndarray, level: float = 0.95, centre: float | None = None) -> tuple[float, float]:
    """Percentile interval of ``values [R]``, NaN when any is.

    Args:
        values: a bootstrap distribution.
        level: probability inside.
        centre: where the distribution's mean is moved to, for statistics that resampling inflates.
    """
    shift = 0.0 if centre is None else centre - values.mean()
    low, high = np.quantile(values + shift, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_p_value(values: np.ndarray, baseline: np.ndarray) -> float:
    """Two-sided p-value of no difference between two bootstrap distributions ``[R]`` that used the same resamples.

    Twice the share of resamples on the rarer side of zero, where the observed set counts as one more resample so that p is never 0 (Davison and Hinkley
    1997, section 4.2.3).
    """
    difference = values - baseline
    if np.isnan(difference).any():
        return float("nan")
    rarer = min((difference <= 0).sum(), (difference >= 0).sum())
    return min(1.0, 2 * (rarer + 1) / (len(difference) + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979) for a family of tests; NaN entries are no part of the family."""
    p = np.asarray(p_values, float)
    order = [i for i in np.argsort(p, kind="stable") if not np.isnan(p[i])]
    adjusted, highest = p.copy(), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p[i]))
        adjusted[i] = highest
    return adjusted.tolist()
