"""Does the image show the people it was asked for? Average precision, PCK and the number of people."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from posegen.metrics.base import Judged, Metric, Records
from posegen.metrics.oks import oks
from posegen.metrics.precision import EVERY_AREA, rank

MAX_DETECTIONS = 20


class PoseMetric(Metric):
    """COCO keypoint AP and AR, PCK, mean OKS (all in percent) and person counts, on the whole set.

    People without a labelled keypoint do not count anywhere. AP punishes surplus people; PCK and OKS take each person's most similar detection and do not.

    Args:
        area_ranges: suffix of the columns -> (least, largest) person area in square pixels, for instance ``{"": (0, 1e10), "_M": (1024, 9216)}``.
        pck: radius of a correct keypoint relative to the longer side of the person's keypoint box.
    """

    lower_is_better = frozenset({"count_error"})

    def __init__(self, area_ranges: Mapping[str, tuple[float, float]] | None = None, pck: float = 0.1) -> None:
        self.area_ranges = {suffix: (float(low), float(high)) for suffix, (low, high) in (area_ranges or {"": EVERY_AREA}).items()}
        self.pck = pck
        precisions = [name + suffix for suffix in self.area_ranges for name in ("AP", "AP50", "AP75", "AR")]
        self.columns = (*precisions, f"PCK@{pck:g}", "OKS", "count_error", "count_bias")

    def record(self, judged: Judged) -> dict[str, float | np.ndarray]:
        """``oks [D, P]`` with its ``scores``, ``areas`` and ``extents``, best detection first, and sums over the image's people."""
        labelled = (judged.keypoints[..., 2] > 0).any(-1)
        keypoints, areas = judged.keypoints[labelled], np.asarray(judged.areas)[labelled]
        order = np.argsort(-judged.found.scores, kind="stable")[:MAX_DETECTIONS]
        found = judged.found.keypoints[order]
        similarity = oks(found, keypoints, areas)
        correct, best = self._best(found, similarity, keypoints, areas)
        return {
            "people": float(len(keypoints)),
            "found": float(len(judged.found)),
            "joints": float((keypoints[..., 2] > 0).sum()),
            "joints_correct": float(correct),
            "oks_sum": float(best),
            "oks": similarity,
            "scores": judged.found.scores[order],
            "areas": areas,
            "extents": np.prod(np.ptp(found[..., :2], axis=1), axis=-1),
        }

    def _best(self, found: np.ndarray, similarity: np.ndarray, keypoints: np.ndarray, areas: np.ndarray) -> tuple[int, float]:
        """Correct keypoints and summed similarity when every person has its most similar detection."""
        if not similarity.size:
            return 0, 0.0
        labelled = keypoints[..., 2] > 0
        nearest = found[similarity.argmax(0)]
        distance = np.linalg.norm(nearest[..., :2] - keypoints[..., :2], axis=-1)
        radius = self.pck * longer_side(keypoints, areas)
        return int((labelled & (distance <= radius[:, None])).sum()), float(similarity.max(0).sum())

    def resampled(self, records: Records, weights: np.ndarray, reference: Records | None = None) -> dict[str, np.ndarray]:
        values: dict[str, np.ndarray] = {}
        for suffix, area_range in self.area_ranges.items():
            ranking = rank(records["oks"], records["scores"], records["areas"], records["extents"], area_range)
            curves = [ranking.precision_and_recall(w) for w in weights]
            precision, recall = (100 * np.array([curve[i] for curve in curves]) for i in (0, 1))
            families = {"AP": precision.mean(1), "AP50": precision[:, 0], "AP75": precision[:, 5], "AR": recall.mean(1)}
            values |= {name + suffix: value for name, value in families.items()}
        total = {name: weights @ np.asarray(records[name], float) for name in ("people", "found", "joints", "joints_correct", "oks_sum")}
        surplus = np.asarray(records["found"], float) - np.asarray(records["people"], float)
        with np.errstate(invalid="ignore"):
            values[f"PCK@{self.pck:g}"] = 100 * total["joints_correct"] / total["joints"]
            values["OKS"] = 100 * total["oks_sum"] / total["people"]
            values["count_error"] = weights @ np.abs(surplus) / weights.sum(1)
            values["count_bias"] = weights @ surplus / weights.sum(1)
        return values


def longer_side(keypoints: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """The longer side ``[P]`` of the box around each person's labelled keypoints, the square root of its area where that box is a point."""
    labelled = keypoints[..., 2:] > 0
    low = np.where(labelled, keypoints[..., :2], np.inf).min(1)
    high = np.where(labelled, keypoints[..., :2], -np.inf).max(1)
    side = (high - low).max(-1)
    return np.where(side > 0, side, np.sqrt(areas))
