"""The trainable copy of a U-Net's encoder (Zhang et al. 2023, arXiv:2302.05543, section 3.2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from posegen.backbones.base import BlockPlace, ControlBranch, Geometry, Injection
from posegen.backbones.loading import ldm_keys as ldm
from posegen.backbones.text import Text
from posegen.io.weights import UnknownKeys

HINT_CHANNELS = (16, 32, 96, 256)  # of the hint network for a latent factor of 8; fewer halvings take the first ones


class EncoderCopy(ControlBranch):
    """Encoder, middle block and zero convolutions.

    The pose enters as in ControlNet, through a hint network after the first convolution that halves the hint to the
    size of the latents, or through the blocks ``replaced``, ``module(x [B, c, h, w], time [B, T], condition) ->
    [B, c', h, w]``, in the place of the encoder's own; with any, there is no hint network."""

    def __init__(
        self, unet: UNet2DConditionModel, geometry: Geometry, replaced: Mapping[BlockPlace, nn.Module] | None = None
    ) -> None:
        super().__init__()
        self.geometry, factor = geometry, geometry.latent_factor
        halvings = factor.bit_length() - 1
        if not replaced and (2**halvings != factor or not 1 <= halvings < len(HINT_CHANNELS)):
            raise ValueError(f"no hint network for a latent factor of {factor}; it is 2, 4, 8")
        widths = (1,) if replaced else HINT_CHANNELS[: halvings + 1]
        self.network = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=widths)
        if replaced:
            self.network.controlnet_cond_embedding = None
        for (level, layer), block in (replaced or {}).items():
            self.network.down_blocks[level].resnets[layer] = block
        self.network.requires_grad_(True)
        self.network.train()

    def hint_features(self, hint: Tensor) -> Tensor:
        """``[B, 3, H, W]`` to ``[B, channels[0], h, w]``, which `forward` adds after the first convolution."""
        network = self.network.controlnet_cond_embedding  # the only one at the size of the picture
        return checkpoint(network, hint, use_reentrant=False) if self.again else network(hint)

    @property
    def again(self) -> bool:
        """Whether the backward pass computes activations again, as of diffusers' blocks."""
        return self.network.is_gradient_checkpointing and self.training

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text: Text,
        hint: Tensor | None = None,
        conditions: Mapping[BlockPlace, Any] | None = None,
    ) -> Injection:
        net, time = self.network, self.time(latents, timesteps, text)
        x = net.conv_in(latents)
        if hint is not None:
            x = x + hint
        skips, again = [x], self.again
        for level, block in enumerate(net.down_blocks):
            for layer, resnet in enumerate(block.resnets):
                extra = (conditions[level, layer],) if conditions and (level, layer) in conditions else ()
                x = checkpoint(resnet, x, time, *extra, use_reentrant=False) if again else resnet(x, time, *extra)
                if getattr(block, "has_cross_attention", False):
                    x = block.attentions[layer](x, encoder_hidden_states=text.tokens, return_dict=False)[0]
                skips.append(x)
            for downsampler in block.downsamplers or ():
                x = downsampler(x)
                skips.append(x)
        x = net.mid_block(x, time, encoder_hidden_states=text.tokens)
        down = tuple(zero(skip) for zero, skip in zip(net.controlnet_down_blocks, skips, strict=True))
        return Injection(down=down, mid=net.controlnet_mid_block(x))

    def time(self, latents: Tensor, timesteps: Tensor, text: Text) -> Tensor:
        """``[B, T]`` the embedded timesteps and, in Stable Diffusion XL, pooled texts and sizes."""
        net = self.network
        time = net.time_embedding(net.time_proj(timesteps).to(latents.dtype))
        if net.config.addition_embed_type is None:
            return time
        added = text.beside(latents, self.geometry.latent_factor)
        waves = net.add_time_proj(added["time_ids"].flatten()).view(len(latents), -1)
        return time + net.add_embedding(torch.cat([added["text_embeds"], waves], dim=-1).to(time.dtype))

    def placed(self, official: Mapping[str, Tensor], beside: Iterable[str], method: str) -> dict[str, Tensor]:
        if ldm.has_prefix(official, "controlnet_"):  # diffusers' names are this project's
            if unknown := official.keys() - self.network.state_dict().keys():
                raise UnknownKeys(unknown, method)
            return {f"network.{key}": value for key, value in official.items()}
        prefix = ldm.CONTROL if ldm.has_prefix(official, ldm.CONTROL) else ""
        return ldm.placed(official, prefix, ldm.control_table(self.geometry), "network.", beside, method)
