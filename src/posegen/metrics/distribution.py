"""How far the generated images are from real ones as a set, in the judge's own feature space.

The columns are named after the judge because they are no FID and no KID: those are distances in the features of one particular Inception network.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

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
    with one_thread():
        x, y, w = (torch.as_tensor(a, dtype=torch.float64) for a in (found, real, weights))
        values, vectors = torch.linalg.eigh(y.T.cov())
        root = vectors * values.clamp_min(0).sqrt()  # L
        x = x - y.mean(0)
        total = w.sum(1)
        mean2 = (w @ x / total[:, None]).square().sum(1)
        trace = (w @ x.square().sum(1) - total * mean2) / (total - 1)
        cross = torch.cat([torch.linalg.eigvalsh(c).clamp_min(0).sqrt().sum(1) for c in covariances(x @ root, w)])
        return (mean2 + trace + values.clamp_min(0).sum() - 2 * cross).numpy()


def covariances(features: Tensor, weights: Tensor, chunk: int = 100) -> Iterator[Tensor]:
    """Covariances of ``features [n, D]`` under each row of ``weights [R, n]``, in chunks ``[<= chunk, D, D]``, right in the lower triangle alone.

    Second moments are linear in the weights, so one matrix product serves a chunk of resamples.
    """
    features = features - features.mean(0)
    row, column = torch.tril_indices(features.shape[1], features.shape[1])
    products = features[:, row] * features[:, column]
    for part in weights.split(chunk):
        total = part.sum(1, keepdim=True)
        mean = part @ features / total
        covariance = features.new_zeros(len(part), features.shape[1], features.shape[1])
        covariance[:, row, column] = (part @ products - total * mean[:, row] * mean[:, column]) / (total - 1)
        yield covariance


def kernel_distances(found: np.ndarray, real: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Unbiased squared maximum mean discrepancies ``[R]`` with the kernel (x.y / D + 1)^3, from all pairs instead of random subsets.

    Gretton et al. 2012 (JMLR 13) equation 3, kernel of Binkowski et al. 2018 (arXiv:1801.01401). Pairs are of different images: the copies of an image in a
    resample are no pair, so the estimate stays unbiased under ``weights [R, n]``.
    """
    with one_thread():
        x, y, w = (torch.as_tensor(a, dtype=torch.float64) for a in (found, real, weights))
        within, among, m = cubic(x, x).fill_diagonal_(0), cubic(y, y).fill_diagonal_(0), len(y)
        pairs = w.sum(1).square() - w.square().sum(1)
        own = ((w @ within) * w).sum(1) / pairs
        across = w @ cubic(x, y).mean(1) / w.sum(1)
        return (own - 2 * across + among.sum() / (m * (m - 1))).numpy()


def cubic(x: Tensor, y: Tensor) -> Tensor:
    """Kernel matrix ``[n, m]`` of ``x [n, D]`` and ``y [m, D]``."""
    return (x @ y.T / x.shape[1] + 1) ** 3


@contextmanager
def one_thread() -> Iterator[None]:
    """Linear algebra on one thread: on small matrices more threads only wait for each other, and the last digits would depend on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
