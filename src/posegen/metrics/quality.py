"""Frechet and kernel distances with clean-fid's mathematics, in the features of whatever networks are at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from posegen.metrics.base import Column, Judged, Metric, Records, Values, count_images
from posegen.metrics.math.frechet import Gaussian, frechet_first_order, kernel_distances
from posegen.metrics.math.manifolds import manifold_overlap, spread_within
from posegen.metrics.math.statistics import mean_of_known
from posegen.metrics.protocol import Protocol
from posegen.ranges import AtLeastOne, Positive

Measure = Literal["precision", "recall", "density", "coverage"]
INCEPTION = "clean"  # the one space whose distances are called FID and KID
#: Settings at the top of a protocol's yaml that only its metrics and observers read.
FILES_OF_WEIGHTS = (
    *("inception", "paper_inception", "imagenet_inception", "timm", "clip", "alexnet", "linear"),
    *("pickscore", "hps", "imagereward", "bert", "cmmd", "dinov2"),
)
INTERPOLATED = (*FILES_OF_WEIGHTS, "timm_model", "size", "allow_rank_deficient")


class FeatureMetric(Metric):
    """Columns from what `CleanFeatures` noted of a feature space; ``setting`` is what the user sets to have it."""

    def __init__(self, space: str, setting: str = "") -> None:
        self.features, self.setting = f"{space}_features", setting

    def absent(self, records: Records) -> dict[str, str]:
        missing = self.features not in records
        return dict.fromkeys(self.columns, f"the network is not configured: set {self.setting}") if missing else {}

    def record(self, judged: Judged) -> dict[str, Any]:
        return {self.features: judged.observed[self.features]} if self.features in judged.observed else {}

    def of_sets(self, records: Records, reference: Records | None) -> tuple[np.ndarray, np.ndarray] | None:
        """Features of the generated and the real images; None where a set is unknown or has fewer than 2 images."""
        if reference is None or self.features not in records or self.features not in reference:
            return None
        found, real = (features_of(each, self.features, range(count_images(each))) for each in (records, reference))
        return None if min(len(found), len(real)) < 2 else (found, real)


class CmmdMetric(FeatureMetric):
    """CMMD: the squared maximum mean discrepancy of CLIP's embeddings under a Gaussian kernel, times 1000; the biased
    estimate, as published (Jayasumana et al. 2024, arXiv:2401.09603)."""

    columns = (Column("CMMD", "lower", 0, "quality", axis=1, remark="times 1000", inflated=True),)

    def resampled(self, records: Records, weights: np.ndarray, reference: Records | None = None) -> Values:
        sets = self.of_sets(records, reference)
        nothing = np.full(len(weights), np.nan)
        value = nothing if sets is None else 1000 * kernel_distances(*sets, weights, kernel=Gaussian(), biased=True)
        return {"CMMD": value}


class ManifoldMetric(FeatureMetric):
    """``<space>_<measure>@<neighbours>``, in percent, for some ``measures`` of `manifold_overlap`."""

    def __init__(
        self, space: str, setting: str = "", neighbours: AtLeastOne = 5, measures: Sequence[Measure] = get_args(Measure)
    ) -> None:
        super().__init__(space, setting)
        self.neighbours = neighbours
        self.names = {name: f"{space}_{name}@{neighbours}" for name in measures}
        balls = f"balls reach the {neighbours} nearest images of the whole set, also in resamples"
        cover = ("recall", "coverage")  # with fewer different images in a resample, less is covered
        self.columns = tuple(
            Column(c, family="quality", unit="%", remark=balls, inflated=n in cover) for n, c in self.names.items()
        )

    def absent(self, records: Records) -> dict[str, str]:
        few = count_images(records) <= self.neighbours
        reason = f"{self.neighbours} neighbours need more images than {count_images(records)}"
        return super().absent(records) or (dict.fromkeys(self.columns, reason) if few else {})

    def resampled(self, records: Records, weights: np.ndarray, reference: Records | None = None) -> Values:
        sets = self.of_sets(records, reference)
        if sets is None or min(map(len, sets)) <= self.neighbours:
            return {column: np.full(len(weights), np.nan) for column in self.columns}
        found = manifold_overlap(*sets, weights, self.neighbours)
        return {column: 100 * found[name] for name, column in self.names.items()}


class PoseDiversityMetric(FeatureMetric):
    """``<space>_diversity``: the mean cosine distance, in percent, of images of one pose and caption from each other.

    It needs several images of a pose: a test split that is `Repeated`, as that of ``data=mannequin_repeated``."""

    def __init__(self, space: str, setting: str = "") -> None:
        super().__init__(space, setting)
        self.columns = (Column(f"{space}_diversity", family="quality", unit="%", remark="of images of one pose"),)

    def record(self, judged: Judged) -> dict[str, Any]:
        pose = {"pose": str(judged.attributes["pose"])} if "pose" in judged.attributes else {}
        return super().record(judged) | pose

    def absent(self, records: Records) -> dict[str, str]:
        alone = len({*records.get("pose", records["id"])}) == count_images(records)
        reason = "no pose has two images; choose data that repeats its poses, such as data=mannequin_repeated"
        return super().absent(records) or (dict.fromkeys(self.columns, reason) if alone else {})

    def resampled(self, records: Records, weights: np.ndarray, reference: Records | None = None) -> Values:
        if self.features not in records or "pose" not in records:
            return dict.fromkeys(self.columns, np.full(len(weights), np.nan))
        features = features_of(records, self.features, range(count_images(records)))
        spread = spread_within(features, np.array(records["pose"]))
        return dict.fromkeys(self.columns, mean_of_known(spread.tolist(), weights, 100))


class CleanQualityMetric(FeatureMetric):
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
        super().__init__(space, setting)
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
        if missing := super().absent(records):
            return missing
        reasons, dimensions = {}, len(records[self.features][0])
        if not self.allow and (images := count_images(records)) <= dimensions:
            reasons[self.frechet] = too_few(images, dimensions)
        if "scenario" not in records:
            return reasons | dict.fromkeys(self.columns[2:], "the data set has no scenarios")
        smallest = min(len(rows) for rows, _ in rows_by_scenario(records, records).values())
        if not self.allow and smallest <= dimensions:
            reasons[self.columns[2]] = too_few(smallest, dimensions)
        return reasons

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
