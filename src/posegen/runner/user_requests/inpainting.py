"""Inpainting: a picture is kept outside a mask, in the latents after every step and in the pixels at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from posegen.backbones.base import Backbone
from posegen.data.base import PoseBatch
from posegen.data.user_images import stretch_to


@dataclass(frozen=True, eq=False)
class Kept:
    """After a step the latents outside the mask become those of the pictures, with the noise of the next step.

    The noise of a picture is that of its initial latents, in all steps. After the last step the latents are clean.

    Attributes:
        clean, noise: ``[B, c, h, w]`` latents of the pictures, and their noise.
        anew: ``[B, 1, h, w] bool`` true where the picture is sampled.
    """

    clean: Tensor
    noise: Tensor
    anew: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, backbone: Backbone, batch: PoseBatch, masks: Tensor, dilate: int = 0) -> Kept:
        """For the images of a batch, sampled where ``masks [B, H, W] bool`` is true; ``dilate`` is in latent cells."""
        assert batch.images is not None
        clean = backbone.to_latents(batch.images)
        anew = reduced(masks, backbone.geometry.latent_factor, dilate).to(clean.device)
        return cls(clean, batch.randn("latents", clean.shape[1:]).to(clean), anew)

    def __call__(self, latents: Tensor, noised: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return torch.where(self.anew, latents, noised(self.clean, self.noise).to(latents.dtype))


def reduced(masks: Tensor, factor: int, dilate: int = 0) -> Tensor:
    """``[B, 1, h, w] bool``: the latent cells with a pixel of ``masks [B, H, W] bool``, and ``dilate`` cells around."""
    cells = F.max_pool2d(masks[:, None].float(), factor)
    return F.max_pool2d(cells, 2 * dilate + 1, stride=1, padding=dilate) > 0


def pasted(picture: np.ndarray, mask: np.ndarray, made: np.ndarray, soft: int = 0) -> np.ndarray:
    """``[H, W, 3] uint8``: ``made`` inside the mask ``[H, W] bool``, and ``picture`` outside, where no pixel changes.

    Args:
        made: ``[h, w, 3] uint8``, resized to the picture where it has another size.
        soft: over how many pixels inside the mask's border the two are mixed.
    """
    made = stretch_to(made, picture.shape[:2])  # type: ignore[arg-type]
    padded = np.pad(mask, 1, mode="edge").astype(np.uint8)
    inwards = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[
        1:-1, 1:-1
    ]  # 0 outside, 1 at the border
    share = np.clip(inwards / (soft + 1), 0, 1)[..., None]
    mixed = np.rint(share * made + (1 - share) * picture).astype(np.uint8)
    return np.where(mask[..., None], mixed, picture)
