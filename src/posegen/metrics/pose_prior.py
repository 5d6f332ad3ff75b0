"""The protocol of text-to-pose models: fit of a pose to its caption, spread among poses of one, and valid bodies.

A pose lives in its person's own square (`posegen.poses.pose_square`), so place and size on a canvas count nowhere.
Lengths are in cells of a grid of 32 over that square, as in GUNet's released program.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from torch import Tensor

from posegen.data.base import Sample
from posegen.metrics.base import Column, Estimator, Judged, Metric, Poses, Records, Values
from posegen.metrics.math.statistics import mean_of_known
from posegen.metrics.protocol import Protocol
from posegen.poses.topology import COCO_BONES
from posegen.ranges import AtLeastOne, Positive, Probability

GRID = 32
HALF = GRID / 2  # cells per unit of the square's coordinates
BONES = np.array(COCO_BONES)
LEAST_JOINTS = 8  # of a body, as in GUNet's data
TOLERANCE = 0.1  # by which a bone may leave the range of real ones


class PosePriorMetric(Metric):
    """Distances to the target and to other real poses that the caption asks for as well, spread, and validity.

    * ``MSE``: dx^2 + dy^2 to the target over joints that both have, in cells^2 (GUNet, section 4.4). A mean pose wins.
    * ``variance``: var x + var y of each joint among the poses of a caption, over joints, in cells^2 (Var there). More
    is not better as such: compare with real poses of one caption.
    * ``target_PCK``: share of the target's joints that are hit, in percent.
    * ``nearest_MSE``, ``nearest_PCK``: the same to the nearest real pose of the same request.
    * ``diversity``: mean distance of a joint between two poses of a caption, in cells.
    * ``validity``: share of poses, in percent, with at least 8 joints, no bone longer than such a bone is in reality
    and a whole that is not shorter, each with a tolerance of a tenth.
    * ``presence``: share of joints, in percent, that are there exactly where the target has them.

    ``pck`` is the radius of a hit joint, relative to the longer side of the target's box; ``same`` the attribute of a
    sample that decides which pose is asked for, one entry per person where it is a list. Real poses of the same request
    are the target and those of the validation split with its attribute."""

    def __init__(self, pck: Positive = 0.1, same: str = "actions") -> None:
        self.pck, self.same = pck, same
        # Spread is best where it is that of real poses.
        self.columns = (
            Column("MSE", "lower", family="quality", axis=8, unit="cells²"),
            Column("variance", None, unit="cells²"),
            Column(f"target_PCK@{pck:g}", family="accuracy", unit="%"),
            Column("nearest_MSE", "lower", family="accuracy", unit="cells²"),
            Column(f"nearest_PCK@{pck:g}", family="accuracy", axis=2, unit="%"),
            Column("diversity", None, family="quality", axis=7, unit="cells"),
            Column("validity", family="quality", unit="%"),
            Column("presence", family="accuracy", unit="%"),
        )

    def record(self, judged: Judged) -> dict[str, Any]:
        """``truth [17, 3]`` and ``poses [K, 17, 3]`` in the coordinates of the square, and ``request``."""
        asked: Any = judged.attributes.get(self.same, "")
        return {"request": str(asked), "truth": judged.keypoints[0], "poses": judged.found.keypoints}

    def resampled(self, records: Records, weights: np.ndarray, reference: Records | None = None) -> Values:
        real = reference if reference is not None else {"request": [], "truth": []}
        range_of_bones = bone_range(np.array([*real["truth"]] or [*records["truth"]]))
        others, rows = list(zip(real["request"], real["truth"], strict=True)), []
        for request, truth, poses in zip(records["request"], records["truth"], records["poses"], strict=True):
            alike = [other for asked, other in others if request != "" and asked == request]
            rows.append((*self.fit(poses, np.array([truth, *alike])), *spread(poses), validity(poses, range_of_bones)))
        hits = f"target_PCK@{self.pck:g}", f"nearest_PCK@{self.pck:g}"
        names = ("MSE", hits[0], "nearest_MSE", hits[1], "presence", "variance", "diversity", "validity")
        columns = zip(names, zip(*rows, strict=True), strict=True)
        return {name: mean_of_known(values, weights) for name, values in columns}

    def fit(self, poses: np.ndarray, truths: np.ndarray) -> tuple[float, float, float, float, float]:
        """(MSE, PCK, nearest MSE and PCK, presence) of ``poses [K, 17, 3]`` to ``truths [T, 17, 3]``, target first."""
        made, wanted = poses[:, None, :, 2] > 0, truths[None, :, :, 2] > 0
        squared = (HALF**2) * ((poses[:, None, :, :2] - truths[None, :, :, :2]) ** 2).sum(-1)
        error = mean_where(squared, made & wanted)
        radius = self.pck * extents(truths)[None, :, None]
        hit = 100 * mean_where(made & (squared <= radius**2), wanted & np.ones_like(made))
        agrees = 100 * (made[:, 0] == wanted[:, 0]).mean()
        nearest, most = (np.where(np.isnan(values), -np.inf, values).max(1) for values in (-error, hit))
        return nan_mean(error[:, 0]), nan_mean(hit[:, 0]), -nan_mean(nearest), nan_mean(most), agrees


def extents(poses: np.ndarray) -> np.ndarray:
    """The longer side ``[T]`` of each pose's box in cells."""
    known = poses[..., 2:] > 0
    low, high = np.where(known, poses[..., :2], np.inf).min(-2), np.where(known, poses[..., :2], -np.inf).max(-2)
    return np.maximum(HALF * (high - low).max(-1), 0)


def spread(poses: np.ndarray) -> tuple[float, float]:
    """(variance, diversity) among poses ``[K, 17, 3]``; of joints that two or more have, else NaN."""
    there = poses[..., 2] > 0
    pairs = there[:, None] & there[None] & ~np.eye(len(poses), dtype=bool)[..., None]
    squared = HALF**2 * ((poses[:, None, :, :2] - poses[None, :, :, :2]) ** 2).sum(-1)
    count = there.sum(0)
    several = count >= 2
    if not several.any():
        return float("nan"), float("nan")
    # The variance is half the mean squared difference over all pairs, each element with itself too.
    variances = np.where(pairs, squared, 0).sum((0, 1))[several] / (2 * count[several] ** 2)
    return float(variances.mean()), float(np.sqrt(squared[pairs]).mean())


def bone_range(poses: np.ndarray) -> tuple[np.ndarray, float]:
    """(greatest length of each bone, least mean length in a body) of ``poses [N, 17, 3]``, in units of the square."""
    lengths = bone_lengths(poses)
    whole = lengths[(poses[..., 2] > 0).sum(-1) >= LEAST_JOINTS]
    longest = np.where(np.isnan(lengths), 0, lengths).max(0)
    return longest, float(np.nanmean(whole, axis=1).min()) if len(whole) else 0.0


def validity(poses: np.ndarray, real: tuple[np.ndarray, float]) -> float:
    """Share in percent of ``poses [K, 17, 3]`` whose bones could be real."""
    lengths, (longest, shortest) = bone_lengths(poses), real
    enough = (poses[..., 2] > 0).sum(-1) >= LEAST_JOINTS
    possible = (np.nan_to_num(lengths) <= (1 + TOLERANCE) * longest).all(-1)
    whole = np.array([nan_mean(row) for row in lengths]) >= (1 - TOLERANCE) * shortest
    return 100 * float((enough & possible & whole).mean())


def bone_lengths(poses: np.ndarray) -> np.ndarray:
    """Lengths ``[N, 16]`` of the bones, NaN where an end is absent."""
    a, b = poses[:, BONES[:, 0]], poses[:, BONES[:, 1]]
    return np.where((a[..., 2] > 0) & (b[..., 2] > 0), np.linalg.norm(a[..., :2] - b[..., :2], axis=-1), np.nan)


def mean_where(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Mean over the last axis of the values that count, NaN where none does."""
    with np.errstate(invalid="ignore"):
        return np.where(where, values, 0).sum(-1) / where.sum(-1)


def nan_mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


class PosePrior(Protocol):
    """Judges generated poses; an estimator is not needed.

    ``draws``: poses per caption, 10 in GUNet's evaluation. The other arguments are those of every protocol."""

    sample: Literal["image", "pose"] = "pose"
    note = f"MSE and variance in squared cells, diversity in cells, of a grid of {GRID} over the person's own square."

    def __init__(
        self,
        metrics: Sequence[Metric],
        draws: AtLeastOne = 10,
        name: str = "pose_prior",
        version: AtLeastOne = 1,
        resamples: AtLeastOne = 1000,
        level: Probability = 0.95,
    ) -> None:
        super().__init__(metrics, name, version, resamples, level)
        self.draws = draws

    def judge(
        self, estimator: Estimator, images: Tensor, samples: Sequence[Sample], real: bool = False
    ) -> list[Judged]:
        """Poses ``[B, K, 17, 3]`` or ``[B, 17, 3]`` of the main persons of B samples, beside the true ones."""
        drawn = images.float().cpu().numpy().reshape(len(samples), -1, 17, 3)
        found = zip(samples, (Poses(poses, np.ones(len(poses), np.float32)) for poses in drawn), strict=True)
        return [Judged(s.id, s.pose[None].numpy(), s.areas, poses, s.about_main) for s, poses in found]
