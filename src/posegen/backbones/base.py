"""What a backbone publishes: its geometry, the places where it can be influenced, and the noise process it was trained with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

LATENT_SIDE = 64  # of U-Nets whose configuration does not say what they were trained on


@dataclass(frozen=True)
class Geometry:
    """The shape of a latent diffusion U-Net, all that an adapter may size itself from.

    Attributes:
        latent_channels: channels of the latents.
        latent_factor: pixels per latent cell (8 for Stable Diffusion).
        channels: width of each level, finest first.
        attention: whether each level has cross-attention.
        layers: residual blocks per level of the encoder.
        heads: attention heads of each level.
        text_dim: width of the text states.
        prediction_type: what the U-Net returns, ``epsilon`` or ``v_prediction``.
        linear_projection: transformers project with linear maps (SD2) instead of 1x1 convolutions (SD1).
        norm_groups: groups of the group normalisations.
    """

    latent_channels: int
    latent_factor: int
    channels: tuple[int, ...]
    attention: tuple[bool, ...]
    layers: int
    heads: tuple[int, ...]
    text_dim: int
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    linear_projection: bool = False
    norm_groups: int = 32

    @property
    def levels(self) -> int:
        return len(self.channels)

    @property
    def time_dim(self) -> int:
        """Width of the timestep embedding."""
        return 4 * self.channels[0]

    @property
    def residual_channels(self) -> tuple[int, ...]:
        """Width of every skip connection, in the order the encoder makes them: input convolution, then blocks and downsamplers."""
        widths = [self.channels[0]]
        for level, width in enumerate(self.channels):
            widths += [width] * (self.layers + (level < self.levels - 1))
        return tuple(widths)

    @classmethod
    def from_diffusers(
        cls, unet: Mapping[str, Any], latent_factor: int = 8, prediction_type: str = "epsilon"
    ) -> Geometry:
        """From the config of a ``UNet2DConditionModel``; there ``attention_head_dim`` is the number of heads."""
        channels = tuple(unet["block_out_channels"])
        heads = unet.get("num_attention_heads") or unet["attention_head_dim"]
        return cls(
            latent_channels=unet["out_channels"],
            latent_factor=latent_factor,
            channels=channels,
            attention=tuple("CrossAttn" in block for block in unet["down_block_types"]),
            layers=unet["layers_per_block"],
            heads=tuple(heads) if isinstance(heads, Sequence) else (heads,) * len(channels),
            text_dim=unet["cross_attention_dim"],
            prediction_type=prediction_type,  # type: ignore[arg-type]
            linear_projection=bool(unet.get("use_linear_projection", False)),
            norm_groups=unet.get("norm_num_groups", 32),
        )

    @classmethod
    def from_ldm(cls, config: Mapping[str, Any], latent_factor: int = 8, prediction_type: str = "epsilon") -> Geometry:
        """From the ``unet_config.params`` of an original latent-diffusion yaml."""
        channels = tuple(config["model_channels"] * m for m in config["channel_mult"])
        head_width = config.get("num_head_channels", -1)
        heads = tuple(c // head_width for c in channels) if head_width > 0 else (config["num_heads"],) * len(channels)
        return cls(
            latent_channels=config["out_channels"],
            latent_factor=latent_factor,
            channels=channels,
            attention=tuple(2**level in config["attention_resolutions"] for level in range(len(channels))),
            layers=config["num_res_blocks"],
            heads=heads,
            text_dim=config["context_dim"],
            prediction_type=prediction_type,  # type: ignore[arg-type]
            linear_projection=bool(config.get("use_linear_in_transformer", False)),
        )


@dataclass(frozen=True, eq=False)
class Bank:
    """What the self-attentions of one pass computed, for another pass to read beside its own; it lives as long as the step that it belongs to.

    Attributes:
        layers: name of a layer -> its keys and values ``[R, N, C]``, not yet divided into heads.
        strength: weight of one of these keys relative to one of the reading pass; 1 makes no difference between them.
    """

    layers: Mapping[str, tuple[Tensor, Tensor]]
    strength: float = 1.0


@dataclass(frozen=True)
class Injection:
    """What a method puts into one pass of the U-Net; every field is optional.

    Attributes:
        down: one residual ``[B, residual_channels[i], h_i, w_i]`` per skip connection, added to it.
        mid: residual added to the middle block's output.
        encoder: one feature map per level, added inside the encoder before the level's last skip leaves it.
        latents: ``[B, c, h, w]`` concatenated to the noisy latents.
        attention: keys and values of another pass, appended to those of the self-attentions.
        features: tokens ``[R, N_i, S_i]``, one map per block that `Adapter.attach` inserted, in the order of the blocks.
        rows: ``[R]`` the images of the batch that ``attention`` and ``features`` are for; None: all of them, in order. The others see neither.
    """

    down: tuple[Tensor, ...] | None = None
    mid: Tensor | None = None
    encoder: tuple[Tensor, ...] | None = None
    latents: Tensor | None = None
    attention: Bank | None = None
    features: tuple[Tensor, ...] | None = None
    rows: Tensor | None = None

    def scaled(self, factor: float) -> Injection:
        """The same influence ``factor`` times as strong: residuals, encoder features and concatenated latents are multiplied.

        Latents enter through the linear input convolution, so what that adds is multiplied, too. Attention reads ``attention`` and ``features`` in ways that
        are not linear; they stay as they are.
        """
        down, encoder = (
            None if maps is None else tuple(factor * m for m in maps) for maps in (self.down, self.encoder)
        )
        mid, latents = (None if m is None else factor * m for m in (self.mid, self.latents))
        return replace(self, down=down, mid=mid, encoder=encoder, latents=latents)


@dataclass(frozen=True)
class Step:
    """One training step of the diffusion model; all tensors ``[B, c, h, w]`` but ``timesteps [B]``."""

    prediction: Tensor
    target: Tensor
    noisy: Tensor
    clean: Tensor
    noise: Tensor
    timesteps: Tensor


@dataclass(frozen=True)
class Weights:
    """Where a backbone's weights came from: the part of a cell's identity that paths are not."""

    id: str
    sha256: str
    facts: Mapping[str, Any] = field(default_factory=dict)


class Backbone(nn.Module, ABC):
    """A diffusion model that adapters influence without knowing which one it is.

    Attributes:
        geometry: see `Geometry`.
        recipe: which of an adapter's ``recipes`` fits (``published`` for Stable Diffusion, ``mannequin`` for the offline world).
        sample: what is generated; `Adapter.sample` must agree.
        trains_on: what of a batch is noised in training: cached ``latents``, or ``poses``, which are encoded as they come.
        weights: id and hash of the loaded weights.
        unet: the network that `predict` runs and that adapters may operate on in `Adapter.attach`.
        alphas_cumprod: ``[T]`` cumulative signal power of the noise process.
    """

    geometry: Geometry
    recipe: str
    sample: Literal["image", "pose"]
    trains_on: Literal["latents", "poses"] = "latents"
    weights: Weights
    unet: nn.Module
    alphas_cumprod: Tensor

    @abstractmethod
    def predict(self, latents: Tensor, timesteps: Tensor, text: Tensor, injection: Injection) -> Tensor:
        """The U-Net's prediction ``[B, c, h, w]`` for noisy ``latents`` at ``timesteps [B]`` given text states ``[B, L, D]``."""

    def keys_and_values(self, latents: Tensor, timesteps: Tensor, text: Tensor, injection: Injection) -> Bank:
        """What the self-attentions compute in the pass that `predict` makes of the same arguments, whose prediction nobody needs.

        Raises:
            TypeError: this backbone cannot show it.
        """
        raise TypeError(f"backbone {self.weights.id} does not show the keys and values of its self-attentions")

    @abstractmethod
    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Text states ``[B, L, D]``."""

    @abstractmethod
    def to_latents(self, images: Tensor, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        """Samples to scaled latents: images ``[B, 3, H, W]`` in [-1, 1], or poses ``[B, 17, 3]`` where ``sample`` says so.

        A posterior is sampled with one generator per image, or its mode taken without them.
        """

    @abstractmethod
    def from_latents(self, latents: Tensor) -> Tensor:
        """Scaled latents to samples, the inverse of `to_latents`; images are differentiable."""

    def save_source(self, folder: Path) -> dict[str, Any]:
        """Copies the files that the weights were read from to the new ``folder``, whatever adapters did to the weights since.

        Returns:
            Constructor arguments that read the same weights from there, with paths relative to ``folder``.

        Raises:
            TypeError: the weights were not read from files.
        """
        raise TypeError(
            f"backbone {self.weights.id} was not read from files, so its weights cannot be copied; save it to a folder and read it from there"
        )

    def unet_keys(self, official: Iterable[str]) -> dict[str, str | None]:
        """Which of an official file's keys are those of a plain U-Net, and their names in ``unet``; None for one that has no place there."""
        return {}

    def encoding_key(self, of: Literal["latents", "text"]) -> str:
        """What cached latents or text states depend on; backbones that share an encoder may share them."""
        return self.weights.sha256

    def latent_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """(channels, height, width) of the latents of an image of ``size``.

        Raises:
            ValueError: a side is not a multiple of the latent factor.
        """
        factor = self.geometry.latent_factor
        if any(side % factor for side in size):
            raise ValueError(
                f"data.size {size} is not a multiple of the backbone's latent factor {factor}; choose {[s - s % factor for s in size]}"
            )
        return self.geometry.latent_channels, size[0] // factor, size[1] // factor

    @property
    def usual_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the images that the U-Net was trained on."""
        side = self.unet.config.get("sample_size") or LATENT_SIDE  # type: ignore[union-attr, operator]
        height, width = side if isinstance(side, list | tuple) else (side, side)
        return height * self.geometry.latent_factor, width * self.geometry.latent_factor

    # The noise process, with a = alphas_cumprod[t] (Ho et al. 2020, eq. 4; v as in Salimans & Ho 2022, eq. 13).

    def _signal_and_noise(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        a = self.alphas_cumprod.to(timesteps.device)[timesteps].view(-1, 1, 1, 1)
        return a.sqrt(), (1 - a).sqrt()

    def add_noise(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        signal, sigma = self._signal_and_noise(timesteps)
        return signal * clean + sigma * noise

    def target(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What `predict` should return: the noise, or v = signal * noise - sigma * clean."""
        if self.geometry.prediction_type == "epsilon":
            return noise
        signal, sigma = self._signal_and_noise(timesteps)
        return signal * noise - sigma * clean

    def predict_clean(self, step: Step) -> Tensor:
        """The clean latents that a prediction stands for."""
        signal, sigma = self._signal_and_noise(step.timesteps)
        if self.geometry.prediction_type == "epsilon":
            return (step.noisy - sigma * step.prediction) / signal
        return signal * step.noisy - sigma * step.prediction
