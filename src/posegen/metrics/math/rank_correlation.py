"""Whether two sets of values order the same things alike: Kendall's tau, Spearman's rho, and permutation tests."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import permutations

import numpy as np

EXACT = 8  # things of which all orders are tried; of more, so many random ones:
RANDOM_ORDERS = 20_000
Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]


def kendall(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Kendall's tau-b (1945) of ``a [..., n]`` with ``b [..., n]``, NaN where all values of one are the same."""
    first, second = np.triu_indices(np.shape(a)[-1], 1)
    pairs = [np.sign(values[..., first] - values[..., second]) for values in map(np.asarray, (a, b))]
    return _cosine(*pairs)


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's rho (1904) of ``a [..., n]`` with ``b [..., n]``; equal values share their mean rank."""
    ranks = [midranks(np.asarray(values)) for values in (a, b)]
    return _cosine(*(r - r.mean(-1, keepdims=True) for r in ranks))


def midranks(values: np.ndarray) -> np.ndarray:
    """Ranks ``[..., n]`` from 1, the mean rank for equal values."""
    below = (values[..., :, None] > values[..., None, :]).sum(-1)
    return below + ((values[..., :, None] == values[..., None, :]).sum(-1) + 1) / 2


def permutation_p_value(statistic: Statistic, a: np.ndarray, b: np.ndarray) -> float:
    """The share of the orders of ``b [n]`` that agree with ``a [n]`` at least as well as the given one (one-sided).

    All n! orders are tried of at most `EXACT` things; of more, random ones, where the given one counts as one more."""
    n, observed = len(a), statistic(a, b)
    if math.isnan(observed):
        return math.nan
    if n <= EXACT:
        orders = np.array(list(permutations(range(n))))
        return float(np.mean(statistic(a, np.asarray(b)[orders]) >= observed - 1e-12))
    generator = np.random.Generator(np.random.Philox(0))
    orders = generator.permuted(np.tile(np.arange(n), (RANDOM_ORDERS, 1)), axis=1)
    return float((1 + np.sum(statistic(a, np.asarray(b)[orders]) >= observed - 1e-12)) / (1 + RANDOM_ORDERS))


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a * b).sum(-1) / np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
