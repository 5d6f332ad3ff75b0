"""A protocol: which metrics a table has, how images become records and records become a row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from torch import Tensor

from posegen.data.base import Sample
from posegen.errors import UserError
from posegen.metrics.base import Column, Estimator, Judged, Metric, Observer, Records, Values, count_images
from posegen.metrics.math.statistics import Variance, bootstrap, holm, interval, paired_p_value, resample
from posegen.metrics.records import read_records, write_records
from posegen.poses.pose import Pose
from posegen.poses.topology import WHOLE_BODY_133
from posegen.ranges import AtLeastOne, Probability

Seeds = Sequence[Records]  # of each training seed of a method, on the same images in the same order
CROP = ("left", "top", "width", "height", "mirrored", "upturned")


class Protocol:
    """A named, versioned list of metrics, whose column names and record names are distinct.

    ``corrected`` is the one to trust: one AP over the whole set (no mean over batches), people's own areas, all images.

    Args:
        name: shown with every table.
        version: raise it whenever a value changes for the same images.
        resamples, level: bootstrap resamples of the intervals, and the probability inside one.
        observers: measure more about every image; their names are distinct.
        hidden: columns that are left out of the shown table.
    """

    checkable = True  # the constructor loads nothing, see `posegen.config.checking.check.refused`
    sample: Literal["image", "pose"] = "image"  # what is judged; `Backbone.sample` must agree
    draws: int = 1  # samples that are generated, and judged together, per caption
    #: What a table's caption says about the columns.
    note: str = "Distances are in the features of the judge and are no FID."

    def __init__(
        self,
        metrics: Sequence[Metric],
        name: str = "corrected",
        version: AtLeastOne = 1,
        resamples: AtLeastOne = 1000,
        level: Probability = 0.95,
        observers: Sequence[Observer] = (),
        hidden: Sequence[str] = (),
    ) -> None:
        self.metrics, self.observers = list(metrics), list(observers)
        self.name, self.version, self.resamples, self.level, self.hidden = name, version, resamples, level, hidden
        self.columns = [column for metric in self.metrics for column in metric.described()]
        if twice := {column for column in self.columns if self.columns.count(column) > 1}:
            raise ValueError(f"protocol '{name}' has the columns {sorted(twice)} twice; leave one of the metrics out")
        self._known("hidden", hidden)

    def _known(self, key: str, names: Sequence[str]) -> list[Column]:
        columns = {str(column): column for column in self.columns}
        if unknown := [name for name in names if name not in columns]:
            raise UserError(f"{key}: the protocol has no column {', '.join(unknown)}; it has {', '.join(self.columns)}")
        return [columns[name] for name in names]

    @property
    def lower_is_better(self) -> frozenset[str]:
        return frozenset(column for column in self.columns if column.better == "lower")

    def headline(self, wanted: Sequence[str] | None = None) -> list[Column]:
        """The columns that people see: the wanted ones, else those that declare it, by metric, and are not ``hidden``;
        a UserError where the protocol lacks a wanted one."""
        if wanted:
            return self._known("headline", wanted)
        by_metric = (sorted(metric.described(), key=lambda c: c.headline or 0) for metric in self.metrics)
        shown = [c for columns in by_metric for c in columns if c.headline is not None and c not in self.hidden]
        return shown or self.columns

    def axes(self, family: str) -> list[Column]:
        """The columns of a family that a plot can have as its axis, the preferred one first."""
        return sorted((c for c in self.columns if c.family == family and c.axis is not None), key=lambda c: c.axis or 0)

    def records(self, judged: Iterable[Judged]) -> dict[str, list]:
        """The records of a set: ``id``, `place` and every metric's facts, one entry per image."""
        rows: list[dict[str, Any]] = []
        for image in judged:
            rows.append({"id": image.id, **place(image)})
            for metric in self.metrics:
                rows[-1].update(metric.record(image))
        if any(row.keys() != rows[0].keys() for row in rows):
            raise ValueError("the images have different records; judge all images of a set with the same estimator")
        return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}

    def values(self, records: Records, weights: np.ndarray, reference: Records | None = None) -> Values:
        """All columns over the resamples ``weights [R, n]``."""
        found = (metric.resampled(records, weights, reference) for metric in self.metrics)
        return {name: value for values in found for name, value in values.items()}

    def resampled(self, seeds: Seeds, reference: Records | None = None, seed: int = 0) -> Values:
        """Bootstrap distributions ``[resamples]`` of all columns, paired with other methods' on the same images.

        ``reference`` are the records of the real images, ``seed`` is that of the resampling."""
        computes = [lambda weights, records=records: self.values(records, weights, reference) for records in seeds]
        return bootstrap(computes, check_same_images(seeds), self.resamples, seed)

    def table_row(
        self, seeds: Seeds, reference: Records | None = None, seed: int = 0, spread: Values | None = None
    ) -> dict[str, float]:
        """``<column>``, ``<column>_lo`` and ``<column>_hi`` of every column (means over training seeds),
        ``n_images`` and ``n_seeds``; ``spread`` is what `resampled` returned, where it is known already."""
        n_images = check_same_images(seeds)
        points = [self.values(records, np.ones((1, n_images)), reference) for records in seeds]
        spread = self.resampled(seeds, reference, seed) if spread is None else spread
        row: dict[str, float] = {}
        for name in self.columns:
            value = float(np.mean([point[name][0] for point in points]))
            low, high = interval(spread[name], self.level, centre=value if name.inflated else None)
            row |= {name: value, f"{name}_lo": low, f"{name}_hi": high}
        return row | {"n_images": n_images, "n_seeds": len(seeds)}

    def p_values(self, spreads: Mapping[str, Mapping[str, np.ndarray]], baseline: str) -> dict[str, dict[str, float]]:
        """Method -> column -> p-value of the paired test against ``baseline``, adjusted over the methods (Holm).

        ``spreads`` is method -> what `resampled` returned, all on the same images with the same seed."""
        methods = [method for method in spreads if method != baseline]
        base = spreads[baseline]
        tests = {c: holm([paired_p_value(spreads[m][c], base[c]) for m in methods]) for c in self.columns}
        return {method: {column: tests[column][i] for column in self.columns} for i, method in enumerate(methods)}

    def variance(
        self, ours: Seeds, theirs: Seeds, column: str, reference: Records | None = None, seed: int = 0
    ) -> Variance:
        """How a column's difference between two methods, judged on the same images, varies with images and seeds."""
        n_images = check_same_images([*ours, *theirs])
        images = np.concatenate([np.ones((1, n_images)), resample(n_images, self.resamples, seed)])
        pairs = zip(ours, theirs, strict=True)
        both = [[self.values(records, images, reference)[column] for records in pair] for pair in pairs]
        differences = [a - b for a, b in both]
        return Variance.of([d[0] for d in differences], np.stack([d[1:] for d in differences]), n_images)

    @property
    def compares(self) -> bool:
        """Whether the targets' pictures are looked at."""
        return any(observer.compares for observer in self.observers)

    def check(self) -> None:
        """Raises what judging would raise for missing or wrong weights of an observer."""
        for observer in self.observers:
            observer.check()

    def absent(self, records: Records) -> dict[str, str]:
        """Columns that these records cannot fill -> the reason."""
        return {column: reason for metric in self.metrics for column, reason in metric.absent(records).items()}

    def judge(
        self, estimator: Estimator, images: Tensor, samples: Sequence[Sample], real: bool = False
    ) -> list[Judged]:
        """Examines one batch: ``images [B, 3, H, W]`` in [-1, 1], or what else ``sample`` says, and their targets.

        Keypoints are on the images' pixels. ``real``: they are the data set's, the reference of distances of sets."""
        found = estimator.examine(images)
        features = [None] * len(samples) if found.features is None else found.features
        looks = [observer.observe(images, samples, estimator, real) for observer in self.observers]
        observed = [{name: value for look in looks for name, value in look[i].items()} for i in range(len(samples))]
        wholes = map(whole_of, samples)
        facts = zip(samples, found.poses, found.attributes, features, observed, wholes, strict=True)
        return [Judged(s.id, s.keypoints, s.areas, poses, s.attributes, *more) for s, poses, *more in facts]

    write, read = staticmethod(write_records), staticmethod(read_records)


def whole_of(sample: Sample) -> Pose | None:
    """The people of a sample with all joints that are known."""
    return None if sample.whole_body is None else Pose(WHOLE_BODY_133, sample.whole_body)


def place(image: Judged) -> dict[str, Any]:
    """What tables are broken down by, and where an image comes from.

    ``scenario`` and ``action`` (that of the person, or ``several``) as far as the data knows them, and the cut out
    of the stored picture as ``crop_left`` and so on, in its pixels. ``people`` is from the pose metric."""
    attributes = image.attributes
    named = {"scenario": str(attributes["scenario"])} if "scenario" in attributes else {}
    told = attributes.get("actions") or ()  # of data about single people it is a word, not a list of one
    if actions := {told} if isinstance(told, str) else set(told):
        named["action"] = str(min(actions)) if len(actions) == 1 else "several"
    return named | {f"crop_{name}": float(attributes["crop"].get(name, 0)) for name in CROP if "crop" in attributes}


def check_same_images(seeds: Sequence[Mapping]) -> int:
    """The number of images, after checking that all seeds were judged on the same ones in the same order."""
    if not seeds or not count_images(seeds[0]):
        raise ValueError("there are no records to make a row from; run the evaluation first")
    for records in seeds[1:]:
        if list(records["id"]) != list(seeds[0]["id"]):
            raise ValueError("the seeds of a row were judged on different images; evaluate all seeds on the same data")
    return count_images(seeds[0])
