"""Observers of the judged images: swapped colours, and features after clean-fid's resizing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from posegen.data.base import Sample, to_uint8
from posegen.metrics.base import Estimator, Notes, Observer
from posegen.metrics.feature_networks import FeatureNetwork

WHOLE = 1e-3  # of a byte: far above rounding errors of whole values, far below what truncation is about


class Swapped(Observer):
    """Notes ``swapped``, the poses that the judge finds where red and blue are exchanged, as in the papers'
    evaluation, which cuts pixels to bytes instead of rounding. Saved pictures hold whole bytes, which stay."""

    def observe(self, images: Tensor, samples: Sequence[Sample], estimator: Estimator, real: bool) -> Notes:
        swapped = torch.from_numpy(truncated(images)[..., ::-1].copy()).permute(0, 3, 1, 2).to(images) / 127.5 - 1
        with torch.no_grad():
            return [{"swapped": poses} for poses in estimator.estimate(swapped)]


def truncated(images: Tensor) -> np.ndarray:
    """``[B, 3, H, W]`` in [-1, 1] to ``[B, H, W, 3] uint8``, cut to whole numbers."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5 + WHOLE).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


class CleanFeatures(Observer):
    """Notes ``<space>_features`` of every network, after the resizing of clean-fid's mode ``clean``.

    That is bicubic with antialiasing on floating-point channels, whatever the aspect ratio, cut to [0, 255] without
    rounding (Parmar et al. 2022, arXiv:2104.11222, section 4). ``networks`` is name of a feature space -> its
    network; those without weights are left out."""

    def __init__(self, networks: Mapping[str, FeatureNetwork]) -> None:
        self.networks = dict(networks)

    def check(self) -> None:
        for network in self.networks.values():
            network.check()

    def observe(self, images: Tensor, samples: Sequence[Sample], estimator: Estimator, real: bool) -> Notes:
        used = {space: network for space, network in self.networks.items() if network.configured}
        kinds = {space: (network.side, network.whole_bytes, network.middle) for space, network in used.items()}
        pictures = to_uint8(images)
        resized = {kind: clean_resized(pictures, *kind).to(images.device) for kind in {*kinds.values()}}
        features = {f"{space}_features": network.features(resized[kinds[space]]) for space, network in used.items()}
        return [{name: values[i] for name, values in features.items()} for i in range(len(samples))]


def clean_resized(pictures: np.ndarray, side: int, whole_bytes: bool = False, middle: bool = False) -> Tensor:
    """``[B, H, W, 3] uint8`` to ``[B, 3, side, side] float32`` in 0 to 255, by clean-fid's own function.

    ``whole_bytes``: rounded, as Pillow does; ``middle``: of the square in the middle."""
    from cleanfid.resize import make_resizer

    resize = make_resizer("PIL", whole_bytes, "bicubic", (side, side))
    if middle:
        height, width = pictures.shape[1:3]
        least = min(height, width)
        top, left = (height - least) // 2, (width - least) // 2
        pictures = pictures[:, top : top + least, left : left + least]
    resized = np.stack([resize(picture) for picture in pictures]).astype(np.float32)
    return torch.from_numpy(resized).permute(0, 3, 1, 2).contiguous()
