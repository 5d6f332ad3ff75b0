"""Stable Diffusion: diffusers' U-Net, autoencoder and text tower as a `Backbone`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from posegen.backbones.autoencoder import decoded, encoded, latent_form
from posegen.backbones.base import BACKBONE_PLACES, Backbone, Bank, BlockPlace, Geometry, Injection, Weights, widened
from posegen.backbones.blocks.encoder_copy import EncoderCopy
from posegen.backbones.blocks.self_attention import PassRecords, additions
from posegen.backbones.loading import diffusers_folder as layout
from posegen.backbones.loading import ldm_keys as ldm
from posegen.backbones.loading.diffusers_folder import ModelParts, copy_source, read_folder, tensors_hash
from posegen.backbones.loading.single_file import read_single_file
from posegen.backbones.loading.sizes import SIZES, parts_without_weights
from posegen.backbones.loading.tokenizer import CONTEXT, clip_tokenizer
from posegen.backbones.process import noise_process
from posegen.backbones.text import Text, count_chunks, cut_note, text_chunks
from posegen.io.hub import HubPlace, fetched, on_hub
from posegen.io.weights import WeightsError

FETCHED_PARTS = tuple(f"{folder}/" for folder in layout.FOLDERS)
AUTOENCODER = ("vae/", "config.json", "diffusion_pytorch_model")  # beginnings of the files of one, in a repository


class StableDiffusion(Backbone):
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

    Raises a WeightsError where nothing at ``path`` is usable; it names the expected files.
    """

    sample: Literal["image", "pose"] = "image"
    places: ClassVar[frozenset[str]] = frozenset(BACKBONE_PLACES)
    _source: tuple[Path, Path | None] | None = None  # folder or single file, and another autoencoder
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
    ):
        super().__init__()
        if initialise not in ("pretrained", "random"):
            raise ValueError(f"backbone.initialise is {initialise!r}; expected 'pretrained' or 'random'")
        if size is not None and size not in SIZES:
            raise ValueError(f"backbone.size is {size!r}; expected one of {', '.join(SIZES)}")
        hub: dict[str, HubPlace | None] = {}
        if path is None and initialise == "random" and size is not None:
            parts, name = parts_without_weights(size, SIZES[size]), str(size)
        else:
            place, hub["path"] = resolve(path, FETCHED_PARTS if autoencoder is not None else (*FETCHED_PARTS, "vae/"))
            vae = Path(autoencoder).expanduser() if autoencoder is not None else None
            if on_hub(autoencoder):
                vae, hub["autoencoder"] = fetched(HubPlace.of(str(autoencoder)), AUTOENCODER)
            read = read_folder if place.is_dir() else read_single_file
            parts, name = read(place, vae, fresh=initialise == "random"), source_name(place, hub["path"])
            if initialise == "pretrained":
                self._source = place, vae
        if prediction_type is not None:
            parts.scheduler = {**parts.scheduler, "prediction_type": prediction_type}
        self._assemble(parts, recipe, id or name, hub)

    @classmethod
    def from_parts(cls, parts: ModelParts, recipe: str = "published", id: str = "untrained") -> StableDiffusion:
        """A backbone of parts that are in memory, for pretraining and for tests."""
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        self._assemble(parts, recipe, id)
        return self

    def _assemble(
        self, parts: ModelParts, recipe: str, id: str, hub: Mapping[str, HubPlace | None] | None = None
    ) -> None:
        self.unet: UNet2DConditionModel = parts.unet
        self.autoencoder, self.text_encoder, self.tokenizer = parts.autoencoder, parts.text_encoder, parts.tokenizer
        self.recipe = recipe
        try:
            self.process = noise_process(parts.scheduler)
        except WeightsError as error:
            raise WeightsError(f"backbone {id}: {error}") from error
        self.geometry = Geometry.from_diffusers(self.unet.config, self._latents()[1])
        self._check_fit(id)
        facts = {"prediction_type": self.process.prediction_type, "recipe": recipe}
        self.weights = Weights(id, parts.sha256, facts, {name: str(at) for name, at in (hub or {}).items() if at})
        self.max_length = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
        self.eval()

    def _latents(self) -> tuple[int, int]:
        """(channels, pixels per cell) of the latents."""
        return latent_form(self.autoencoder.config)

    def _check_fit(self, id: str) -> None:
        unet, latent, text = self.unet.config, self._latents()[0], self.text_encoder.config.hidden_size
        if (unet.in_channels, unet.out_channels) != (latent, latent):
            made = f"returns {unet.out_channels} channels, the autoencoder makes {latent}"
            expected = "expected a text-to-image model and its own autoencoder"
            raise WeightsError(f"backbone {id}: the U-Net takes {unet.in_channels} and {made}; {expected}")
        if unet.cross_attention_dim != text:
            widths = f"text states of width {unet.cross_attention_dim}, the text tower makes {text}"
            raise WeightsError(f"backbone {id}: the U-Net attends to {widths}; they belong to different models")

    @property
    def parts(self) -> ModelParts:
        """The parts as they are now, for instance to save them after training."""
        return ModelParts(self.unet, self.autoencoder, self.text_encoder, self.tokenizer, dict(self.process.config))

    @property
    def encoders(self) -> tuple[nn.Module, ...]:
        return tuple(part for part in (self.text_encoder, self.autoencoder) if part is not None)

    def save(self, folder: str | Path) -> None:
        """Writes everything but the autoencoder, which no task trains together with the rest, in diffusers' layout."""
        self.to(memory_format=torch.contiguous_format)  # files hold no other
        self.parts.save(Path(folder), autoencoder=False)

    def save_source(self, folder: Path) -> dict[str, Any]:
        if self._source is None:
            return super().save_source(folder)
        arguments = {"recipe": self.recipe, "id": self.weights.id, "prediction_type": self.process.prediction_type}
        return {**copy_source(*self._source, folder), **arguments}

    def unet_keys(self, official: Iterable[str]) -> dict[str, str | None]:
        table = ldm.unet_table(self.geometry)
        return {key: ldm.rename(key.removeprefix(ldm.UNET), table) for key in official if key.startswith(ldm.UNET)}

    def encoding_key(self, of: Literal["latents", "text"]) -> str:
        if of == "latents":
            return f"{tensors_hash(self.autoencoder)}-{self.autoencoder.config.scaling_factor}"
        return f"{tensors_hash(self.text_encoder)}-{self.max_length}"

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
        attention["cross_attention_kwargs"] = additions(self.unet, injection, len(latents), record)
        with features_added(self.unet, injection.encoder):
            return self.unet(latents, timesteps, text.tokens, **attention, **residuals)[0]

    def control_copy(self, replaced: Mapping[BlockPlace, nn.Module] | None = None) -> EncoderCopy:
        return EncoderCopy(self.unet, self.geometry, replaced)

    def encoder_block(self, level: int, layer: int = 0) -> Any:
        return self.unet.down_blocks[level].resnets[layer]

    def after_middle(self, function: Callable[[Tensor], Tensor]) -> None:
        if self._behind_middle is not None:
            self._behind_middle.remove()
        middle = self.unet.mid_block
        self._behind_middle = middle.register_forward_hook(lambda _module, _inputs, output: function(output))

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
        form = {"padding": "max_length", "max_length": self.max_length, "return_tensors": "pt"}
        if chunks == 1:
            tokens = self.tokenizer(unique, truncation=True, **form)
        else:
            pieces = text_chunks(self.tokenizer, self.max_length, unique, chunks)
            tokens = self.tokenizer.pad({"input_ids": pieces}, **form)
        ids, device = tokens.input_ids, self.text_encoder.device
        ids = ids if device.type == "meta" else ids.to(device)  # offloaded weights bring their inputs along
        read = self.text_encoder(ids, output_hidden_states=clip_skip > 0)
        states = read.last_hidden_state
        if clip_skip:
            tower = getattr(self.text_encoder, "text_model", self.text_encoder)  # as older transformers nest it
            states = tower.final_layer_norm(read.hidden_states[-1 - clip_skip])
        place = {prompt: i for i, prompt in enumerate(unique)}
        return Text(states.reshape(len(unique), -1, states.shape[-1])[[place[prompt] for prompt in prompts]])

    def chunks(self, prompts: Sequence[str]) -> int:
        return count_chunks(self.tokenizer, self.max_length, prompts)

    def cut_note(self, prompts: Sequence[str]) -> str:
        return cut_note(self.tokenizer, self.max_length, prompts)

    def to_latents(self, images: Tensor, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        return encoded(self.autoencoder, images, generators)

    def from_latents(self, latents: Tensor) -> Tensor:
        return decoded(self.autoencoder, latents)


@contextmanager
def features_added(unet: UNet2DConditionModel, features: Sequence[Tensor] | None) -> Iterator[None]:
    """Within the context, ``features[level]`` is added to the output of each encoder level's last layer.

    diffusers' own argument does this only at levels with attention; at others it adds after the downsampling."""
    if features is None:
        yield
        return
    if len(features) != (levels := len(unet.down_blocks)):
        raise ValueError(f"Injection.encoder has {len(features)} feature maps, this backbone has {levels} levels")

    def adding(feature: Tensor) -> Any:
        def add(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            return (output[0] + feature, *output[1:]) if isinstance(output, tuple) else output + feature

        return add

    last = [(getattr(block, "attentions", None) or block.resnets)[-1] for block in unet.down_blocks]
    hooks = [m.register_forward_hook(adding(feature)) for m, feature in zip(last, features, strict=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def text_reader(path: str | Path) -> tuple[Any, int]:
    """The tokenizer at `resolve`'s ``path`` and the number of tokens that the text tower reads, without the weights."""
    place, _ = resolve(path, ("tokenizer/", "text_encoder/config.json"))
    if place.is_file():
        return clip_tokenizer(), CONTEXT
    tokenizer, config = layout.read_tokenizer(place / "tokenizer"), layout.read_config(place / "text_encoder")
    return tokenizer, min(tokenizer.model_max_length, config.get("max_position_embeddings", CONTEXT))


def source_name(place: Path, hub: HubPlace | None) -> str:
    """A name for the weights; a folder of the Hub's cache is named after its commit."""
    return hub.name if hub else place.stem


def resolve(path: str | Path | None, wanted: Sequence[str]) -> tuple[Path, HubPlace | None]:
    """The folder or file that ``path`` means, and where it was fetched; a WeightsError where nothing is there.

    ``wanted`` are the beginnings of the names of the files that are fetched of a repository."""
    expected = (
        "backbone.path expects a local Stable Diffusion: a folder in diffusers' layout (unet/ vae/ text_encoder/ "
        "tokenizer/ scheduler/), an original .safetensors or .ckpt file, or hub:owner/name to fetch one; nothing is "
        "downloaded unless you say so. backbone.path=null needs backbone.initialise=random and a published "
        "backbone.size"
    )
    if path is None:
        raise WeightsError(f"backbone.path is not set. {expected}")
    if on_hub(path):
        return fetched(HubPlace.of(str(path)), wanted)
    place = Path(path).expanduser()
    if not place.exists():
        raise WeightsError(f"{place}: no such file or folder. {expected}")
    return place, None
