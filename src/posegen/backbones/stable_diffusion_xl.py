"""Stable Diffusion XL: two text towers, and a U-Net that also reads a pooled text and the sizes of the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from posegen.backbones.latent_diffusion import Initialise
from posegen.backbones.loading.layout import Layout
from posegen.backbones.loading.sizes import sdxl_without_weights
from posegen.backbones.stable_diffusion import SD_LAYOUT, StableDiffusion
from posegen.backbones.text import Text, text_chunks

SECOND_TOWER = "text_encoder_2"
XL_LAYOUT = Layout(
    "a Stable Diffusion XL",
    SD_LAYOUT.network,
    {**SD_LAYOUT.towers, SECOND_TOWER: CLIPTextModelWithProjection},
    marks={"addition_embed_type": "text_time"},
    single_file=True,
)
FORCE_ZEROS = "force_zeros_for_empty_prompt"  # in a pipeline's configuration


class StableDiffusionXL(StableDiffusion):
    """A latent diffusion model (Podell et al. 2024, arXiv:2307.01952) of the Stable Diffusion XL design, at any size.

    The U-Net's sizes are those of `Text.sizes_for`: in training the picture's own and its cut, where the data know
    them; else, and always in evaluation, a whole picture of the size of the sample.

    Args:
        path: a folder in diffusers' layout, an original single file (``.safetensors`` or ``.ckpt``), or
            ``hub:owner/name``, the only form that may download. None for random weights of a published ``size``.
        autoencoder: folder of another autoencoder than the one in ``path``, or ``hub:owner/name``.
        recipe: which of an adapter's ``recipes`` fits this backbone.
        initialise: ``pretrained``, or ``random`` for new weights of U-Net and text towers, but not of the autoencoder.
        id: name of the weights in tables and records; the folder's or file's name where it is None.
        prediction_type: overrides the scheduler's configuration; single files say nothing and mean ``epsilon``.
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
        self.prediction_type, self.asked_zeros = prediction_type, force_zeros_for_empty_prompt
        self._load(path, autoencoder, recipe, initialise, id, size)
