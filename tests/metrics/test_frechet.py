"""Distances between sets: against clean-fid's functions, plain loops and finite differences."""

import warnings

import numpy as np
import pytest
import torch
from cleanfid import fid

from experiments.profile.set_distances import by_loop, measure_distances
from posegen.metrics.math.frechet import (
    TILE,
    Polynomial,
    clean_fid_subsets,
    frechet_distance,
    frechet_distances,
    frechet_first_order,
    influences,
    kernel_distance,
    kernel_distance_subsets,
    kernel_distances,
    random_subsets,
)


def features(n: int, dimensions: int, seed: int, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.maximum(
        rng.normal(size=(n, dimensions)) @ np.random.default_rng(9).normal(size=(dimensions, dimensions)) + shift, 0
    )


def by_clean_fid(a: np.ndarray, b: np.ndarray) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fid.fid_from_feats(a, b)


@pytest.mark.parametrize("n, m, dimensions", [(90, 60, 16), (700, 600, 520), (40, 90, 50)])
def test_frechet_distance_is_that_of_clean_fid(n, m, dimensions):
    a, b = features(n, dimensions, 0), features(m, dimensions, 1, 0.5)
    assert frechet_distance(a, b) == pytest.approx(by_clean_fid(a, b), rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_fewer_images_than_dimensions():
    """Against the sum of the roots of the eigenvalues of the product, which the square root of a singular matrix is too
    inexact for."""
    a, b = features(12, 40, 0), features(9, 40, 1, 0.5)
    s, t = np.cov(a.T), np.cov(b.T)
    roots = np.sqrt(np.linalg.eigvals(s @ t).real.clip(0)).sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s) + np.trace(t) - 2 * roots
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_features_that_are_constant_or_copies():
    a, b = features(90, 8, 0), features(70, 8, 1, 0.5)
    extended = [np.concatenate([x, x[:, :2], np.full((len(x), 1), 3.0)], 1) for x in (a, b)]
    with_copies = [np.concatenate([x[:, :2] * np.sqrt(2), x[:, 2:]], 1) for x in (a, b)]
    assert frechet_distance(*extended) == pytest.approx(frechet_distance(*with_copies), rel=1e-7)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_influences_by_finite_differences():
    a, b = features(60, 6, 0), features(50, 6, 1, 0.5)
    more, step = np.ones((60, 60)) - 1e-5 / 60 + 1e-5 * np.eye(60), 1e-5 / 60
    slopes = (frechet_distances(a, b, more) - frechet_distance(a, b)) / step
    given = influences(a, b)
    assert given - given.mean() == pytest.approx(slopes, abs=1e-3 * np.ptp(slopes))


def test_resamples_to_first_order():
    a, b = features(2000, 6, 0), features(1500, 6, 1, 0.5)
    weights = np.random.default_rng(0).multinomial(2000, np.full(2000, 1 / 2000), 300).astype(float)
    full, first_order = frechet_distances(a, b, weights), frechet_first_order(a, b, weights)
    assert np.corrcoef(full, first_order)[0, 1] > 0.98 and first_order.std() == pytest.approx(full.std(), rel=0.1)
    assert frechet_first_order(a, b, np.ones((2, 2000))) == pytest.approx([frechet_distance(a, b)] * 2, rel=1e-12)


@pytest.mark.parametrize("n, m, size", [(60, 50, 30), (40, 90, 1000)])
def test_kernel_distance_is_that_of_clean_fid(n, m, size):
    a, b = features(n, 12, 0) / 5, features(m, 12, 1, 0.5) / 5
    np.random.seed(3)  # noqa: NPY002
    expected = fid.kernel_distance(a, b, num_subsets=20, max_subset_size=size)
    draws = clean_fid_subsets(n, m, np.random.RandomState(3), 20, size)
    assert kernel_distance_subsets(a, b, draws).mean() == pytest.approx(expected, rel=1e-6)


def test_subsets_that_are_cheaper_one_by_one():
    a, b = features(300, 5, 0) / 3, features(200, 5, 1) / 3
    draws = random_subsets(300, 200, 4, 20, seed=1)
    one_by_one = kernel_distance_subsets(a, b, draws)
    assert one_by_one.mean() == pytest.approx(by_loop(a, b, draws), rel=1e-9)
    assert kernel_distance_subsets(a, b, tuple(np.tile(rows, (40, 1)) for rows in draws)) == pytest.approx(
        np.tile(one_by_one, 40), rel=1e-9
    )


def test_draws_are_a_function_of_the_seed():
    first, second = random_subsets(50, 40, 5, 30, seed=1)
    assert first.shape == second.shape == (5, 30) and second.max() < 40 and all(len(set(row)) == 30 for row in first)
    assert np.array_equal(first, random_subsets(50, 40, 5, 30, seed=1)[0]) and not np.array_equal(
        first, random_subsets(50, 40, 5, 30, seed=2)[0]
    )
    assert random_subsets(50, 40)[0].shape == (100, 40)


def test_kernel_distance_is_the_mean_over_subsets():
    a, b = features(60, 5, 0) / 3, features(60, 5, 1, 0.2) / 3
    values = kernel_distance_subsets(a, b, random_subsets(60, 60, 3000, 20))
    assert values.mean() == pytest.approx(kernel_distance(a, b), abs=4 * values.std() / np.sqrt(3000))


def test_more_images_than_a_tile():
    a, b = features(TILE + 30, 3, 0), features(2 * TILE + 7, 3, 1, 0.2)
    k = [(x @ y.T / 3 + 1) ** 3 for x, y in ((a, a), (b, b), (a, b))]
    own, among = ((kernel.sum() - np.trace(kernel)) / (len(kernel) * (len(kernel) - 1)) for kernel in k[:2])
    assert kernel_distance(a, b) == pytest.approx(own + among - 2 * k[2].mean(), rel=1e-9)
    weights = np.random.default_rng(0).integers(0, 3, (2, len(a))).astype(float)
    both = kernel_distances(a, b, weights, np.ones((2, len(b))))
    assert both == pytest.approx(kernel_distances(a, b, weights), rel=1e-9)


def test_other_kernels():
    a, b = features(20, 4, 0), features(20, 4, 1)
    k = lambda x, y: (0.5 * x @ y.T + 2) ** 2  # noqa: E731
    own, among = ((k(x, x).sum() - np.trace(k(x, x))) / 380 for x in (a, b))
    assert kernel_distance(a, b, Polynomial(2, 0.5, 2.0)) == pytest.approx(own + among - 2 * k(a, b).mean(), rel=1e-9)


def test_values_do_not_depend_on_threads():
    a, b, threads = features(300, 200, 0), features(300, 200, 1), torch.get_num_threads()
    found = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append((frechet_distance(a, b), kernel_distance(a, b), torch.get_num_threads()))
    finally:
        torch.set_num_threads(threads)
    assert found[0][:2] == found[1][:2] and [f[2] for f in found] == [1, 2]


def test_sets_that_cannot_be_compared():
    with pytest.raises(ValueError, match="at least 2 images in each, not 1 and 5"):
        frechet_distance(features(1, 3, 0), features(5, 3, 0))
    with pytest.raises(ValueError, match=r"shapes \[5, 3\] and \[5, 4\] cannot be compared"):
        kernel_distance(features(5, 3, 0), features(5, 4, 0))


def test_the_comparison_compares_the_same_thing():
    found = measure_distances(1, images=300, dimensions=64, subsets=5, size=100)
    assert [t.target for t in found] == [4, 3] and all(t.agreement < 1e-6 for t in found)
    assert "100 of 300 and 300 images, 64 features" in found[1].name
