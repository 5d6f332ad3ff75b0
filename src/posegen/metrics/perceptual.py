"""LPIPS (Zhang et al. 2018, arXiv:1801.03924): the distance of two pictures in the features of AlexNet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from posegen.data.base import Sample, to_tensor, to_uint8
from posegen.metrics.base import Column, Estimator, Judged, Metric, Notes, Observer, Records, Values
from posegen.metrics.feature_networks import fill_from_file, verified
from posegen.metrics.math.statistics import mean_of_known
from posegen.metrics.pixel_similarity import target_picture

ALEXNET = "alexnet-owt-7be5be79.pth, torchvision's AlexNet"


class Lpips:
    """The distance, computed by the package ``lpips``, which brings linear layers; AlexNet's weights are the user's.

    ``alexnet`` is torchvision's file; None switches it off. ``linear`` is one of linear layers; None: version 0.1."""

    checkable = True  # the constructor loads nothing, see `posegen.config.checking.check.refused`

    def __init__(self, alexnet: str | None = None, linear: str | None = None) -> None:
        self.alexnet, self.linear, self.configured = alexnet, linear, alexnet is not None

    @property
    def network(self) -> nn.Module:
        """Frozen, in evaluation mode; of the same files there is one, whoever asks.

        Raises FileNotFoundError or ValueError where a file is missing, damaged or of another network, and
        ImportError, with the command that installs it, without the package."""
        return lpips_network(str(self.alexnet), self.linear)

    def check(self) -> None:
        """Reads the weights, if they are named."""
        if self.configured:
            _ = self.network

    def distances(self, made: Tensor, targets: Tensor) -> np.ndarray:
        """``[B]`` distances of ``[B, 3, H, W]``, which the network expects in [-1, 1]."""
        with torch.no_grad():
            self.network.to(made.device)
            return self.network(made.float(), targets.float()).flatten().cpu().numpy()


@cache
def lpips_network(alexnet_file: str, linear: str | None) -> nn.Module:
    """The network of these files, read once."""
    try:
        import lpips
    except ImportError as error:
        raise ImportError("LPIPS needs the package lpips: pip install 'posegen[metrics]'") from error
    from torchvision.models import alexnet

    with torch.device("meta"):  # its classifier, nine tenths of the weights, is not needed
        features = alexnet(weights=None).features
    file = verified(alexnet_file, None, "protocol.alexnet", ALEXNET)
    trunk = nn.ModuleDict({"features": features.to_empty(device="cpu")})
    fill_from_file(trunk, file, "protocol.alexnet", ignored=("classifier.",))
    network = lpips.LPIPS(net="alex", pretrained=linear is None, pnet_rand=True, verbose=False)
    layers = [layer for i in range(1, 6) for layer in getattr(network.net, f"slice{i}")]
    for ours, theirs in zip(layers, features, strict=False):  # the last pooling has no place
        ours.load_state_dict(theirs.state_dict())
    if linear is not None:
        heads = nn.ModuleDict({f"lin{i}": getattr(network, f"lin{i}") for i in range(5)})
        file = verified(linear, None, "protocol.linear", "alex.pth, the linear layers of LPIPS")
        fill_from_file(heads, file, "protocol.linear")
    return network.eval().requires_grad_(False)


@dataclass(eq=False)
class Perceptual(Observer):
    """Notes ``lpips``, the distance of an image, as it is stored, from its target."""

    lpips: Lpips
    compares: ClassVar[bool] = True

    def check(self) -> None:
        self.lpips.check()

    def observe(self, images: Tensor, samples: Sequence[Sample], estimator: Estimator, real: bool) -> Notes:
        if not self.lpips.configured or real:
            return [{} for _ in samples]
        made = torch.stack([to_tensor(picture) for picture in to_uint8(images)]).to(images.device)
        targets = torch.stack([to_tensor(target_picture(sample)) for sample in samples]).to(images.device)
        return [{"lpips": float(value)} for value in self.lpips.distances(made, targets)]


class PerceptualMetric(Metric):
    """The mean of what `Perceptual` noted."""

    columns = (Column("LPIPS", "lower", None, "quality", axis=3),)

    def absent(self, records: Records) -> dict[str, str]:
        reason = f"the network is not configured: set protocol.alexnet=PATH of {ALEXNET}"
        return {} if "lpips" in records else {"LPIPS": reason}

    def record(self, judged: Judged) -> dict[str, float]:
        return {"lpips": judged.observed["lpips"]} if "lpips" in judged.observed else {}

    def resampled(self, records: Records, weights: np.ndarray, reference: Records | None = None) -> Values:
        return {"LPIPS": mean_of_known(records.get("lpips", [np.nan] * weights.shape[1]), weights)}
