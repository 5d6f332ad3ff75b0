"""Bottom-up pose decoding: heatmaps, a centre map and centre-to-keypoint offsets to people, for a whole batch.

Every person starts as a peak of the centre map; the offsets there say roughly where its keypoints are, and each
keypoint then snaps to the best peak of its own heatmap nearby (the scheme of CenterNet, Zhou et al. 2019,
arXiv:1904.07850, section 4.2). Positions are in heatmap cells.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FAR = -1e4  # cells; a Gaussian there leaves nothing in the image


def peak_gaussians(points: Tensor, size: tuple[int, int], sigma: float) -> Tensor:
    """Unnormalised Gaussians ``[..., h, w]`` (peak 1) around ``points [..., 2]`` (x, y in cells)."""
    x, y = (torch.arange(n, device=points.device, dtype=points.dtype) for n in (size[1], size[0]))
    columns = torch.exp((x - points[..., :1]).square() / (-2 * sigma**2))
    rows = torch.exp((y - points[..., 1:2]).square() / (-2 * sigma**2))
    return rows[..., :, None] * columns[..., None, :]


def people_gaussians(points: Tensor, labelled: Tensor, size: tuple[int, int], sigma: float) -> Tensor:
    """``[B, C, h, w]`` the highest Gaussian over people around ``points [B, P, C, 2]`` where ``labelled [B, P, C]``."""
    maps = points.new_zeros((len(points), points.shape[2], *size))
    for person in range(points.shape[1]):
        away = torch.where(labelled[:, person, :, None], points[:, person], FAR)
        maps = torch.maximum(maps, peak_gaussians(away, size, sigma))
    return maps


def peaks(maps: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest local maxima of probabilities ``maps [..., h, w]``, highest first: sub-cell positions (x, y)
    ``[..., k, 2]`` and heights ``[..., k]``; places beyond the last local maximum have height 0."""
    *lead, h, w = maps.shape
    maps, k = maps.reshape(-1, h, w), min(k, h * w)
    heights, where = torch.where(F.max_pool2d(maps[:, None], 3, 1, 1)[:, 0] == maps, maps, 0).flatten(1).topk(k, dim=1)
    x, y = where % w, where // w
    return (torch.stack([x, y], -1) + subcell(maps, x, y)).view(*lead, k, 2), heights.view(*lead, k)


def subcell(maps: Tensor, x: Tensor, y: Tensor, limit: float = 0.75) -> Tensor:
    """The maximum of the paraboloid fitted to the log probabilities in the 3x3 cells around each peak, from its cell.

    The logarithm of a Gaussian is a paraboloid, so the step is exact for a clean one (DARK, arXiv:1910.06278, equation
    7); the least-squares fit over nine cells averages the noise. Peaks ``x, y [N, k]`` are cells of probabilities
    ``maps [N, h, w]``; steps ``[N, k, 2]`` are at most ``limit`` cells."""
    w = maps.shape[-1] + 2
    padded = F.pad(maps[:, None], (1, 1, 1, 1), mode="replicate").flatten(1)
    index = (y * w + x)[..., None] + torch.tensor([i * w + j for i in (0, 1, 2) for j in (0, 1, 2)], device=maps.device)
    patch = padded.gather(1, index.flatten(1)).view(index.shape).clamp_min(1e-8).log().unflatten(-1, (3, 3))
    left, centre, right = patch.sum(-2).unbind(-1)
    above, middle, below = patch.sum(-1).unbind(-1)
    gx, gy = (right - left) / 6, (below - above) / 6
    hxx, hyy = (right - 2 * centre + left) / 3, (below - 2 * middle + above) / 3
    hxy = (patch[..., 2, 2] + patch[..., 0, 0] - patch[..., 2, 0] - patch[..., 0, 2]) / 4
    det = hxx * hyy - hxy * hxy
    concave = (det > 1e-6) & (hxx < 0)
    step = torch.stack([hxy * gy - hyy * gx, hxy * gx - hxx * gy], -1) / torch.where(concave, det, 1)[..., None]
    return torch.where(concave[..., None], step, 0).clamp(-limit, limit)


def snapped_to_peaks(
    guess: Tensor, heat: Tensor, k: int = 6, reach: float = 0.3, floor: float = 1e-3
) -> tuple[Tensor, Tensor]:
    """Moves each person's guessed keypoints to heatmap peaks.

    Of the ``k`` highest peaks of each map of probabilities ``heat [B, 17, h, w]``. A peak's appeal is its height times
    a Gaussian of its distance, ``reach`` times the person's longer side wide; where none exceeds ``floor`` the ``guess
    [B, N, 17, 2]`` stays, with the probability there as its score. Returns such positions and ``[B, N, 17]`` scores."""
    places, heights = peaks(heat, k)
    extent = (guess.amax(2) - guess.amin(2)).amax(-1).clamp_min(2.0)
    distance2 = (guess[:, :, :, None] - places[:, None]).square().sum(-1)
    appeal = heights[:, None] * torch.exp(distance2 / (-2 * (reach * extent[..., None, None]).square()))
    best, index = appeal.max(-1)
    everywhere = places[:, None].expand(-1, guess.shape[1], -1, -1, -1)
    found = torch.take_along_dim(everywhere, index[..., None, None], 3)[..., 0, :]
    height = torch.take_along_dim(heights[:, None].expand_as(appeal), index[..., None], 3)[..., 0]
    (h, w), snapped = heat.shape[-2:], best > floor
    x, y = guess[..., 0].round().long().clamp(0, w - 1), guess[..., 1].round().long().clamp(0, h - 1)
    there = heat.flatten(2).gather(2, (y * w + x).transpose(1, 2)).transpose(1, 2)
    return torch.where(snapped[..., None], found, guess), torch.where(snapped, height, there)


def keep_distinct(keypoints: Tensor, scores: Tensor, sigmas: Tensor, threshold: float) -> Tensor:
    """Greedy non-maximum suppression by object keypoint similarity: ``[B, N]`` which people stay.

    People ``keypoints [B, N, 17, 2]`` come by falling ``scores [B, N]``; one that is more similar than ``threshold`` to
    a better one is dropped. ``sigmas [17]`` are COCO's standard deviations of keypoints."""
    area = (keypoints.amax(2) - keypoints.amin(2)).clamp_min(1.0).prod(-1)
    scale = (area[:, :, None] + area[:, None, :])[..., None] / 2 * (2 * sigmas).square()
    distance2 = (keypoints[:, :, None] - keypoints[:, None]).square().sum(-1)
    similar = torch.exp(distance2 / (-2 * scale)).mean(-1) > threshold
    keep = scores > 0
    for better in range(keypoints.shape[1] - 1):
        later = similar[:, better] & keep[:, better, None]
        later[:, : better + 1] = False
        keep = keep & ~later
    return keep
