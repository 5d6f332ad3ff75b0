"""Distances of two sets of features: Frechet (FID) and kernel (KID), of whole sets, subsets and bootstrap resamples.

All in double precision on one thread, so that values depend neither on the machine's load nor on its cores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

TILE = 1024  # rows of a kernel matrix that exist at a time
Draws = tuple[np.ndarray, np.ndarray]  # rows of two sets, ``[S, s]`` each, that make S subsets of s images


@dataclass(frozen=True)
class Polynomial:
    """The kernel (gamma x.y + coef)^degree; by default KID's (Binkowski et al. 2018, arXiv:1801.01401, section 4)."""

    degree: int = 3
    gamma: float | None = None  # None is 1 / D
    coef: float = 1.0

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Kernel matrix ``[n, m]`` of ``x [n, D]`` and ``y [m, D]``."""
        return (x @ y.T).mul_(1 / x.shape[1] if self.gamma is None else self.gamma).add_(self.coef).pow_(self.degree)


@dataclass(frozen=True)
class Gaussian:
    """The kernel exp(-|x - y|^2 / (2 sigma^2)); by default CMMD's (Jayasumana et al. 2024, arXiv:2401.09603, 4)."""

    sigma: float = 10.0

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Kernel matrix ``[n, m]`` of ``x [n, D]`` and ``y [m, D]``."""
        squares = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
        return squares.mul_(-1 / (2 * self.sigma**2)).exp_()


CUBIC = Polynomial()
Kernel = Callable[[Tensor, Tensor], Tensor]


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Frechet distance between Gaussians fitted to ``a [n, D]`` and ``b [m, D]``; a ValueError below 2 images.

    |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2), Heusel et al. 2017 (arXiv:1706.08500) equation 6, with n - 1
    in the covariances. The last trace is the sum of the roots of the eigenvalues of S1 S2, which exist for singular
    covariances too: no offset is added to their diagonals."""
    with one_thread():
        x, y = feature_sets(a, b)
        shared = torch.linalg.eigvalsh(overlap(x, y)).clamp_min(0).sqrt().sum()
        return float((x.mean(0) - y.mean(0)).square().sum() + x.var(0).sum() + y.var(0).sum() - 2 * shared)


def overlap(x: Tensor, y: Tensor) -> Tensor:
    """A symmetric matrix, right in the lower triangle alone, with the eigenvalues of S1 S2 up to zeros:
    L^T S1 L with S2 = L L^T; of few images, with S1 = F^T F and S2 = G^T G, the smaller square of F G^T."""
    if min(len(x), len(y)) > x.shape[1]:
        lower, failed = torch.linalg.cholesky_ex(covariance(y))
        if not failed:
            return sandwiched(covariance(x), lower)
    cross = root(x) @ root(y).T
    return moment(cross if len(cross) > cross.shape[1] else cross.T)


def root(x: Tensor) -> Tensor:
    """F ``[k, D]`` with F^T F the covariance of ``x [n, D]``: few centred features, else a triangular factor."""
    if len(x) > x.shape[1]:
        lower, failed = torch.linalg.cholesky_ex(covariance(x))
        if not failed:
            return lower.T
    centred = (x - x.mean(0)) / (len(x) - 1) ** 0.5
    # Of many images whose features depend on each other, there is a triangular factor, too.
    return centred if len(x) <= x.shape[1] else torch.linalg.qr(centred, mode="r").R


def covariance(x: Tensor) -> Tensor:
    """Covariance of ``x [n, D]``, right in the lower triangle alone."""
    return moment(x - x.mean(0)) / (len(x) - 1)


def moment(x: Tensor, tile: int = 256) -> Tensor:
    """``x^T x``, right in the lower triangle alone, which takes little more than half of the full product's time."""
    result = x.new_zeros(x.shape[1], x.shape[1])
    for j in range(0, x.shape[1], tile):
        result[j:, j : j + tile] = x[:, j:].T @ x[:, j : j + tile]
    return result


def sandwiched(s: Tensor, lower: Tensor, tile: int = 256) -> Tensor:
    """``L^T S L`` with L lower triangular, of S and the result the lower triangles alone; skips zeros of L."""
    s = s.tril() + s.tril(-1).T
    result = torch.zeros_like(s)
    for j in range(0, len(s), tile):
        result[j:, j : j + tile] = lower[j:, j:].T @ (s[j:, j:] @ lower[j:, j : j + tile])
    return result


def frechet_distances(found: np.ndarray, real: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`frechet_distance` ``[R]`` of ``found [n, D]`` under ``weights [R, n]`` from ``real [m, D]``; D of a few hundred.

    S1 S2 has the eigenvalues of the symmetric L^T S1 L with S2 = L L^T, the covariance of the found features times
    L. Resamples repeat images, so they lie further away than the set itself, the more so the fewer its images."""
    with one_thread():
        x, y = feature_sets(found, real)
        w = torch.as_tensor(weights, dtype=torch.float64)
        factor = root(y)
        x = x - y.mean(0)
        total = w.sum(1)
        mean2 = (w @ x / total[:, None]).square().sum(1)
        trace = (w @ x.square().sum(1) - total * mean2) / (total - 1)
        cross = torch.cat([torch.linalg.eigvalsh(c).clamp_min(0).sqrt().sum(1) for c in covariances(x @ factor.T, w)])
        return (mean2 + trace + factor.square().sum() - 2 * cross).numpy()


def frechet_first_order(found: np.ndarray, real: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`frechet_distances` to first order in the weights: the set's distance plus the images' mean influence.

    One eigendecomposition serves all rows, and rows of ones are exact. The spread is the delta method's, without full
    recomputation's upward shift; it is too small only where both sets follow the same distribution."""
    distance = np.full(len(weights), frechet_distance(found, real))
    if (weights == 1).all():
        return distance
    return distance + (weights / weights.sum(1, keepdims=True) - 1 / len(found)) @ influences(found, real)


def influences(found: np.ndarray, real: np.ndarray) -> np.ndarray:
    """How fast the Frechet distance grows with the share of each image in ``found``, ``[n]`` (empirical influence
    function, up to a constant): the derivative of the trace of (L^T S1 L)^(1/2) in S1 is L (L^T S1 L)^(-1/2) L^T /
    2; directions without variance are left out, no resample has any there."""
    with one_thread():
        x, y = feature_sets(found, real)
        factor = root(y)
        centred = x - x.mean(0)
        values, vectors = torch.linalg.eigh(moment(root(x) @ factor.T))
        kept = values > values[-1] * 1e-13
        along = (centred @ (factor.T @ vectors[:, kept])).square() @ values[kept].rsqrt()
        spread = (centred.square().sum(1) - along) * len(x) / (len(x) - 1)
        return (2 * centred @ (x.mean(0) - y.mean(0)) + spread).numpy()


def covariances(features: Tensor, weights: Tensor, chunk: int = 100) -> Iterator[Tensor]:
    """Covariances of ``features [n, D]`` under each row of ``weights [R, n]``, in chunks ``[<= chunk, D, D]``,
    right in the lower triangle alone; second moments are linear in the weights, so one product serves a chunk."""
    features = features - features.mean(0)
    row, column = torch.tril_indices(features.shape[1], features.shape[1])
    products = features[:, row] * features[:, column]
    for part in weights.split(chunk):
        total = part.sum(1, keepdim=True)
        mean = part @ features / total
        covariance = features.new_zeros(len(part), features.shape[1], features.shape[1])
        covariance[:, row, column] = (part @ products - total * mean[:, row] * mean[:, column]) / (total - 1)
        yield covariance


def kernel_distance(a: np.ndarray, b: np.ndarray, kernel: Kernel = CUBIC) -> float:
    """Unbiased squared maximum mean discrepancy of ``a [n, D]`` and ``b [m, D]`` from all pairs (Gretton et al.
    2012, JMLR 13, equation 3), the mean of KID over all random subsets; a ValueError below 2 images."""
    return float(kernel_distances(a, b, np.ones((1, len(a))), kernel=kernel)[0])


def kernel_distances(
    found: np.ndarray,
    real: np.ndarray,
    weights: np.ndarray,
    real_weights: np.ndarray | None = None,
    kernel: Kernel = CUBIC,
    biased: bool = False,
) -> np.ndarray:
    """`kernel_distance` ``[R]`` under each row of ``weights [R, n]`` and ``real_weights [R, m]``, by default ones.

    The copies of an image in a resample are no pair, so the estimate stays unbiased. ``biased``: each image is a pair
    with itself and its copies, of a kernel that is 1 there (Gretton's equation 5)."""
    with one_thread():
        x, y = feature_sets(found, real)
        w = torch.as_tensor(weights, dtype=torch.float64)
        v = y.new_ones(1, len(y)) if real_weights is None else torch.as_tensor(real_weights, dtype=torch.float64)
        sides, sign = ((x, w), (y, v)), float(biased)
        sums = ((pair_sums(kernel, a, u), u.sum(1).square(), u.square().sum(1)) for a, u in sides)
        own, among = ((pairs + sign * same) / (every - (1 - sign) * same) for pairs, every, same in sums)
        across = pair_sums(kernel, x, w, y, v) / (w.sum(1) * v.sum(1))
        return (own - 2 * across + among).numpy()


def pair_sums(kernel: Kernel, x: Tensor, w: Tensor, y: Tensor | None = None, v: Tensor | None = None) -> Tensor:
    """Sums ``[R]`` of w_i v_j k(x_i, y_j), tile by tile; without ``y`` of w_i w_j k(x_i, x_j) over i != j."""
    same = y is None or v is None
    y, v = (x, w) if y is None or v is None else (y, v)
    total = x.new_zeros(max(len(w), len(v)))
    for i in range(0, len(x), TILE):
        for j in range(0, i + 1 if same else len(y), TILE):
            block, mine, theirs = kernel(x[i : i + TILE], y[j : j + TILE]), w[:, i : i + TILE], v[:, j : j + TILE]
            if same and i == j:
                block.fill_diagonal_(0)
            sums = mine @ (block @ theirs[0]) if len(v) == 1 else ((mine @ block) * theirs).sum(1)
            total += 2 * sums if same and i != j else sums
    return total


def kernel_distance_subsets(
    a: np.ndarray, b: np.ndarray, draws: Draws | None = None, kernel: Kernel = CUBIC
) -> np.ndarray:
    """`kernel_distance` of each of S subsets, ``[S]``; their mean is KID as it is usually reported.

    ``draws`` are the rows of each subset, by default `random_subsets`; `clean_fid_subsets` repeats clean-fid's."""
    first, second = random_subsets(len(a), len(b)) if draws is None else draws
    products = first.size * (first.shape[1] + second.shape[1])  # in the subsets
    if (len(a) + len(b)) ** 2 / 2 > products:
        return np.array([kernel_distance(a[i], b[j], kernel) for i, j in zip(first, second, strict=True)])
    return kernel_distances(a, b, _members(first, len(a)), _members(second, len(b)), kernel)


def random_subsets(n: int, m: int, subsets: int = 100, size: int = 1000, seed: int = 0) -> Draws:
    """Random subsets of min(n, m, size) rows of two sets, a function of the seed alone."""
    generator = np.random.Generator(np.random.Philox(seed))
    size = min(n, m, size)
    drawn = np.array([[generator.choice(k, size, replace=False) for k in (n, m)] for _ in range(subsets)])
    return drawn[:, 0], drawn[:, 1]


def clean_fid_subsets(n: int, m: int, state: np.random.RandomState, subsets: int = 100, size: int = 1000) -> Draws:
    """The subsets that clean-fid draws with numpy's global generator in ``state``, from the second set first."""
    size = min(n, m, size)
    drawn = np.array([[state.choice(k, size, replace=False) for k in (m, n)] for _ in range(subsets)])
    return drawn[:, 1], drawn[:, 0]


def _members(rows: np.ndarray, n: int) -> np.ndarray:
    """Rows ``[S, s]`` of distinct indices as 0-1 weights ``[S, n]``."""
    weights = np.zeros((len(rows), n))
    np.put_along_axis(weights, rows, 1.0, 1)
    return weights


def feature_sets(a: np.ndarray, b: np.ndarray) -> tuple[Tensor, Tensor]:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        expected = "expected [n, D] and [m, D] of the same network"
        raise ValueError(f"features of shapes {list(a.shape)} and {list(b.shape)} cannot be compared; {expected}")
    if min(len(a), len(b)) < 2:
        raise ValueError(f"distances of sets need at least 2 images in each, not {len(a)} and {len(b)}")
    return torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)


@contextmanager
def one_thread() -> Iterator[None]:
    """Linear algebra on one thread: the last digits depend on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
