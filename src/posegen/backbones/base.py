"""A backbone: its geometry, the places where methods can influence it, and its noise process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from posegen.backbones.process import NoiseProcess
from posegen.backbones.text import Text
from posegen.errors import UserError

BlockPlace: TypeAlias = tuple[int, int]  # (level, layer) of a residual block of an encoder, both from 0
Hook: TypeAlias = Callable[[Tensor], Tensor]
LATENT_SIDE = 64  # of U-Nets whose configuration has no sample_size
#: Where a backbone may be influenced: a field of `Injection` or a method of `Backbone` -> its meaning.
BACKBONE_PLACES = {
    "down": "residuals on the skip connections",
    "mid": "a residual on the middle block's output",
    "blocks": "residuals behind the transformer blocks",
    "encoder": "feature maps added inside each level of the encoder",
    "latents": "further channels of the input, Backbone.widen",
    "attention": "keys and values appended to the self-attentions",
    "features": "tokens read by blocks before the transformers",
    "context": "tokens beside the text with keys and values of their own, Backbone.cross_attentions",
    "hooks": "additions that depend on the hidden state, behind the input, a level or the middle block",
    "control_copy": "a trainable copy of the network, Backbone.control_copy",
    "encoder_block": "residual blocks of that copy to replace, Backbone.encoder_block",
    "middle": "a function behind the middle block, Backbone.after_middle",
    "words": "words of the prompt with embeddings that train, Backbone.learned_words",
    "tokens": "tokens of a picture in the joint attention, Backbone.token_branch",
}
#: Keys of `Injection.hooks`.
HOOK_PLACES = {
    "input": "behind the input convolution; the first skip connection does not see what is added",
    "level": "behind the first level of the encoder and its downsampling; its skip connections do not see it",
    "middle": "behind the middle block",
}


@dataclass(frozen=True)
class Geometry:
    """The shape of a denoising network, all that an adapter may size itself from; a transformer has one level."""

    latent_channels: int  # channels of the latents
    latent_factor: int  # pixels per latent cell (8 for Stable Diffusion)
    channels: tuple[int, ...]  # width of each level, finest first
    attention: tuple[bool, ...]  # whether each level has cross-attention
    layers: int  # residual blocks per level of the encoder
    heads: tuple[int, ...]  # attention heads of each level
    text_dim: int  # width of the text states
    linear_projection: bool = False  # transformers project with linear maps (SD2) instead of 1x1 convolutions (SD1)
    norm_groups: int = 32  # groups of the group normalisations
    patch: int = 1  # latent cells along the side of a token, of transformers
    transformer_layers: tuple[int, ...] = ()  # of the U-Net's transformers at each level; empty: one everywhere

    @property
    def levels(self) -> int:
        return len(self.channels)

    @property
    def pixel_step(self) -> int:
        """Pixels that the sides of images are multiples of."""
        return self.latent_factor * self.patch * 2 ** (self.levels - 1)

    @property
    def time_dim(self) -> int:
        """Width of the timestep embedding."""
        return 4 * self.channels[0]

    @property
    def residual_channels(self) -> tuple[int, ...]:
        """Width of every skip connection in the encoder's order: input convolution, then blocks and downsamplers."""
        widths = [self.channels[0]]
        for level, width in enumerate(self.channels):
            widths += [width] * (self.layers + (level < self.levels - 1))
        return tuple(widths)

    @classmethod
    def from_diffusers(cls, unet: Mapping[str, Any], latent_factor: int = 8) -> Geometry:
        """From the config of a ``UNet2DConditionModel``; there ``attention_head_dim`` is the number of heads."""
        channels = tuple(unet["block_out_channels"])
        heads = unet.get("num_attention_heads") or unet["attention_head_dim"]
        heads = tuple(heads) if isinstance(heads, Sequence) else (heads,) * len(channels)
        attention = tuple("CrossAttn" in block for block in unet["down_block_types"])
        linear, groups = bool(unet.get("use_linear_projection", False)), unet.get("norm_num_groups", 32)
        sizes = attention, unet["layers_per_block"], heads, unet["cross_attention_dim"]
        several = unet.get("transformer_layers_per_block", 1)
        several = tuple(several) if isinstance(several, Sequence) else (several,) * len(channels)
        several = several if max(several) > 1 else ()
        form = {"linear_projection": linear, "norm_groups": groups, "transformer_layers": several}
        return cls(unet["out_channels"], latent_factor, channels, *sizes, **form)

    @classmethod
    def from_ldm(cls, config: Mapping[str, Any], latent_factor: int = 8) -> Geometry:
        """From the ``unet_config.params`` of an original latent-diffusion yaml; raises as `check_first_width` does."""
        channels = tuple(config["model_channels"] * m for m in config["channel_mult"])
        check_first_width(config["model_channels"], channels[0])
        head_width = config.get("num_head_channels", -1)
        heads = tuple(c // head_width for c in channels) if head_width > 0 else (config["num_heads"],) * len(channels)
        attention = tuple(2**level in config["attention_resolutions"] for level in range(len(channels)))
        sizes = attention, config["num_res_blocks"], heads, config["context_dim"]
        linear = bool(config.get("use_linear_in_transformer", False))
        return cls(config["out_channels"], latent_factor, channels, *sizes, linear)


@dataclass(frozen=True, eq=False)
class Bank:
    """Keys and values of one pass's self-attentions, for another pass to read beside its own in the same step."""

    layers: Mapping[str, tuple[Tensor, Tensor]]  # by name: keys and values ``[R, N, C]``, not divided into heads
    strength: float = 1.0  # weight of one of these keys relative to one of the reading pass

    def joined(self, other: Bank) -> Bank:
        """The keys and values of both; a ValueError where their strengths differ."""
        if self.strength != other.strength:
            both = f"attention of strengths {self.strength} and {other.strength}"
            raise ValueError(f"{both} cannot be added; give both methods the same")
        layers = {**self.layers, **other.layers}
        for name in self.layers.keys() & other.layers.keys():
            (k, v), (more_k, more_v) = self.layers[name], other.layers[name]
            layers[name] = torch.cat([k, more_k], dim=1), torch.cat([v, more_v], dim=1)
        return Bank(layers, self.strength)


@dataclass(frozen=True, eq=False)
class Context:
    """Keys and values of tokens that the cross-attentions read beside the text, in an attention of their own each."""

    layers: Mapping[str, tuple[Tensor, Tensor]]  # by the names of `Backbone.cross_attentions`: ``[B, T, C]`` each
    strength: float = 1.0  # factor of what they add to the attention to the text, before the output layer


@dataclass(frozen=True)
class Injection:
    """The influence of a method on one pass of the U-Net; every field is optional."""

    down: tuple[Tensor, ...] | None = None  # a residual ``[B, residual_channels[i], h_i, w_i]`` per skip connection
    mid: Tensor | None = None  # residual added to the middle block's output
    blocks: tuple[Tensor, ...] | None = (
        None  # ``[B, N, C]``, each added behind an equal share of the transformer blocks
    )
    #: A feature map per level, added before its last skip leaves it; or those and, between each two, one that is added
    #: behind the downsampling.
    encoder: tuple[Tensor, ...] | None = None
    latents: Tensor | None = None  # ``[B, c, h, w]`` concatenated to the noisy latents
    attention: Bank | None = None  # keys and values of another pass, appended to those of the self-attentions
    features: tuple[Tensor, ...] | None = None  # tokens ``[R, N_i, S_i]`` for each inserted block, in their order
    context: tuple[Context, ...] = ()  # further tokens of the cross-attentions, of one method each
    hooks: Mapping[str, Hook] | None = None  # what is added to a hidden state, given that state, see `HOOK_PLACES`
    rows: Tensor | None = None  # ``[R]`` the only images that see ``attention`` and ``features``; None: all images
    single_blocks: tuple[Tensor, ...] | None = None  # as ``blocks``, behind those that text and image share
    tokens: tuple[Any, ...] = ()  # of pictures, each started by a `Backbone.token_branch`, for one pass

    @property
    def residuals(self) -> tuple[Tensor, ...]:
        """All residuals in the order of the network, that of the middle last."""
        ends = self.down or (), () if self.mid is None else (self.mid,)
        return tuple(chain(self.blocks or (), self.single_blocks or (), *ends))

    def weighted(self, factors: Sequence[float | Tensor]) -> Injection:
        """The same with one factor per residual, in the order of `residuals`; a ValueError with more or fewer."""
        if len(factors) != (count := len(self.residuals)):
            raise ValueError(f"{len(factors)} factors for {count} residuals; expected one each, the middle's last")
        scaled = iter([r * f for r, f in zip(self.residuals, factors, strict=True)])
        kinds = self.blocks, self.single_blocks, self.down
        blocks, single, down = (each if each is None else tuple(islice(scaled, len(each))) for each in kinds)
        mid = None if self.mid is None else next(scaled)
        return replace(self, blocks=blocks, single_blocks=single, down=down, mid=mid)

    def scaled(self, factor: float) -> Injection:
        """The influence ``factor`` times as strong; ``attention``, ``features`` and ``tokens``, which are not linear,
        stay as they are, and are left out where the factor is 0."""
        encoder = None if self.encoder is None else tuple(factor * m for m in self.encoder)
        latents = None if self.latents is None else factor * self.latents
        hooks = self.hooks and {place: _times(factor, hook) for place, hook in self.hooks.items()}
        scaled = self.weighted([factor] * len(self.residuals))
        context = tuple(replace(each, strength=factor * each.strength) for each in self.context)
        scaled = replace(scaled, encoder=encoder, latents=latents, context=context, hooks=hooks)
        return scaled if factor else replace(scaled, attention=None, features=None, rows=None, tokens=())

    def __add__(self, other: Injection) -> Injection:
        """Both influences: residuals, encoder features, context and hooks add, latents, attention, tokens concatenate.

        A ValueError where both have ``features``, attention for other images or another strength, or other residuals.
        """
        if self.features is not None and other.features is not None:
            raise ValueError("two methods that insert blocks before the transformers cannot be added; use one of them")
        banks = [i for i in (self, other) if i.attention is not None or i.features is not None]
        a, b = self.rows, other.rows
        if len(banks) == 2 and a is not b and (a is None or b is None or not torch.equal(a, b)):
            images = "they are for other images of the batch"
            raise ValueError(f"attention and features of two methods cannot be added: {images}")
        down, mid = _added("down", self.down, other.down), _both(torch.add, self.mid, other.mid)
        blocks = _added("blocks", self.blocks, other.blocks)
        single = _added("single_blocks", self.single_blocks, other.single_blocks)
        encoder = _added("encoder", self.encoder, other.encoder)
        latents = _both(lambda a, b: torch.cat([a, b], dim=1), self.latents, other.latents)
        attention = _both(Bank.joined, self.attention, other.attention)
        features, rows = self.features if other.features is None else other.features, banks[0].rows if banks else None
        hooks = _both(_hooked, self.hooks, other.hooks)
        context, tokens = self.context + other.context, self.tokens + other.tokens
        return Injection(down, mid, blocks, encoder, latents, attention, features, context, hooks, rows, single, tokens)


FieldT = TypeVar("FieldT")


def _times(factor: float, hook: Hook) -> Hook:
    return lambda hidden: factor * hook(hidden)


def _hooked(a: Mapping[str, Hook], b: Mapping[str, Hook]) -> dict[str, Hook]:
    def sum_of(place: str) -> Hook:
        return lambda hidden: a[place](hidden) + b[place](hidden)

    return {**a, **b, **{place: sum_of(place) for place in a.keys() & b.keys()}}


def _both(combine: Callable[[FieldT, FieldT], FieldT], a: FieldT | None, b: FieldT | None) -> FieldT | None:
    return b if a is None else a if b is None else combine(a, b)


def _added(name: str, a: tuple[Tensor, ...] | None, b: tuple[Tensor, ...] | None) -> tuple[Tensor, ...] | None:
    if a is not None and b is not None and len(a) != len(b):
        raise ValueError(f"Injection.{name} has {len(a)} and {len(b)} maps; both methods need the same backbone")
    return _both(lambda x, y: tuple(p + q for p, q in zip(x, y, strict=True)), a, b)


@dataclass(frozen=True)
class Step:
    """One training step of the diffusion model; all tensors ``[B, c, h, w]`` but ``timesteps [B]``."""

    prediction: Tensor
    target: Tensor
    noisy: Tensor
    clean: Tensor
    noise: Tensor
    timesteps: Tensor


class ControlBranch(nn.Module, ABC):
    """A trainable copy of a backbone's network (``network``, in diffusers' class), see `Backbone.control_copy`."""

    network: Any

    @abstractmethod
    def hint_features(self, hint: Tensor) -> Tensor:
        """``[B, 3, H, W]`` drawn poses to the form in which `forward` reads them; computed once per image."""

    @abstractmethod
    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text: Text,
        hint: Tensor | None = None,
        conditions: Mapping[BlockPlace, Any] | None = None,
    ) -> Injection:
        """The influence on one pass over noisy ``latents [B, c, h, w]`` at ``timesteps [B]``.

        ``hint`` is the result of `hint_features`, ``conditions`` are the inputs of the replaced blocks."""

    def fit(self, weights: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> None:
        """Gives ``network`` the form of these weights of its class, where forms differ, as in their number of blocks.

        ``config`` is the configuration beside them, if there is one. A UserError where they are of another width."""

    @abstractmethod
    def placed(self, official: Mapping[str, Tensor], beside: Iterable[str], method: str) -> dict[str, Tensor]:
        """Official weights of such a copy under the names of this module; raises UnknownKeys: some keys have no place.

        ``official`` is a file of the original program, bare or of a whole model, or of diffusers' class, ``beside`` the
        beginnings of keys that are left out; ``method`` is for the message."""


@dataclass(frozen=True)
class Weights:
    """Where a backbone's weights came from: the part of a cell's identity that paths are not."""

    id: str
    sha256: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    hub: Mapping[str, str] = field(default_factory=dict)  # argument -> ``hub:owner/name@commit``, of what was fetched


class Backbone(nn.Module, ABC):
    """A diffusion model that adapters influence without knowing which one it is."""

    places: ClassVar[frozenset[str]]  # where methods can influence it, some of `BACKBONE_PLACES`
    geometry: Geometry
    process: NoiseProcess
    recipe: str  # which of an adapter's ``recipes`` fits, ``published``, ``mannequin`` or ``mannequin_dit``
    sample: Literal["image", "pose"]  # the kind of sample; `Adapter.sample` must agree
    trains_on: Literal["latents", "poses"] = "latents"  # what training noises: cached latents, or poses, encoded anew
    reads: ClassVar[frozenset[str]] = frozenset()  # further fields of training batches that it reads (``sizes``)
    weights: Weights  # id and hash of the loaded weights
    replaced: bool = False  # a method that does not train the denoising network brought another one
    flow: ClassVar[bool] = False  # all models of the class are trained by flow matching
    chunked: ClassVar[bool] = False  # `encode_text` can read long prompts in chunks
    packs: ClassVar[int] = 1  # latent cells along the side of a token, where every model of the class has as many
    usual_guidance: ClassVar[float] = 7.5  # of a pipeline, where a method says nothing
    network_name: ClassVar[str] = "unet"  # of the denoising network, as an attribute and as a folder of diffusers

    @property
    def network(self) -> Any:
        """The denoising network, in diffusers' class."""
        return getattr(self, self.network_name)

    @abstractmethod
    def predict(self, latents: Tensor, timesteps: Tensor, text: Text, injection: Injection) -> Tensor:
        """The prediction ``[B, c, h, w]`` for noisy ``latents`` at ``timesteps [B]``."""

    def keys_and_values(self, latents: Tensor, timesteps: Tensor, text: Text, injection: Injection) -> Bank:
        """Keys and values of the self-attentions in the pass of `predict`; a TypeError where it cannot show them."""
        raise TypeError(f"backbone {self.weights.id} does not show the keys and values of its self-attentions")

    def control_copy(
        self, replaced: Mapping[BlockPlace, nn.Module] | None = None, layers: int | None = None
    ) -> ControlBranch:
        """A trainable copy of the network, which starts without influence.

        ``replaced`` are modules in the place of its blocks, see `encoder_block`; with any, the copy reads no hint.
        ``layers`` is how many blocks it has, for a transformer; None: as released ones."""
        raise lacks(self, "control_copy")

    def encoder_block(self, level: int, layer: int = 0) -> Any:
        """A residual block of the encoder: the size and the first weights of its replacement in `control_copy`."""
        raise lacks(self, "encoder_block")

    def after_middle(self, function: Callable[[Tensor], Tensor]) -> None:
        """Applies ``function`` to the middle block's output from now on, in the place of an earlier function."""
        raise lacks(self, "middle")

    def cross_attentions(self) -> dict[str, Any]:
        """The cross-attentions by name, with their linear ``to_k`` and ``to_v``, in the order of the network's modules:
        of a U-Net the encoder's, the decoder's, and the middle block's last."""
        raise lacks(self, "context")

    def learned_words(self, words: Mapping[str, str]) -> nn.Module:
        """A module with trainable embeddings of new words, each of which starts as the last token of a text.

        Called with prompts and the length of text states, it gives `Text` and ``[B, L]`` the index of the word that
        each token is, -1 for others. The backbone itself does not change."""
        raise lacks(self, "words")

    def token_branch(self, targets: Sequence[str], rank: int, alpha: float) -> Any:
        """Low-rank weights with which tokens of a picture pass the network beside image and text, a `TokenBranch`.

        ``targets`` are the ends of layers' names; the products are multiplied by ``alpha / rank``."""
        raise lacks(self, "tokens")

    def widen(self, channels: int) -> None:
        """Adds input channels of zero weight, which read `Injection.latents`; a ValueError the second time."""
        raise lacks(self, "latents")

    @abstractmethod
    def encode_text(self, prompts: Sequence[str], chunks: int = 1, clip_skip: int = 0) -> Text:
        """The encoded prompts, one row each, without the last ``clip_skip`` layers of the text tower.

        What does not fit into so many ``chunks`` of a text tower is cut."""

    @classmethod
    def text_reader(cls, path: str | Path, **settings: Any) -> tuple[Any, int] | None:
        """The tokenizer at ``path`` and the number of tokens that are read, without the weights; None without text.

        ``settings`` are arguments of the constructor."""
        return None

    def chunks(self, prompts: Sequence[str]) -> int:
        """The number of chunks that the longest of the prompts needs, at least 1."""
        return 1

    def cut_note(self, prompts: Sequence[str]) -> str:
        """A sentence on the prompts that are longer than `encode_text` reads; empty where all are read whole."""
        return ""

    @abstractmethod
    def to_latents(self, images: Tensor, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        """Samples to scaled latents: images ``[B, 3, H, W]`` in [-1, 1], or poses ``[B, 17, 3]``.

        A posterior is sampled with one generator per image, or its mode taken without them."""

    @abstractmethod
    def from_latents(self, latents: Tensor) -> Tensor:
        """Scaled latents to samples, the inverse of `to_latents`; images are differentiable."""

    @property
    def pooled_dim(self) -> int | None:
        """Width of `Text.pooled`; None where prompts have no such vector."""
        return None

    @property
    def components(self) -> dict[str, str]:
        """The parts that a pipeline of diffusers would have -> their attributes here."""
        return {self.network_name: self.network_name}

    @property
    def encoders(self) -> tuple[nn.Module, ...]:
        """The parts that `encode_text`, `to_latents` and `from_latents` alone run, of diffusers or transformers."""
        return ()

    def save_source(self, folder: Path) -> dict[str, Any]:
        """Copies the files that the weights were read from to the new ``folder``; a TypeError where there are none.

        Returns constructor arguments that read the same weights from there, with paths relative to ``folder``."""
        unread = f"backbone {self.weights.id} was not read from files, so its weights cannot be copied"
        raise TypeError(f"{unread}; save it to a folder and read it from there")

    def unet_keys(self, official: Iterable[str]) -> dict[str, str | None]:
        """The keys of a plain U-Net in an official file -> their names in ``unet``, None without a place there."""
        return {}

    @classmethod
    def misfit_at(cls, path: Any, official: Mapping[str, Tensor]) -> str:
        """What shows that official weights belong to another backbone than that at ``path``, of which no weight is
        read; empty where nothing does."""
        return ""

    def encoding_key(self, of: Literal["latents", "text"]) -> str:
        """A key of everything that cached latents or texts depend on; backbones with one encoder may share it."""
        return self.weights.sha256

    def latent_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """(channels, height, width) of an image's latents; a ValueError unless ``size`` has whole cells and tokens."""
        factor, patch = self.geometry.latent_factor, self.geometry.patch
        if any(side % (step := factor * patch) for side in size):
            tokens = f" times its patches of {patch} cells" if patch > 1 else ""
            multiples = f"a multiple of the backbone's latent factor {factor}{tokens}"
            raise ValueError(f"data.size {size} is not {multiples}; choose {[s - s % step or step for s in size]}")
        return self.geometry.latent_channels, size[0] // factor, size[1] // factor

    def tokens(self, size: tuple[int, int]) -> int:
        """How many tokens, or latent cells, an image of (height, width) pixels has."""
        _, height, width = self.latent_shape(size)
        return height * width // self.geometry.patch**2

    @property
    def usual_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the images that the network was trained on."""
        side = self.network.config.get("sample_size") or LATENT_SIDE
        height, width = side if isinstance(side, list | tuple) else (side, side)
        return height * self.geometry.latent_factor, width * self.geometry.latent_factor


def widened(old: nn.Conv2d, channels: int) -> nn.Conv2d:
    """The convolution with further input channels of zero weight."""
    new = nn.Conv2d(old.in_channels + channels, old.out_channels, old.kernel_size, old.stride, old.padding)  # type: ignore[arg-type]
    new = new.to(old.weight)
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, : old.in_channels] = old.weight
        if old.bias is not None and new.bias is not None:
            new.bias.copy_(old.bias)
    return new


def lacks(backbone: Backbone, place: str) -> TypeError:
    return TypeError(f"{type(backbone).__name__} has no place {place!r}: {BACKBONE_PLACES[place]}")


def check_first_width(stem: int, first: int) -> None:
    """Raises a UserError for U-Nets whose first level is not as wide as their input convolution."""
    if stem != first:
        raise UserError(
            f"the input convolution is {stem} channels wide and the first level {first}; posegen builds U-Nets with "
            "one width for both, as all released models have it, so these weights cannot be expressed"
        )
