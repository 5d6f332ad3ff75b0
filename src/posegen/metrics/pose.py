"""Does the image show the people it was asked for? Average precision, PCK and the number of people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from posegen.metrics.base import Column, Judged, Metric, Records, Values
from posegen.metrics.math.average_precision import EVERY_AREA, MAX_DETECTIONS, summary
from posegen.metrics.math.keypoint_errors import correct_joints
from posegen.metrics.math.oks import box_areas, oks
from posegen.metrics.math.pose_similarity import SIMILARITIES
from posegen.ranges import NotNegative, Positive, ZeroToOne


class PoseMetric(Metric):
    """COCO keypoint AP and AR, PCK, mean OKS (all in percent) and person counts, on the whole set.

    People without a labelled keypoint do not count anywhere. AP punishes surplus people; PCK and OKS take each
    person's most similar detection and do not.

    ``area_ranges`` are suffix of the columns -> (least, largest) person area in square pixels, for instance ``{"": [0,
    1e10], _M: [1024, 9216]}``; a range with a suffix has AP and AR only. ``pck`` is the radius of a correct keypoint
    relative to the longer side of the person's keypoint box, ``similarities`` are names in `SIMILARITIES`, in the place
    of OKS, and ``confident`` adds ``count_error_confident``, of detections of at least this score."""

    def __init__(
        self,
        area_ranges: Mapping[str, tuple[NotNegative, NotNegative]] | None = None,
        pck: Positive = 0.1,
        similarities: Sequence[str] = (),
        confident: ZeroToOne | None = None,
    ) -> None:
        self.area_ranges = {}
        for suffix, (low, high) in (area_ranges or {"": EVERY_AREA}).items():
            self.area_ranges[suffix] = float(low), float(high)
            if not low < high:
                expected = "expected the least and the largest area, in square pixels"
                raise ValueError(f"area_ranges: '{suffix}' is [{low:g}, {high:g}]; {expected}")
        if unknown := [name for name in similarities if name not in SIMILARITIES]:
            raise ValueError(f"similarities: there is no {unknown[0]!r}; choose from {', '.join(SIMILARITIES)}")
        self.pck, self.similarities, self.confident = pck, list(similarities), confident
        places = {"AP50": 1, "AP": 2, "AP75": 3, "AR": 4}  # as shown, behind PCK
        precisions = [n + s for s in self.area_ranges for n in (("AP", "AR") if s else ("AP", "AP50", "AP75", "AR"))]
        sure = Column("count_error_confident", "lower", None, "count", unit="people")
        self.columns = (
            *(Column(n, "higher", places.get(n), "accuracy", 1 if n == "AP" else None, "%") for n in precisions),
            *(Column(name, "higher", None, "accuracy", unit="%") for name in self.similarities),
            Column(f"PCK@{pck:g}", "higher", 0, "accuracy", 0, "%"),
            Column("OKS", "higher", None, "accuracy", unit="%"),
            Column("count_error", "lower", 5, "count", unit="people"),
            *([sure] if confident is not None else []),
            Column("count_bias", None, 6, "count", unit="people"),
        )

    def record(self, judged: Judged) -> dict[str, float | np.ndarray]:
        """``oks [D, P]`` with ``scores``, ``areas`` and ``extents``, best detection first, sums over people, and the
        poses that these are of: ``detections [D, 17, 3]`` and ``keypoints [P, 17, 3]``.

        An area that is no number is that of the box around the labelled keypoints."""
        labelled = (judged.keypoints[..., 2] > 0).any(-1)
        keypoints, areas = judged.keypoints[labelled], np.asarray(judged.areas)[labelled]
        areas = np.where(np.isnan(areas), box_areas(keypoints), areas)
        order = np.argsort(-judged.found.scores, kind="stable")[:MAX_DETECTIONS]
        found = judged.found.keypoints[order]
        similarity = oks(found, keypoints, areas)
        correct, best = 0.0, 0.0  # keypoints and summed similarity when every person has its most similar detection
        if similarity.size:
            correct = float(correct_joints(found, keypoints, areas, self.pck).sum())
            best = float(similarity.max(0).sum())
        extents, labels = np.ptp(found[..., :2].astype(float), axis=1).prod(-1), (keypoints[..., 2] > 0).sum()
        facts: dict[str, float | np.ndarray] = {"people": float(len(keypoints)), "found": float(len(judged.found))}
        facts |= {"joints": float(labels), "joints_correct": correct, "oks_sum": best, "oks": similarity}
        facts |= {"scores": judged.found.scores[order], "areas": areas, "extents": extents}
        facts |= {"detections": found.astype(np.float32), "keypoints": keypoints.astype(np.float32)}  # for diagnosis
        if self.confident is not None:
            facts["confident"] = float((judged.found.scores >= self.confident).sum())
        return facts | {f"similarity_{name}": SIMILARITIES[name](found, keypoints, areas) for name in self.similarities}

    def resampled(self, records: Records, weights: np.ndarray, reference: Records | None = None) -> Values:
        rest = records["scores"], records["areas"], records["extents"], weights
        found = summary(records["oks"], *rest, self.area_ranges)
        for name in self.similarities:
            found[name] = summary(records[f"similarity_{name}"], *rest, {"": EVERY_AREA})["AP"]
        values = {name: 100 * found[name] for name in self.columns if name in found}

        def per_image(name: str) -> np.ndarray:
            return np.asarray(records[name], float)

        surplus = per_image("found") - per_image("people")
        with np.errstate(invalid="ignore"):
            joints, correct = weights @ per_image("joints"), weights @ per_image("joints_correct")
            values[f"PCK@{self.pck:g}"] = 100 * correct / joints
            values["OKS"] = 100 * (weights @ per_image("oks_sum")) / (weights @ per_image("people"))
            values["count_error"] = weights @ np.abs(surplus) / weights.sum(1)
            values["count_bias"] = weights @ surplus / weights.sum(1)
            if self.confident is not None:
                surplus = per_image("confident") - per_image("people")
                values["count_error_confident"] = weights @ np.abs(surplus) / weights.sum(1)
        return values
