"""Frechet and kernel distances with clean-fid's mathematics, in the features of whatever networks are at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from posegen.metrics.base import Column, Judged, Metric, Records, Values, count_images
from posegen.metrics.math.frechet import frechet_first_order, kernel_distances
from posegen.metrics.protocol import Protocol
from posegen.ranges import Positive

INCEPTION = "clean"  # the one space whose distances are called FID and KID
#: Settings at the top of a protocol's yaml that only its metrics and observers read.
FILES_OF_WEIGHTS = (
    *("inception", "paper_inception", "imagenet_inception", "timm", "clip", "alexnet", "linear"),
    *("pickscore", "hps", "imagereward", "bert", "cmmd", "dinov2"),
)
INTERPOLATED = (*FILES_OF_WEIGHTS, "timm_model", "size", "allow_rank_deficient")


class CleanQualityMetric(Metric):
    """Frechet and kernel distance from real images in one feature space, and means over scenarios (``_macro``).

    Only distances in the Inception network's features are called FID and KID. The kernel distance uses all pairs,
    which is the mean of clean-fid's over its random subsets. Frechet intervals: see `frechet_first_order`.

    ``space`` is what `CleanFeatures` noted: ``clean`` (Inception), ``timm``, ``rfd`` (random network); ``setting`` what
    the user sets to have it, for the reason of empty columns. The kernel distance is shown times ``kernel_factor``.
    ``allow_rank_deficient`` gives Frechet distances of sets with no more images than dimensions, too."""

    def __init__(
        self,
        space: str = INCEPTION,
        setting: str = "",
        kernel_factor: Positive = 1.0,
        allow_rank_deficient: bool = False,
    ) -> None:
        self.features, self.setting = f"{space}_features", setting
        self.factor, self.allow = kernel_factor, allow_rank_deficient
        inception = space == INCEPTION
        self.frechet, kernel = (f"{space}_{name}" for name in (("FID", "KID") if inception else ("frechet", "kernel")))
        first_order = "interval to first order; it falls with the number of images"
        pairs = "all pairs" + ("" if kernel_factor == 1 else f", times {kernel_factor:g}")
        over = "mean over scenarios"
        self.columns = (
            Column(self.frechet, "lower", 0, "quality", 0 if inception else None, remark=first_order),
            Column(kernel, "lower", 0 if inception else None, "quality", remark=pairs),
            Column(f"{self.frechet}_macro", "lower", None, "quality", remark=f"{first_order}; {over}"),
            Column(f"{kernel}_macro", "lower", None, "quality", remark=f"{pairs}; {over}"),
        )

    def absent(self, records: Records) -> dict[str, str]:
        if self.features not in records:
            return dict.fromkeys(self.columns, f"the network is not configured: set {self.setting}")
        reasons, dimensions = {}, len(records[self.features][0])
        if not self.allow and (images := count_images(records)) <= dimensions:
            reasons[self.frechet] = too_few(images, dimensions)
        if "scenario" not in records:
            return reasons | dict.fromkeys(self.columns[2:], "the data set has no scenarios")
        smallest = min(len(rows) for rows, _ in rows_by_scenario(records, records).values())
        if not self.allow and smallest <= dimensions:
            reasons[self.columns[2]] = too_few(smallest, dimensions)
        return reasons

    def record(self, judged: Judged) -> dict[str, np.ndarray]:
        return {self.features: judged.observed[self.features]} if self.features in judged.observed else {}

    def resampled(self, records: Records, weights: np.ndarray, reference: Records | None = None) -> Values:
        if reference is None or self.features not in records or self.features not in reference:
            return {name: np.full(len(weights), np.nan) for name in self.columns}
        every = (range(count_images(records)), range(count_images(reference)))
        values = dict(zip(self.columns, self._distances(records, weights, reference, *every), strict=False))
        scenarios = rows_by_scenario(records, reference).values()
        parts = [self._distances(records, weights, reference, *rows) for rows in scenarios]
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


def too_few(images: int, dimensions: int) -> str:
    """Why there is no Frechet distance of this many images."""
    fix = "generate more, or set protocol.allow_rank_deficient=true"
    return f"{images} images are no more than the {dimensions} dimensions: {fix}"


def features_of(records: Records, name: str, rows: Sequence[int]) -> np.ndarray:
    return np.stack([records[name][i] for i in rows]) if len(rows) else np.zeros((0, 0))


def rows_by_scenario(records: Records, reference: Records) -> dict[str, tuple[list[int], list[int]]]:
    """Scenario of the generated images -> rows of its images in both records; without scenarios, one with all."""
    rows: dict[str, tuple[list[int], list[int]]] = {}
    for side, r in enumerate((records, reference)):
        for i, name in enumerate(r["scenario"] if "scenario" in r else [""] * count_images(r)):
            rows.setdefault(str(name), ([], []))[side].append(i)
    return {name: both for name, both in rows.items() if both[0]}


class QualityProtocol(Protocol):
    """A protocol whose yaml names files of weights and other settings once, at its top."""

    note = (
        "FID and KID are distances in Inception features; rfd columns are in those of a random network and judge "
        "columns in the judge's: both are no FID."
    )

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{name: value for name, value in settings.items() if name not in INTERPOLATED})
