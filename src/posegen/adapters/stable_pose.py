"""Stable-Pose: a transformer with pose-masked self-attention in a trainable copy of the encoder (Wang et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from itertools import pairwise
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from posegen.adapters.base import Adapter, Paper, Published, State
from posegen.backbones.base import Backbone, Geometry, Injection, Step
from posegen.backbones.blocks.inserted_block import zeroed
from posegen.backbones.blocks.masked_attention import Fill, Masking, Over, compressed, dense
from posegen.backbones.loading import ldm_keys as ldm
from posegen.data.base import PoseBatch
from posegen.poses.drawing import REFERENCE_SIDE, Occlusion, PoseDrawing
from posegen.ranges import NotNegative, Width

Form = Literal["compressed", "dense"]
ATTENTION_FORMS = {"compressed": compressed, "dense": dense}

KB_DMGEN_TABLE = "table on the KB-DMGen project page"
ABSTRACT = "abstract of arXiv:2406.02485v2"
OFFICIAL = "stable_pose_adapter."
FIRST = (0, 0)  # level and layer of the residual block that is replaced
SIGMA = 3.0  # of all blurs, in pixels
COLOUR_STEP = 2 / 255  # of hints in [-1, 1]
ENCODER_WIDTHS = (32, 64, 128)
REDUCED_SHARE, POSE_SHARE = 128 / 320, 192 / 320  # published widths over the channels of the finest level


class StablePose(Adapter):
    """A copy of the encoder whose first residual block holds a small transformer that attends along the pose.

    As in ControlNet, zero convolutions add the copy's features to the frozen U-Net's. The drawn pose enters at the
    first residual block: a transformer refines the features by pose-masked self-attention (PMSA), whose masks, the
    grown skeleton, shrink from layer to layer; then a pose encoder's features are added. The loss weighs the last mask.

    With ``faithful`` the masks come from Gaussian blurs, and masked pairs of tokens have the lowest logit of the image,
    which leaves them some weight; otherwise the masks grow by ``radii`` and masked pairs have no weight.

    Args:
        patch: latent cells per side of a token.
        head_dim: None is an eighth of the finest level's channels, whatever the number of heads.
        mlp: hidden width of the transformer's feed-forward networks; None is the width of its tokens.
        reduced: channels per latent cell inside the transformer; None is 0.4 of the finest level's.
        pose_channels: width of the pose encoder's features; None is 0.6 of the finest level's.
        kernels: faithful: pixels per side of each layer's blur, one layer per kernel.
        threshold: faithful: blurred value above which a pixel is pose; released: -0.99 in sampling, -1 in training.
        radii: otherwise: pixels by which each layer's mask grows on a canvas of 512.
        masked: False: attention without the pose mask; the loss keeps its mask.
        alpha: weight of the squared error inside the last layer's mask.
        normalise_loss: divide the weights by their mean over the image; the published loss grows with the people.
        attention: ``compressed`` or, with the same result, ``dense``, see `posegen.backbones.blocks.masked_attention`.
    """

    needs = frozenset({"hint"})
    places = frozenset({"control_copy", "encoder_block"})
    paper = Paper(
        "Stable-Pose: Leveraging Transformers for Pose-Guided Text-to-Image Generation",
        "arXiv:2406.02485",
        "ai-med/StablePose@9d746ed45cfa",
        published=(
            *Published.of("Human-Art", KB_DMGEN_TABLE, AP=48.88, CAP=70.83, PCE=1.50, FID=11.12, CLIP=32.60),
            *Published.of("LAION-Human", ABSTRACT, AP=57.1),
        ),
    )
    beside = ldm.LEFT_OUT_FROZEN

    def __init__(
        self,
        style: Literal["humansd", "openpose"] = "humansd",
        patch: Width = 2,
        heads: Width = 8,
        head_dim: Width | None = None,
        mlp: Width | None = None,
        reduced: Width | None = None,
        pose_channels: Width | None = None,
        kernels: Sequence[Width] = (23, 13),
        threshold: float = -0.99,
        radii: Sequence[NotNegative] = (8, 6),
        masked: bool = True,
        alpha: NotNegative = 5.0,
        normalise_loss: bool = False,
        attention: Form = "compressed",
        occlusion: Occlusion = "drawn",
    ) -> None:
        super().__init__()
        self.patch, self.heads, self.head_dim = patch, heads, head_dim
        self.mlp, self.reduced, self.pose_channels = mlp, reduced, pose_channels
        names = "patch", "heads", "head_dim", "mlp", "reduced", "pose_channels"
        if wrong := [f"adapter.{n}={size}" for n in names if (size := getattr(self, n)) is not None and size < 1]:
            raise ValueError(f"{', '.join(wrong)}: expected at least 1")
        if any(k < 1 or k % 2 == 0 for k in kernels):
            blur = "a blur is an odd number of pixels wide, for instance [23, 13]"
            raise ValueError(f"adapter.kernels is {list(kernels)}; {blur}")
        if any(r < 0 for r in radii):
            raise ValueError(f"adapter.radii is {list(radii)}; a mask grows by 0 pixels or more, for instance [8, 6]")
        if len(kernels) != len(radii) or not kernels:
            counts = f"adapter.kernels has {len(kernels)} values and adapter.radii {len(radii)}"
            raise ValueError(f"{counts}; both need one per layer of the transformer")
        if attention not in ATTENTION_FORMS:
            raise ValueError(f"adapter.attention is {attention!r}; expected {' or '.join(ATTENTION_FORMS)}")
        self.hint = PoseDrawing(style, range=(-1.0, 1.0), occlusion=occlusion)
        self.style, self.attention, self.occlusion = style, attention, occlusion
        self.kernels, self.threshold, self.radii, self.masked = tuple(kernels), threshold, tuple(radii), masked
        self.alpha, self.normalise_loss = alpha, normalise_loss

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        geometry, width = backbone.geometry, backbone.geometry.channels[0]
        pose_channels = self.pose_channels or in_eights(width * POSE_SHARE)
        reduced, head_dim = self.reduced or in_eights(width * REDUCED_SHARE), self.head_dim or max(1, width // 8)
        sizes = width, reduced, self.patch, len(self.kernels), self.heads, head_dim, self.mlp
        transformer = PoseTransformer(*sizes, self.attention)
        block = PoseBlock(backbone.encoder_block(*FIRST), geometry.norm_groups, pose_channels, transformer)
        self.pose_encoder = HintEncoder(geometry.latent_factor, pose_channels)
        self.branch = backbone.control_copy({FIRST: block})

    @property
    def block(self) -> PoseBlock:
        """The block in the copy that reads the pose."""
        return self.branch.network.down_blocks[0].resnets[0]

    def encode(self, batch: PoseBatch) -> State:
        assert batch.hint is not None
        return self.conditioned(self.text_state(batch), batch.hint, self.masks(batch.hint))

    @torch.no_grad()
    def masks(self, hint: Tensor) -> Tensor:
        """``[B, 3, H, W]`` drawn poses to ``[B, K, h, w] bool``: the cells where each layer sees the pose."""
        assert self.hint is not None
        black = self.hint.range[0]
        with torch.autocast(hint.device.type, enabled=False):
            ink = hint.float() - black  # exactly zero where nothing is drawn, before and after a blur
            if self.faithful:
                layers = [(blurred(ink, kernel) > self.threshold - black).any(1) for kernel in self.kernels]
            else:
                drawn, scale = (ink > COLOUR_STEP / 2).any(1), min(hint.shape[-2:]) / REFERENCE_SIDE
                layers = [grown(drawn, radius * scale) for radius in self.radii]
            return F.max_pool2d(torch.stack(layers, dim=1).float(), self.backbone.geometry.latent_factor).bool()

    def conditioned(self, state: State, hint: Tensor, masks: Tensor) -> State:
        """``state`` with the conditions of every step: the pose features and ``masks [B, K, h, w]``; and for N tokens
        ``tokens [B, K, N]``, true where any cell shows the pose, ``order [B, K, N]``, the indices of pose tokens before
        the others', and ``counts [B, K]`` of pose tokens, on the host, so that no step waits for the device."""
        tokens = F.max_pool2d(masks.float(), self.patch, ceil_mode=True).flatten(2).bool() | (not self.masked)
        order = (~tokens).byte().argsort(dim=-1, stable=True)
        pose = self.block.pose_conv(self.pose_encoder(hint))
        return state.having(pose=pose, masks=masks, tokens=tokens, order=order, counts=tokens.sum(-1).cpu())

    def layers(self, state: State) -> list[Masking]:
        """The masks that the transformer reads, one per layer."""
        layers = zip(*(state[name].unbind(1) for name in ("tokens", "order", "counts")), strict=True)
        fill: Fill = "lowest" if self.faithful else "nothing"
        return [Masking(pose, order, counts.tolist(), fill) for pose, order, counts in layers]

    def inject(self, state: State, latents: Tensor, timesteps: Tensor) -> Injection:
        return self.branch(latents, timesteps, state.text, conditions={FIRST: (state["pose"], self.layers(state))})

    def branches(self, state: State, guidance: float) -> list[tuple[float, State]]:
        """Guidance on the text; the branch without text sees the pose features, too, but no masks."""
        if guidance == 1.0:
            return [(1.0, state)]
        everything = torch.ones_like(state["tokens"])
        counts = torch.full_like(state["counts"], everything.shape[-1])
        return [(guidance, state), (1.0 - guidance, state.without_text().having(tokens=everything, counts=counts))]

    def loss(self, step: Step, state: State, batch: PoseBatch) -> dict[str, Tensor]:
        """Squared error, ``alpha`` times as heavy inside the finest mask."""
        weight = 1 + (self.alpha - 1) * state["masks"][:, -1:].float()
        if self.normalise_loss:
            weight = weight / weight.mean(dim=(1, 2, 3), keepdim=True)
        error = (step.prediction.float() - step.target.float()).square()
        return {"loss": (weight * error).mean(), "plain": error.mean().detach()}

    def convert(self, official: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of the original program, the adapter alone or within a whole model (``final.pth``)."""
        names = stable_pose_names(self.backbone.geometry, len(self.kernels))
        prefix = OFFICIAL if ldm.has_prefix(official, OFFICIAL) else ""
        return ldm.placed(official, prefix, names, "adapter.", self.beside, type(self).__name__)


class HintEncoder(nn.Module):
    """Features of the drawn pose at the size of the latents, through a zero convolution."""

    def __init__(self, latent_factor: int, channels: int) -> None:
        super().__init__()
        halvings = latent_factor.bit_length() - 1
        if 2**halvings != latent_factor or not 1 <= halvings <= len(ENCODER_WIDTHS):
            raise ValueError(f"no pose encoder for a latent factor of {latent_factor}; it is 2, 4 or 8")
        widths = ENCODER_WIDTHS[:halvings]
        layers: list[nn.Module] = [conv3x3(3, widths[0]), nn.SiLU()]
        for before, after in pairwise(widths):
            layers += [conv3x3(before, after, stride=2), nn.SiLU(), conv3x3(after, after), nn.SiLU()]
        self.trunk = nn.Sequential(*layers)
        self.last = conv3x3(widths[-1], channels, stride=2)
        self.zero = zeroed(conv3x3(channels, channels))

    def forward(self, hint: Tensor) -> Tensor:
        """``[B, 3, H, W]`` to ``[B, channels, h, w]``."""
        return self.zero(F.silu(self.last(self.trunk(hint))))


class PoseMaskedAttention(nn.Module):
    """Self-attention along the pose (PMSA): a pair of tokens is masked where neither shows the pose."""

    def __init__(self, dim: int, heads: int, head_dim: int, form: Form) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.to_qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        self.to_out = nn.Linear(heads * head_dim, dim, bias=False)
        self.heads, self.attend = heads, ATTENTION_FORMS[form]
        self.lowest_over: Over = "image"  # in the released code the whole ``batch``; for comparison only

    def forward(self, x: Tensor, masking: Masking) -> Tensor:
        """``[B, N, dim]`` to ``[B, N, dim]``, to be added."""
        q, k, v = rearrange(self.to_qkv(self.norm(x)), "b n (part h d) -> part b h n d", part=3, h=self.heads)
        attended = self.attend(q, k, v, masking, self.lowest_over)
        return self.to_out(rearrange(attended, "b h n d -> b n (h d)").to(q.dtype))


class PoseTransformer(nn.Module):
    """Tokens of ``patch`` x ``patch`` latent cells, refined by one pose-masked layer per mask; odd sides are padded."""

    def __init__(
        self, width: int, reduced: int, patch: int, depth: int, heads: int, head_dim: int, mlp: int | None, form: Form
    ) -> None:
        super().__init__()
        dim = reduced * patch**2
        if dim < 8 or dim % 4:
            tokens = f"adapter.reduced={reduced} with adapter.patch={patch} gives tokens of {dim} channels"
            raise ValueError(f"{tokens}; the position table needs 8, 12, 16, ...")
        hidden, self.patch, self.dim = mlp or dim, patch, dim
        self.reduce = conv3x3(width, reduced)
        self.embed = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.LayerNorm(dim))
        self.attentions = nn.ModuleList(PoseMaskedAttention(dim, heads, head_dim, form) for _ in range(depth))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
            for _ in range(depth)
        )
        self.expand = conv3x3(reduced, width)

    def forward(self, x: Tensor, layers: Sequence[Masking]) -> Tensor:
        """``[B, channels, h, w]`` to the same shape; there is no way around the transformer."""
        (height, width), p = x.shape[-2:], self.patch
        x = F.pad(self.reduce(x), (0, -width % p, 0, -height % p))
        rows, columns = x.shape[-2] // p, x.shape[-1] // p
        x = self.embed(rearrange(x, "b c (y p) (x q) -> b (y x) (p q c)", p=p, q=p))
        x = x + positions(rows, columns, self.dim, x.device).to(x.dtype)
        for attention, mlp, masking in zip(self.attentions, self.mlps, layers, strict=True):
            x = x + attention(x, masking)
            x = x + mlp(x)
        x = rearrange(x, "b (y x) (p q c) -> b c (y p) (x q)", y=rows, p=p, q=p)
        return self.expand(x[..., :height, :width])


def positions(rows: int, columns: int, dim: int, device: torch.device | str = "cpu") -> Tensor:
    """``[rows * columns, dim]``: sine and cosine of column and row at ``dim / 4`` frequencies from 1 to 1 / 10000."""
    frequencies = 10000 ** -torch.linspace(0, 1, dim // 4, device=device)

    def waves(length: int) -> Tensor:
        angles = torch.arange(length, device=device)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    across, down = waves(columns)[None], waves(rows)[:, None]
    return torch.cat([across.expand(rows, -1, -1), down.expand(-1, columns, -1)], dim=2).flatten(0, 1)


class PoseBlock(nn.Module):
    """The encoder's first residual block with the transformer between its convolutions, copied from the backbone."""

    def __init__(self, original: nn.Module, groups: int, pose_channels: int, transformer: PoseTransformer) -> None:
        super().__init__()
        self.conv1, self.time_emb_proj = deepcopy(original.conv1), deepcopy(original.time_emb_proj)
        self.conv2, self.transformer, self.groups = deepcopy(original.conv2), transformer, groups
        self.pose_conv = conv3x3(pose_channels, self.conv2.in_channels)

    def forward(self, x: Tensor, time: Tensor, condition: tuple[Tensor, Sequence[Masking]]) -> Tensor:
        """``[B, C, h, w]`` to the same shape, given the embedding ``[B, T]``, pose features and the layers' masks."""
        pose, layers = condition
        a = self.conv1(F.silu(x)) + self.time_emb_proj(F.silu(time))[:, :, None, None]
        return x + self.conv2(F.silu(F.group_norm(self.transformer(a, layers), self.groups, eps=1e-5) + pose))


def blurred(images: Tensor, kernel: int) -> Tensor:
    """``[B, c, H, W]`` after a Gaussian blur that is ``kernel`` pixels wide, reflected at the borders."""
    from torchvision.transforms.functional import gaussian_blur

    if kernel // 2 >= min(images.shape[-2:]):
        wide = f"adapter.kernels has {kernel}, too wide for images of {list(images.shape[-2:])}"
        raise ValueError(f"{wide}; take a blur less than twice as wide as the image")
    return gaussian_blur(images, [kernel, kernel], [SIGMA, SIGMA])


def grown(mask: Tensor, radius: float) -> Tensor:
    """``[B, H, W] bool`` with every pixel whose centre is within ``radius`` of a true one's."""
    reach = int(radius)
    offsets = torch.arange(-reach, reach + 1, device=mask.device)
    disc = (offsets[:, None].square() + offsets.square() <= radius**2).float()
    return F.conv2d(mask[:, None].float(), disc[None, None], padding=reach)[:, 0] > 0.5


def conv3x3(before: int, after: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, stride, padding=1)


def in_eights(width: float) -> int:
    """The next multiple of 8, at least 8."""
    return max(8, 8 * round(width / 8))


def stable_pose_names(geometry: Geometry, depth: int) -> ldm.NameTable:
    """Original module prefix -> this project's, for the adapter's part of an official file."""
    block, place = "input_blocks.1.0", "branch.network.down_blocks.0.resnets.0"
    gone = f"{block}.in_layers.0", f"{block}.out_layers.0", "input_hint_block"
    copy = {old: new for old, new in ldm.control_table(geometry).items() if not old.startswith(gone)}
    table = {old: f"branch.network.{new}" for old, new in copy.items()} | {
        "feature_extractor.pre_extractor": "pose_encoder.trunk",
        "feature_extractor.extractors.0.0": "pose_encoder.last",
        "feature_extractor.zero_convs.0": "pose_encoder.zero",
        f"{block}.cond_conv": f"{place}.pose_conv",
        f"{block}.attn_layer.to_patch_embedding.0": f"{place}.transformer.reduce",
        f"{block}.attn_layer.to_out.1": f"{place}.transformer.expand",
    }
    table |= {f"{block}.attn_layer.to_patch_embedding.{i + 2}": f"{place}.transformer.embed.{i}" for i in range(3)}
    for i in range(depth):
        table[f"{block}.attn_layer.transformer.layers.{i}.0"] = f"{place}.transformer.attentions.{i}"
        table[f"{block}.attn_layer.transformer.layers.{i}.1.net"] = f"{place}.transformer.mlps.{i}"
    return table
