"""FLUX.1: diffusers' transformer over packed latents, autoencoder, CLIP and T5 as a `Backbone`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel, T5EncoderModel

from posegen.backbones.autoencoder import encoded, latent_form
from posegen.backbones.base import BlockPlace, Geometry, Injection, lacks
from posegen.backbones.blocks.flux_copy import PATCH, FluxCopy, as_latents, flux_inputs, width_of
from posegen.backbones.blocks.joint_tokens import TokenBranch, token_arguments
from posegen.backbones.latent_diffusion import LatentDiffusion
from posegen.backbones.loading.flux_sizes import FLUX_SIZES
from posegen.backbones.loading.layout import Layout, autoencoder_folder, read_config
from posegen.backbones.loading.model_parts import ModelParts
from posegen.backbones.loading.source import resolve
from posegen.backbones.process import Density, NoiseProcess, noise_process
from posegen.backbones.text import Text
from posegen.errors import UserError
from posegen.io.weights import WeightsError
from posegen.ranges import AtLeastOne, NotNegative

FLUX_LAYOUT = Layout(
    "a FLUX.1",
    FluxTransformer2DModel,
    {"text_encoder": CLIPTextModel, "text_encoder_2": T5EncoderModel},
    network_folder="transformer",
)
USUAL_SIDE = 1024  # pixels
COPIED_BLOCKS = 4, 10  # of two streams and of one, where diffusers starts a ControlNet


class Flux(LatentDiffusion):
    """FLUX.1 (Black Forest Labs 2024), dev or schnell: flow matching with joint attention over packed latents and text.

    Args:
        path: a folder in diffusers' layout, or ``hub:owner/name``, the only form that may download. None for random
            weights of a published ``size``.
        autoencoder: folder of another autoencoder than the one in ``path``, or ``hub:owner/name``.
        recipe: which of an adapter's ``recipes`` fits this backbone.
        initialise: ``pretrained``, or ``random`` for new weights of transformer and text towers.
        id: name of the weights in tables and records; the folder's name where it is None.
        density: of the timesteps in training, see `FlowMatching`.
        guidance: the strength that a transformer with distilled guidance (dev) is told, beside the sampler's guidance,
            which costs a second pass; others (schnell) do not read it.
        t5_length: tokens that T5 reads; None for 512 with distilled guidance and 256 without.
        size: the published size, ``flux1_dev`` or ``flux1_schnell``, of random weights where ``path`` is None.
        dtype: in which the transformer and the text towers are held; what trains is held in float32.
    """

    network_name = "transformer"
    layout = FLUX_LAYOUT
    flow, packs, usual_guidance = True, PATCH, 1.0
    random_sizes = FLUX_SIZES
    places: ClassVar[frozenset[str]] = frozenset({"latents", "blocks", "control_copy", "tokens"})
    transformer: FluxTransformer2DModel
    density: Density = "logit_normal"
    guidance: float = 3.5
    t5_length: int | None = None

    def __init__(
        self,
        path: str | Path | None,
        autoencoder: str | Path | None = None,
        recipe: str = "published",
        initialise: Literal["pretrained", "random"] = "pretrained",
        id: str | None = None,
        density: Density = "logit_normal",
        guidance: NotNegative = 3.5,
        t5_length: AtLeastOne | None = None,
        size: Literal["flux1_dev", "flux1_schnell"] | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        super().__init__()
        self.density, self.guidance, self.t5_length, self.dtype = density, guidance, t5_length, dtype
        self._load(path, autoencoder, recipe, initialise, id, size)

    def _read_parts(self, place: Path, autoencoder: Path | None, fresh: bool) -> ModelParts:
        folders = self.layout.network_folder, *self.layout.require(place)
        problem = ""
        with suppress(KeyError, TypeError):  # of a damaged configuration, which is refused where the part is read
            network, clip, t5 = (read_config(place / name) for name in folders)
            latent, _ = latent_form(read_config(autoencoder_folder(autoencoder or place)))
            problem = misfit(network, latent, clip["hidden_size"], t5["d_model"])
        if problem:
            raise WeightsError(f"{place}: {problem}")  # before any weight is read
        return super()._read_parts(place, autoencoder, fresh)

    def _noise_process(self, scheduler: Mapping[str, Any]) -> NoiseProcess:
        return noise_process(scheduler, self.density, even=True)

    def read_geometry(self) -> Geometry:
        config, (channels, factor) = self.transformer.config, self.latent_form
        width, heads = config.num_attention_heads * config.attention_head_dim, (config.num_attention_heads,)
        layers = config.num_layers + config.num_single_layers
        return Geometry(channels, factor, (width,), (True,), layers, heads, config.joint_attention_dim, patch=PATCH)

    @property
    def pooled_dim(self) -> int:
        return self.transformer.config.pooled_projection_dim

    @property
    def usual_size(self) -> tuple[int, int]:
        return USUAL_SIDE, USUAL_SIDE

    def _facts(self) -> dict[str, Any]:
        told = {"guidance": self.guidance} if self.transformer.config.guidance_embeds else {}
        return {"density": self.density, "t5_length": self.max_length, **told}

    def _arguments(self) -> dict[str, Any]:
        held = {"dtype": self.dtype} if self.dtype != "float32" else {}
        return {"density": self.density, "guidance": self.guidance, "t5_length": self.t5_length, **held}

    @property
    def counting_tower(self) -> str:
        return "text_encoder_2"

    @classmethod
    def width_in(cls, official: Mapping[str, Tensor]) -> int | None:
        return width_of(official)

    @property
    def lengthening(self) -> str:
        return "raise backbone.t5_length"

    @property
    def max_length(self) -> int:
        return self.t5_length or usual_t5_length(self.transformer.config)

    @classmethod
    def text_reader(cls, path: str | Path, **settings: Any) -> tuple[Any, int]:
        tokenizer, _ = cls._read_tokenizer(path, "text_encoder_2")
        if length := settings.get("t5_length"):
            return tokenizer, length
        place, _ = resolve(path, cls.layout, (f"{cls.layout.network_folder}/config.json",))
        return tokenizer, usual_t5_length(read_config(place / cls.layout.network_folder))

    def encode_text(self, prompts: Sequence[str], chunks: int = 1, clip_skip: int = 0) -> Text:
        """As for every backbone: the states of T5, and as ``pooled`` that of CLIP at the end of the prompt.

        A UserError with ``clip_skip``: no state of CLIP's inner layers is read. CLIP reads 77 tokens, T5 `max_length`:
        as in diffusers, each cuts the rest; a ValueError for more ``chunks``."""
        self.require_whole(chunks)
        if clip_skip:
            raise UserError(f"clip_skip={clip_skip}: FLUX reads no inner layer of its CLIP tower; leave clip_skip out")
        unique = list(dict.fromkeys(prompts))
        pooled = self._read_prompts("text_encoder", unique, self.tokenizer.model_max_length).pooler_output
        tokens = self._read_prompts("text_encoder_2", unique, self.max_length).last_hidden_state
        place = {prompt: i for i, prompt in enumerate(unique)}
        rows = [place[prompt] for prompt in prompts]
        return Text(tokens[rows], pooled[rows])

    def _read_prompts(self, name: str, prompts: Sequence[str], length: int) -> Any:
        tower, form = self.get_submodule(name), {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        ids, device = (
            self.tokenizers[name](list(prompts), max_length=length, **form).input_ids,
            next(tower.parameters()).device,
        )
        return tower(ids if device.type == "meta" else ids.to(device))  # offloaded ones bring it along

    def control_copy(
        self, replaced: Mapping[BlockPlace, nn.Module] | None = None, layers: int | None = None
    ) -> FluxCopy:
        """A copy of the first blocks, by default as many as in diffusers; ``layers`` blocks of two streams alone."""
        if replaced:
            raise lacks(self, "encoder_block")
        most = self.transformer.config.num_layers, self.transformer.config.num_single_layers
        if layers is not None and layers > most[0]:
            raise UserError(
                f"adapter.layers={layers}: the transformer has {most[0]} blocks of two streams; choose at most as many"
            )
        double, single = map(min, most, COPIED_BLOCKS) if layers is None else (layers, 0)
        return FluxCopy(self.transformer, (double, single), partial(encoded, self.autoencoder), self.guidance)

    def token_branch(self, targets: Sequence[str], rank: int, alpha: float) -> TokenBranch:
        """As for every backbone; the tokens are told a guidance of 1."""

        def embed(network: Any, latents: Tensor, text: Text) -> tuple[Tensor, dict[str, Any]]:
            latents, text = self.in_held(latents), text.to(self.in_held(text.tokens).dtype)
            read = flux_inputs(network, latents, latents.new_zeros(len(latents)), text, 1.0)
            told = (1000 * part.to(latents) for part in (read["timestep"], read["guidance"]) if part is not None)
            form = {"temb": network.time_text_embed(*told, text.pooled)}
            return network.x_embedder(read["hidden_states"]), form | {
                "image_rotary_emb": network.pos_embed(read["img_ids"])
            }

        return TokenBranch(self.transformer, embed, targets, rank, alpha)

    def widen(self, channels: int) -> None:
        embedding, has = self.transformer.x_embedder, self.transformer.config.in_channels
        if has != self.geometry.latent_channels * PATCH**2:
            taken = f"{has // PATCH**2} channels, not the {self.geometry.latent_channels} of the latents"
            needed = "a method that concatenates latents needs a text-to-image backbone of its own"
            raise ValueError(f"the transformer takes {taken}; {needed}")
        wider = has + channels * PATCH**2
        embedding.weight = nn.Parameter(F.pad(embedding.weight.detach(), (0, wider - has)))
        embedding.in_features = wider
        self.transformer.register_to_config(in_channels=wider, out_channels=has)

    def predict(self, latents: Tensor, timesteps: Tensor, text: Text, injection: Injection) -> Tensor:
        if injection.latents is not None:
            latents = torch.cat([latents, injection.latents.to(latents)], dim=1)
        text = text.to(self.in_held(text.tokens).dtype)
        inputs = flux_inputs(self.transformer, self.in_held(latents), timesteps, text, self.guidance)
        for kind, residuals in (("block", injection.blocks), ("single_block", injection.single_blocks)):
            inputs[f"controlnet_{kind}_samples"] = residuals and tuple(map(self.in_held, residuals))
        made = self.transformer(**inputs, **token_arguments(injection.tokens))[0]
        return as_latents(made, latents.shape[-2])

    def _misfit(self) -> str:
        widths = self.text_encoder.config.hidden_size, self.text_encoder_2.config.d_model
        return misfit(self.transformer.config, self.latent_form[0], *widths)


def usual_t5_length(transformer: Mapping[str, Any]) -> int:
    """Tokens that T5 reads for a transformer of this configuration, dev's or schnell's."""
    return 512 if transformer.get("guidance_embeds") else 256


def misfit(transformer: Mapping[str, Any], latent: int, clip: int, t5: int) -> str:
    """What shows that the parts belong to different models, by their configuration and widths."""
    takes, pools, reads = (
        transformer[name] for name in ("in_channels", "pooled_projection_dim", "joint_attention_dim")
    )
    made = f"takes {takes / PATCH**2:g} channels of latents, the autoencoder makes {latent}"
    problems = [
        (takes != latent * PATCH**2, f"{made}; expected a text-to-image FLUX.1 and its own autoencoder"),
        (
            pools != clip,
            f"reads {pools} pooled values of text, the CLIP tower makes {clip}; they belong to different models",
        ),
        (reads != t5, f"reads text states of width {reads}, T5 makes {t5}; they belong to different models"),
    ]
    found = [f"the transformer {text}" for wrong, text in problems if wrong]
    return found[0] if found else ""
