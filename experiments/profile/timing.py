"""What a comparison of two formulations of the same computation found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Seconds of this package's formulation and of the plain one, on the same input.

    Attributes:
        name: what was computed, with its size.
        ours_s, theirs_s: the median of the repetitions, in seconds.
        target: the ratio that is asked for.
        agreement: largest absolute difference between the two results, in the results' unit.
    """

    name: str
    ours_s: float
    theirs_s: float
    target: float
    agreement: float

    @property
    def ratio(self) -> float:
        """How many times faster this package's formulation is."""
        return self.theirs_s / self.ours_s
