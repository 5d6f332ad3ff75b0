"""Edge convolution on graphs of a feature map's cells (Wang et al. 2019, arXiv:1801.07829, section 3).

Every convolution joins each node with its nearest neighbours in the convolution's input.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

with warnings.catch_warnings():  # torch-geometric still scripts functions, which torch advises against
    warnings.simplefilter("ignore")
    from torch_geometric.nn import MessagePassing
    from torch_geometric.nn.aggr import Aggregation

GROUPS = 4  # of the edge convolution; the first half sees the node, the second the differences to its neighbours


def neighbours(maps: Tensor, k: int, rows: int = 1024) -> Tensor:
    """The k nearest nodes of every node of maps ``[B, C, h, w]``, in no particular order: ``[B, h w, k]``, k <= h w.

    Nodes are compared by the squared distance |f_i|^2 + |f_j|^2 - 2 f_i.f_j of their features, scaled to unit length; a
    node competes for its own neighbourhood like any other. Distances of similar nodes vanish in half precision, so they
    are single whatever the autocast; no gradient flows. The distances of ``rows`` nodes are computed at a time, which
    bounds the memory by ``B * rows * h * w`` numbers."""
    with torch.no_grad(), torch.autocast(maps.device.type, enabled=False):
        nodes = F.normalize(maps.float().flatten(2), dim=1).mT
        half = nodes.square().sum(2)[:, None] / 2
        # f_i.f_j - |f_j|^2 / 2 orders a row as the distance does: |f_i|^2 is the same in all of it.
        nearness = (torch.baddbmm(half, chunk, nodes.mT, beta=-1) for chunk in nodes.split(rows, dim=1))
        return torch.cat([chunk.topk(k, sorted=False).indices for chunk in nearness], dim=1)


class FixedDegreeMax(Aggregation):
    """The maximum over the edges of a node, where all nodes have equally many: no scattering."""

    def forward(
        self, x: Tensor, index: Any = None, ptr: Any = None, dim_size: int | None = None, dim: int = -2
    ) -> Tensor:
        """``[nodes * k, C]`` to ``[nodes, C]``."""
        return x.view(dim_size, -1, x.shape[-1]).amax(1)


class EdgeConvolution(MessagePassing):
    """y_i = max_j ReLU(W [x_i ; x_j - x_i] + b) over the neighbours j of i, with W in four groups of channels.

    The first two groups see x_i alone, the others x_j - x_i alone, and as ReLU and addition keep the order, y_i =
    ReLU([W_a x_i + b_a ; max_j(W_b x_j) - W_b x_i + b_b]): two linear maps on nodes and a maximum over C / 2 channels,
    not 2 C channels on k edges per node as in `DenseEdgeConvolution`."""

    def __init__(self, channels: int) -> None:
        super().__init__(aggr=FixedDegreeMax())
        self.mix = nn.Conv2d(2 * channels, channels, 1, groups=GROUPS)

    def forward(self, maps: Tensor, near: Tensor) -> Tensor:
        """``[B, C, h, w]`` and the `neighbours` ``[B, h w, k]`` to ``[B, C, h, w]``."""
        half = maps.shape[1] // 2
        weight, bias = self.mix.weight, self.mix.bias
        own = F.conv2d(maps, weight[:half], bias[:half], groups=GROUPS // 2)
        other = F.conv2d(maps, weight[half:], groups=GROUPS // 2)
        b, n, k = near.shape  # edges of B graphs side by side: sources, and sorted targets
        sources = near + n * torch.arange(b, device=near.device)[:, None, None]
        edges = torch.stack([sources.flatten(), torch.arange(b * n, device=near.device).repeat_interleave(k)])
        furthest = self.propagate(edges, nodes=other.flatten(2).mT.flatten(0, 1))
        furthest = furthest.view(len(maps), -1, half).mT.reshape(other.shape)
        return F.relu(torch.cat([own, furthest - other + bias[half:, None, None]], dim=1))

    def message(self, nodes_j: Tensor) -> Tensor:
        return nodes_j

    def _set_jittable_templates(self, raise_on_error: bool = False) -> None:
        """Nothing: the library would leave a file in the temporary folder. `propagate` computes the same without."""


class DenseEdgeConvolution(nn.Module):
    """The definition, with every edge's [x_i ; x_j - x_i] in memory; weights are interchangeable."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(2 * channels, channels, 1, groups=GROUPS)

    def forward(self, maps: Tensor, near: Tensor) -> Tensor:
        """As `EdgeConvolution.forward`."""
        nodes = maps.flatten(2)
        ends = near.flatten(1)[:, None].expand(-1, nodes.shape[1], -1)
        joined = nodes.gather(2, ends).view(*nodes.shape, near.shape[-1])
        centre = nodes[..., None].expand_as(joined)
        return F.relu(self.mix(torch.cat([centre, joined - centre], dim=1))).amax(3).view_as(maps)


EDGES: dict[str, Callable[[int], nn.Module]] = {"factorised": EdgeConvolution, "dense": DenseEdgeConvolution}


class GraphConvolution(nn.Module):
    """x + EdgeConvolution(BatchNorm(W x)) on the graph of the k nearest neighbours in BatchNorm(W x)."""

    def __init__(self, channels: int, k: int, form: Literal["factorised", "dense"]) -> None:
        super().__init__()
        self.k = k
        self.embed = nn.Conv2d(channels, channels, 1)
        self.norm = nn.BatchNorm2d(channels)
        self.edges = EDGES[form](channels)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, h, w]`` to ``[B, C, h, w]``."""
        nodes = self.norm(self.embed(x))
        return x + self.edges(nodes, neighbours(nodes, min(self.k, nodes[0, 0].numel())))
