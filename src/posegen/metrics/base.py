"""The two things a judge consists of: an estimator that looks at images, and metrics that read its findings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from posegen.data.base import Sample

#: Records of a set of images: name -> one entry per image, a number, a string or an array.
Records = Mapping[str, Sequence[Any]]


@dataclass(frozen=True, eq=False)
class Poses:
    """The people that an estimator found in one image, best first.

    Attributes:
        keypoints: ``[N, 17, 3] float32``: x, y in pixels of the judged image, score in [0, 1].
        scores: ``[N] float32`` person scores.
    """

    keypoints: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True, eq=False)
class Findings:
    """All that an estimator says about B images.

    Attributes:
        poses: B entries.
        attributes: B mappings.
        features: ``[B, D] float32``, or None where the estimator has no pooled features.
    """

    poses: Sequence[Poses]
    attributes: Sequence[Mapping[str, Any]]
    features: np.ndarray | None


class Estimator(ABC):
    """Finds people. Images are ``[B, 3, H, W]`` in [-1, 1], RGB, of the size the images were generated in.

    ``features`` and ``heatmaps`` are differentiable, so that an estimator can also be the teacher in a loss.
    """

    @abstractmethod
    def estimate(self, images: Tensor) -> list[Poses]:
        """The people in each of B images."""

    def features(self, images: Tensor) -> Tensor:
        """``[B, D]`` pooled features, the space of distribution distances."""
        raise TypeError(
            f"{type(self).__name__} has no pooled features; choose another estimator for distribution distances"
        )

    def heatmaps(self, images: Tensor) -> Tensor:
        """``[B, 17, h, w]`` keypoint probabilities."""
        raise TypeError(f"{type(self).__name__} has no heatmaps; choose another estimator as the teacher of a loss")

    def raw_heatmaps(self, inputs: Tensor) -> Tensor:
        """`heatmaps` without the preparation of images that comes before the network; by default there is none."""
        return self.heatmaps(inputs)

    def attributes(self, images: Tensor) -> list[dict[str, Any]]:
        """What the estimator can say about each image besides poses (for the mannequin judge: style, scene and
        count)."""
        return [{} for _ in range(len(images))]

    def examine(self, images: Tensor) -> Findings:
        """Poses, attributes and features together; estimators that share a trunk override this to look only once."""
        has_features = type(self).features is not Estimator.features
        with torch.no_grad():
            features = self.features(images).float().cpu().numpy() if has_features else None
            return Findings(self.estimate(images), self.attributes(images), features)


@dataclass(frozen=True, eq=False)
class Judged:
    """One image's target and what the estimator found, the input of every metric.

    Attributes:
        id: sample id.
        keypoints: ``[P, 17, 3]`` target keypoints with visibility, on the judged image's pixels; where poses are
            judged, in the person's square.
        areas: ``[P]`` target areas.
        found: the estimator's poses.
        attributes: the target's attributes.
        found_attributes: the estimator's attributes.
        features: ``[D]`` the estimator's pooled features of the judged image, None without them.
        observed: what the protocol's observers noticed, by their names.
    """

    id: str
    keypoints: np.ndarray
    areas: np.ndarray
    found: Poses
    attributes: Mapping[str, Any] = field(default_factory=dict)
    found_attributes: Mapping[str, Any] = field(default_factory=dict)
    features: np.ndarray | None = None
    observed: Mapping[str, Any] = field(default_factory=dict)


class Observer(ABC):
    """A further look at the judged images, besides the estimator's own: another network's features, say, or the
    estimator on swapped colours.

    Attributes:
        compares: it looks at the targets' pictures, too.
    """

    compares: ClassVar[bool] = False

    @abstractmethod
    def observe(
        self, images: Tensor, samples: Sequence[Sample], estimator: Estimator, real: bool
    ) -> list[dict[str, Any]]:
        """What it notices in each of B images; the keys are the names under which metrics find it in `Judged.observed`.

        Args:
            images: ``[B, 3, H, W]`` in [-1, 1].
            samples: the B targets, with their pictures where it ``compares``.
            estimator: the judge.
            real: whether these are the data set's own images, the reference of distances between sets, and no generated
                ones.

        Returns:
            B mappings, empty ones from an observer that is switched off (its weights are not configured).
        """

    def check(self) -> None:
        """Raises what `observe` would raise for missing or wrong weights, to be asked before hours of sampling."""
        return


class Column(str):
    """The name of a column, with what a table, a plot or a page has to know to show it.

    Attributes:
        better: which values are; None where neither are, as of a bias.
        headline: place among the shown columns of its metric, equal ones in their order; None: in ``table.csv`` only.
        family: what it measures: ``accuracy`` of the pose, ``quality`` of the pictures, ``likeness``, ``count``,
            ``caption``.
        axis: place among the columns of its family that a plot takes as its axis; None: it never does.
        unit: ``%``, ``dB``, ...
        remark: what the value depends on beyond the images, for the notes below a table.
        inflated: it is larger on a resample than on the set itself, so that its interval is centred.
        published: it repeats the computation of published tables, whose numbers are compared with it.
    """

    better: Literal["higher", "lower"] | None
    headline: int | None
    family: str
    axis: int | None
    unit: str
    remark: str
    inflated: bool
    published: bool

    def __new__(
        cls,
        name: str,
        better: Literal["higher", "lower"] | None = "higher",
        headline: int | None = 0,
        family: str = "",
        axis: int | None = None,
        unit: str = "",
        remark: str = "",
        inflated: bool = False,
        published: bool = False,
    ) -> Column:
        column = super().__new__(cls, name)
        column.better, column.headline, column.family, column.axis = better, headline, family, axis
        column.unit, column.remark, column.inflated, column.published = unit, remark, inflated, published
        return column


class Metric(ABC):
    """One family of columns, computed in two steps so that tables need no images.

    ``record`` reduces one judged image to a few numbers and small arrays; ``resampled`` turns the records of a set into
    values, for many bootstrap resamples at once. Everything is a function of the records, so a table can be made again
    at any time.
    """

    #: The columns that `compute` returns, in table order. A plain name is a shown column.
    columns: Sequence[str | Column] = ()
    #: Plain names of which smaller values are better.
    lower_is_better: frozenset[str] = frozenset()

    def described(self) -> list[Column]:
        """The columns, plain names among them with what `lower_is_better` says of them."""
        return [
            c if isinstance(c, Column) else Column(c, "lower" if c in self.lower_is_better else "higher")
            for c in self.columns
        ]

    def absent(self, records: Records) -> dict[str, str]:
        """Columns that these records cannot fill -> the reason, with the setting that would change it."""
        return {}

    @abstractmethod
    def record(self, judged: Judged) -> dict[str, Any]:
        """The facts of one image: numbers and strings go to ``records.csv``, arrays to ``features.npz``."""

    @abstractmethod
    def resampled(
        self, records: Records, weights: np.ndarray, reference: Records | None = None
    ) -> dict[str, np.ndarray]:
        """Values over R resamples of a set.

        Args:
            records: name -> one entry per image, as `record` returned them.
            weights: ``[R, n]`` how often each image counts in each resample.
            reference: records of the real images, for metrics that compare sets.

        Returns:
            Column name -> ``[R]``, NaN where there is nothing to measure.
        """

    def compute(
        self, records: Records, weights: np.ndarray | None = None, reference: Records | None = None
    ) -> dict[str, float]:
        """Values over a set, or over the one resample of it where image i counts ``weights[i]`` times."""
        weights = np.ones(count_images(records)) if weights is None else weights
        return {name: float(value[0]) for name, value in self.resampled(records, weights[None], reference).items()}


def count_images(records: Records) -> int:
    """The number of images of a set of records."""
    return len(next(iter(records.values()), ()))
