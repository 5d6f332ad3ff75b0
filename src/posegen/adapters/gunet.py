"""GUNet: text to a pose, a diffusion model of joint maps with one graph block behind its middle (Liang et al. 2024)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from posegen.adapters.base import Adapter, Paper, Published, State
from posegen.backbones.base import Backbone, Injection
from posegen.backbones.blocks.inserted_block import zeroed
from posegen.data.base import PoseBatch
from posegen.io.weights import UnknownKeys
from posegen.poses.topology import COCO_BONES, COCO_NAMES
from posegen.ranges import Width

PAPER_TABLE = "tables of section 4.4; the unit of MSE and Var is not given"
NODES = len(COCO_NAMES)
Graph = Literal["per_sample", "batch17", "joint", "off"]


class GUNet(Adapter):
    """A U-Net trained from scratch on 17 joint maps and the text, with a graph convolution behind its middle block.

    Section 3.4 prints ReLU(D^-1/2 (A + I) D^-1/2 X W) and calls the nodes joints. In the released program A + I is not
    normalised, W mixes the rows of the feature map, the input is added before the ReLU, and the 17 nodes are the
    elements of the *batch*. The choices of ``graph``:

    * ``per_sample``: the released sampling of one image, in any batch: 17 copies of it are the nodes. ``faithful`` sums
      their results; otherwise they are averaged (a sum is 17 times as large as in training in batches of 17);
    * ``batch17``: the released program: batches of 2, 17 or multiples of 17, whose elements depend on one another;
    * ``joint``: the paper: ``joint_width`` channels per joint, one normalised graph convolution, and back, from zero;
    * ``off``: no graph, the paper's UNet-T2H.

    Published training: ``optim.batch=68 optim.accumulate=4``, learning rate 1e-5, from random weights, with the text.
    """

    needs = frozenset()
    places = frozenset({"middle"})
    sample = "pose"
    starts_neutral = False
    divisible = True  # with graph=off
    paper = Paper(
        "GUNet: A Graph Convolutional Network United Diffusion Model for Stable and Diversity Pose Generation",
        "arXiv:2409.11689",
        "MCULab-sohu/PoseDiffusion@2120766",
        "code Apache-2.0, data CC BY-NC 4.0, by the README's badges",
        published=(*Published.of("COCO 2014, one person", PAPER_TABLE, MSE=262.2, Var=244.5),),
    )

    def __init__(self, graph: Graph = "per_sample", joint_width: Width = 16) -> None:
        super().__init__()
        if graph not in get_args(Graph):
            raise ValueError(f"adapter.graph is {graph!r}; expected one of {', '.join(get_args(Graph))}")
        self.graph, self.joint_width = graph, joint_width

    @property
    def left_out(self) -> Mapping[str, str]:
        return {"spa_block": "the graph block, which adapter.graph=off leaves out"} if self.graph == "off" else {}

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        backbone.unet.requires_grad_(True)
        if self.graph == "joint":
            self.joint_block = JointBlock(backbone.geometry.channels[-1], self.joint_width)
        elif self.graph != "off":
            halvings = 2 ** (backbone.geometry.levels - 1)  # each rounds up
            self.spa_block = SpatialBlock(-(-backbone.latent_shape((0, 0))[1] // halvings))
        backbone.after_middle(self.behind_middle)

    def behind_middle(self, x: Tensor) -> Tensor:
        """The middle block's output ``[B, C, h, w]`` after the graph."""
        if self.graph in ("off", "joint"):
            return x if self.graph == "off" else self.joint_block(x)
        if self.graph == "batch17" and len(x) != 2:
            return self.spa_block.across(x)
        summed = self.spa_block.copied(x)
        return summed if self.faithful or self.graph == "batch17" else summed / NODES

    def encode(self, batch: PoseBatch) -> State:
        return self.text_state(batch)

    def inject(self, state: State, latents: Tensor, timesteps: Tensor) -> Injection:
        return Injection()

    def convert(self, official: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The released U-Net file, with the graph block, as ``adapter.spa_block.*`` and ``backbone.unet.*``."""
        own, unet = self.state_dict().keys(), self.backbone.unet.state_dict().keys()
        taken = {key: value for key, value in official.items() if key.partition(".")[0] not in self.left_out}
        if unknown := taken.keys() - own - unet:
            raise UnknownKeys(unknown, type(self).__name__)
        return {f"adapter.{key}" if key in own else f"backbone.unet.{key}": value for key, value in taken.items()}


class SpatialBlock(nn.Module):
    """The released block (utils/spatial_block.py): ReLU(z + x), z_n = theta^T sum_m A_nm x_m + b; theta mixes rows."""

    def __init__(self, rows: int, operators: int = 1) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.empty(rows, rows, operators))
        self.b = nn.Parameter(torch.empty(1, rows, 1, 1))
        nn.init.kaiming_uniform_(self.theta, a=5**0.5)
        nn.init.uniform_(self.b, -((rows * operators) ** -0.5), (rows * operators) ** -0.5)
        self.register_buffer("adjacency", skeleton(), persistent=False)
        self.degrees = Counter(skeleton().sum(1).tolist())  # degree -> how many nodes have it

    def forward(self, x: Tensor, operators: Tensor) -> Tensor:
        """Nodes ``[..., N, C, h, w]`` under ``operators [K, N, N]``; row n of an operator gathers for node n."""
        gathered = torch.einsum("knm,...mchw->k...nchw", operators.to(x.dtype), x)
        return F.relu(torch.einsum("hok,k...hw->...ow", self.theta, gathered) + self.b[0, :, :, 0] + x)

    def across(self, x: Tensor) -> Tensor:
        """``[B, C, h, w]`` whose groups of 17 elements are the nodes."""
        self._check(x)
        if len(x) % NODES:
            taken = f"batches of 2, {NODES} or a multiple of {NODES}, not {len(x)}"
            raise ValueError(f"adapter.graph=batch17 takes {taken}; set adapter.graph=per_sample")
        return self(x.unflatten(0, (-1, NODES)), self.adjacency[None]).flatten(0, 1)

    def copied(self, x: Tensor) -> Tensor:
        """For each of ``[B, C, h, w]`` the sum over 17 nodes that are copies of it; nodes of equal degree are equal."""
        self._check(x)
        mixed = torch.einsum("hok,bchw->bcow", self.theta, x)
        bias, degrees = self.b[0, :, :, 0], self.degrees.items()
        return torch.stack([nodes * F.relu(degree * mixed + bias + x) for degree, nodes in degrees]).sum(0)

    def _check(self, x: Tensor) -> None:
        if x.shape[-2] != len(self.theta):
            rows = f"the graph block mixes {len(self.theta)} rows, the middle block made {x.shape[-2]}"
            raise ValueError(f"{rows}: these joint maps have another height than backbone.grid")


class JointBlock(nn.Module):
    """A graph convolution whose nodes are joints: x + P_out SiLU(D^-1/2 (A + I) D^-1/2 P_in(x) W), P_out from zero."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.enter = nn.Conv2d(channels, NODES * width, 1)
        self.weight = nn.Linear(width, width)
        self.leave = zeroed(nn.Conv2d(NODES * width, channels, 1))
        roots = skeleton().sum(1).rsqrt()
        self.register_buffer("adjacency", roots[:, None] * skeleton() * roots, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, h, w]`` to the same shape."""
        joints = self.enter(x).unflatten(1, (NODES, self.width)).movedim(2, -1)
        joints = torch.einsum("nm,bmhwc->bnhwc", self.adjacency.to(joints.dtype), self.weight(joints))
        return x + self.leave(F.silu(joints).movedim(-1, 2).flatten(1, 2))


def skeleton() -> Tensor:
    """``[17, 17]`` A + I: 1 for joints that a bone joins, and for each joint with itself; head and body are apart."""
    a, b = torch.tensor(COCO_BONES).T
    matrix = torch.eye(NODES)
    matrix[a, b] = matrix[b, a] = 1.0
    return matrix
