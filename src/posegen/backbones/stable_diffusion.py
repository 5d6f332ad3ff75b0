"""Stable Diffusion: diffusers' U-Net, autoencoder and text tower as a `Backbone`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import CLIPTextModel, CLIPTokenizer

from posegen.backbones.base import (
    BACKBONE_PLACES,
    HOOK_PLACES,
    Bank,
    BlockPlace,
    Geometry,
    Hook,
    Injection,
    widened,
)
from posegen.backbones.blocks.cross_attention import context_arguments, cross_attentions
from posegen.backbones.blocks.encoder_copy import EncoderCopy
from posegen.backbones.blocks.learned_words import LearnedWords
from posegen.backbones.blocks.self_attention import PassRecords, additions
from posegen.backbones.latent_diffusion import LatentDiffusion
from posegen.backbones.loading import ldm_keys as ldm
from posegen.backbones.loading.layout import Layout
from posegen.backbones.loading.model_parts import ModelParts
from posegen.backbones.loading.single_file import read_single_file
from posegen.backbones.loading.sizes import SIZES, parts_without_weights
from posegen.backbones.loading.tokenizer import CONTEXT, clip_tokenizer
from posegen.backbones.process import Density, FlowMatching, NoiseProcess, noise_process
from posegen.backbones.text import Text, count_chunks, text_chunks
from posegen.errors import UserError

SD_LAYOUT = Layout(
    "a Stable Diffusion 1 or 2",
    UNet2DConditionModel,
    {"text_encoder": CLIPTextModel},
    marks={"addition_embed_type": None},
    single_file=True,
)


class StableDiffusion(LatentDiffusion):
    """A latent diffusion model (Rombach et al. 2022) of the Stable Diffusion 1 or 2 design, at any size.

    Args:
        path: a folder in diffusers' layout, an original single file (``.safetensors`` or ``.ckpt``), or
            ``hub:owner/name``, the only form that may download. None for random weights of a published ``size``.
        autoencoder: folder of another autoencoder than the one in ``path``, or ``hub:owner/name``.
        recipe: which of an adapter's ``recipes`` fits this backbone.
        initialise: ``pretrained``, or ``random`` for new weights of U-Net and text tower, but not of the autoencoder.
        id: name of the weights in tables and records; the folder's or file's name where it is None.
        prediction_type: overrides the scheduler's configuration; single files say nothing and mean ``epsilon``.
        size: the published size, ``sd15`` or ``sd21``, of random weights where ``path`` is None.
        density: of the timesteps in training, of weights whose scheduler is that of flow matching.

    Raises a WeightsError where nothing at ``path`` is usable; it names the expected files.
    """

    layout = SD_LAYOUT
    chunked = True
    random_sizes = {name: partial(parts_without_weights, name) for name in SIZES}
    places: ClassVar[frozenset[str]] = frozenset(BACKBONE_PLACES) - {"blocks", "tokens"}
    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    prediction_type: str | None = None
    density: Density = "uniform"
    _behind_middle: RemovableHandle | None = None

    def __init__(
        self,
        path: str | Path | None,
        autoencoder: str | Path | None = None,
        recipe: str = "published",
        initialise: Literal["pretrained", "random"] = "pretrained",
        id: str | None = None,
        prediction_type: Literal["epsilon", "v_prediction"] | None = None,
        size: Literal["sd15", "sd21"] | None = None,
        density: Density = "uniform",
    ):
        super().__init__()
        self.prediction_type, self.density = prediction_type, density
        self._load(path, autoencoder, recipe, initialise, id, size)

    def _read_parts(self, place: Path, autoencoder: Path | None, fresh: bool) -> ModelParts:
        if place.is_dir():
            return super()._read_parts(place, autoencoder, fresh)
        return read_single_file(place, self.layout, autoencoder, fresh)

    def _noise_process(self, scheduler: Mapping[str, Any]) -> NoiseProcess:
        asked = {} if self.prediction_type is None else {"prediction_type": self.prediction_type}
        process = noise_process({**scheduler, **asked}, self.density)
        if self.density != "uniform" and not isinstance(process, FlowMatching):
            raise UserError(f"backbone.density={self.density} is for flow matching; these weights need density=uniform")
        return process

    def read_geometry(self) -> Geometry:
        return Geometry.from_diffusers(self.unet.config, self.latent_form[1])

    @property
    def text_width(self) -> int:
        """Width of the text states."""
        return self.text_encoder.config.hidden_size

    def _misfit(self) -> str:
        unet, latent, text = self.unet.config, self.latent_form[0], self.text_width
        if (unet.in_channels, unet.out_channels) != (latent, latent):
            made = f"returns {unet.out_channels} channels, the autoencoder makes {latent}"
            expected = "expected a text-to-image model and its own autoencoder"
            return f"the U-Net takes {unet.in_channels} and {made}; {expected}"
        if unet.cross_attention_dim != text:
            widths = f"text states of width {unet.cross_attention_dim}, the text tower makes {text}"
            return f"the U-Net attends to {widths}; they belong to different models"
        return ""

    def _arguments(self) -> dict[str, Any]:
        return self._facts() or {"prediction_type": self.process.prediction_type}

    def _facts(self) -> dict[str, Any]:
        return {"density": self.density} if self.density != "uniform" else {}

    @classmethod
    def text_reader(cls, path: str | Path, **settings: Any) -> tuple[Any, int]:
        return (clip_tokenizer(), CONTEXT) if Path(path).is_file() else super().text_reader(path, **settings)

    def unet_keys(self, official: Iterable[str]) -> dict[str, str | None]:
        table = ldm.unet_table(self.geometry)
        return {key: ldm.rename(key.removeprefix(ldm.UNET), table) for key in official if key.startswith(ldm.UNET)}

    def keys_and_values(self, latents: Tensor, timesteps: Tensor, text: Text, injection: Injection) -> Bank:
        record: PassRecords = {}
        self.predict(latents, timesteps, text, injection, record)
        return Bank({name: written[0] for name, written in record.items() if written})

    def predict(
        self, latents: Tensor, timesteps: Tensor, text: Text, injection: Injection, record: PassRecords | None = None
    ) -> Tensor:
        if injection.latents is not None:
            latents = torch.cat([latents, injection.latents.to(latents)], dim=1)
        down, mid = injection.down, injection.mid
        if down is not None or mid is not None:  # diffusers takes both kinds or none
            skips, zero = len(self.geometry.residual_channels), torch.zeros((), device=latents.device)
            down, mid = (zero,) * skips if down is None else down, zero if mid is None else mid
            if (given := len(down)) != skips:
                raise ValueError(f"Injection.down has {given} residuals, this backbone has {skips} skip connections")
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        attention = {"encoder_attention_mask": text.mask, "return_dict": False}
        added = additions(self.unet, injection, len(latents), record) or {}
        attention["cross_attention_kwargs"] = added | context_arguments(self.unet, injection.context) or None
        if self.pooled_dim is not None:
            attention["added_cond_kwargs"] = text.beside(latents, self.geometry.latent_factor)
        with features_added(self.unet, injection.encoder), hooked(self.unet, injection.hooks):
            return self.unet(latents, timesteps, text.tokens, **attention, **residuals)[0]

    def control_copy(
        self, replaced: Mapping[BlockPlace, nn.Module] | None = None, layers: int | None = None
    ) -> EncoderCopy:
        if layers is not None:
            raise UserError(f"adapter.layers={layers}: of a U-Net the whole encoder is copied; set adapter.layers=null")
        return EncoderCopy(self.unet, self.geometry, replaced)

    def encoder_block(self, level: int, layer: int = 0) -> Any:
        return self.unet.down_blocks[level].resnets[layer]

    def after_middle(self, function: Callable[[Tensor], Tensor]) -> None:
        if self._behind_middle is not None:
            self._behind_middle.remove()
        middle = self.unet.mid_block
        self._behind_middle = middle.register_forward_hook(lambda _module, _inputs, output: function(output))

    def cross_attentions(self) -> dict[str, Any]:
        return dict(cross_attentions(self.unet))

    def learned_words(self, words: Mapping[str, str]) -> LearnedWords:
        return LearnedWords(self, words)

    def widen(self, channels: int) -> None:
        old = self.unet.conv_in
        if old.in_channels != self.geometry.latent_channels:
            taken = f"{old.in_channels} channels, not the {self.geometry.latent_channels} of the latents"
            needed = "a method that concatenates latents needs a text-to-image backbone of its own"
            raise ValueError(f"the U-Net takes {taken}; {needed}")
        self.unet.conv_in = widened(old, channels)
        self.unet.register_to_config(in_channels=old.in_channels + channels)

    def encode_text(self, prompts: Sequence[str], chunks: int = 1, clip_skip: int = 0) -> Text:
        """As for every backbone; the states of a prompt's chunks stand one after another, ``[B, chunks * L, D]``."""
        unique = list(dict.fromkeys(prompts))
        read = self.read_text("text_encoder", unique, chunks, output_hidden_states=clip_skip > 0)
        states = read.last_hidden_state
        if clip_skip:
            tower = getattr(self.text_encoder, "text_model", self.text_encoder)  # as older transformers nest it
            states = tower.final_layer_norm(read.hidden_states[-1 - clip_skip])
        place = {prompt: i for i, prompt in enumerate(unique)}
        return Text(states.reshape(len(unique), -1, states.shape[-1])[[place[prompt] for prompt in prompts]])

    def read_text(self, name: str, prompts: Sequence[str], chunks: int, **outputs: bool) -> Any:
        """What a text tower returns for the prompts, with a row for each of their ``chunks``."""
        tower, words = self.get_submodule(name), self.tokenizers[name]
        form = {"padding": "max_length", "max_length": self.max_length, "return_tensors": "pt"}
        if chunks == 1:
            tokens = words(list(prompts), truncation=True, **form)
        else:
            tokens = words.pad({"input_ids": text_chunks(words, self.max_length, prompts, chunks)}, **form)
        ids, device = tokens.input_ids, next(tower.parameters()).device
        ids = ids if device.type == "meta" else ids.to(device)  # offloaded weights bring their inputs along
        return tower(ids, **outputs)

    def chunks(self, prompts: Sequence[str]) -> int:
        return count_chunks(self.tokenizer, self.max_length, prompts)


@contextmanager
def features_added(unet: UNet2DConditionModel, features: Sequence[Tensor] | None) -> Iterator[None]:
    """Within the context, ``features[level]`` is added to the output of each encoder level's last layer; with twice as
    many features but one, those between are added to the outputs of the levels' downsamplings.

    diffusers' own argument adds to last layers only at levels with attention, and at others to the downsampling."""
    if features is None:
        yield
        return
    last = [(getattr(block, "attentions", None) or block.resnets)[-1] for block in unet.down_blocks]
    if len(features) != (levels := len(last)):
        if len(features) != 2 * levels - 1:
            raise ValueError(f"Injection.encoder has {len(features)} feature maps, this backbone has {levels} levels")
        halving = [block.downsamplers[-1] for block in unet.down_blocks[:-1]]
        last = [*chain.from_iterable(zip(last, halving, strict=False)), last[-1]]

    def adding(feature: Tensor) -> Any:
        def add(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            return (output[0] + feature, *output[1:]) if isinstance(output, tuple) else output + feature

        return add

    hooks = [m.register_forward_hook(adding(feature)) for m, feature in zip(last, features, strict=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def hooked(unet: UNet2DConditionModel, hooks: Mapping[str, Hook] | None) -> Iterator[None]:
    """Within the context, ``hooks[place]`` of the hidden state is added to it at each of `HOOK_PLACES`."""

    def before(hook: Hook) -> Any:
        def add(_module: nn.Module, _inputs: Any, named: dict[str, Any]) -> Any:
            hidden = named["hidden_states"]
            return (), {**named, "hidden_states": hidden + hook(hidden)}

        return add

    def behind(hook: Hook) -> Any:
        def add(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            return (output[0] + hook(output[0]), *output[1:]) if isinstance(output, tuple) else output + hook(output)

        return add

    if unknown := sorted((hooks or {}).keys() - HOOK_PLACES.keys()):
        raise ValueError(f"Injection.hooks has {unknown[0]!r}; expected some of {', '.join(HOOK_PLACES)}")
    modules, handles = {"level": unet.down_blocks[0], "middle": unet.mid_block}, []
    for place, hook in (hooks or {}).items():
        if place == "input":
            handles.append(unet.down_blocks[0].register_forward_pre_hook(before(hook), with_kwargs=True))
        else:
            handles.append(modules[place].register_forward_hook(behind(hook)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
