import numpy as np
import pytest
from invented_people import judged

from posegen.metrics.distribution import DistributionMetric
from posegen.metrics.math.frechet import frechet_distances, kernel_distances


def features(n: int, seed: int, shift: float = 0.0) -> np.ndarray:
    mix = np.random.default_rng(0).normal(size=(6, 6))
    return np.random.default_rng(seed + 1).normal(size=(n, 6)) @ mix + shift


def records(x: np.ndarray) -> dict[str, list]:
    return {"id": [str(i) for i in range(len(x))], "features": list(x)}


def test_frechet_of_known_gaussians():
    """Diagonal covariances: |m1 - m2|^2 + sum (s1 - s2)^2."""
    x = np.random.default_rng(0).normal(size=(400, 4))
    x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T)).T)  # exactly white
    found, real = x * [1, 2, 3, 4] + 1, x * [2, 2, 1, 0]
    assert frechet_distances(found, real, np.ones((1, 400)))[0] == pytest.approx(4 + 1 + 0 + 4 + 16)


def test_same_images_are_at_distance_zero():
    x = features(50, 0)
    assert DistributionMetric().compute(records(x), reference=records(x))["judge_frechet"] == pytest.approx(0, abs=1e-8)


def test_frechet_weights_equal_duplicates():
    x, y, w = features(40, 0), features(50, 1, 0.5), np.random.default_rng(2).integers(0, 3, 40)
    duplicated = np.repeat(x, w, axis=0)
    assert frechet_distances(x, y, w[None].astype(float)) == pytest.approx(
        frechet_distances(duplicated, y, np.ones((1, len(duplicated))))
    )


def test_kernel_by_double_loop():
    x, y = features(7, 0), features(5, 1)
    k = lambda a, b: (a @ b / 6 + 1) ** 3  # noqa: E731
    own = np.mean([k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    real = np.mean([k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    across = np.mean([k(a, b) for a in x for b in y])
    assert kernel_distances(x, y, np.ones((1, 7)))[0] == pytest.approx(own + real - 2 * across)


def test_resampling_leaves_the_kernel_distance_unbiased():
    x, y = features(60, 0), features(60, 1, 0.3)
    weights = np.random.default_rng(0).multinomial(60, np.full(60, 1 / 60), 4000).astype(float)
    spread = kernel_distances(x, y, weights)
    assert spread.mean() == pytest.approx(
        kernel_distances(x, y, np.ones((1, 60)))[0], abs=4 * spread.std() / np.sqrt(4000) + 0.02 * spread.std()
    )


def test_needs_two_images_and_a_reference():
    metric, some = DistributionMetric(), records(features(5, 0))
    with pytest.raises(ValueError, match="at least 2 generated"):
        metric.compute(records(features(1, 0)), reference=some)
    with pytest.raises(ValueError, match="at least 2 reference"):
        metric.compute(some, reference=records(features(1, 0)))
    assert np.isnan(metric.compute(some)["judge_kernel"])
    assert metric.record(judged("a", [], [], [])) == {}
