"""The trainable copy of a U-Net's encoder that control branches share (Zhang et al. 2023, arXiv:2302.05543, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn

HINT_CHANNELS = (16, 32, 96, 256)


class EncoderCopy(nn.Module):
    """Encoder, middle block and zero convolutions; what they see of the hint is computed once per image.

    Args:
        unet: the backbone's U-Net, whose encoder is copied.
        latent_factor: pixels per latent cell; the hint network halves the hint that often.
        hint_channels: widths of the hint network for a latent factor of 8; fewer halvings take the first ones.

    Attributes:
        network: the same in diffusers' class, so that it saves as a plain diffusers ControlNet folder.
    """

    def __init__(self, unet: UNet2DConditionModel, latent_factor: int, hint_channels: Sequence[int] = HINT_CHANNELS) -> None:
        super().__init__()
        halvings = latent_factor.bit_length() - 1
        if 2**halvings != latent_factor or not 1 <= halvings < len(hint_channels):
            raise ValueError(f"no hint network for a latent factor of {latent_factor}; it is {', '.join(str(2**i) for i in range(1, len(hint_channels)))}")
        self.network = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=tuple(hint_channels[: halvings + 1]))
        self.network.requires_grad_(True)
        self.network.train()

    def hint_features(self, hint: Tensor) -> Tensor:
        """``[B, 3, H, W]`` to ``[B, channels[0], h, w]``, which `forward` adds after the first convolution."""
        return self.network.controlnet_cond_embedding(hint)

    def forward(self, latents: Tensor, timesteps: Tensor, text: Tensor, hint: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Residuals of one pass.

        Args:
            latents: ``[B, c, h, w]`` noisy latents.
            timesteps: ``[B]``.
            text: ``[B, L, D]`` text states.
            hint: what `hint_features` returned.

        Returns:
            One residual per skip connection, and that of the middle block.
        """
        net = self.network
        time = net.time_embedding(net.time_proj(timesteps).to(latents.dtype))
        x = net.conv_in(latents) + hint
        skips = (x,)
        for block in net.down_blocks:
            x, made = _run(block, x, time, text)
            skips += made
        x = net.mid_block(x, time, encoder_hidden_states=text)
        down = tuple(zero(skip) for zero, skip in zip(net.controlnet_down_blocks, skips, strict=True))
        return down, net.controlnet_mid_block(x)


def _run(block: Any, x: Tensor, time: Tensor, text: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    if getattr(block, "has_cross_attention", False):
        return block(hidden_states=x, temb=time, encoder_hidden_states=text)
    return block(hidden_states=x, temb=time)


def scaled(down: Sequence[Tensor], mid: Tensor, scales: Sequence[float]) -> tuple[tuple[Tensor, ...], Tensor]:
    """Residuals times one factor each, the middle's last."""
    if len(scales) != len(down) + 1:
        raise ValueError(f"{len(scales)} scales for {len(down) + 1} residuals")
    return tuple(r * s for r, s in zip(down, scales[:-1], strict=True)), mid * scales[-1]
