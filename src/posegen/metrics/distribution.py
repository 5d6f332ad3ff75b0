"""How far the generated images are from real ones as a set, in the judge's own feature space.

The columns are named after the judge: FID and KID are distances in the features of one Inception network.
"""

from __future__ import annotations

import numpy as np

from posegen.metrics.base import Column, Judged, Metric, Records, Values, count_images
from posegen.metrics.math.frechet import frechet_distances, frechet_first_order, kernel_distances

EXACT = 200  # dimensions up to which each resample's Frechet distance is computed; above: to first order


class DistributionMetric(Metric):
    """Frechet and kernel distance of generated and real images' features; NaN without a reference or features.

    Both depend on the number of images (the Frechet distance falls with it), so compare rows of equal size only."""

    # A resample repeats images, which looks like less variety: the Frechet distance grows although nothing changed.
    columns = (
        Column("judge_frechet", "lower", family="quality", axis=6, inflated=True),
        Column("judge_kernel", "lower", family="quality"),
    )

    def record(self, judged: Judged) -> dict[str, float | np.ndarray]:
        return {} if judged.features is None else {"features": np.asarray(judged.features, np.float32)}

    def resampled(self, records: Records, weights: np.ndarray, reference: Records | None = None) -> Values:
        if reference is None or "features" not in records or "features" not in reference:
            return {name: np.full(len(weights), np.nan) for name in self.columns}
        for what, count in (("generated", count_images(records)), ("reference", count_images(reference))):
            if count < 2:
                fix = "judge more images or leave this metric out"
                raise ValueError(f"distances of sets need at least 2 {what} images, not {count}: {fix}")
        found, real = (np.stack(list(r["features"])).astype(float) for r in (records, reference))
        frechet = frechet_distances if found.shape[1] <= EXACT else frechet_first_order
        return {"judge_frechet": frechet(found, real, weights), "judge_kernel": kernel_distances(found, real, weights)}
