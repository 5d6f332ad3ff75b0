"""Keeping most of a picture while the rest of it is sampled: in the latents after every step, and in the pixels at the
end."""

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
    """What the sampler does after a step: outside the mask the latents become those of the pictures, with the noise
    that belongs to the next step.

    The noise of a picture is one draw for all steps, the one that its sampling starts from; so a model that predicts it
    exactly passes without a seam. After the last step the pictures' latents are clean.

    Attributes:
        clean: ``[B, c, h, w]`` latents of the pictures.
        noise: ``[B, c, h, w]``.
        anew: ``[B, 1, h, w] bool`` where something else is to come.
    """

    clean: Tensor
    noise: Tensor
    anew: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, backbone: Backbone, batch: PoseBatch, masks: Tensor, dilate: int = 0) -> Kept:
        """For the images of a batch.

        Args:
            masks: ``[B, H, W] bool`` of their size, true where something else is to come.
            dilate: by how many latent cells that is extended.
        """
        assert batch.images is not None
        clean = backbone.to_latents(batch.images)
        return cls(
            clean,
            batch.randn("latents", clean.shape[1:]).to(clean),
            reduced(masks, backbone.geometry.latent_factor, dilate).to(clean.device),
        )

    def __call__(self, latents: Tensor, noised: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return torch.where(self.anew, latents, noised(self.clean, self.noise).to(latents.dtype))


def reduced(masks: Tensor, factor: int, dilate: int = 0) -> Tensor:
    """``[B, 1, h, w] bool``: the latent cells that hold a pixel of ``masks [B, H, W] bool``, and those up to ``dilate``
    cells from them."""
    cells = F.max_pool2d(masks[:, None].float(), factor)
    return F.max_pool2d(cells, 2 * dilate + 1, stride=1, padding=dilate) > 0


def pasted(picture: np.ndarray, mask: np.ndarray, made: np.ndarray, soft: int = 0) -> np.ndarray:
    """``made`` inside the mask and ``picture`` outside, where no pixel changes.

    Args:
        picture: ``[H, W, 3] uint8``.
        mask: ``[H, W] bool``.
        made: ``[h, w, 3] uint8``, resized to the picture where it has another size.
        soft: over how many pixels inside the mask's border the two are mixed.

    Returns:
        ``[H, W, 3] uint8``.
    """
    made = stretch_to(made, picture.shape[:2])  # type: ignore[arg-type]
    inwards = cv2.distanceTransform(np.pad(mask, 1, mode="edge").astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[
        1:-1, 1:-1
    ]  # 0 outside, 1 at the border
    share = np.clip(inwards / (soft + 1), 0, 1)[..., None]
    mixed = np.rint(share * made + (1 - share) * picture).astype(np.uint8)
    return np.where(mask[..., None], mixed, picture)
