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
from posegen.poses.pose import Pose

Records = Mapping[str, Sequence[Any]]  # of a set: name -> one entry per image, a number, a string or an array
Values = dict[str, np.ndarray]  # column name -> its value on each of R resamples, ``[R]``
BASELINE = "baseline/"  # begins the names of records of the baseline, beside a method's on the same images
Notes = list[dict[str, Any]]  # for each of B images what an observer notes, by name
INSTALL_PHOTOS = "pip install 'posegen[photos]'"  # what ``estimator=rtmlib`` needs


@dataclass(frozen=True, eq=False)
class Poses:
    """The people that an estimator found in one image, best first."""

    keypoints: np.ndarray  # [N, 17, 3] float32: x, y in pixels of the judged image, score in [0, 1]
    scores: np.ndarray  # [N] float32, of persons
    whole: Pose | None = None  # the same N people with all joints that the estimator knows, where these are more

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True, eq=False)
class Findings:
    """Everything that an estimator finds in B images, one entry per image."""

    poses: Sequence[Poses]
    attributes: Sequence[Mapping[str, Any]]
    features: np.ndarray | None  # [B, D] float32; None where the estimator has no pooled features


class Estimator(ABC):
    """Finds people. Images are ``[B, 3, H, W]`` in [-1, 1], RGB, of the size the images were generated in.

    ``features`` and ``heatmaps`` are differentiable, so that an estimator can also be the teacher in a loss."""

    photographs: ClassVar[bool] = True  # whether it learned from pictures of real people
    any_size: ClassVar[bool] = False  # it cuts people out of pictures of any size and resizes them itself

    @classmethod
    def warning(cls) -> str:
        """What to tell somebody who gives it photographs; empty where it knows them."""
        unfit = f"{cls.__name__} has never seen photographs, so what it finds in them means nothing"
        return "" if cls.photographs else f"{unfit}; for photographs: {INSTALL_PHOTOS}, then estimator=rtmlib"

    @abstractmethod
    def estimate(self, images: Tensor) -> list[Poses]:
        """The people in each of B images."""

    def features(self, images: Tensor) -> Tensor:
        """``[B, D]`` pooled features, the space of distribution distances."""
        raise TypeError(f"{type(self).__name__} has no pooled features; choose another estimator for set distances")

    def heatmaps(self, images: Tensor) -> Tensor:
        """``[B, 17, h, w]`` keypoint probabilities."""
        raise TypeError(f"{type(self).__name__} has no heatmaps; choose another estimator as the teacher of a loss")

    def expected_heatmaps(self, people: Tensor, size: tuple[int, int]) -> Tensor:
        """``[B, 17, h, w]`` what `heatmaps` shows of images of ``size`` (height, width) with ``people [B, P, 17, 3]``.

        Joints without label, and rows of zeros, which fill up people, leave nothing in them."""
        raise TypeError(f"{type(self).__name__} does not say how its heatmaps show a pose; choose another estimator")

    def raw_heatmaps(self, inputs: Tensor) -> Tensor:
        """`heatmaps` without the preparation of images that comes before the network; by default there is none."""
        return self.heatmaps(inputs)

    def attributes(self, images: Tensor) -> list[dict[str, Any]]:
        """Other facts about each image (from the mannequin judge: style, scene and count)."""
        return [{} for _ in range(len(images))]

    def examine(self, images: Tensor) -> Findings:
        """Poses, attributes and features together; estimators with a shared trunk override this to run it once."""
        has_features = type(self).features is not Estimator.features
        with torch.no_grad():
            features = self.features(images).float().cpu().numpy() if has_features else None
            return Findings(self.estimate(images), self.attributes(images), features)


@dataclass(frozen=True, eq=False)
class Judged:
    """One image's target and what the estimator found, the input of every metric."""

    id: str  # of the sample
    keypoints: np.ndarray  # [P, 17, 3] of the target, with visibility, in pixels, or in the person's square
    areas: np.ndarray  # [P] of the target
    found: Poses
    attributes: Mapping[str, Any] = field(default_factory=dict)  # of the target
    found_attributes: Mapping[str, Any] = field(default_factory=dict)  # by the estimator
    features: np.ndarray | None = None  # [D] the estimator's pooled features of the judged image
    observed: Mapping[str, Any] = field(default_factory=dict)  # what the protocol's observers noticed
    whole: Pose | None = None  # the P people of the target with all joints that the data know, where these are more


class Observer(ABC):
    """Measures more about the judged images: features of another network, or the estimator on swapped colours."""

    checkable = True  # the constructor loads nothing, see `posegen.config.checking.check.refused`
    compares: ClassVar[bool] = False  # whether it looks at the targets' pictures, too

    @abstractmethod
    def observe(self, images: Tensor, samples: Sequence[Sample], estimator: Estimator, real: bool) -> Notes:
        """Notes on each of B images ``[B, 3, H, W]`` in [-1, 1] and their targets, as `Judged.observed` holds them.

        ``real``: these are the data set's images, the reference of distances between sets. The notes are empty
        where the observer is switched off (its weights are not configured)."""

    def check(self) -> None:
        """Raises what `observe` would raise for missing or wrong weights, called before hours of sampling."""
        return


class Column(str):
    """The name of a column, with what a table, a plot or a page has to know to show it."""

    better: Literal["higher", "lower"] | None  # which values are; None where neither are, as of a bias
    headline: int | None  # place among the shown columns of its metric, equal ones in order; None: in table.csv only
    family: str  # accuracy of the pose, quality of the pictures, likeness, count or caption
    axis: int | None  # place among its family's columns that a plot takes as its axis; None: it never does
    unit: str  # %, dB, ...
    remark: str  # what the value depends on beyond the images, for the notes below a table
    inflated: bool  # it is larger, or smaller, on a resample than on the set, so that its interval is centred
    published: bool  # it repeats the computation of published tables, whose numbers are compared with it

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
    """One family of columns, computed in two steps so that tables need no images: ``record`` reduces one judged
    image to a few numbers and small arrays; ``resampled`` turns records of a set into values, for many resamples."""

    checkable = True  # the constructor loads nothing, see `posegen.config.checking.check.refused`
    columns: Sequence[str | Column] = ()  # that `compute` returns, in table order; a plain name is a shown column
    against: bool = False  # whether `resampled` reads the records of the baseline, too, under names with `BASELINE`
    lower_is_better: frozenset[str] = frozenset()  # plain names of which smaller values are better

    def described(self) -> list[Column]:
        """The columns, plain names among them with what `lower_is_better` says of them."""
        lower = self.lower_is_better
        return [c if isinstance(c, Column) else Column(c, "lower" if c in lower else "higher") for c in self.columns]

    def absent(self, records: Records) -> dict[str, str]:
        """Columns that these records cannot fill -> the reason, with the setting that would change it."""
        return {}

    @abstractmethod
    def record(self, judged: Judged) -> dict[str, Any]:
        """The facts of one image: numbers and strings go to ``records.csv``, arrays to ``features.npz``."""

    @abstractmethod
    def resampled(self, records: Records, weights: np.ndarray, reference: Records | None = None) -> Values:
        """Column name -> its value ``[R]`` on each of R resamples of a set, NaN where there is nothing to measure.

        ``records`` are what `record` returned, ``weights [R, n]`` how often each image counts in each resample, and
        ``reference`` the records of the real images, for metrics that compare sets."""

    def compute(
        self, records: Records, weights: np.ndarray | None = None, reference: Records | None = None
    ) -> dict[str, float]:
        """Values over a set, or over the one resample of it where image i counts ``weights[i]`` times."""
        weights = np.ones(count_images(records)) if weights is None else weights
        return {name: float(value[0]) for name, value in self.resampled(records, weights[None], reference).items()}


def count_images(records: Records) -> int:
    return len(next(iter(records.values()), ()))
