"""What all families of latent diffusion models in diffusers have in common, as a `Backbone`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor, nn

from posegen.backbones.autoencoder import decoded, encoded, latent_form
from posegen.backbones.base import Backbone, Geometry, Weights
from posegen.backbones.blocks.flux_copy import other_width
from posegen.backbones.loading.diffusers_folder import copy_source, read_folder, tokenizer_for
from posegen.backbones.loading.layout import Layout, read_config, tokenizer_folder
from posegen.backbones.loading.ldm_keys import text_dim_in
from posegen.backbones.loading.model_parts import ModelParts, tensors_hash
from posegen.backbones.loading.source import AUTOENCODER_FILES, fetched_parts, resolve, source_name
from posegen.backbones.loading.tokenizer import CONTEXT
from posegen.backbones.process import NoiseProcess, noise_process
from posegen.backbones.text import cut_note
from posegen.errors import UserError
from posegen.io.hub import HubPlace, fetched, on_hub
from posegen.io.weights import WeightsError, shapes_in

TEXT_DIMS = {768: "sd15", 1024: "sd21", 2048: "sdxl"}  # width of text states -> value of backbone=
Initialise = Literal["pretrained", "random"]
HeldIn = Literal["float32", "bfloat16"]


class LatentDiffusion(Backbone):
    """A denoising network, an autoencoder, text towers with their tokenizers, and a noise process.

    A family of models is a subclass and a yaml: a `layout` says which classes its folder holds, and the subclass adds
    `read_geometry`, `text_width`, `encode_text` and `predict`. Its settings are attributes by the time of `_assemble`.
    """

    layout: ClassVar[Layout]
    random_sizes: ClassVar[Mapping[str, Callable[[], ModelParts]]] = {}  # published sizes with random weights
    sample: Literal["image", "pose"] = "image"
    left_out: tuple[str, ...] = ()  # text towers that are not read
    dtype: HeldIn = "float32"  # of the network and the text towers; what trains is held in float32
    autoencoder: Any
    tower_names: tuple[str, ...]  # of the text towers, which are attributes, as are ``tokenizer``, ``tokenizer_2``, ...
    _source: tuple[Path, Path | None] | None = None  # folder or single file, and another autoencoder

    def _load(
        self,
        path: str | Path | None,
        autoencoder: str | Path | None,
        recipe: str,
        initialise: Initialise,
        id: str | None,
        size: str | None = None,
    ) -> None:
        """Reads the parts and assembles them; the arguments are those of the subclasses' constructors."""
        if initialise not in get_args(Initialise):
            raise ValueError(f"backbone.initialise is {initialise!r}; expected 'pretrained' or 'random'")
        if self.dtype not in get_args(HeldIn):
            raise ValueError(f"backbone.dtype is {self.dtype!r}; expected one of {', '.join(get_args(HeldIn))}")
        if size is not None and size not in self.random_sizes:
            raise ValueError(f"backbone.size is {size!r}; expected one of {', '.join(self.random_sizes)}")
        if path is None and initialise == "random" and size is not None:
            self._assemble(self._random_parts(size), recipe, id or size)
            return
        wanted = fetched_parts(self.layout, autoencoder is None, self.left_out)
        place, found = resolve(path, self.layout, wanted)
        hub, vae = {"path": found}, Path(autoencoder).expanduser() if autoencoder is not None else None
        if on_hub(autoencoder):
            vae, hub["autoencoder"] = fetched(HubPlace.of(str(autoencoder)), AUTOENCODER_FILES)
        parts = self._read_parts(place, vae, fresh=initialise == "random")
        if initialise == "pretrained":
            self._source = place, vae
        self._assemble(parts, recipe, id or source_name(place, found), hub)

    def _read_parts(self, place: Path, autoencoder: Path | None, fresh: bool) -> ModelParts:
        return read_folder(place, self.layout, autoencoder, fresh, self.left_out, getattr(torch, self.dtype))

    def _random_parts(self, size: str) -> ModelParts:
        return self.random_sizes[size]()

    @classmethod
    def from_parts(cls, parts: ModelParts, recipe: str = "published", id: str = "untrained", **settings: Any) -> Self:
        """A backbone of parts that are in memory, for pretraining and for tests; ``settings`` are attributes."""
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        for name, value in settings.items():
            setattr(self, name, value)
        self._assemble(parts, recipe, id)
        return self

    def _assemble(
        self, parts: ModelParts, recipe: str, id: str, hub: Mapping[str, HubPlace | None] | None = None
    ) -> None:
        for part in (parts.network, *parts.text_encoders.values()) if self.dtype != "float32" else ():
            part.to(getattr(torch, self.dtype))
        setattr(self, self.network_name, parts.network)
        self.autoencoder, self.tower_names = parts.autoencoder, tuple(parts.text_encoders)
        for name, tower in parts.text_encoders.items():
            setattr(self, name, tower)
            setattr(self, tokenizer_folder(name), parts.tokenizers[name])
        self.recipe = recipe
        try:
            self.process = self._noise_process(parts.scheduler)
        except WeightsError as error:
            raise WeightsError(f"backbone {id}: {error}") from error
        self.geometry = self.read_geometry()
        if misfit := self._misfit():
            raise WeightsError(f"backbone {id}: {misfit}")
        facts = {"prediction_type": self.process.prediction_type, "recipe": recipe, **self._facts()}
        facts |= {"dtype": self.dtype} if self.dtype != "float32" else {}
        self.weights = Weights(id, parts.sha256, facts, {name: str(at) for name, at in (hub or {}).items() if at})
        self.eval()

    def _noise_process(self, scheduler: Mapping[str, Any]) -> NoiseProcess:
        return noise_process(scheduler)

    @abstractmethod
    def read_geometry(self) -> Geometry:
        """The shape of the network, from the configurations of the parts."""

    def _misfit(self) -> str:
        """What shows that the parts belong to different models; empty where nothing does."""
        return ""

    def _facts(self) -> dict[str, Any]:
        """The settings that change what the weights compute, besides the recipe: part of a cell's identity."""
        return {}

    def _arguments(self) -> dict[str, Any]:
        """Constructor arguments besides paths, recipe and id, with which the same files give the same backbone."""
        return {}

    @property
    def latent_form(self) -> tuple[int, int]:
        """(channels, pixels per cell) of the latents."""
        return latent_form(self.autoencoder.config)

    @property
    def towers(self) -> tuple[nn.Module, ...]:
        """The text towers, in the order of their names."""
        return tuple(map(self.get_submodule, self.tower_names))

    @property
    def tokenizers(self) -> dict[str, Any]:
        """The tokenizers by the name of their text tower."""
        return {name: getattr(self, tokenizer_folder(name)) for name in self.tower_names}

    @property
    def components(self) -> dict[str, str]:
        words = map(tokenizer_folder, self.tower_names)
        return {**{name: name for name in (*self.tower_names, *words, self.network_name)}, "vae": "autoencoder"}

    @property
    def encoders(self) -> tuple[nn.Module, ...]:
        return tuple(part for part in (*self.towers, self.autoencoder) if part is not None)

    @property
    def parts(self) -> ModelParts:
        """The parts as they are now, for instance to save them after training."""
        towers = dict(zip(self.tower_names, self.towers, strict=True))
        return ModelParts(self.network, self.autoencoder, towers, self.tokenizers, dict(self.process.config))

    def save(self, folder: str | Path) -> None:
        """Writes everything but the autoencoder, which no task trains together with the rest, in diffusers' layout."""
        self.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # files hold no other
        self.parts.save(Path(folder), autoencoder=False)

    def save_source(self, folder: Path) -> dict[str, Any]:
        if self._source is None:
            return super().save_source(folder)
        place, vae = self._source
        paths = copy_source(place, self.layout, vae, folder, self.left_out)
        return {**paths, "recipe": self.recipe, "id": self.weights.id, **self._arguments()}

    @property
    def counting_tower(self) -> str:
        """The text tower whose tokens say how long a prompt is."""
        return self.tower_names[0]

    @property
    def max_length(self) -> int:
        """Tokens of a prompt that are read, in a chunk."""
        name = self.counting_tower
        return usual_length(self.tokenizers[name], self.get_submodule(name).config.to_dict())

    @classmethod
    def text_reader(cls, path: str | Path, **settings: Any) -> tuple[Any, int]:
        tokenizer, config = cls._read_tokenizer(path, next(iter(cls.layout.towers)))
        return tokenizer, usual_length(tokenizer, config)

    @classmethod
    def _read_tokenizer(cls, path: str | Path, tower: str) -> tuple[Any, dict[str, Any]]:
        """The tokenizer of a text tower, and the tower's configuration."""
        folder = tokenizer_folder(tower)
        place, _ = resolve(path, cls.layout, (f"{folder}/", f"{tower}/config.json"))
        return tokenizer_for(cls.layout.towers[tower], place / folder), read_config(place / tower)

    @classmethod
    def misfit_at(cls, path: str | Path, official: Mapping[str, Tensor]) -> str:
        folder, reads = cls.layout.network_folder, text_dim_in({key: value.shape for key, value in official.items()})
        if (there := cls.width_in(official)) is not None:
            place, _ = resolve(path, cls.layout, (f"{folder}/config.json",))
            config = read_config(place / folder)
            heads, wide = config.get("num_attention_heads"), config.get("attention_head_dim")
            return other_width(there, heads * wide) if heads and wide else ""
        if reads is None:
            return ""
        place, _ = resolve(path, cls.layout, (f"{folder}/config.json",))
        inside = place.is_dir() and (place / folder).is_dir()
        has = read_config(place / folder).get("cross_attention_dim") if inside else text_dim_in(shapes_in(place))
        use = f"use backbone={TEXT_DIMS[reads]}" if reads in TEXT_DIMS else "choose the backbone= that it belongs to"
        return "" if has in (None, reads) else f"reads text of width {reads}, the backbone {place} of {has}; {use}"

    @classmethod
    def width_in(cls, official: Mapping[str, Tensor]) -> int | None:
        """The width of a transformer's blocks in official weights of its control copy; None of other weights."""
        return None

    def cut_note(self, prompts: Sequence[str]) -> str:
        return cut_note(self.tokenizers[self.counting_tower], self.max_length, prompts)

    @property
    def lengthening(self) -> str:
        """How a longer part of prompts is read; empty where it cannot be."""
        return ""

    def chunks(self, prompts: Sequence[str]) -> int:
        """Always 1; a UserError where a prompt is longer than the text towers read, which only some read in chunks."""
        if note := self.cut_note(prompts):
            fix = " or ".join(filter(None, (self.lengthening, "set long_prompts=cut")))
            raise UserError(f"long_prompts=chunk: this backbone reads no prompt in chunks, and {note}; {fix}")
        return 1

    def require_whole(self, chunks: int) -> None:
        if chunks > 1:
            raise ValueError(f"{type(self).__name__} reads no prompt in chunks, and was asked for {chunks}")

    def encoding_key(self, of: Literal["latents", "text"]) -> str:
        if of == "latents":
            return f"{tensors_hash(self.autoencoder)}-{self.autoencoder.config.scaling_factor}"
        return f"{tensors_hash(*self.towers)}-{self.max_length}"

    def in_held(self, tensor: Tensor) -> Tensor:
        """A tensor in the type of the network's weights; autocast, where it is on, sees to that itself."""
        kind = tensor.device.type
        return tensor if kind != "meta" and torch.is_autocast_enabled(kind) else tensor.to(self.network.dtype)

    def to_latents(self, images: Tensor, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        return encoded(self.autoencoder, images, generators)

    def from_latents(self, latents: Tensor) -> Tensor:
        return decoded(self.autoencoder, latents)


def usual_length(tokenizer: Any, tower: Mapping[str, Any]) -> int:
    """Tokens that a tokenizer and a CLIP tower of this configuration read."""
    return min(tokenizer.model_max_length, tower.get("max_position_embeddings", CONTEXT))
