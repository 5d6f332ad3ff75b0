"""The parts of a Stable Diffusion 3 in diffusers' layout: ``transformer/ vae/ text_encoder* tokenizer* scheduler/``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import SD3Transformer2DModel
from transformers import AutoTokenizer, CLIPTextModelWithProjection, T5EncoderModel

from posegen.backbones.loading.diffusers_folder import (
    SCHEDULER_CONFIG,
    Autoencoder,
    autoencoder_folder,
    no_progress_bar,
    read_autoencoder,
    read_config,
    read_model,
    read_tokenizer,
    tensors_hash,
    write_scheduler,
)
from posegen.io.hashes import sha256_of
from posegen.io.weights import WeightsError, weight_files

#: Names of the text towers: one or two CLIP towers, and T5, which may be left out.
CLIP_TOWERS, T5_TOWER = ("text_encoder", "text_encoder_2"), "text_encoder_3"


@dataclass
class SD3Parts:
    """The networks, tokenizers and scheduler of a Stable Diffusion 3."""

    transformer: SD3Transformer2DModel
    autoencoder: Autoencoder
    text_encoders: Mapping[str, Any]  # by name: ``text_encoder``, ``text_encoder_2``, ``text_encoder_3``
    tokenizers: Mapping[str, Any]  # by the name of their text encoder
    scheduler: dict[str, Any]  # the configuration of a diffusers scheduler, which fixes the noise process
    files: tuple[Path, ...] = ()  # where the weights came from; empty for parts that were never saved

    @property
    def sha256(self) -> str:
        """Hash of the weight files, or of the tensors where there are no files."""
        modules = self.transformer, *self.text_encoders.values(), self.autoencoder
        return sha256_of(self.files) if self.files else tensors_hash(*modules)

    def save(self, folder: Path, autoencoder: bool = True) -> None:
        """Writes diffusers' layout, without ``vae/`` where the autoencoder lives elsewhere."""
        self.transformer.save_pretrained(folder / "transformer")
        for name, tower in self.text_encoders.items():
            with no_progress_bar():
                tower.save_pretrained(folder / name)
            self.tokenizers[name].save_pretrained(folder / tokenizer_of_tower(name))
        write_scheduler(folder, self.scheduler)
        if autoencoder:
            self.autoencoder.save_pretrained(folder / "vae")


def tokenizer_of_tower(name: str) -> str:
    """The folder of the tokenizer of a text tower."""
    return name.replace("text_encoder", "tokenizer")


def read_sd3_folder(folder: Path, autoencoder: Path | None = None, t5: bool = True) -> SD3Parts:
    """Reads the parts in ``folder``; a WeightsError where something is missing, damaged or of another shape.

    ``autoencoder`` or its ``vae`` folder is read instead of ``folder/vae``; without ``t5`` that tower is left out."""
    if (folder / "unet").is_dir():
        other = "a Stable Diffusion with a U-Net; expected one with transformer/"
        raise WeightsError(f"{folder}: {other}. Use backbone=sd15 or backbone=sd21 for it")
    needed = ("transformer", "scheduler", CLIP_TOWERS[0], tokenizer_of_tower(CLIP_TOWERS[0]))
    if absent := ", ".join(f"{name}/" for name in needed if not (folder / name).is_dir()):
        raise WeightsError(f"{folder}: no {absent}; expected a Stable Diffusion 3 in diffusers' layout")
    vae = autoencoder_folder(autoencoder or folder)
    names = [name for name in (*CLIP_TOWERS, T5_TOWER) if (folder / name).is_dir() and (t5 or name != T5_TOWER)]
    classes = {name: T5EncoderModel if name == T5_TOWER else CLIPTextModelWithProjection for name in names}
    places = folder / "transformer", *(folder / name for name in names), vae
    return SD3Parts(
        read_model(SD3Transformer2DModel, folder / "transformer"),
        read_autoencoder(vae),
        {name: read_model(cls, folder / name) for name, cls in classes.items()},
        {name: read_words(folder / tokenizer_of_tower(name), name) for name in names},
        read_config(folder / "scheduler", SCHEDULER_CONFIG),
        tuple(file for place in places for file in weight_files(place)),
    )


def read_words(folder: Path, tower: str) -> Any:
    """The tokenizer of a text tower; a WeightsError where it is missing or damaged."""
    if tower != T5_TOWER:
        return read_tokenizer(folder)
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises bare Exceptions
        raise WeightsError(f"{folder}: cannot read the tokenizer ({error}); expected tokenizer.json") from error
