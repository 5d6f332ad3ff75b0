"""Stable Diffusion XL: two text towers, and a U-Net that also reads a pooled text and the sizes of the image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from posegen.backbones.latent_diffusion import Initialise
from posegen.backbones.loading.layout import Layout, read_config
from posegen.backbones.loading.model_parts import ModelParts
from posegen.backbones.loading.sizes import sdxl_without_weights
from posegen.backbones.stable_diffusion import SD_LAYOUT, StableDiffusion
from posegen.backbones.text import Text

SECOND_TOWER, PIPELINE = "text_encoder_2", "model_index.json"
XL_LAYOUT = Layout(
    "a Stable Diffusion XL",
    SD_LAYOUT.network,
    {**SD_LAYOUT.towers, SECOND_TOWER: CLIPTextModelWithProjection},
    marks={"addition_embed_type": "text_time"},
    single_file=True,
    settings=(PIPELINE,),
)


class StableDiffusionXL(StableDiffusion):
    """A latent diffusion model (Podell et al. 2024, arXiv:2307.01952) of the Stable Diffusion XL design, at any size.

    The U-Net's sizes are those of `Text.sizes_for`: in training the picture's own and its cut, where the data know
    them; else, and always in evaluation, a whole picture of the size of the sample.

    Args:
        path, autoencoder, recipe, initialise, id, prediction_type: see `StableDiffusion`.
        size: the published size, ``sdxl``, of random weights where ``path`` is None.
        force_zeros_for_empty_prompt: an empty prompt is encoded as zeros, which diffusers does where no negative prompt
            is given; None: as ``model_index.json`` says, or true, as in diffusers.

    Raises a WeightsError where nothing at ``path`` is usable; it names the expected files.
    """

    layout = XL_LAYOUT
    random_sizes = {"sdxl": sdxl_without_weights}
    #: Not ``attention`` and ``features``: they are for transformers of one layer.
    places: ClassVar[frozenset[str]] = StableDiffusion.places - {"attention", "features"}
    reads: ClassVar[frozenset[str]] = frozenset({"sizes"})
    text_encoder_2: CLIPTextModelWithProjection
    tokenizer_2: CLIPTokenizer
    zeros: bool = True  # ``force_zeros_for_empty_prompt``

    def __init__(
        self,
        path: str | Path | None,
        autoencoder: str | Path | None = None,
        recipe: str = "published",
        initialise: Initialise = "pretrained",
        id: str | None = None,
        prediction_type: Literal["epsilon", "v_prediction"] | None = None,
        size: Literal["sdxl"] | None = None,
        force_zeros_for_empty_prompt: bool | None = None,
    ):
        nn.Module.__init__(self)
        self.prediction_type, self.zeros = prediction_type, force_zeros_for_empty_prompt is not False
        self._says = force_zeros_for_empty_prompt is None
        self._load(path, autoencoder, recipe, initialise, id, size)

    def _read_parts(self, place: Path, autoencoder: Path | None, fresh: bool) -> ModelParts:
        if self._says and (place / PIPELINE).is_file():
            self.zeros = bool(read_config(place, PIPELINE).get("force_zeros_for_empty_prompt", True))
        return super()._read_parts(place, autoencoder, fresh)

    def _facts(self) -> dict[str, Any]:
        return {"force_zeros_for_empty_prompt": self.zeros}

    def _arguments(self) -> dict[str, Any]:
        return {**super()._arguments(), **self._facts()}

    @property
    def pooled_dim(self) -> int:
        return self.text_encoder_2.config.projection_dim

    @property
    def text_width(self) -> int:
        return self.text_encoder.config.hidden_size + self.text_encoder_2.config.hidden_size

    def _misfit(self) -> str:
        config = self.unet.config
        reads = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        if reads != self.pooled_dim:
            pooled = f"reads {reads} pooled values of text, the second text tower makes {self.pooled_dim}"
            return f"the U-Net {pooled}; they belong to different models"
        return super()._misfit()

    def encoding_key(self, of: Literal["latents", "text"]) -> str:
        key = super().encoding_key(of)
        return f"{key}-{self.zeros}" if of == "text" else key

    def encode_text(self, prompts: Sequence[str], chunks: int = 1, clip_skip: int = 0) -> Text:
        """As for every backbone: the towers' states before their last layers, side by side.

        ``pooled`` is the second tower's projected state of the end, of the first chunk."""
        unique = list(dict.fromkeys(prompts))
        read = [self.read_text(name, unique, chunks, output_hidden_states=True) for name in self.tower_names]
        tokens = torch.cat([tower.hidden_states[-2 - clip_skip] for tower in read], dim=-1)
        tokens, pooled = tokens.reshape(len(unique), -1, tokens.shape[-1]), read[-1].text_embeds[::chunks]
        if self.zeros:
            empty = torch.tensor([[not prompt] for prompt in unique], device=tokens.device)
            tokens, pooled = tokens.masked_fill(empty[:, None], 0), pooled.masked_fill(empty, 0)
        place = {prompt: i for i, prompt in enumerate(unique)}
        return Text(tokens, pooled)[[place[prompt] for prompt in prompts]]
