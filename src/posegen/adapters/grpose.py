"""GRPose: graphs over the cells of latent and pose features in a trainable copy of the encoder (Yin et al. 2025)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import chain, pairwise
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from posegen.adapters.base import Adapter, Paper, Published, State
from posegen.backbones.base import Backbone, Geometry, Injection, Step
from posegen.backbones.blocks.inserted_block import zeroed
from posegen.backbones.loading import ldm_keys as ldm
from posegen.data.base import PoseBatch
from posegen.poses.drawing import Occlusion, PoseDrawing
from posegen.ranges import AtLeastZero, NotNegative, Width

HUMAN_ART = "table on the GRPose project page, trained on Human-Art"
LAION_HUMAN = "table on the GRPose project page, trained on LAION-Human"
INJECT_RATIOS = 192 / 320, 256 / 640, 384 / 1280, 512 / 1280  # pose channels to the width of each level, as published
STEM = 32  # width of the pose encoder at full resolution; it doubles with every halving
MASK_KERNEL, MASK_SIGMA, BACKGROUND = 13, 3.0, -0.99  # pixels; highest value of a blurred hint's background
Edges = Literal["factorised", "dense"]
Perception = Literal["off", "logged", "differentiable"]

#: Original names within a Progressive Graph Integrator -> those of `PoseGraphBlock`.
BLOCK = {
    "in_layers.2": "conv_in", "emb_layers.1": "time", "cond_conv": "pose_in", "out_layers.2": "zero",
    "skip_connection": "skip",
    "fuse.latent_conv": "latent_out", "fuse.pose_conv": "pose_out", "fuse.fusion_conv": "fuse",
    **{
        f"{old}.{part}": f"{new}.{name}"
        for old, new in (("gnn_latent", "latent_graph"), ("gnn_pose", "pose_graph"), ("gnn", "joint_graph"))
        for part, name in (("conv1.0", "embed"), ("conv1.1", "norm"), ("graph_conv.gconv.nn.0", "edges.mix"))
    },
}  # fmt: skip


class GRPose(Adapter):
    """ControlNet whose first residual block of each level is a Progressive Graph Integrator, which reads pose features.

    Every cell of a level is a node. One graph convolution runs on the latent nodes, one, once per image, on the pose
    nodes, and a third one on their mixture; the graphs join each node with its nearest in feature space, in each pass.

    The loss weighs the squared error by ``alpha`` on the drawn pose. The pose perception loss compares the features of
    a frozen pose network for the predicted clean image and the training image (the batch's, or the decoded clean
    latents), weighted by ``perception_weight`` and the signal power at the timestep:

    * ``perception=off``: no such loss, as in the published configurations;
    * ``logged``: as released, with images truncated to 8 bits and mirrored: a constant without gradient;
    * ``differentiable``: as in the paper, with the gradient through the teacher and the decoder.

    Args:
        k: neighbours of a node, itself usually among them; 1 is a network without neighbours.
        levels: which levels of the encoder have a graph block, from 0; None is all.
        inject_channels: channels of the pose features of each level up to the last of ``levels``; None is 192, 256,
            384, 512 on Stable Diffusion, and the same share of the width elsewhere.
        edges: how edge convolutions are computed, ``factorised`` or ``dense``; the results agree, the cost does not.
        teacher: an estimator with differentiable ``feature_maps`` or ``features``, for the perception loss.
    """

    needs = frozenset({"hint"})
    places = frozenset({"control_copy", "encoder_block"})
    paper = Paper(
        "GRPose: Learning Graph Relations for Human Image Generation with Pose Priors",
        "arXiv:2408.16540",
        "XiangchenYin/GRPose@590d1ae0f423",
        "Apache-2.0",
        published=(
            *Published.of("Human-Art", HUMAN_ART, AP=49.50, CAP=70.84, PCE=1.43, FID=13.76, KID=2.53, CLIP=32.31),
            *Published.of("LAION-Human", LAION_HUMAN, AP=57.01, CAP=67.20, PCE=1.29, FID=6.52, CLIP=32.12),
        ),
    )
    beside = {"mmpose_model": "the pose network of the training loss", **ldm.LEFT_OUT_FROZEN}

    def __init__(
        self,
        style: Literal["humansd", "openpose"] = "humansd",
        strength: NotNegative = 1.0,
        k: Width = 9,
        levels: Sequence[AtLeastZero] | None = None,
        inject_channels: Sequence[Width] | None = None,
        edges: Edges = "factorised",
        alpha: NotNegative = 5.0,
        perception: Perception = "off",
        perception_weight: NotNegative = 0.5,
        teacher: Any = None,
        occlusion: Occlusion = "drawn",
    ) -> None:
        super().__init__()
        if edges not in get_args(Edges):
            raise ValueError(f"adapter.edges is {edges!r}; expected one of {', '.join(get_args(Edges))}")
        if perception not in get_args(Perception):
            raise ValueError(f"adapter.perception is {perception!r}; expected one of {', '.join(get_args(Perception))}")
        if k < 1:
            raise ValueError(f"adapter.k is {k}; expected at least 1 neighbour")
        self.hint = PoseDrawing(style, range=(-1.0, 1.0), occlusion=occlusion)
        self.style, self.strength, self.edges, self.occlusion = style, strength, edges, occlusion
        self.k, self.levels, self.inject_channels = k, levels, inject_channels
        self.alpha, self.perception, self.perception_weight = alpha, perception, perception_weight
        object.__setattr__(self, "teacher", teacher)  # not a sub-module: it is neither trained nor saved

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        g = backbone.geometry
        levels, channels = self.graph_levels(g), self.pose_channels(g)
        self.pose_encoder = PosePyramid(channels, g.latent_factor, levels)
        sizes = g.norm_groups, self.k, self.edges
        blocks = {i: PoseGraphBlock.replacing(backbone.encoder_block(i), channels[i], *sizes) for i in levels}
        self.branch = backbone.control_copy({(level, 0): block for level, block in blocks.items()})

    def graph_levels(self, g: Geometry) -> tuple[int, ...]:
        """The levels that have a graph block."""
        levels = tuple(range(g.levels)) if self.levels is None else tuple(sorted(set(self.levels)))
        if not levels or not set(levels) <= set(range(g.levels)):
            every = f"some of the backbone's levels {list(range(g.levels))}, or null for all"
            raise ValueError(f"adapter.levels is {self.levels}; expected {every}")
        return levels

    def pose_channels(self, g: Geometry) -> tuple[int, ...]:
        """Channels of the pose features, down to the last level that reads them."""
        count = max(self.graph_levels(g)) + 1
        if self.inject_channels is None:
            ratios = [INJECT_RATIOS[min(level, len(INJECT_RATIOS) - 1)] for level in range(count)]
            return tuple(max(8, 8 * round(ratio * width / 8)) for ratio, width in zip(ratios, g.channels, strict=False))
        if len(self.inject_channels) != count:
            expected = f"expected {count} numbers, one per level down to the last graph block"
            raise ValueError(f"adapter.inject_channels is {list(self.inject_channels)}; {expected}")
        return tuple(self.inject_channels)

    def block(self, level: int) -> PoseGraphBlock:
        return self.branch.network.down_blocks[level].resnets[0]

    def encode(self, batch: PoseBatch) -> State:
        assert batch.hint is not None
        self.check_nodes((batch.hint.shape[-2], batch.hint.shape[-1]), self.backbone.geometry)
        return self.text_state(batch).having(poses=self.poses(batch.hint))

    def poses(self, hint: Tensor) -> tuple[Tensor, ...]:
        """``[B, 3, H, W]`` drawn poses to the input of each graph block, finest first."""
        return tuple(self.block(level).encode(pose) for level, pose in self.pose_encoder(hint).items())

    def check_nodes(self, size: tuple[int, int], g: Geometry) -> None:
        """Refuses levels with fewer nodes than neighbours, where the official program fails."""
        for level in self.graph_levels(g):
            height, width = (-(-side // (g.latent_factor * 2**level)) for side in size)
            if self.faithful and height * width < self.k:
                few = f"level {level} of images of {size[0]}x{size[1]} pixels has only {height}x{width} nodes"
                fix = f"choose a larger data.size, or adapter.k={height * width}"
                least = f"official weights expect at least {self.k}"
                raise ValueError(f"adapter.k is {self.k}, but {few}; {least}: {fix}")

    def inject(self, state: State, latents: Tensor, timesteps: Tensor) -> Injection:
        levels = self.graph_levels(self.backbone.geometry)
        poses = {(level, 0): pose for level, pose in zip(levels, state.all("poses"), strict=True)}
        return self.branch(latents, timesteps, state.text, conditions=poses).scaled(self.strength)

    def loss(self, step: Step, state: State, batch: PoseBatch) -> dict[str, Tensor]:
        """Squared error with the weight ``alpha`` on the pose, and the pose perception loss."""
        assert batch.hint is not None
        error = (step.prediction.float() - step.target.float()).square()
        loss = (error * (1 + (self.alpha - 1) * pose_cells(batch.hint, self.backbone.geometry.latent_factor))).mean()
        if self.perception == "off":
            return {"loss": loss, "plain": error.mean().detach()}
        if self.teacher is None:  # said here, because a trained method is loaded and sampled without it
            needs = f"adapter.perception={self.perception} needs a pose network"
            raise ValueError(f"{needs}: adapter.teacher='${{estimator}}'")
        signal = self.backbone.process.power(step.timesteps)
        with torch.set_grad_enabled(self.perception == "differentiable" and torch.is_grad_enabled()):
            perception = (self.perception_weight * signal * self.perceived(*self.images(step, batch))).mean()
        return {"loss": loss + perception, "plain": error.mean().detach(), "perception": perception.detach()}

    def images(self, step: Step, batch: PoseBatch) -> tuple[Tensor, Tensor]:
        """The predicted clean and the training images, ``[B, 3, H, W]``; the decoder is checkpointed."""
        clean = self.backbone.process.clean(step.noisy, step.prediction, step.timesteps)
        made = checkpoint(self.backbone.from_latents, clean.float(), use_reentrant=False)
        with torch.no_grad():
            real = batch.images if batch.images is not None else self.backbone.from_latents(step.clean)
        return made, real

    def perceived(self, made: Tensor, real: Tensor) -> Tensor:
        """``[B]`` mean squared difference between the teacher's features of two sets of images."""
        teacher: Any = self.teacher
        if isinstance(teacher, nn.Module):
            teacher.to(made.device).eval().requires_grad_(False)
        look = teacher.feature_maps if hasattr(teacher, "feature_maps") else teacher.features
        sets = ([maps] if isinstance(maps := look(self.seen(i)), Tensor) else maps for i in (made, real))
        pairs = zip(*sets, strict=True)
        return torch.stack([(a.float() - b.float()).square().flatten(1).mean(1) for a, b in pairs]).mean(0)

    def seen(self, images: Tensor) -> Tensor:
        """Images as the teacher gets them."""
        images = images.float().clamp(-1, 1)
        # The released code keeps only the features of its flip test.
        return ((images + 1) / 2 * 255).floor().flip(-1) / 127.5 - 1 if self.perception == "logged" else images

    def convert(self, official: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of the original program, bare or within a whole model, as ``adapter.*``."""
        prefix = ldm.CONTROL if ldm.has_prefix(official, ldm.CONTROL) else ""
        table = self.table(self.backbone.geometry)
        return ldm.placed(official, prefix, table, "adapter.", self.beside, type(self).__name__)

    def table(self, g: Geometry) -> dict[str, str]:
        """Original module prefix -> this class's."""
        originals = {level: f"input_blocks.{1 + level * (g.layers + 1)}.0." for level in self.graph_levels(g)}
        gone = "input_hint_block.", *originals.values()
        copy = {old: new for old, new in ldm.control_table(g).items() if not old.startswith(gone)}
        for level, original in originals.items():
            copy |= {original + old: f"down_blocks.{level}.resnets.0.{new}" for old, new in BLOCK.items()}
        table = {old: f"branch.network.{new}" for old, new in copy.items()}
        parts = {"pre_extractor": "stem", "extractors": "stages", "zero_convs": "zeros"}
        return table | {f"pose_encoder.{old}": f"pose_encoder.{new}" for old, new in parts.items()}


class PosePyramid(nn.Module):
    """Features of the drawn pose at the resolution of each level: 3x3 convolutions, and a zero convolution for each."""

    def __init__(self, channels: Sequence[int], latent_factor: int, levels: Collection[int]) -> None:
        super().__init__()
        halvings = latent_factor.bit_length() - 1
        if halvings < 1 or 2**halvings != latent_factor:
            raise ValueError(f"no pose encoder for a latent factor of {latent_factor}; it is a power of two from 2 on")
        widths = [STEM * 2**i for i in range(halvings)]
        steps = ((*activated_conv(a, b, 2), *activated_conv(b, b)) for a, b in pairwise(widths))
        self.stem = nn.Sequential(*activated_conv(3, STEM), *chain.from_iterable(steps))
        ends = pairwise([widths[-1], *channels])
        self.stages = nn.ModuleList(nn.Sequential(*activated_conv(a, b, 2)) for a, b in ends)
        self.zeros = nn.ModuleDict({str(i): zeroed(nn.Conv2d(channels[i], channels[i], 3, padding=1)) for i in levels})

    def forward(self, hint: Tensor) -> dict[int, Tensor]:
        """``[B, 3, H, W]`` in [-1, 1] to level -> ``[B, C, h, w]``."""
        x, features = self.stem(hint), {}
        for level, stage in enumerate(self.stages):
            x = stage(x)
            if str(level) in self.zeros:
                features[level] = self.zeros[str(level)](x)
        return features


class PoseGraphBlock(nn.Module):
    """The Progressive Graph Integrator in a residual block's place: x, time embedding e and pose features p to y.

        h = GN(W_in SiLU(x) + W_e SiLU(e))      latent nodes, without an affine map
        c = GCN_pose(W_c p)                     pose nodes
        y = W_s x + Z GCN(W [W_l GCN_latent(h) ; W_p c])

    GCN is a `GraphConvolution` on the graph of its own nodes, Z a zero convolution."""

    def __init__(
        self, channels: tuple[int, int], time_dim: int, pose_channels: int, groups: int, k: int, edges: Edges
    ) -> None:
        # It brings torch-geometric, seconds that no other method needs to pay.
        from posegen.backbones.blocks.pose_graph import GraphConvolution

        super().__init__()
        inputs, width = channels
        self.conv_in = nn.Conv2d(inputs, width, 3, padding=1)
        self.time = nn.Linear(time_dim, width)
        self.norm = nn.GroupNorm(groups, width, eps=1e-5, affine=False)
        self.latent_graph = GraphConvolution(width, k, edges)
        self.latent_out = nn.Conv2d(width, width, 1)
        self.pose_in = nn.Conv2d(pose_channels, width, 3, padding=1)
        self.pose_graph = GraphConvolution(width, k, edges)
        self.pose_out = nn.Conv2d(width, width, 1)
        self.fuse = nn.Conv2d(2 * width, width, 1)
        self.joint_graph = GraphConvolution(width, k, edges)
        self.zero = zeroed(nn.Conv2d(width, width, 3, padding=1))
        self.skip = nn.Conv2d(inputs, width, 1) if inputs != width else nn.Identity()

    @classmethod
    def replacing(cls, resnet: Any, pose_channels: int, groups: int, k: int, edges: Edges) -> PoseGraphBlock:
        """A block in the place of diffusers' ``ResnetBlock2D``, with its weights where there are counterparts."""
        channels = resnet.in_channels, resnet.out_channels
        block = cls(channels, resnet.time_emb_proj.in_features, pose_channels, groups, k, edges)
        block.conv_in.load_state_dict(resnet.conv1.state_dict())
        block.time.load_state_dict(resnet.time_emb_proj.state_dict())
        if resnet.conv_shortcut is not None:
            block.skip.load_state_dict(resnet.conv_shortcut.state_dict())
        return block

    def encode(self, pose: Tensor) -> Tensor:
        """The part that depends on the pose alone, W_p c: ``[B, P, h, w]`` to ``[B, C', h, w]``."""
        return self.pose_out(self.pose_graph(self.pose_in(pose)))

    def forward(self, x: Tensor, time: Tensor, pose: Tensor) -> Tensor:
        """``[B, C, h, w]`` to ``[B, C', h, w]``, given the embedding ``[B, T]`` and the result of `encode`."""
        h = self.norm(self.conv_in(F.silu(x)) + self.time(F.silu(time))[:, :, None, None])
        mixed = self.fuse(torch.cat([self.latent_out(self.latent_graph(h)), pose], dim=1))
        return self.skip(x) + self.zero(self.joint_graph(mixed))


def pose_cells(hint: Tensor, factor: int) -> Tensor:
    """``[B, 1, h, w]`` 1 in the latent cells (``factor`` pixels) that the blurred ``hint [B, 3, H, W]`` touches."""
    from torchvision.transforms.functional import gaussian_blur

    # In half precision the background would not stay -1.
    with torch.no_grad(), torch.autocast(hint.device.type, enabled=False):
        blurred = gaussian_blur(hint.float(), MASK_KERNEL, MASK_SIGMA).amax(1, keepdim=True)
        return (F.max_pool2d(blurred, factor) > BACKGROUND).float()


def activated_conv(inputs: int, outputs: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(inputs, outputs, 3, stride, 1), nn.SiLU()
