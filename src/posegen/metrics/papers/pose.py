"""The pose metrics of HumanSD, StablePose and GRPose as their shared program computes them, errors included.

Protocol ``paper_pose`` is for published tables, ``corrected`` the one to trust. Against COCO on the whole set:

* Ground truth are the first ten people of a sample; whoever has a joint with x > 0 counts. The area of a person spans
  all 17 joints, where a missing joint stands at (-1, -1): occluded people become as large as their distance from the
  corner and are forgiven errors of that size.
* Every batch of images is evaluated by itself, an incomplete last one not at all; a table has their mean.
* A batch without people of a size has an AP of -1 there, which enters the mean. ``paper_AP_M`` is that mean;
  ``paper_AP_M_defined`` leaves such batches out. Which of the two the papers print is not known.
* SAP is the average precision with the literal `pose_similarity.cosine`, whose NaN matches at every threshold.
* PCE compares the numbers of people in the first k images of a batch, k being how many of its images have people, so
  that an image without people hides the last one. A batch without any people has no PCE and is left out of the mean.
* The detector sees red and blue swapped.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from posegen.metrics.base import Column, Judged, Metric, Poses, Records, Values, count_images
from posegen.metrics.math.average_precision import COCO_RANGES, MAX_DETECTIONS, Ranking, rank
from posegen.metrics.math.oks import oks
from posegen.metrics.math.pose_similarity import cosine
from posegen.ranges import AtLeastOne

MAX_PEOPLE = 10
MISSING = (-1.0, -1.0, 0.0)
STATISTICS = ("AP", "AP50", "AP75", "AP_M", "AP_L", "AR", "AR50", "AR75", "AR_M", "AR_L")
COLUMNS = ("AP", "AP_M", "AP_L", "AR", "SAP", "PCE")
EMPTY_BATCH = "batches without people of that size count as -1, as published"


class PaperPoseMetric(Metric):
    """Published pose columns: mean over batches of COCO's AP, AP(m), AP(l), AR and SAP (percent) and PCE (people).

    Poses are those that the observer ``swapped`` saw, else the judge's own. Intervals are an approximation: a resample
    counts every batch by the mean weight of its images; batches of resampled images would need to be matched anew.

    ``batch`` is the images per row of the published program (StablePose and GRPose 4, HumanSD 10); ``drop_last`` leaves
    an incomplete one out; ``count_only_with_people`` is the published error of PCE, False compares all images."""

    columns = (
        Column("paper_AP", "higher", 0, "accuracy", 3, "%", published=True),
        Column("paper_AP_M", "higher", None, "accuracy", unit="%", remark=EMPTY_BATCH, published=True),
        Column("paper_AP_L", "higher", None, "accuracy", unit="%", remark=EMPTY_BATCH, published=True),
        Column("paper_AR", "higher", None, "accuracy", unit="%", published=True),
        Column("paper_SAP", "higher", 0, "accuracy", unit="%", published=True),
        Column("paper_PCE", "lower", 0, "count", unit="people", published=True),
        *(Column(f"paper_AP_{s}_defined", "higher", None, "accuracy", unit="%", published=True) for s in "ML"),
    )

    def __init__(self, batch: AtLeastOne = 4, drop_last: bool = True, count_only_with_people: bool = True) -> None:
        if batch < 1:
            raise ValueError(f"batch is {batch}; expected the number of images per batch, at least 1")
        self.batch, self.drop_last, self.count_only_with_people = batch, drop_last, count_only_with_people

    def absent(self, records: Records) -> dict[str, str]:
        if count_images(records) >= self.batch or not self.drop_last:
            return {}
        fix = "lower the batch of PaperPoseMetric in the protocol, or judge more images"
        return dict.fromkeys(self.columns, f"there are fewer images than a batch of {self.batch}; {fix}")

    def record(self, judged: Judged) -> dict[str, float | np.ndarray]:
        """Similarities ``[D, P]``, detections' scores and extents (best first), people's areas, both numbers."""
        keypoints = np.asarray(judged.keypoints[:MAX_PEOPLE], float).reshape(-1, 17, 3)
        keypoints = np.where(keypoints[..., 2:] > 0, keypoints, MISSING)
        keypoints = keypoints[(keypoints[..., 0] > 0).any(-1)]
        poses: Poses = judged.observed.get("swapped", judged.found)
        # The evaluation passes over poses without a visible joint, the count does not.
        visible = np.flatnonzero((poses.keypoints[..., 2] > 0).any(-1))
        order = visible[np.argsort(-poses.scores[visible], kind="stable")[:MAX_DETECTIONS]]
        found = poses.keypoints[order].astype(float)
        areas = np.ptp(keypoints[..., :2], axis=1).prod(-1)
        facts: dict[str, float | np.ndarray] = {"people": float(len(keypoints)), "found": float(len(poses))}
        facts |= {"oks": oks(found, keypoints, areas), "cosine": cosine(found, keypoints, literal=True)}
        facts |= {"scores": poses.scores[order], "areas": areas}
        facts["extents"] = np.ptp(found[..., :2], axis=1).prod(-1)
        return {f"paper_{name}": value for name, value in facts.items()}

    def resampled(self, records: Records, weights: np.ndarray, reference: Records | None = None) -> Values:
        images = count_images(records)
        used = images - images % self.batch if self.drop_last else images
        if not used:
            return {name: np.full(len(weights), np.nan) for name in self.columns}
        row = rows({name: values[:used] for name, values in records.items()}, self.batch, self.count_only_with_people)
        starts = np.arange(0, used, self.batch)
        share = np.add.reduceat(weights[:, :used], starts, axis=1) / np.diff([*starts, used])
        row |= {f"{name}_defined": np.where(row[name] == -1, np.nan, row[name]) for name in ("AP_M", "AP_L")}
        means = {name: mean_over_batches(share, row[name]) for name in (*COLUMNS, "AP_M_defined", "AP_L_defined")}
        return {f"paper_{name}": value if name == "PCE" else 100 * value for name, value in means.items()}


def mean_over_batches(share: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Weighted means ``[R]`` of the ``values [B]`` that are defined, by ``share [R, B]``."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return share[:, defined] @ values[defined] / share[:, defined].sum(1)


def rows(records: Records, batch: int, count_only_with_people: bool = True) -> dict[str, np.ndarray]:
    """What the published program writes per batch, ``[B]`` each: `STATISTICS` (-1 without people), with S for SAP, PCE.

    ``records`` are those of `PaperPoseMetric.record`; ``batch`` images make a row, the last may have fewer."""
    values: dict[str, np.ndarray] = {}
    rest = records["paper_scores"], records["paper_areas"], records["paper_extents"]
    for prefix, similarity in (("", "paper_oks"), ("S", "paper_cosine")):
        for suffix, area_range in COCO_RANGES.items():
            found = statistics(rank(records[similarity], *rest, area_range).split(batch))
            values |= {f"{prefix}{name}{suffix}": value for name, value in found.items() if name + suffix in STATISTICS}
    difference = np.abs(np.subtract(records["paper_people"], records["paper_found"]))
    populated = np.asarray(records["paper_people"]) > 0
    return values | {"PCE": count_errors(difference, populated, batch, count_only_with_people)}


def statistics(batches: Sequence[Ranking]) -> dict[str, np.ndarray]:
    found = [ranking.statistics(np.ones((1, len(ranking.people)))) for ranking in batches]
    return {name: np.nan_to_num([row[name][0] for row in found], nan=-1.0) for name in found[0]}


def count_errors(difference: np.ndarray, populated: np.ndarray, batch: int, only_with_people: bool) -> np.ndarray:
    """PCE ``[B]`` from every image's difference in numbers ``[n]``, NaN where no image counts."""
    errors = []
    for start in range(0, len(difference), batch):
        own, some = difference[start : start + batch], populated[start : start + batch]
        own = own[: some.sum()] if only_with_people else own
        errors.append(own.mean() if len(own) else np.nan)
    return np.array(errors)
