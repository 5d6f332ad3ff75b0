"""How far the generated images are from real ones as a set, in the judge's own feature space.

The columns are named after the judge because they are no FID and no KID: those are distances in the features of one particular Inception network.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from posegen.metrics.base import Judged, Metric, Records, count_images


class DistributionMetric(Metric):
    """Frechet and kernel distance between the generated and the real images' features; NaN without a reference or without features.

    Both depend on the number of images (the Frechet distance falls with it), so compare rows of equal size only.
    """

    columns = ("judge_frechet", "judge_kernel")
    lower_is_better = frozenset(columns)
    # A resample repeats images, which looks like less variety: the distance grows although nothing changed.
    inflated_by_resampling = frozenset({"judge_frechet"})

    def record(self, judged: Judged) -> dict[str, float | np.ndarray]:
        return {} if judged.features is None else {"features": np.asarray(judged.features, np.float32)}

    def resampled(self, records: Records, weights: np.ndarray, reference: Records | None = None) -> dict[str, np.ndarray]:
        if reference is None or "features" not in records or "features" not in reference:
            return {name: np.full(len(weights), np.nan) for name in self.columns}
        for what, these in (("generated", records), ("reference", reference)):
            if count_images(these) < 2:
                raise ValueError(f"distances of sets need at least 2 {what} images, not {count_images(these)}: judge more images or leave this metric out")
        found, real = (np.stack(list(r["features"])).astype(float) for r in (records, reference))
        return {"judge_frechet": frechet_distances(found, real, weights), "judge_kernel": kernel_distances(found, real, weights)}


def frechet_distances(found: np.ndarray, real: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Squared Frechet distances ``[R]`` between Gaussians fitted to ``found [n, D]`` under each row of ``weights [R, n]`` and to ``real [m, D]``.

    |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2), Heusel et al. 2017 (arXiv:1706.08500) equation 6, with n - 1 in the covariances. S1 S2 has the eigenvalues
    of the symmetric L^T S1 L with S2 = L L^T, which is the covariance of the found features times L; the last trace is the sum of their roots.
    """
    values, vectors = np.linalg.eigh(np.cov(real.T))
    root = vectors * np.sqrt(values.clip(0))  # L
    centred = found - real.mean(0)
    total = weights.sum(1)
    mean2 = np.square(weights @ centred / total[:, None]).sum(1)
    trace = (weights @ np.square(centred).sum(1) - total * mean2) / (total - 1)
    cross = [np.sqrt(np.linalg.eigvalsh(c).clip(0)).sum() for c in covariances(centred @ root, weights)]
    return mean2 + trace + values.clip(0).sum() - 2 * np.array(cross)


def covariances(features: np.ndarray, weights: np.ndarray, chunk: int = 100) -> Iterator[np.ndarray]:
    """The covariance ``[D, D]`` of ``features [n, D]`` under each row of ``weights [R, n]``.

    Second moments are linear in the weights, so one large matrix product serves a chunk of resamples (many small ones would be far slower).
    """
    features = features - features.mean(0)
    row, column = np.tril_indices(features.shape[1])
    products = features[:, row] * features[:, column]
    for part in np.array_split(weights, -(-len(weights) // chunk)):
        total = part.sum(1, keepdims=True)
        mean = part @ features / total
        lower = (part @ products - total * mean[:, row] * mean[:, column]) / (total - 1)
        for entries in lower:
            covariance = np.zeros((features.shape[1],) * 2)
            covariance[row, column] = covariance[column, row] = entries
            yield covariance


def kernel_distances(found: np.ndarray, real: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Unbiased squared maximum mean discrepancies ``[R]`` with the kernel (x.y / D + 1)^3, from all pairs instead of random subsets.

    Gretton et al. 2012 (JMLR 13) equation 3, kernel of Binkowski et al. 2018 (arXiv:1801.01401). Pairs are of different images: the copies of an image in a
    resample are no pair, so the estimate stays unbiased under ``weights [R, n]``.
    """
    within, across, among = cubic(found, found), cubic(found, real).mean(1), cubic(real, real)
    np.fill_diagonal(within, 0)
    m = len(real)
    pairs = np.square(weights.sum(1)) - np.square(weights).sum(1)
    own = np.einsum("ri,ri->r", weights @ within, weights) / pairs
    return own - 2 * (weights @ across) / weights.sum(1) + (among.sum() - np.trace(among)) / (m * (m - 1))


def cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Kernel matrix ``[n, m]`` of ``x [n, D]`` and ``y [m, D]``."""
    return (x @ y.T / x.shape[1] + 1) ** 3
