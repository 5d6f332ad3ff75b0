"""Does the image agree with its caption? Attributes that the judge finds against those that the caption asks for."""

from __future__ import annotations

import numpy as np

from posegen.metrics.base import Column, Judged, Metric, Records, Values
from posegen.metrics.math.statistics import mean_of_known

ATTRIBUTES = ("style", "scene", "count")


class CaptionMetric(Metric):
    """Share of images, in percent, whose style, scene and number of people are the target's, and their mean.

    Style and scene are the judge's classes; the number is that of the people it found. Unknown attributes are NaN."""

    columns = (
        *(Column(f"{name}_agreement", headline=None, family="caption", unit="%") for name in ATTRIBUTES),
        Column("caption_agreement", family="caption", unit="%"),
    )

    def record(self, judged: Judged) -> dict[str, float | np.ndarray]:
        found = {**judged.found_attributes, "count": len(judged.found)}
        return {f"{name}_agrees": agreement(judged.attributes.get(name), found.get(name)) for name in ATTRIBUTES}

    def resampled(self, records: Records, weights: np.ndarray, reference: Records | None = None) -> Values:
        shares = [mean_of_known(records[f"{name}_agrees"], weights, 100) for name in ATTRIBUTES]
        return {**dict(zip(self.columns, shares, strict=False)), "caption_agreement": np.mean(shares, axis=0)}


def agreement(wanted: object, found: object) -> float:
    """1 or 0, NaN where either side is silent."""
    return float("nan") if wanted is None or found is None else float(wanted == found)
