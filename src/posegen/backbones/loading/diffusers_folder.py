"""Reading the parts of a model in diffusers' folder layout."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny, ModelMixin
from transformers import AutoTokenizer, CLIPPreTrainedModel, CLIPTokenizer, PreTrainedModel, T5EncoderModel

from posegen.backbones.loading.layout import (
    SCHEDULER_CONFIG,
    Layout,
    autoencoder_folder,
    read_config,
    tokenizer_folder,
)
from posegen.backbones.loading.model_parts import Autoencoder, ModelParts, no_progress_bar
from posegen.io.weights import WeightsError, first_line, not_finite, weight_files, weights_format

Model = TypeVar("Model", ModelMixin, PreTrainedModel)
AUTOENCODERS = {cls.__name__: cls for cls in (AutoencoderKL, AutoencoderTiny, AutoencoderDC)}
HARMLESS = ("position_ids",)  # a buffer that old text towers saved


def read_folder(
    folder: Path,
    layout: Layout,
    autoencoder: Path | None = None,
    fresh: bool = False,
    leave_out: Collection[str] = (),
    dtype: torch.dtype = torch.float32,
) -> ModelParts:
    """Reads the parts in ``folder``; a WeightsError where something is missing, damaged or of another shape.

    ``autoencoder`` or its ``vae`` folder is read instead of ``folder/vae``. With ``fresh`` the network and the text
    towers have random weights, from torch's global generator. The towers of ``leave_out`` are not read. ``dtype`` is
    that of the network and the text towers."""
    towers = layout.require(folder, leave_out)
    places = (
        folder / layout.network_folder,
        *(folder / name for name in towers),
        autoencoder_folder(autoencoder or folder),
    )
    read: Any = untrained_model if fresh else partial(read_model, dtype=dtype)
    network, vae = read(layout.network, places[0]), read_autoencoder(places[-1])
    texts = {name: read(layout.towers[name], folder / name) for name in towers}
    words = {name: tokenizer_for(layout.towers[name], folder / tokenizer_folder(name)) for name in towers}
    scheduler = read_config(folder / "scheduler", SCHEDULER_CONFIG)
    files = () if fresh else tuple(file for place in places for file in weight_files(place))
    return ModelParts(network, vae, texts, words, scheduler, files)


def untrained_model(cls: type[Model], folder: Path) -> Model:
    """A model of the configuration in ``folder`` with random weights, from torch's global generator."""
    config = read_config(folder)
    return cls.from_config(config) if issubclass(cls, ModelMixin) else cls(cls.config_class(**config))


def copy_source(
    place: Path, layout: Layout, autoencoder: Path | None, target: Path, leave_out: Collection[str] = ()
) -> dict[str, str | None]:
    """Copies the files that `read_folder` or ``read_single_file`` read to ``target``; the copy has the same hash.

    Returns ``path`` and ``autoencoder`` of the copies, relative to ``target``."""
    target.mkdir(parents=True)
    if place.is_dir():
        towers = layout.require(place, leave_out)
        for name in (layout.network_folder, *towers, *map(tokenizer_folder, towers), "scheduler"):
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
    for file in (*folder.glob("*.json"), *folder.glob("*.txt"), *folder.glob("*.model"), *weights):
        shutil.copyfile(file, target / file.name)


def read_autoencoder(folder: Path) -> Autoencoder:
    """The autoencoder in ``folder``; a WeightsError where posegen does not know its class or cannot read it."""
    name = read_config(folder).get("_class_name", "AutoencoderKL")
    if name not in AUTOENCODERS:
        unknown = f"{name} is not an autoencoder that posegen knows"
        raise WeightsError(f"{folder / 'config.json'}: {unknown}; expected one of {', '.join(AUTOENCODERS)}")
    return read_model(AUTOENCODERS[name], folder)


def read_model(cls: type[Model], folder: Path, dtype: torch.dtype = torch.float32) -> Model:
    """A diffusers or transformers model; a WeightsError where its configuration or any weight is missing, damaged,
    unknown, quantised or of another shape."""
    if method := read_config(folder).get("quantization_config"):
        kind = method.get("quant_method", "quantised") if isinstance(method, dict) else "quantised"
        fix = "fetch the weights that are not, and read them with backbone.dtype=bfloat16"
        t5 = ", or leave T5 out with backbone.t5=false" if cls is T5EncoderModel else ""
        raise WeightsError(f"{folder / 'config.json'}: quantised weights ({kind}) are not read; {fix}{t5}")
    files = weight_files(folder)
    settings: dict[str, Any] = {"torch_dtype" if issubclass(cls, ModelMixin) else "dtype": dtype}
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


def tokenizer_for(tower: type[PreTrainedModel], folder: Path) -> Any:
    """The tokenizer of a text tower of this class; a WeightsError where it is missing or damaged."""
    if issubclass(tower, CLIPPreTrainedModel):
        return read_tokenizer(folder)
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises bare Exceptions
        raise WeightsError(f"{folder}: cannot read the tokenizer ({error}); expected tokenizer.json") from error


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
