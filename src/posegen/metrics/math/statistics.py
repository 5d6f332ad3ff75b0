"""Bootstrap intervals and tests.

Images are resampled; with several training seeds, those are resampled on top and share the resampled images, on which
all were judged. Every method gets the same resamples, so differences between methods are paired by image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

Compute = Callable[[np.ndarray], Mapping[str, np.ndarray]]  # weights ``[R, n]`` to values ``[R]`` by name
IMAGES, SEEDS = 0, 1  # independent random streams


def bootstrap(
    computes: Compute | Sequence[Compute], n_images: int, resamples: int = 1000, seed: int = 0
) -> dict[str, np.ndarray]:
    """Bootstrap distributions ``[R]`` by column of the mean over training seeds.

    ``computes``: a function per training seed, all over the same images, which alone vary where there is just one."""
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
    """Percentile interval with probability ``level`` of ``values [R]``, NaN when any is; ``centre`` is where their
    mean is moved to, for statistics that resampling inflates."""
    shift = 0.0 if centre is None else centre - values.mean()
    low, high = np.quantile(values + shift, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_of_known(values: Sequence[float], weights: np.ndarray, scale: float = 1) -> np.ndarray:
    """Weighted means ``[R]`` of the values that are numbers, times a scale; NaN where a resample has none."""
    given = np.asarray(values, float)
    known = ~np.isnan(given)
    with np.errstate(invalid="ignore"):
        return scale * (weights @ np.where(known, given, 0)) / (weights @ known)


def wins(gain: np.ndarray) -> np.ndarray:
    """1 where a difference is above 0, 0 where it is below, and half for equals; NaN stays."""
    return (np.sign(gain) + 1) / 2


def paired_p_value(values: np.ndarray, baseline: np.ndarray) -> float:
    """Two-sided p-value of no difference between two bootstrap distributions ``[R]`` that used the same resamples:
    twice the share of resamples on the rarer side of zero, where the observed set counts as one more so that p is
    never 0 (Davison and Hinkley 1997, section 4.2.3)."""
    difference = values - baseline
    if np.isnan(difference).any():
        return float("nan")
    return min(1.0, 2 * (min((difference <= 0).sum(), (difference >= 0).sum()) + 1) / (len(difference) + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979) for a family of tests; NaN entries are no part of the family."""
    p = np.asarray(p_values, float)
    order = [i for i in np.argsort(p, kind="stable") if not np.isnan(p[i])]
    adjusted, highest = p.copy(), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p[i]))
        adjusted[i] = highest
    return adjusted.tolist()


@dataclass(frozen=True)
class Variance:
    """Where the variance of a paired difference between two methods comes from; per image and per seed.

    The mean difference over n images and s seeds has the variance ``image / n + both / (n s) + seed / s``: images
    that suit one method, images that do so with one seed only, and seeds that suit one method. Statistics of sets
    (AP, Frechet distances) follow this for large n."""

    difference: float  # the mean difference that was observed
    image: float  # variance per image, shared by all seeds; with one seed it contains `both`
    both: float  # per image and seed
    seed: float  # per seed, NaN where only one was observed

    @classmethod
    def of(cls, points: Sequence[float], spreads: np.ndarray, n_images: int) -> Variance:
        """From S seeds: differences ``points [S]`` on the n images, and ``spreads [S, R]`` on R resamples of them."""
        seeds, mean = len(points), float(np.mean(points))
        # (image + both) / n and (image + both / S) / n
        single, averaged = spreads.var(1, ddof=1).mean(), spreads.mean(0).var(ddof=1)
        if seeds == 1:
            return cls(mean, float(single * n_images), 0.0, math.nan)
        both = max(0.0, float(single - averaged) * seeds / (seeds - 1))
        image = max(0.0, float(averaged) - both / seeds)
        seed = max(0.0, float(np.var(points, ddof=1)) - both)  # the seeds' differences vary by seed + both / n
        return cls(mean, image * n_images, both * n_images, seed)

    def standard_error(self, images: int, seeds: int) -> float:
        """That of the mean difference; with an unknown seeds' part, between these trainings alone."""
        return math.sqrt(self.image / images + self.both / (images * seeds) + self._seeds_part(seeds))

    def _seeds_part(self, seeds: int) -> float:
        return 0.0 if math.isnan(self.seed) else self.seed / seeds

    def detectable(self, images: int, seeds: int, power: float = 0.8, alpha: float = 0.05) -> float:
        """The true difference that a two-sided test at level ``alpha`` finds with probability ``power``."""
        return multiple(power, alpha) * self.standard_error(images, seeds)

    def images_needed(self, difference: float, seeds: int, power: float = 0.8, alpha: float = 0.05) -> float:
        """How many images make ``difference`` detectable; infinite where seeds alone vary too much."""
        allowed = (abs(difference) / multiple(power, alpha)) ** 2 - self._seeds_part(seeds)
        return math.ceil((self.image + self.both / seeds) / allowed) if allowed > 0 else math.inf


def multiple(power: float, alpha: float) -> float:
    """How many standard errors a difference must have to be found with this power; 2.80 for 0.8 and 0.05."""
    return NormalDist().inv_cdf(1 - alpha / 2) + NormalDist().inv_cdf(power)
