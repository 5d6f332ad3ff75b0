"""The parts of a Stable Diffusion in diffusers' folder layout: ``unet/ vae/ text_encoder/ tokenizer/ scheduler/``."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
import transformers
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny, ModelMixin, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, PreTrainedModel

from posegen.errors import UserError
from posegen.io.atomic import read_json
from posegen.io.hashes import sha256_of
from posegen.io.weights import WeightsError, first_line, not_finite, weight_files, weights_format

Model = TypeVar("Model", ModelMixin, PreTrainedModel)
Autoencoder: TypeAlias = AutoencoderKL | AutoencoderTiny | AutoencoderDC
AUTOENCODERS = {cls.__name__: cls for cls in (AutoencoderKL, AutoencoderTiny, AutoencoderDC)}
FOLDERS = ("unet", "text_encoder", "tokenizer", "scheduler")
SCHEDULER_CONFIG = "scheduler_config.json"
HARMLESS = ("position_ids",)  # a buffer that old text towers saved


@dataclass
class ModelParts:
    """The networks, tokenizer and scheduler of a Stable Diffusion."""

    unet: UNet2DConditionModel
    autoencoder: Autoencoder
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: dict[str, Any]  # the configuration of a diffusers scheduler, which fixes the noise process
    files: tuple[Path, ...] = ()  # where the weights came from; empty for parts that were never saved
    origin: str | None = None  # everything the weights are a function of; it identifies parts without files

    @property
    def sha256(self) -> str:
        """Hash of the weight files, or of the origin or the tensors where there are no files."""
        if self.origin is not None:
            return hashlib.sha256(self.origin.encode()).hexdigest()
        modules = self.unet, self.text_encoder, self.autoencoder
        return sha256_of(self.files) if self.files else tensors_hash(*modules)

    def save(self, folder: Path, autoencoder: bool = True) -> None:
        """Writes diffusers' layout, without ``vae/`` where the autoencoder lives elsewhere."""
        self.unet.save_pretrained(folder / "unet")
        with no_progress_bar():
            self.text_encoder.save_pretrained(folder / "text_encoder")
        self.tokenizer.save_pretrained(folder / "tokenizer")
        write_scheduler(folder, self.scheduler)
        if autoencoder:
            self.autoencoder.save_pretrained(folder / "vae")


def write_scheduler(folder: Path, scheduler: dict[str, Any]) -> None:
    """Writes the configuration of a diffusers scheduler in ``folder``'s layout."""
    (folder / "scheduler").mkdir(parents=True, exist_ok=True)
    (folder / "scheduler" / SCHEDULER_CONFIG).write_text(json.dumps(scheduler, indent=2) + "\n")


def tensors_hash(*modules: torch.nn.Module) -> str:
    """SHA-256 of the modules' tensors, by name and content."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_folder(folder: Path, autoencoder: Path | None = None, fresh: bool = False) -> ModelParts:
    """Reads the parts in ``folder``; a WeightsError where something is missing, damaged or of another shape.

    ``autoencoder`` or its ``vae`` folder is read instead of ``folder/vae``. With ``fresh`` the U-Net and the text tower
    have random weights, from torch's global generator."""
    if absent := ", ".join(f"{name}/" for name in FOLDERS if not (folder / name).is_dir()):
        expected = f"a Stable Diffusion in diffusers' layout with {', '.join(FOLDERS)} and vae"
        raise WeightsError(f"{folder}: no {absent}; expected {expected}")
    places = folder / "unet", folder / "text_encoder", autoencoder_folder(autoencoder or folder)
    net = UNet2DConditionModel
    unet = net.from_config(read_config(places[0])) if fresh else read_model(net, places[0])
    vae = read_autoencoder(places[2])
    text = CLIPTextModel(CLIPTextConfig(**read_config(places[1]))) if fresh else read_model(CLIPTextModel, places[1])
    tokenizer, scheduler = read_tokenizer(folder / "tokenizer"), read_config(folder / "scheduler", SCHEDULER_CONFIG)
    files = () if fresh else tuple(file for place in places for file in weight_files(place))
    return ModelParts(unet, vae, text, tokenizer, scheduler, files)


def copy_source(place: Path, autoencoder: Path | None, target: Path) -> dict[str, str | None]:
    """Copies the files that `read_folder` or ``read_single_file`` read to ``target``; the copy has the same hash.

    Returns ``path`` and ``autoencoder`` of the copies, relative to ``target``."""
    target.mkdir(parents=True)
    if place.is_dir():
        for name in FOLDERS:
            _copy_part(place / name, target / name)
        _copy_part(autoencoder_folder(autoencoder or place), target / "vae")
        return {"path": ".", "autoencoder": None}
    shutil.copyfile(place, target / place.name)
    if autoencoder is not None:
        _copy_part(autoencoder_folder(autoencoder), target / "vae")
    return {"path": place.name, "autoencoder": "vae" if autoencoder else None}


def _copy_part(folder: Path, target: Path) -> None:
    """Copies a part's configuration or vocabulary and, where it is a model, the weights that are read."""
    target.mkdir()
    weights = weight_files(folder) if (folder / "config.json").is_file() else ()
    for file in (*folder.glob("*.json"), *folder.glob("*.txt"), *weights):
        shutil.copyfile(file, target / file.name)


def autoencoder_folder(folder: Path) -> Path:
    """``folder/vae`` where there is one, else ``folder`` itself; a WeightsError where neither holds an autoencoder."""
    place = folder / "vae" if (folder / "vae").is_dir() else folder
    if not (place / "config.json").is_file():
        none = "no vae/, and no autoencoder (config.json and weights) in it"
        raise WeightsError(f"{folder}: {none}; set backbone.autoencoder to the folder of one")
    return place


def read_autoencoder(folder: Path) -> Autoencoder:
    """The autoencoder in ``folder``; a WeightsError where posegen does not know its class or cannot read it."""
    name = read_config(folder).get("_class_name", "AutoencoderKL")
    if name not in AUTOENCODERS:
        unknown = f"{name} is not an autoencoder that posegen knows"
        raise WeightsError(f"{folder / 'config.json'}: {unknown}; expected one of {', '.join(AUTOENCODERS)}")
    return read_model(AUTOENCODERS[name], folder)


def read_model(cls: type[Model], folder: Path) -> Model:
    """A diffusers or transformers model in single precision; a WeightsError where its configuration or any weight is
    missing, damaged, unknown or of another shape."""
    read_config(folder)
    files = weight_files(folder)
    settings: dict[str, Any] = {"torch_dtype" if issubclass(cls, ModelMixin) else "dtype": torch.float32}
    settings["variant"] = "fp16" if all(".fp16." in file.name for file in files) else None
    settings["use_safetensors"] = files[0].suffix == ".safetensors"
    for file in files:  # both libraries go by the suffix
        if (content := weights_format(file)) != ("safetensors" if settings["use_safetensors"] else "torch"):
            right = file.with_suffix(".safetensors" if content == "safetensors" else ".bin").name
            raise WeightsError(f"{file}: it is in {content}'s format; rename it to {right}")
    try:
        with no_progress_bar():
            model, info = cls.from_pretrained(folder, local_files_only=True, output_loading_info=True, **settings)
    except Exception as error:  # both libraries raise whatever their readers raise
        what = f"{', '.join(f.name for f in files)} as {cls.__name__} ({first_line(error)})"
        fix = "the file is damaged or does not belong to config.json, fetch it again"
        raise WeightsError(f"{folder}: cannot read {what}; {fix}") from error
    problems = [
        f"{len(keys)} {kind}, for instance {sorted(map(str, keys))[:3]}"
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if (keys := [key for key in info.get(kind, ()) if not str(key).endswith(HARMLESS)])
    ]
    if problems:
        misfit = f"the weights do not fit config.json of this {cls.__name__}"
        raise WeightsError(f"{folder}: {misfit}: {'; '.join(problems)}")
    if bad := not_finite(model.state_dict()):
        fix = "Its training diverged, or it overflowed in half precision; take another file"
        raise WeightsError(f"{folder}: {len(bad)} tensors hold NaN or infinity, for instance {bad[0]}. {fix}")
    if issubclass(cls, ModelMixin):
        model.register_to_config(_name_or_path="")  # or every copy that is saved would name the folder on this machine
    return model


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Within the context transformers draws no progress bar: these are small or local files."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()


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


def read_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer in ``folder``; a WeightsError where it is missing or damaged."""
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        if (pad := tokenizer.pad_token) != tokenizer.eos_token:
            # Stable Diffusion 2 pads with "!". Loaded as such it would be cut out of the prompts.
            tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True, pad_token=tokenizer.eos_token)
            tokenizer.pad_token = pad
        return tokenizer
    except Exception as error:  # tokenizers raises bare Exceptions
        expected = "expected tokenizer.json, or vocab.json and merges.txt"
        raise WeightsError(f"{folder}: cannot read the tokenizer ({error}); {expected}") from error
