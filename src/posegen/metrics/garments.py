"""Does a person wear the right garments? Euclidean distances of median colours in CIE L*a*b* (1976; 2.3 is noticed).

A median, because a garment's border mixes with what lies behind it and some styles draw dark contours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from posegen.data.base import Garment
from posegen.metrics.math.statistics import bootstrap, interval, mean_of_known
from posegen.metrics.pixel_similarity import lab


def colour(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """``[3]`` median L*, a*, b* of ``image [H, W, 3] uint8`` within ``mask [H, W] bool``; NaN where that is empty."""
    return np.median(lab(image)[mask], axis=0) if mask.any() else np.full(3, np.nan)


def distance(some: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> float:
    """The mean distance of corresponding colours; those that are not there do not count."""
    each = [float(np.linalg.norm(a - b)) for a, b in zip(some, others, strict=True)]
    known = [value for value in each if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def transferred(
    picture: np.ndarray, mask: np.ndarray, result: np.ndarray, garments: Mapping[str, Sequence[Garment]]
) -> dict[str, float]:
    """What a result is like; see `posegen.data.base.Transfers` for the garments.

    ``outside_max_difference`` and ``inside_mean_difference`` are grey levels from the picture outside and inside
    the mask. Where garments are known, their colour distances follow: of the result ``to_style``, ``to_picture``
    and ``to_wrong_style``; of the untouched ``picture_to_style``; and of the same garments in another picture
    ``style_again_to_style``, which no result can be expected to undercut. ``gain`` is how much closer to the style
    the result is than the picture was, ``margin`` how much closer to the style than to the wrong one, ``follows`` 1
    where it is closer to the style than to the picture. Only the margin tells whether the style was read: what is
    painted grey has a gain, too, and is closer to half of all styles."""
    change = np.abs(result.astype(int) - picture)
    row = {"outside_max_difference": float(change[~mask].max(initial=0))}
    row["inside_mean_difference"] = float(change[mask].mean())
    if not garments:
        return row
    worn = {who: [colour(each.image, each.mask) for each in several] for who, several in garments.items()}
    made = [colour(result, each.mask) for each in garments["picture"]]
    to = {who: distance(made, worn[who]) for who in ("style", "picture", "wrong_style")}
    before, again = distance(worn["picture"], worn["style"]), distance(worn["style_again"], worn["style"])
    row |= {f"to_{who}": value for who, value in to.items()}
    row |= {"picture_to_style": before, "style_again_to_style": again}
    margin, follows = to["wrong_style"] - to["style"], float(to["style"] < to["picture"])
    return row | {"gain": before - to["style"], "margin": margin, "follows": follows}


def summarised(rows: Sequence[Mapping[str, float]], resamples: int = 1000, level: float = 0.95) -> list[dict[str, Any]]:
    """For every column its mean with a bootstrap interval over the images, and its largest value."""

    def means(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {name: mean_of_known(v.tolist(), weights) for name, v in values.items()}

    values = {name: np.array([row[name] for row in rows], float) for name in rows[0]}
    means_of_all, spread = means(np.ones((1, len(rows)))), bootstrap(means, len(rows), resamples)
    table = []
    for name, v in values.items():
        low, high = interval(spread[name], level)
        known = v[np.isfinite(v)]
        row = {"column": name, "mean": float(means_of_all[name][0]), "lo": low, "hi": high}
        table.append({**row, "largest": float(known.max(initial=-np.inf)), "n_images": len(known)})
    return table
