"""What a model in diffusers' folder layout consists of: ``unet/`` or ``transformer/``, ``vae/``, text towers, ..."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusers import ModelMixin
from transformers import PreTrainedModel

from posegen.errors import UserError
from posegen.io.atomic import read_json
from posegen.io.weights import WeightsError

SCHEDULER_CONFIG = "scheduler_config.json"


@dataclass(frozen=True)
class Layout:
    """A family of models: the folders of its parts in diffusers' layout, and the classes in them."""

    model: str  # the family, for messages
    network: type[ModelMixin]
    towers: Mapping[str, type[PreTrainedModel]]  # text towers by their folders
    network_folder: str = "unet"
    optional: frozenset[str] = frozenset()  # towers that a folder may lack
    single_file: bool = False  # an original file can be read, too
    settings: tuple[str, ...] = ()  # json files beside the parts, which a folder may lack
    #: Where families share a class of network: values in its configuration that this one has.
    marks: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folders(self) -> tuple[str, ...]:
        """All parts but the autoencoder, which may live elsewhere."""
        return (self.network_folder, *self.towers, *map(tokenizer_folder, self.towers), "scheduler")

    def fits(self, config: Mapping[str, Any]) -> bool:
        """Whether the configuration of a network is of this family."""
        named = config.get("_class_name", self.network.__name__) == self.network.__name__
        return named and all(config.get(key) == value for key, value in self.marks.items())

    def require(self, folder: Path, leave_out: Collection[str] = ()) -> tuple[str, ...]:
        """The text towers in ``folder``, without those of ``leave_out``; a WeightsError where it holds another family
        of models, or lacks a part. No weight is read."""
        spare = {*self.optional, *leave_out}
        spare |= {*map(tokenizer_folder, spare)}
        absent = [name for name in self.folders if not (folder / name).is_dir() and name not in spare]
        found = next((name for name in ("unet", "transformer") if (folder / name / "config.json").is_file()), None)
        config = read_config(folder / found) if found else {}
        if found and not (found == self.network_folder and self.fits(config)):
            holds = f"{found}/ holds {a_model(config)}; this backbone is {self.model}"
            raise WeightsError(f"{folder}: {holds}. {use(config)}")
        if absent:
            parts = f"expected {self.model} in diffusers' layout with {', '.join(self.folders)} and vae"
            raise WeightsError(f"{folder}: no {', '.join(f'{name}/' for name in absent)}; {parts}")
        return tuple(name for name in self.towers if (folder / name).is_dir() and name not in leave_out)


#: Classes of denoising networks -> (the model, the values of backbone= that read it); U-Nets have two families.
KNOWN_NETWORKS = {
    "UNet2DConditionModel": ("the U-Net of a Stable Diffusion 1 or 2", "sd15 or backbone=sd21"),
    "SD3Transformer2DModel": ("the transformer of a Stable Diffusion 3", "sd3"),
    "FluxTransformer2DModel": ("the transformer of a FLUX.1", "flux1"),
}
OF_SDXL = "the U-Net of a Stable Diffusion XL", "sdxl"


def known_network(config: Mapping[str, Any]) -> tuple[str, str]:
    """What a network's configuration belongs to, and the value of ``backbone=`` that reads it; both may be empty."""
    if config.get("addition_embed_type") == "text_time":
        return OF_SDXL
    return KNOWN_NETWORKS.get(str(config.get("_class_name", "UNet2DConditionModel")), ("", ""))


def a_model(config: Mapping[str, Any]) -> str:
    return known_network(config)[0] or f"a {config.get('_class_name')}"


def use(config: Mapping[str, Any]) -> str:
    option = known_network(config)[1]
    return f"Use backbone={option} for it" if option else "posegen has no backbone for it"


def tokenizer_folder(tower: str) -> str:
    """The folder of a text tower's tokenizer."""
    return tower.replace("text_encoder", "tokenizer")


def autoencoder_folder(folder: Path) -> Path:
    """``folder/vae`` where there is one, else ``folder`` itself; a WeightsError where neither holds an autoencoder."""
    place = folder / "vae" if (folder / "vae").is_dir() else folder
    if not (place / "config.json").is_file():
        none = "no vae/, and no autoencoder (config.json and weights) in it"
        raise WeightsError(f"{folder}: {none}; set backbone.autoencoder to the folder of one")
    return place


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """A json configuration; a WeightsError where it is missing or not json."""
    file = folder / name
    if not file.is_file():
        expected = "expected a folder in diffusers' layout, made with save_pretrained"
        raise WeightsError(f"{file}: missing; {expected}")
    try:
        found = read_json(file, fix := "fetch or write it again")
    except UserError as error:
        raise WeightsError(f"{file}: not json: {error}") from error
    if not isinstance(found, dict):
        raise WeightsError(f"{file}: not json of an object, but a {type(found).__name__}; {fix}")
    return found
