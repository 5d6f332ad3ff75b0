"""Frechet and kernel distances with clean-fid's mathematics, in the features of whatever networks are at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from posegen.metrics.base import Column, Judged, Metric, Records, count_images
from posegen.metrics.math.frechet import frechet_first_order, kernel_distances
from posegen.metrics.protocol import Protocol

#: The one space whose distances are called FID and KID.
INCEPTION = "clean"


class CleanQualityMetric(Metric):
    """Frechet and kernel distance from real images in one feature space, of the whole set and as the mean over
    scenarios (``_macro``).

    Only distances in the Inception network's features are called FID and KID. The kernel distance uses all pairs, which
    is the mean of clean-fid's over its random subsets. Intervals of Frechet distances are to first order (see
    `frechet_first_order`).

    Args:
        space: what `CleanFeatures` noted: ``clean`` (Inception), ``timm``, ``rfd`` (random network).
        setting: what the user sets to have this space, for the reason of empty columns.
        kernel_factor: the kernel distance is shown times this.
        allow_rank_deficient: whether to give Frechet distances of sets with no more images than dimensions, which
            depend on the number of images most.
    """

    def __init__(
        self, space: str = INCEPTION, setting: str = "", kernel_factor: float = 1.0, allow_rank_deficient: bool = False
    ) -> None:
        self.features, self.setting, self.factor, self.allow = (
            f"{space}_features",
            setting,
            kernel_factor,
            allow_rank_deficient,
        )
        self.frechet, self.kernel = (
            f"{space}_{name}" for name in (("FID", "KID") if space == INCEPTION else ("frechet", "kernel"))
        )
        about = {
            self.frechet: "interval to first order; it falls with the number of images",
            self.kernel: "all pairs" + ("" if kernel_factor == 1 else f", times {kernel_factor:g}"),
        }
        shown = (self.frechet, self.kernel) if space == INCEPTION else (self.frechet,)
        self.columns = (
            *(
                Column(
                    name,
                    "lower",
                    0 if name in shown else None,
                    "quality",
                    0 if name == "clean_FID" else None,
                    remark=text,
                )
                for name, text in about.items()
            ),
            *(
                Column(f"{name}_macro", "lower", None, "quality", remark=f"{text}; mean over scenarios")
                for name, text in about.items()
            ),
        )

    def absent(self, records: Records) -> dict[str, str]:
        if self.features not in records:
            return dict.fromkeys(self.columns, f"the network is not configured: set {self.setting}")
        reasons, dimensions = {}, len(records[self.features][0])
        if not self.allow and (images := count_images(records)) <= dimensions:
            reasons[self.frechet] = self._too_few(images, dimensions)
        if "scenario" not in records:
            return reasons | dict.fromkeys(self.columns[2:], "the data set has no scenarios")
        smallest = min(len(rows) for rows, _ in by_scenario(records, records).values())
        if not self.allow and smallest <= dimensions:
            reasons[self.columns[2]] = self._too_few(smallest, dimensions)
        return reasons

    @staticmethod
    def _too_few(images: int, dimensions: int) -> str:
        return (
            f"{images} images are no more than the {dimensions} dimensions: generate more, or set "
            "protocol.allow_rank_deficient=true"
        )

    def record(self, judged: Judged) -> dict[str, np.ndarray]:
        return {self.features: judged.observed[self.features]} if self.features in judged.observed else {}

    def resampled(
        self, records: Records, weights: np.ndarray, reference: Records | None = None
    ) -> dict[str, np.ndarray]:
        if reference is None or self.features not in records or self.features not in reference:
            return {name: np.full(len(weights), np.nan) for name in self.columns}
        every = (range(count_images(records)), range(count_images(reference)))
        values = dict(zip(self.columns, self._distances(records, weights, reference, *every), strict=False))
        parts = [
            self._distances(records, weights, reference, *rows) for rows in by_scenario(records, reference).values()
        ]
        means = np.mean(parts, axis=0) if "scenario" in records else np.full((2, len(weights)), np.nan)
        return values | dict(zip(self.columns[2:], means, strict=True))

    def _distances(
        self, records: Records, weights: np.ndarray, reference: Records, rows: Sequence[int], real: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Frechet and kernel distance ``[R]`` between some of the images, NaN where there are too few."""
        nothing = np.full(len(weights), np.nan)
        if min(len(rows), len(real)) < 2:
            return nothing, nothing
        sets = features_of(records, self.features, rows), features_of(reference, self.features, real)
        full_rank = min(map(len, sets)) > sets[0].shape[1]
        frechet = frechet_first_order(*sets, weights[:, rows]) if full_rank or self.allow else nothing
        return frechet, self.factor * kernel_distances(*sets, weights[:, rows])


def features_of(records: Records, name: str, rows: Sequence[int]) -> np.ndarray:
    """``[n, D]`` features of some images."""
    return np.stack([records[name][i] for i in rows]) if len(rows) else np.zeros((0, 0))


def by_scenario(records: Records, reference: Records) -> dict[str, tuple[list[int], list[int]]]:
    """Scenario of the generated images -> rows of its images in both records; without scenarios, one that has all
    images."""
    both = [
        [str(name) for name in r["scenario"]] if "scenario" in r else [""] * count_images(r)
        for r in (records, reference)
    ]
    return {
        name: ([i for i, n in enumerate(both[0]) if n == name], [i for i, n in enumerate(both[1]) if n == name])
        for name in dict.fromkeys(both[0])
    }


class QualityProtocol(Protocol):
    """A protocol whose observers read files of weights, which are named once, at the top of its yaml, and interpolated
    into the observers.

    Args:
        inception, paper_inception, timm, timm_model, clip, allow_rank_deficient: what the yaml interpolates.
        about: of `Protocol`.
    """

    note = (
        "FID and KID are distances in Inception features; rfd columns are in those of a random network and judge "
        "columns in the judge's: both are no FID."
    )

    def __init__(
        self,
        *,
        inception: str | None = None,
        paper_inception: str | None = None,
        timm: str | None = None,
        timm_model: str | None = None,
        clip: str | None = None,
        allow_rank_deficient: bool = False,
        **about: Any,
    ) -> None:
        super().__init__(**about)
