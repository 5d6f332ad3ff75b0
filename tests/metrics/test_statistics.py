import numpy as np
import pytest

from posegen.metrics.math.statistics import (
    SEEDS,
    Variance,
    bootstrap,
    holm,
    interval,
    multiple,
    paired_p_value,
    resample,
)


def mean_of(x):
    return lambda weights: {"mean": weights @ x / weights.sum(1)}


def test_interval_of_a_mean():
    """The bootstrap interval of a mean is close to the normal one."""
    x = np.random.default_rng(0).normal(size=400)
    low, high = interval(bootstrap(mean_of(x), 400, 4000)["mean"])
    error = x.std() / 20
    assert low == pytest.approx(x.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(x.mean() + 1.96 * error, abs=0.15 * error)
    shifted = interval(bootstrap(mean_of(x), 400, 4000)["mean"], centre=5.0)
    assert sum(shifted) / 2 == pytest.approx(5, abs=0.15 * error)


def test_deterministic_and_of_the_right_size():
    first, second, other = resample(9, 50, 3), resample(9, 50, 3), resample(9, 50, 4)
    assert np.array_equal(first, second) and not np.array_equal(first, other)
    assert (first.sum(1) == 9).all()
    assert not np.array_equal(first, resample(9, 50, 3, SEEDS)), "seeds and images must be drawn independently"


def test_seeds_add_their_variance():
    x = np.random.default_rng(0).normal(size=300)
    alike = bootstrap([mean_of(x)] * 3, 300, 2000)["mean"]
    apart = bootstrap([mean_of(x - 1), mean_of(x), mean_of(x + 1)], 300, 2000)["mean"]
    assert alike == pytest.approx(bootstrap(mean_of(x), 300, 2000)["mean"])
    # Three seeds with population variance 2/3, drawn three times: 2/9 on top of the images' variance.
    assert apart.var() - alike.var() == pytest.approx(2 / 9, rel=0.1)


def test_paired_test_sees_what_an_unpaired_one_would_miss():
    x = np.random.default_rng(0).normal(size=200)
    better = x + np.random.default_rng(1).normal(0.05, 0.1, 200)
    base, other = (bootstrap(mean_of(v), 200, 1000)["mean"] for v in (x, better))
    assert paired_p_value(other, base) == pytest.approx(2 / 1001)
    assert paired_p_value(base, base) == 1
    assert np.isnan(paired_p_value(base * np.nan, base))


def test_paired_test_keeps_its_level():
    rng = np.random.default_rng(5)
    rejected = [
        paired_p_value(bootstrap(mean_of(rng.normal(size=80)), 80, 200, k)["mean"], np.zeros(200)) < 0.1
        for k in range(200)
    ]
    assert 0.04 < np.mean(rejected) < 0.17


def test_holm():
    """The textbook example: 0.01, 0.04, 0.03, 0.005 of four tests."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    adjusted = holm([0.5, float("nan"), 0.6])
    assert adjusted[0] == adjusted[2] == 1 and np.isnan(adjusted[1])
    assert holm([]) == []


def observed(seeds, image, both, seed, n=400, dice=0):
    """Differences of S seeds on n images with given standard deviations, and their estimated variance."""
    random = np.random.default_rng(dice)
    x = (
        1
        + image * random.normal(size=n)
        + seed * random.normal(size=(seeds, 1))
        + both * random.normal(size=(seeds, n))
    )
    weights = resample(n, 500, 0)
    return Variance.of(x.mean(1), np.stack([weights @ row / n for row in x]), n)


def test_variance_is_split_into_images_and_seeds():
    found = [observed(8, image=3.0, both=3.0, seed=1.0, n=50, dice=d) for d in range(200)]
    assert np.mean([f.image for f in found]) == pytest.approx(9, rel=0.1)
    assert np.mean([f.both for f in found]) == pytest.approx(9, rel=0.1)
    assert np.mean([f.seed for f in found]) == pytest.approx(1, abs=0.1)


def test_the_standard_error_agrees_with_repeated_experiments():
    def mean(dice):
        random = np.random.default_rng(dice)
        return (3 * random.normal(size=100) + random.normal(size=(2, 1)) + 2 * random.normal(size=(2, 100))).mean()

    assert Variance(0, image=9, both=4, seed=1).standard_error(100, 2) == pytest.approx(
        np.std([mean(d) for d in range(4000)]), rel=0.05
    )


def test_one_seed_knows_nothing_about_seeds():
    found = observed(1, image=3.0, both=4.0, seed=9.0)
    assert np.isnan(found.seed) and found.image == pytest.approx(25, rel=0.15)
    assert found.standard_error(100, 1) == found.standard_error(100, 50)


def test_a_detectable_difference_is_detected_that_often():
    variance = Variance(0, image=4, both=0, seed=0)
    difference = variance.detectable(50, 1)
    means = np.random.default_rng(0).normal(difference, variance.standard_error(50, 1), 20000)
    assert (np.abs(means) > 1.96 * variance.standard_error(50, 1)).mean() == pytest.approx(0.8, abs=0.01)
    assert variance.images_needed(difference, 1) == 50
    assert multiple(0.8, 0.05) == pytest.approx(2.8016, abs=1e-4)
    assert Variance(0, 4, 0, 1).images_needed(0.1, 3) == np.inf
