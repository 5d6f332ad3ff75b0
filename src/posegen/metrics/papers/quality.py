"""FID and KID as the scripts of Stable-Pose and GRPose compute them, with all that they do to the pictures before.

What differs from the usual definition, each of which changes the values:

* real pictures are whole files, generated ones went through JPEG with red and blue swapped; both are cut to squares;
* pixels are normalised as ImageNet's before they become bytes again, so that values outside 0 to 255 wrap around;
* FID is in the 64 features after the network's first pooling, where 250 images suffice for a covariance;
* a value per scenario, then the plain mean over scenarios, for KID over those that have one.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from posegen.data.base import Sample
from posegen.metrics.base import Column, Estimator, Judged, Metric, Notes, Observer, Records, Values
from posegen.metrics.feature_networks import FidelityInception
from posegen.metrics.image_features import truncated
from posegen.metrics.math.frechet import frechet_first_order, kernel_distance_subsets, kernel_distances, random_subsets
from posegen.metrics.quality import features_of, rows_by_scenario

SPACES = ("paper_64", "paper_2048", "paper_fixed_64")  # names of the features in observations and records
SIDE = 299
QUALITY = 95  # of the JPEG files
SUBSETS, SUBSET_SIZE = 100, 200
KID_FACTOR = 100  # of the Human-Art tables
AS_FID = "FID as in the papers' scripts: 64 features, pixel values wrap around, mean over scenarios"
AS_KID = f"KID as in the papers' scripts, times {KID_FACTOR}: {SUBSETS} subsets of {SUBSET_SIZE}, mean over scenarios"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's images in [0, 1], RGB


def wrapped_bytes(pixels: np.ndarray, generated: bool) -> np.ndarray:
    """What the network sees instead of ``pixels [..., 3] uint8`` RGB: normalised, times 255, cut, modulo 256.

    Red and blue of ``generated`` pictures are exchanged first."""
    image = torch.from_numpy(np.ascontiguousarray(pixels[..., ::-1] if generated else pixels)).float() / 255
    return (((image - torch.tensor(MEAN)) / torch.tensor(STD)) * 255).long().remainder(256).to(torch.uint8).numpy()


def scenario_mean(scenarios: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Scenario -> metric -> value, a number or an array, to each metric's mean over scenarios, without None."""
    names = dict.fromkeys(name for values in scenarios.values() for name in values)
    known = {name: [v for values in scenarios.values() if (v := values.get(name)) is not None] for name in names}
    return {name: np.mean(values, axis=0) if values else np.nan for name, values in known.items()}


@dataclass(eq=False)
class PaperFeatures(Observer):
    """Notes ``paper_64`` and ``paper_2048``, features of pictures treated as above by torch-fidelity's Inception
    network, and ``paper_fixed_64``, of the same crops with right colours and values."""

    network: FidelityInception

    def check(self) -> None:
        self.network.check()

    def observe(self, images: Tensor, samples: Sequence[Sample], estimator: Estimator, real: bool) -> Notes:
        if not self.network.configured:
            return [{} for _ in samples]
        pictures = map(whole_picture, samples) if real else map(through_jpeg, truncated(images))
        crops = np.stack([cropped(picture) for picture in pictures])
        seen = self.network.pooled(as_tensor(wrapped_bytes(crops, generated=not real)).to(images.device), (64, 2048))
        fixed = self.network.pooled(as_tensor(crops).to(images.device), (64,))
        found = {"paper_64": seen[64], "paper_2048": seen[2048], "paper_fixed_64": fixed[64]}
        return [{name: values[i] for name, values in found.items()} for i in range(len(samples))]


def whole_picture(sample: Sample) -> np.ndarray:
    """The data set's whole picture ``[H, W, 3] uint8``; a ValueError where there is none."""
    picture = sample.image if sample.whole is None else sample.whole()
    if picture is None:
        fix = "use a data set with images or another protocol="
        raise ValueError(f"sample {sample.id} has no image, only a pose; paper_FID compares pictures: {fix}")
    return picture


def through_jpeg(picture: np.ndarray, quality: int = QUALITY) -> np.ndarray:
    """``[H, W, 3] uint8`` as it comes back from the file it would have been saved to."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file).convert("RGB"))


def cropped(picture: np.ndarray) -> np.ndarray:
    """``[H, W, 3] uint8`` to the central square of its shorter side, ``[299, 299, 3]``, with antialiasing."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as transform

    resized = transform.resize(Image.fromarray(picture), SIDE, InterpolationMode.BILINEAR, antialias=True)
    return np.asarray(transform.center_crop(resized, [SIDE, SIDE]))


def as_tensor(pictures: np.ndarray) -> Tensor:
    """``[B, H, W, 3] uint8`` to ``[B, 3, H, W] float32`` in 0 to 255."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float()


class PaperQualityMetric(Metric):
    """``paper_FID`` and ``paper_KID`` (times 100), means over scenarios; ``paper_fixed_FID``: without the two mistakes.

    Data without scenarios count as one. KID is the mean over 100 random subsets of 200, seeded here; it needs more
    than 200 generated images in a scenario. Intervals of FID are as in `frechet_first_order`, of KID over all pairs."""

    columns = (
        Column("paper_FID", "lower", 0, "quality", 2, published=True, remark=AS_FID),
        Column("paper_KID", "lower", 0, "quality", published=True, remark=AS_KID),
        Column("paper_fixed_FID", "lower", None, "quality", remark="paper_FID with right colours and pixel values"),
    )

    def absent(self, records: Records) -> dict[str, str]:
        if "paper_64" not in records:
            fix = "set protocol.paper_inception=PATH of weights-inception-2015-12-05-6726825d.pth"
            return dict.fromkeys(self.columns, f"the network is not configured: {fix}")
        largest = max(len(rows) for rows, _ in rows_by_scenario(records, records).values())
        reason = f"no scenario has more than {SUBSET_SIZE} generated images, the largest has {largest}"
        return {} if largest > SUBSET_SIZE else {"paper_KID": reason}

    def record(self, judged: Judged) -> dict[str, np.ndarray]:
        return {name: judged.observed[name] for name in SPACES if name in judged.observed}

    def resampled(self, records: Records, weights: np.ndarray, reference: Records | None = None) -> Values:
        nothing = np.full(len(weights), np.nan)
        if reference is None or "paper_64" not in records or "paper_64" not in reference:
            return dict.fromkeys(self.columns, nothing)
        scenarios = {}
        for name, (rows, real) in rows_by_scenario(records, reference).items():
            sets = {space: (features_of(records, space, rows), features_of(reference, space, real)) for space in SPACES}
            scenarios[name] = {"paper_KID": subset_kid(*sets["paper_2048"], weights[:, rows])}
            for column, space in (("paper_FID", "paper_64"), ("paper_fixed_FID", "paper_fixed_64")):
                enough = min(len(rows), len(real)) > 1
                scenarios[name][column] = frechet_first_order(*sets[space], weights[:, rows]) if enough else nothing
        return {column: np.broadcast_to(value, nothing.shape) for column, value in scenario_mean(scenarios).items()}


def subset_kid(found: np.ndarray, real: np.ndarray, weights: np.ndarray) -> np.ndarray | None:
    """KID ``[R]`` of the subsets, times its factor, which resamples change as they do all pairs'; None if too few."""
    if len(found) <= SUBSET_SIZE or len(real) < SUBSET_SIZE:
        return None
    value = kernel_distance_subsets(found, real, random_subsets(len(found), len(real), SUBSETS, SUBSET_SIZE)).mean()
    if (weights == 1).all():
        return np.full(len(weights), KID_FACTOR * value)
    spread = kernel_distances(found, real, np.concatenate([np.ones((1, len(found))), weights]))
    return KID_FACTOR * (value + spread[1:] - spread[0])
