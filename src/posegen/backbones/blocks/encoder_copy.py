"""The trainable copy of a U-Net's encoder that control branches share (Zhang et al. 2023, arXiv:2302.05543, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

HINT_CHANNELS = (16, 32, 96, 256)
Place = tuple[int, int]  # (level, layer) of a residual block of the encoder, both from 0


class EncoderCopy(nn.Module):
    """Encoder, middle block and zero convolutions; what they see of the hint is computed once per image.

    The pose enters as ControlNet's does, through a hint network after the first convolution, or through residual blocks of the copy that a method
    replaces by its own.

    Args:
        unet: the backbone's U-Net, whose encoder is copied.
        latent_factor: pixels per latent cell; the hint network halves the hint that often.
        hint_channels: widths of the hint network for a latent factor of 8; fewer halvings take the first ones.
        replaced: blocks ``module(x [B, c, h, w], time [B, T], condition) -> [B, c', h, w]`` in the place of the encoder's own; with any,
            there is no hint network.

    Attributes:
        network: the same in diffusers' class, so that it saves as a plain diffusers ControlNet folder (where no block is replaced).
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        latent_factor: int,
        hint_channels: Sequence[int] = HINT_CHANNELS,
        replaced: Mapping[Place, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        halvings = latent_factor.bit_length() - 1
        if not replaced and (2**halvings != latent_factor or not 1 <= halvings < len(hint_channels)):
            raise ValueError(
                f"no hint network for a latent factor of {latent_factor}; it is {', '.join(str(2**i) for i in range(1, len(hint_channels)))}"
            )
        widths = (1,) if replaced else tuple(hint_channels[: halvings + 1])
        self.network = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=widths)
        if replaced:
            self.network.controlnet_cond_embedding = None
        for (level, layer), block in (replaced or {}).items():
            self.network.down_blocks[level].resnets[layer] = block
        self.network.requires_grad_(True)
        self.network.train()

    def hint_features(self, hint: Tensor) -> Tensor:
        """``[B, 3, H, W]`` to ``[B, channels[0], h, w]``, which `forward` adds after the first convolution."""
        return self.network.controlnet_cond_embedding(hint)

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text: Tensor,
        hint: Tensor | None = None,
        conditions: Mapping[Place, Any] | None = None,
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Residuals of one pass.

        Args:
            latents: ``[B, c, h, w]`` noisy latents.
            timesteps: ``[B]``.
            text: ``[B, L, D]`` text states.
            hint: what `hint_features` returned.
            conditions: what each replaced block reads.

        Returns:
            One residual per skip connection, and that of the middle block.
        """
        net = self.network
        time = net.time_embedding(net.time_proj(timesteps).to(latents.dtype))
        x = net.conv_in(latents)
        if hint is not None:
            x = x + hint
        skips = [x]
        for level, block in enumerate(net.down_blocks):
            for layer, resnet in enumerate(block.resnets):
                extra = (conditions[level, layer],) if conditions and (level, layer) in conditions else ()
                x = self._run(resnet, x, time, *extra)
                if getattr(block, "has_cross_attention", False):
                    x = block.attentions[layer](x, encoder_hidden_states=text, return_dict=False)[0]
                skips.append(x)
            for downsampler in block.downsamplers or ():
                x = downsampler(x)
                skips.append(x)
        x = net.mid_block(x, time, encoder_hidden_states=text)
        down = tuple(zero(skip) for zero, skip in zip(net.controlnet_down_blocks, skips, strict=True))
        return down, net.controlnet_mid_block(x)

    def _run(self, block: nn.Module, *inputs: Any) -> Tensor:
        """``block(*inputs)``, recomputed in the backward pass under gradient checkpointing as diffusers' own blocks are."""
        if self.network.is_gradient_checkpointing and self.training:
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)


def scaled(down: Sequence[Tensor], mid: Tensor, scales: Sequence[float]) -> tuple[tuple[Tensor, ...], Tensor]:
    """Residuals times one factor each, the middle's last."""
    if len(scales) != len(down) + 1:
        raise ValueError(f"{len(scales)} scales for {len(down) + 1} residuals")
    return tuple(r * s for r, s in zip(down, scales[:-1], strict=True)), mid * scales[-1]
