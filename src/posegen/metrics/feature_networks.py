"""Networks with the features of FID and its relatives. Weights are files that the user names; nothing is downloaded.

Networks are read when the first images come, so that tables need no weights; `FeatureNetwork.check` reads them at once.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from posegen.data.base import generator
from posegen.io.hashes import file_hash
from posegen.io.hub import local_place
from posegen.io.weights import WeightsError, read_tensors
from posegen.metrics.network_weights import load_every_weight, read_pretrained
from posegen.ranges import Seed

#: SHA-256 of the two files that hold the Inception network of FID, in TorchScript and as PyTorch weights.
TORCHSCRIPT_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
PYTORCH_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class FeatureNetwork(ABC):
    """Images ``[B, 3, side, side] float32`` in 0 to 255, RGB, to features."""

    checkable = True  # the constructor loads nothing, see `posegen.config.checking.check.refused`
    side: int = 299  # height and width of the images
    whole_bytes: bool = False  # whether they are rounded after the resizing, as Pillow does
    middle: bool = False  # whether they are cut to the square in the middle before it
    configured: bool = True  # whether its weights are named

    @cached_property
    @abstractmethod
    def network(self) -> nn.Module:
        """The network, frozen and in evaluation mode.

        Raises FileNotFoundError where its file is missing, ValueError where it is damaged or another one."""

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """``[B, D]`` features."""

    def features(self, images: Tensor) -> np.ndarray:
        """``[B, D] float32`` features, computed where the images are."""
        with torch.no_grad():
            self.network.to(images.device)
            return self.forward(images).float().cpu().numpy()

    def check(self) -> None:
        """Reads the weights, if some are named; raises what `network` raises."""
        if self.configured:
            _ = self.network


class TorchScriptInception(FeatureNetwork):
    """The 2048 features of FID's Inception network as in clean-fid, from StyleGAN's ``inception-2015-12-05.pt``.

    ``path`` is that file; None switches the network off. ``sha256`` is checked because TorchScript is a program;
    None runs any file: only for one you wrote yourself."""

    def __init__(self, path: str | None, sha256: str | None = TORCHSCRIPT_SHA256) -> None:
        self.path, self.sha256, self.configured = path, sha256, path is not None

    @cached_property
    def network(self) -> nn.Module:
        what = "inception-2015-12-05.pt, the TorchScript file that clean-fid uses"
        file = verified(str(self.path), self.sha256, "protocol.inception", what)
        try:
            return torch.jit.load(file, map_location="cpu").eval().layers
        except (RuntimeError, AttributeError) as error:
            reason = str(error).strip().partition("\n")[0]
            wrong = f"no TorchScript file with the Inception network's layers ({reason})"
            raise ValueError(f"protocol.inception={file} is {wrong}; fetch it again") from error

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images - 128) / 128).flatten(1)


class FidelityInception(FeatureNetwork):
    """FID's Inception network with torch-fidelity's weights, after the first and the last pooling.

    ``path`` is ``weights-inception-2015-12-05-6726825d.pth`` (or ``pt_inception-...``); None switches the network
    off. With ``sha256=None`` any file of this network is read."""

    def __init__(self, path: str | None, sha256: str | None = PYTORCH_SHA256) -> None:
        self.path, self.sha256, self.configured = path, sha256, path is not None

    @cached_property
    def network(self) -> nn.Module:
        key, what = "protocol.paper_inception", "weights-inception-2015-12-05-6726825d.pth of torch-fidelity"
        return fill_from_file(fid_inception(), verified(str(self.path), self.sha256, key, what), key)

    def forward(self, images: Tensor) -> Tensor:
        return self._stages(images, (2048,))[2048]

    def pooled(self, images: Tensor, widths: Sequence[int] = (64, 2048)) -> dict[int, np.ndarray]:
        """By number: ``[B, 64]`` after the first pooling or ``[B, 2048]`` after the last; the rest is not run."""
        with torch.no_grad():
            self.network.to(images.device)
            return {width: values.cpu().numpy() for width, values in self._stages(images, widths).items()}

    def _stages(self, images: Tensor, widths: Sequence[int]) -> dict[int, Tensor]:
        x, found = (images - 128) / 128, dict[int, Tensor]()
        for name, layer in self.network.named_children():
            x = layer(x)
            width = {"maxpool1": 64, "Mixed_7c": 2048}.get(name, 0)
            if width in widths:
                found[width] = x.mean((2, 3))
            if len(found) == len(widths):
                break
        return found


def fid_inception() -> nn.Module:
    """FID's variant of torchvision's Inception v3, without weights, its children in the order they run in."""
    from cleanfid import inception_pytorch as variant
    from torchvision.models import Inception3

    network = Inception3(num_classes=1008, aux_logits=False, init_weights=False)
    blocks: dict[Any, dict[str, tuple[int, ...]]] = {
        variant.FIDInceptionA: {"5b": (192, 32), "5c": (256, 64), "5d": (288, 64)},
        variant.FIDInceptionC: {"6b": (768, 128), "6c": (768, 160), "6d": (768, 160), "6e": (768, 192)},
        variant.FIDInceptionE_1: {"7b": (1280,)},
        variant.FIDInceptionE_2: {"7c": (2048,)},
    }
    for block, places in blocks.items():
        for place, widths in places.items():
            setattr(network, f"Mixed_{place}", block(*widths))
    return network


class TimmNetwork(FeatureNetwork):
    """The pooled features of any ``timm`` model, at the size and with the normalisation it was trained with.

    ``model`` is its name, such as ``vit_base_patch14_dinov2.lvd142m``, ``path`` a file of timm's with its weights
    (``.safetensors``, ``.pth``, ``.bin``); None switches the network off."""

    def __init__(self, model: str | None, path: str | None) -> None:
        self.model, self.path, self.configured = model, path, path is not None
        if self.configured and not model:
            fix = "set protocol.timm_model to its name in timm"
            raise ValueError(f"protocol.timm={path} names weights of an unknown model; {fix}")

    @cached_property
    def network(self) -> nn.Module:
        import timm

        file = verified(str(self.path), None, "protocol.timm", f"the weights of timm's {self.model}")
        try:
            network = timm.create_model(self.model, pretrained=False, num_classes=0)
        except Exception as error:  # timm raises several kinds for a name it does not know
            fix = "timm.list_models() has the names"
            raise ValueError(f"protocol.timm_model={self.model} cannot be built ({error}); {fix}") from error
        classifier = network.pretrained_cfg.get("classifier") or ()
        heads = tuple(f"{name}." for name in ([classifier] if isinstance(classifier, str) else classifier))
        return fill_from_file(network, file, "protocol.timm", ignored=heads)

    @cached_property
    def about(self) -> dict[str, Any]:
        """Size, mean and deviation of the model's training images."""
        from timm.data import resolve_data_config

        return resolve_data_config(model=self.network)

    @property
    def side(self) -> int:  # type: ignore[override]
        return self.about["input_size"][-1]

    def forward(self, images: Tensor) -> Tensor:
        return self.network(normalised(images, self.about["mean"], self.about["std"]))


class Dinov2(FeatureNetwork):
    """The class token of DINOv2, the features of FD-DINOv2 (Stein et al. 2023, arXiv:2306.04675), who take ViT-L/14.

    ``path`` is a folder in transformers' layout, or ``hub:owner/name``; None switches the network off."""

    side, whole_bytes = 224, True

    def __init__(self, path: str | None) -> None:
        self.path, self.configured = path, path is not None

    @cached_property
    def network(self) -> nn.Module:
        from transformers import Dinov2Model

        return read_pretrained(Dinov2Model, str(self.path), "protocol.dinov2", "DINOv2")

    def forward(self, images: Tensor) -> Tensor:
        return self.network(normalised(images, IMAGENET_MEAN, IMAGENET_STD)).last_hidden_state[:, 0]


class ClipPictures(FeatureNetwork):
    """CLIP's embeddings of unit length, the features of CMMD, which takes ViT-L/14 at 336 pixels; see `Dinov2`."""

    whole_bytes, middle = True, True

    def __init__(self, path: str | None) -> None:
        self.path, self.configured = path, path is not None

    @cached_property
    def network(self) -> Any:
        from transformers import CLIPModel

        return read_pretrained(CLIPModel, str(self.path), "protocol.cmmd", "CLIP")

    @property
    def side(self) -> int:  # type: ignore[override]
        return self.network.config.vision_config.image_size

    def forward(self, images: Tensor) -> Tensor:
        found = self.network.get_image_features(pixel_values=normalised(images, CLIP_MEAN, CLIP_STD))
        return nn.functional.normalize(found.pooler_output)


class RandomNetwork(FeatureNetwork):
    """A ResNet-18 with random weights, a function of the seed alone: 512 features without a trained network.

    They see colour, texture and coarse shape; distances in them order sets by those, and are no FID. They are divided
    by 16, since each of the network's eight residual sums doubles the variance."""

    def __init__(self, seed: Seed = 0) -> None:
        self.seed = seed

    @cached_property
    def network(self) -> nn.Module:
        import timm

        with torch.random.fork_rng(devices=[]):  # timm draws weights, which are replaced here
            network = timm.create_model("resnet18", pretrained=False, num_classes=0, zero_init_last=False)
        for name, weight in network.requires_grad_(False).named_parameters():
            if weight.ndim == 4:
                drawn = torch.randn(weight.shape, generator=generator("random network", self.seed, name))
                weight.copy_(drawn * math.sqrt(2 / weight[0].numel()))  # He et al. 2015
        return network.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.network(normalised(images, IMAGENET_MEAN, IMAGENET_STD)) / 16


def normalised(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """``[B, 3, H, W]`` in 0 to 255 in units of a training set's channels, which are given in [0, 1]."""
    mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (mean, std))
    return (images / 255 - mean) / std


def verified(path: str, sha256: str | None, key: str, what: str) -> Path:
    """The file; a FileNotFoundError where it is missing, a ValueError where its content is another."""
    file = local_place(path)
    if not file.is_file():
        fix = f"It is never downloaded: put it there, or leave {key} out"
        raise FileNotFoundError(f"{key}={path}: no such file; expected {what}. {fix}")
    if sha256 is not None and (found := file_hash(file)) != sha256:
        hashes = f"sha256 {found[:16]}..., expected {sha256[:16]}... of {what}"
        raise ValueError(f"{key}={path} is damaged or another file ({hashes}); fetch it again")
    return file


def fill_from_file(network: nn.Module, file: Path, key: str, ignored: tuple[str, ...] = ()) -> nn.Module:
    """The network with all its weights from a file, frozen and in evaluation mode; nothing in the file is run.

    ``key`` is the setting that named the file; ``ignored`` are prefixes of weights that the network has no place
    for. Raises ValueError where the file is damaged, or a weight is missing, unknown or of another shape."""
    try:
        tensors = read_tensors(file)
    except WeightsError as error:
        raise ValueError(f"{key}={error}") from error
    counters = "num_batches_tracked"  # old files lack them, and nothing depends on them here
    given = {k: v for k, v in tensors.items() if not k.endswith(counters) and not k.startswith(ignored)}
    given |= {k: v for k, v in network.state_dict().items() if k.endswith(counters)}
    return load_every_weight(network, given, f"{key}={file} holds another network", "fetch the file again")
