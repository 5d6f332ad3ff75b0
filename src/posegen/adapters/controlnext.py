"""ControlNeXt: one map of the drawn pose, normalised to a hidden state and added there (Peng et al. 2024)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain, pairwise
from typing import Any, Literal, NamedTuple

import torch
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional as F

from posegen.adapters.base import Adapter, Paper, State
from posegen.backbones.base import Backbone, Injection
from posegen.data.base import PoseBatch
from posegen.io.weights import UnknownKeys
from posegen.poses.drawing import PoseDrawing
from posegen.ranges import NotNegative, Width

TIME_WIDTH = 128  # of the sinusoids
SMALLEST = 1e-12  # added to the map's standard deviation
#: Beginnings of keys where one file holds several parts: the control network, values of the U-Net, increments of them.
CONTROL_PART, VALUES_PART, INCREMENTS_PART = "controlnext.", "unet.", "unet_weight_increasements."


class PublishedForm(NamedTuple):
    """One of the published networks, by the place of its map."""

    stem: tuple[int, ...]  # widths of the convolutions that halve the picture first; none without them
    widths: tuple[int, ...]  # of the residual blocks, each of which halves its input
    finetuned: str  # the weights of the U-Net that train along, a regular expression


PUBLISHED_FORMS = {
    "input": PublishedForm((64, 128), (128, 256), r"attn2.*to_out"),
    "level": PublishedForm((64, 128), (128, 256), "to_out"),
    "middle": PublishedForm((), (128, 256, 256), "to_out"),
}


class ControlNeXt(Adapter):
    """A small network turns the drawn pose and the timestep into one map m, which is added to a hidden state h.

    Cross normalisation takes the place of zero convolutions: m gets mean and standard deviation of h, each over
    channels, height and width of one image, so that training starts with an influence. A few weights of the U-Net train
    along with a smaller learning rate. The official programs differ; ``place`` chooses:

    * ``level``: behind the first level, its downsampling included (the training program for Stable Diffusion 1.5);
    * ``middle``: behind the middle block, with a learned factor (the released pose weights for Stable Diffusion 1.5);
    * ``input``: behind the input convolution (the programs for SDXL).

    Training clips gradients as for every method; the program for Stable Diffusion 1.5 does not.

    Args:
        strength: factor of the normalised map.
        finetuned: which weights of the U-Net train, a regular expression for their names; null: as published, the
            output layers of all attentions, or with ``place=input`` of the cross-attentions; empty: none.
        unet_lr: their learning rate as a share of the network's.
        increments: an official file of the U-Net's weights holds what is to be added to those of the backbone.
        stem: widths of the first convolutions; null: as published, and empty for ``place=middle``.
        widths: of the residual blocks; null: as published.
        time_dim: width of the timestep embedding.
    """

    needs = frozenset({"hint"})
    places = frozenset({"hooks"})
    starts_neutral = False
    paper = Paper(
        "ControlNeXt: Powerful and Efficient Control for Image and Video Generation",
        "arXiv:2408.06070",
        "dvlab-research/ControlNeXt@ab4b3acf912c",
        "Apache-2.0",
    )

    def __init__(
        self,
        place: Literal["level", "middle", "input"] = "level",
        style: Literal["openpose", "humansd"] = "openpose",
        strength: NotNegative = 1.0,
        finetuned: str | None = None,
        unet_lr: NotNegative = 0.1,
        increments: bool = False,
        stem: Sequence[Width] | None = None,
        widths: Sequence[Width] | None = None,
        time_dim: Width = 256,
    ) -> None:
        super().__init__()
        if place not in PUBLISHED_FORMS:
            raise ValueError(f"adapter.place is {place!r}; expected one of {', '.join(PUBLISHED_FORMS)}")
        self.hint, self.style = PoseDrawing(style, range=(0.0, 1.0)), style
        self.place, self.strength, self.unet_lr, self.increments = place, strength, unet_lr, increments
        self.finetuned, self.stem, self.widths, self.time_dim = finetuned, stem, widths, time_dim

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        form, channels = PUBLISHED_FORMS[self.place], backbone.geometry.channels
        stem = form.stem if self.stem is None else self.stem
        widths = form.widths if self.widths is None else self.widths
        self.network = ControlMap(stem, widths, channels[-1 if self.place == "middle" else 0], self.time_dim)
        pattern = form.finetuned if self.finetuned is None else self.finetuned
        if not pattern:
            return
        trained = [p for name, p in backbone.network.named_parameters() if re.search(pattern, name)]
        if not trained:
            names = "the names of the U-Net's weights, for instance to_out"
            raise ValueError(f"adapter.finetuned={pattern!r} matches none of {names}")
        for parameter in trained:
            parameter.requires_grad_(True)

    def encode(self, batch: PoseBatch) -> State:
        assert batch.hint is not None
        return self.text_state(batch).having(hint=batch.hint)

    def inject(self, state: State, latents: Tensor, timesteps: Tensor) -> Injection:
        made = self.network(state["hint"], timesteps)
        return Injection(hooks={self.place: partial(self.added, made)})

    def added(self, made: Tensor, hidden: Tensor) -> Tensor:
        """What is added to the hidden state ``[B, C, h, w]``, given the map ``[B, C, H, W]``."""
        size = hidden.shape[-2:]
        if self.place == "input":  # the order matters where pooling changes the size
            normalised = F.adaptive_avg_pool2d(cross_normalised(made, hidden), size)
        else:
            normalised = cross_normalised(F.adaptive_avg_pool2d(made, size), hidden)
        factor = self.strength * self.network.scale if self.place == "middle" else self.strength
        return (factor * normalised).to(hidden.dtype)

    def parameter_groups(self, recipe: Any) -> list[dict[str, Any]]:
        """The network, and the U-Net's weights with a learning rate of their own."""
        groups: list[dict[str, Any]] = [{"params": list(self.parameters())}]
        unet = [p for p in self.backbone.network.parameters() if p.requires_grad]
        return [*groups, {"params": unet, "lr": self.unet_lr * recipe.lr}] if unet else groups

    def convert(self, official: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The control file, and the U-Net's file if it is there, both bare, or below the names of their parts.

        A U-Net file holds what trained, as values or (`increments`) as differences from the backbone's weights."""
        own, unet = self.network.state_dict(), dict(self.backbone.network.state_dict())
        placed, unknown = {}, []
        for key, value in official.items():
            name = key.removeprefix(INCREMENTS_PART).removeprefix(CONTROL_PART).removeprefix(VALUES_PART)
            if name in own and not key.startswith((VALUES_PART, INCREMENTS_PART)):
                placed[f"adapter.network.{name}"] = value
            elif name in unet and not key.startswith(CONTROL_PART):
                added = key.startswith(INCREMENTS_PART) or (self.increments and not key.startswith(VALUES_PART))
                unet[name] = unet[name] + value.to(unet[name]) if added else value
            else:
                unknown.append(key)
        if unknown:
            raise UnknownKeys(unknown, type(self).__name__)
        trains = any(p.requires_grad for p in self.backbone.network.parameters())
        return placed | ({f"backbone.unet.{name}": value for name, value in unet.items()} if trains else {})


class ControlMap(nn.Module):
    """The picture and the timestep to a map an eighth as large: a stem, residual blocks that halve, and a convolution.

    Without a stem it is the network of the released pose weights, which has a factor of its own as well."""

    def __init__(self, stem: Sequence[int], widths: Sequence[int], outputs: int, time_dim: int) -> None:
        super().__init__()
        self.time_proj = Timesteps(TIME_WIDTH, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(TIME_WIDTH, time_dim)
        self.stemmed, conv = bool(stem), partial(nn.Conv2d, kernel_size=3, padding=1)
        if stem:
            first = [conv(3, stem[0], stride=2), conv(stem[0], stem[0]), *(conv(a, b) for a, b in pairwise(stem))]
            normed = ((c, nn.GroupNorm(2, c.out_channels), nn.ReLU()) for c in first)
            self.embedding = nn.Sequential(*chain.from_iterable(normed))
        else:
            self.scale = nn.Parameter(torch.tensor(1.0))
        inputs, groups = stem[-1] if stem else 3, [4 if stem else 1, *[8] * (len(widths) - 1)]
        sizes = zip(pairwise([inputs, *widths]), groups, strict=True)
        self.down_res = nn.ModuleList(
            ResnetBlock2D(in_channels=a, out_channels=b, temb_channels=time_dim, groups=g) for (a, b), g in sizes
        )
        self.down_sample = nn.ModuleList(Downsample2D(width, use_conv=True, name="op") for width in widths)
        last = widths[-1]
        layers = [conv(last, last), nn.ReLU(), nn.GroupNorm(8, last), conv(last, last), nn.GroupNorm(8, last)]
        middle = nn.Sequential(*layers) if stem else nn.Sequential(*layers[:2], layers[3])
        self.mid_convs = nn.ModuleList([middle, nn.Conv2d(last, outputs, 1)])

    def forward(self, hint: Tensor, timesteps: Tensor) -> Tensor:
        """``[B, 3, H, W]`` in [0, 1] at ``timesteps [B]`` to ``[B, outputs, H / 8, W / 8]``."""
        time = self.time_embedding(self.time_proj(timesteps).to(hint.dtype))
        x = self.embedding(hint) if self.stemmed else hint
        for block, down in zip(self.down_res, self.down_sample, strict=True):
            x = down(block(x, time))
        y = self.mid_convs[0](x)
        return self.mid_convs[1](x + y if self.stemmed else y)


def cross_normalised(made: Tensor, hidden: Tensor) -> Tensor:
    """``made`` with the mean and the standard deviation of ``hidden``, each over one image, in single precision."""
    made, hidden = made.float(), hidden.float()
    (mean, std), (to_mean, to_std) = ((x.mean((1, 2, 3), True), x.std((1, 2, 3), keepdim=True)) for x in (made, hidden))
    return (made - mean) * to_std / (std + SMALLEST) + to_mean
