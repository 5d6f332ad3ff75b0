"""The parts of a latent diffusion model in memory, and the folder that they are written to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
import transformers
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny, ModelMixin, UNet2DConditionModel

from posegen.backbones.loading.layout import SCHEDULER_CONFIG, tokenizer_folder
from posegen.io.hashes import sha256_of

Autoencoder: TypeAlias = AutoencoderKL | AutoencoderTiny | AutoencoderDC


@dataclass
class ModelParts:
    """The networks, tokenizers and scheduler of a latent diffusion model."""

    network: ModelMixin
    autoencoder: Autoencoder | None  # None for models of something else than images
    text_encoders: Mapping[str, Any]  # text towers by their folders' names (``text_encoder``, ``text_encoder_2``, ...)
    tokenizers: Mapping[str, Any]  # by the name of their text tower
    scheduler: dict[str, Any]  # the configuration of a diffusers scheduler, which fixes the noise process
    files: tuple[Path, ...] = ()  # where the weights came from; empty for parts that were never saved
    origin: str | None = None  # everything the weights are a function of; it identifies parts without files

    @classmethod
    def of_one_tower(
        cls, network: Any, autoencoder: Any, tower: Any, tokenizer: Any, scheduler: dict[str, Any], **more: Any
    ) -> ModelParts:
        """Parts with the single text tower ``text_encoder``."""
        return cls(network, autoencoder, {"text_encoder": tower}, {"text_encoder": tokenizer}, scheduler, **more)

    @property
    def sha256(self) -> str:
        """Hash of the weight files, or of the origin or the tensors where there are no files."""
        if self.origin is not None:
            return hashlib.sha256(self.origin.encode()).hexdigest()
        modules = self.network, *self.text_encoders.values(), self.autoencoder
        return sha256_of(self.files) if self.files else tensors_hash(*modules)

    def save(self, folder: Path, autoencoder: bool = True) -> None:
        """Writes diffusers' layout, without ``vae/`` where the autoencoder lives elsewhere."""
        self.network.save_pretrained(
            folder / ("unet" if isinstance(self.network, UNet2DConditionModel) else "transformer")
        )
        for name, tower in self.text_encoders.items():
            with no_progress_bar():
                tower.save_pretrained(folder / name)
            self.tokenizers[name].save_pretrained(folder / tokenizer_folder(name))
        write_scheduler(folder, self.scheduler)
        if autoencoder and self.autoencoder is not None:
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
