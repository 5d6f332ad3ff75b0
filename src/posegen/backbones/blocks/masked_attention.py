"""Self-attention along the pose: a pair of tokens is masked where neither shows the pose.

`dense` is the definition. `compressed` gives the same result with fewer products: other queries than the pose's attend
to the pose keys and to one virtual key for all others, which share a logit. Both run in single precision.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Fill = Literal["lowest", "nothing"]
Over = Literal["image", "batch"]


class Masking(NamedTuple):
    """Which of the N tokens of B images show the pose."""

    pose: Tensor  # ``[B, N]``, true where they do
    order: Tensor  # ``[B, N]`` indices of pose tokens, then of the others
    counts: Sequence[int]  # B numbers of pose tokens
    fill: Fill  # masked pairs weigh ``nothing`` (none are masked without a pose), or have the ``lowest`` of all logits

    def runs(self) -> Iterator[tuple[bool, slice]]:
        """(whether anything is masked, images beside each other that have this in common)."""
        unmasked = {self.pose.shape[1]} if self.fill == "lowest" else {0, self.pose.shape[1]}
        start = 0
        for masked, run in groupby(count not in unmasked for count in self.counts):
            end = start + len(list(run))
            yield masked, slice(start, end)
            start = end


def dense(q: Tensor, k: Tensor, v: Tensor, masking: Masking, lowest_over: Over = "image") -> Tensor:
    """Attention with all logits, masked ones replaced: q, k, v ``[B, h, N, d]`` to ``[B, h, N, d] float32``.

    ``lowest_over`` is where the lowest logit is looked for."""
    with torch.autocast(q.device.type, enabled=False):
        pose = masking.pose
        allowed = pose[:, None, :, None] | pose[:, None, None, :]
        logits = q.float() @ k.float().mT * q.shape[-1] ** -0.5
        if masking.fill == "lowest":
            fill = logits.detach().amin(dim=(1, 2, 3), keepdim=True)
            fill = fill.amin() if lowest_over == "batch" else fill
        else:
            fill = logits.new_tensor(-math.inf)
            allowed = allowed | ~pose.any(-1).view(-1, 1, 1, 1)
        return torch.where(allowed, logits, fill).softmax(-1) @ v.float()


def compressed(q: Tensor, k: Tensor, v: Tensor, masking: Masking, lowest_over: Over = "image") -> Tensor:
    """The result of `dense`; images with and without masked pairs run apart, and nothing waits for the device."""
    with torch.autocast(q.device.type, enabled=False):
        q, k, v = q.float(), k.float(), v.float()
        overall = _lowest(q, k).amin() if masking.fill == "lowest" and lowest_over == "batch" else None
        attended = []
        for masked, rows in masking.runs():
            run = q[rows], k[rows], v[rows]
            if not masked:
                attended.append(F.scaled_dot_product_attention(*run))
                continue
            fill = _lowest(*run[:2]) if masking.fill == "lowest" else q.new_full((len(run[0]),), -math.inf)
            fill = fill if overall is None else overall.expand_as(fill)
            order = masking.order[rows][:, None, :, None].expand_as(run[0])
            a, b, c = (t.gather(2, order) for t in run)
            made = _pose_first(a, b, c, masking.pose[rows].sum(-1), max(masking.counts[rows]), fill)
            attended.append(torch.empty_like(made).scatter(2, order, made))
        return torch.cat(attended)


def _pose_first(q: Tensor, k: Tensor, v: Tensor, count: Tensor, most: int, fill: Tensor) -> Tensor:
    """Attention among sorted tokens: the first ``count [B]``, at most ``most`` and never all, show the pose.

    The n other keys share the logit ``fill [B]``: one key with ``fill + ln n`` and their mean value stands for all."""
    tokens, others = q.shape[2], q.shape[2] - count
    pose = torch.arange(tokens, device=q.device) < count[:, None]
    mean = (v * ~pose[:, None, :, None]).sum(2, keepdim=True) / others.view(-1, 1, 1, 1)
    keys, values = F.pad(k, (0, 0, 1, 0)), torch.cat([mean, v], dim=2)  # the virtual key comes before the pose
    of_pose = F.pad(fill.new_zeros(tokens), (1, 0), value=-math.inf)
    unseen = fill.new_zeros(pose.shape).masked_fill(~pose, -math.inf)
    of_others = torch.cat([(fill + others.log())[:, None], unseen], dim=1)[:, None, None]
    # An image with fewer pose tokens than ``most`` has others here.
    bias = torch.where(pose[:, None, :most, None], of_pose, of_others)
    above = F.scaled_dot_product_attention(q[:, :, :most], keys, values, bias)
    keys, values, bias = keys[:, :, : most + 1], values[:, :, : most + 1], of_others[..., : most + 1]
    return torch.cat([above, F.scaled_dot_product_attention(q[:, :, most:], keys, values, bias)], dim=2)


@torch.no_grad()
def _lowest(q: Tensor, k: Tensor) -> Tensor:
    """``[B]`` lowest logit of each image, one head at a time: all logits together would not fit into a cache."""
    each = [(a @ b.mT).amin(dim=(1, 2)) for a, b in zip(q.unbind(1), k.unbind(1), strict=True)]
    return torch.stack(each).amin(0) * q.shape[-1] ** -0.5
