"""Feature maps of an image at several scales, from a hierarchical vision network of timm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.swin_transformer import SwinTransformer, checkpoint_filter_fn
from torch import Tensor, nn
from torch.nn import functional as F

from posegen.io.hub import local_place
from posegen.io.weights import WeightsError, read_tensors

HEAD_WIDTH = 32  # of Swin's attention heads (Liu et al. 2021, section 3.3)
HEAD = ("head.", "norm.")  # of a classifier: no feature map needs them


class Pyramid(nn.Module):
    """Some stages of a vision network, with a learned position for every token.

    Args:
        network: one of timm's with ``forward_intermediates``; stages that nobody asks for are cut off.
        stages: which feature maps, finest first.
        size: side in pixels that images are resized to; None: as they are.
        norm: each token is normalised, without learned factors.
        positions: side of the learned grid of positions, which is interpolated to each map; 0 is none.
    """

    def __init__(
        self, network: nn.Module, stages: Sequence[int], size: int | None, norm: bool = True, positions: int = 8
    ) -> None:
        super().__init__()
        self.network, self.stages, self.size, self.norm = network, sorted(set(stages)), size, norm
        made = [info["num_chs"] for info in network.feature_info]
        if self.stages[-1] >= len(made) or self.stages[0] < 0:
            there = f"a vision network with stages 0 to {len(made) - 1}"
            raise ValueError(f"adapter.levels asks for stages {self.stages} of {there}")
        self.channels = {stage: made[stage] for stage in self.stages}
        network.prune_intermediate_layers(self.stages, prune_norm=True, prune_head=True)
        grids = [(1, width, positions, positions) for width in self.channels.values() if positions]
        self.positions = nn.ParameterList(nn.Parameter(0.02 * torch.randn(shape)) for shape in grids)
        for name, values in (("mean", IMAGENET_DEFAULT_MEAN), ("std", IMAGENET_DEFAULT_STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> Pyramid:
        """A network that does not train keeps its statistics, too."""
        super().train(mode)
        self.network.train(mode and any(p.requires_grad for p in self.network.parameters()))
        return self

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        """Images ``[B, 3, H, W]`` in [-1, 1] to ``{stage: tokens [B, N, S]}``."""
        if self.size is not None:
            images = F.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)
        images = (images / 2 + 0.5 - self.mean) / self.std
        form = {"output_fmt": "NCHW", "intermediates_only": True}
        maps = self.network.forward_intermediates(images, indices=self.stages, **form)
        return {stage: self._tokens(each, i) for i, (stage, each) in enumerate(zip(self.stages, maps, strict=True))}

    def _tokens(self, feature: Tensor, number: int) -> Tensor:
        tokens = feature.flatten(2).mT
        if self.norm:
            tokens = F.layer_norm(tokens, tokens.shape[-1:])
        if self.positions:
            grid = F.interpolate(self.positions[number], feature.shape[-2:], mode="bilinear", align_corners=False)
            tokens = tokens + grid.flatten(2).mT
        return tokens


def hierarchical(name: str, weights: str | Path | None = None) -> nn.Module:
    """A network of timm by name, Swin or another with feature maps; nothing is downloaded.

    ``weights`` is a file or folder under the names of timm, Microsoft's release or transformers; None: random. A
    ValueError for a name that timm does not know, a WeightsError for an unreadable file or another network's."""
    if not timm.is_model(name):
        expected = "expected for instance swin_base_patch4_window7_224"
        raise ValueError(f"adapter.vision is {name!r}, which timm does not know; {expected}")
    any_size = {"strict_img_size": False, "drop_path_rate": 0.0} if name.startswith("swin") else {}
    network = timm.create_model(name, pretrained=False, num_classes=0, **any_size)
    if weights is not None:
        place = local_place(weights)
        tensors = timm_names(read_tensors(place))
        tensors = checkpoint_filter_fn(tensors, network) if isinstance(network, SwinTransformer) else tensors
        tensors = {key: value for key, value in tensors.items() if not key.startswith(HEAD)}
        given = {key: value.shape for key, value in tensors.items()}
        wanted = {key: value.shape for key, value in network.state_dict().items() if not key.startswith(HEAD)}
        if wrong := sorted(key for key in wanted.keys() | given.keys() if wanted.get(key) != given.get(key)):
            differ = f"{len(wrong)} keys differ, for instance {wrong[0]}"
            raise WeightsError(f"adapter.vision_weights={place} does not hold the weights of {name}: {differ}")
        network.load_state_dict(tensors, strict=False)
    return network


def small_swin(width: int, stages: int) -> nn.Module:
    """A Swin Transformer for small images: ``width`` channels, two layers per stage, windows of 4 x 4 tokens."""
    heads = [max(1, width * 2**i // HEAD_WIDTH) for i in range(stages)]
    form = {"img_size": 64, "window_size": 4, "num_classes": 0, "strict_img_size": False, "drop_path_rate": 0.0}
    return SwinTransformer(embed_dim=width, depths=(2,) * stages, num_heads=heads, **form)


def native_size(network: nn.Module) -> int:
    """The side of the images that a network of timm was made for."""
    return int(network.pretrained_cfg["input_size"][-1])


TRANSFORMERS = "swin."  # before the names of transformers' SwinModel
RENAMED = (
    ("embeddings.patch_embeddings.projection.", "patch_embed.proj."), ("embeddings.norm.", "patch_embed.norm."),
    ("encoder.layers.", "layers."), ("layernorm_before.", "norm1."), ("layernorm_after.", "norm2."),
    ("attention.self.", "attn."), ("attention.output.dense.", "attn.proj."),
    ("intermediate.dense.", "mlp.fc1."), ("output.dense.", "mlp.fc2."),
)  # fmt: skip


def timm_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Transformers' Swin weights under Microsoft's names, with one matrix for q, k and v; others as they are."""
    if not any(key.startswith(TRANSFORMERS) for key in tensors):
        return dict(tensors)
    renamed: dict[str, Tensor] = {}
    for key, value in tensors.items():
        name = key.removeprefix(TRANSFORMERS)
        for theirs, ours in RENAMED:
            name = name.replace(theirs, ours)
        old, new = ("layernorm.", "norm.") if name.startswith("layernorm.") else ("classifier.", "head.")
        renamed[name.replace(old, new)] = value
    for key in [key for key in renamed if ".attn.query." in key]:
        parts = [renamed.pop(key.replace(".query.", f".{part}.")) for part in ("query", "key", "value")]
        renamed[key.replace(".query.", ".qkv.")] = torch.cat(parts)
    return renamed
