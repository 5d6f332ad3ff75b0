"""Random choices that are the same on every machine and with every numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Dice:
    """Choices from the raw words of PCG64, the only stream of numpy's random module that is guaranteed forever."""

    def __init__(self, *key: int):
        self._bits = np.random.PCG64(np.random.SeedSequence(key))
        self._words: list[int] = []

    def unit(self) -> float:
        """Uniform in [0, 1)."""
        if not self._words:
            self._words = self._bits.random_raw(128).tolist()
        return (self._words.pop() >> 11) * 2.0**-53

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.unit()

    def about(self, centre: float, spread: float) -> float:
        """Triangular around ``centre``, never farther than ``spread``."""
        return centre + spread * (self.unit() - self.unit())

    def integer(self, low: int, high: int) -> int:
        """Uniform in low..high, both included."""
        return low + int(self.unit() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        return self.unit() < probability

    def choice(self, options: Sequence[T], weights: Sequence[float] | None = None) -> T:
        """One of ``options``; ``weights`` sum to 1."""
        if weights is None:
            return options[int(self.unit() * len(options))]
        mark, total = self.unit(), 0.0
        for option, weight in zip(options, weights, strict=True):
            total += weight
            if mark < total:
                return option
        return options[-1]
