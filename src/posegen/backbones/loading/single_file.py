"""Stable Diffusion 1, 2 and XL from one original file, sized from the shapes of its tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from posegen.backbones.base import Geometry, check_first_width
from posegen.backbones.loading import ldm_keys as ldm
from posegen.backbones.loading.diffusers_folder import read_autoencoder
from posegen.backbones.loading.layout import Layout, a_model, autoencoder_folder, use
from posegen.backbones.loading.model_parts import ModelParts
from posegen.backbones.loading.tokenizer import CONTEXT, END, clip_tokenizer
from posegen.io.weights import WeightsError, read_tensors, shapes_in, weight_files

SD1_HEADS, SD2_HEAD_WIDTH, TEXT_HEAD_WIDTH = 8, 64, 64  # sizes that no tensor's shape shows
SIZE_WAVES, XL_SIDE = 256, 128  # of Stable Diffusion XL: width of each size's embedding, side of the latents
VAE_SCALE, XL_VAE_SCALE = 0.18215, 0.13025
#: The noise process of all Stable Diffusion checkpoints up to XL.
SCHEDULER: dict[str, Any] = {
    "_class_name": "DDIMScheduler", "num_train_timesteps": 1000, "beta_schedule": "scaled_linear",
    "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "epsilon", "clip_sample": False,
    "set_alpha_to_one": False, "steps_offset": 1,
}  # fmt: skip


#: The text towers of an original file: beginning of the keys, and what their tokenizer pads prompts with.
TextTowers: TypeAlias = Mapping[str, tuple[str, str]]
SD1_TEXT: TextTowers = {"text_encoder": (ldm.CLIP, END)}
SD2_TEXT: TextTowers = {"text_encoder": (ldm.OPEN_CLIP, "!")}
XL_TEXT: TextTowers = {"text_encoder": (ldm.XL_CLIP, END), "text_encoder_2": (ldm.XL_OPEN_CLIP, "!")}
#: Keys that show a family of models -> a mark of its U-Net's configuration.
FAMILIES: dict[str, dict[str, Any]] = {"cond_stage_model.": {}, ldm.XL_CLIP: {"addition_embed_type": "text_time"}}


def read_single_file(file: Path, layout: Layout, autoencoder: Path | None = None, fresh: bool = False) -> ModelParts:
    """Reads an original ``.safetensors`` or ``.ckpt``; arguments as in ``read_folder``. A WeightsError where the file
    cannot be read, or is not a whole model of ``layout``, which the names in a ``.safetensors`` show before."""
    require_family(shapes_in(file), file, layout)
    tensors, model = read_tensors(file), layout.model.removeprefix("a ")
    require_family(tensors, file, layout)
    vae_folder = autoencoder_folder(autoencoder) if autoencoder else None
    old, xl = ldm.has_prefix(tensors, ldm.CLIP), len(layout.towers) > 1
    texts = XL_TEXT if xl else SD1_TEXT if old else SD2_TEXT
    expected = f"an original {model} checkpoint with U-Net, autoencoder and text tower"
    prefixes = [
        (ldm.UNET, "U-Net"),
        *((prefix, "text tower") for prefix, _ in texts.values()),
        (ldm.VAE, "autoencoder"),
    ]
    for prefix, part in prefixes:
        if not ldm.has_prefix(tensors, prefix) and not (vae_folder and prefix == ldm.VAE):
            raise WeightsError(f"{file}: no {part} ({prefix}*); expected {expected}")
    try:
        weights = ldm.below(tensors, ldm.UNET)
        geometry = unet_geometry(weights, old)
        pooled = weights["label_emb.0.0.weight"].shape[1] - 6 * SIZE_WAVES if xl else None
        unet = unet_of(geometry, weights["input_blocks.0.0.weight"].shape[1], pooled)
        if not fresh:
            unet = _filled(unet, ldm.renamed(weights, ldm.unet_table(geometry)), f"{file}: the U-Net")
        scale = XL_VAE_SCALE if xl else VAE_SCALE
        vae = read_autoencoder(vae_folder) if vae_folder else _read_vae(ldm.below(tensors, ldm.VAE), file, scale)
        towers = {
            name: _read_text(ldm.below(tensors, prefix), layout.towers[name], pad == END, file, fresh)
            for name, (prefix, pad) in texts.items()
        }
    except KeyError as error:  # a tensor that a size is read from
        fix = f"the file is incomplete or no {model}: fetch it again"
        raise WeightsError(f"{file}: {error.args[0]} is missing; {fix}") from error
    files = () if fresh else (file, *(weight_files(vae_folder) if vae_folder else ()))
    words = {name: clip_tokenizer(pad) for name, (_, pad) in texts.items()}
    return ModelParts(unet, vae, towers, words, dict(SCHEDULER), files=files)


def require_family(keys: Iterable[str], file: Path, layout: Layout) -> None:
    """Raises a WeightsError where the keys of an original file are those of another family of models."""
    for config in (config for prefix, config in FAMILIES.items() if ldm.has_prefix(keys, prefix)):
        if not layout.fits(config):
            holds = f"the file holds {a_model(config)}; this backbone is {layout.model}"
            raise WeightsError(f"{file}: {holds}. {use(config)}")


def _read_vae(tensors: dict[str, Tensor], file: Path, scale: float) -> AutoencoderKL:
    channels, layers = _vae_size(tensors)
    vae = vae_of(channels, layers, tensors["post_quant_conv.weight"].shape[0], scale)
    training = "loss.", "model_ema."  # left from the autoencoder's own training
    weights = {key: value for key, value in tensors.items() if not key.startswith(training)}
    return _filled(vae, ldm.vae_tensors(weights, ldm.vae_table(len(channels), layers)), f"{file}: the autoencoder")


def _read_text(tensors: dict[str, Tensor], cls: type[Any], old: bool, file: Path, fresh: bool) -> Any:
    """A text tower of this class: CLIP's (``old``) whole, OpenCLIP's with its projection, or without its last layer."""
    projected = cls is CLIPTextModelWithProjection
    width = tensors["embeddings.token_embedding.weight" if old else "token_embedding.weight"].shape
    stem, hidden = ("encoder.layers.", "mlp.fc1") if old else ("transformer.resblocks.", "mlp.c_fc")
    layers = len({key.removeprefix(stem).partition(".")[0] for key in tensors if key.startswith(stem)})
    layers -= not (old or projected)
    pooled = tensors["text_projection"].shape[1] if projected else width[1]
    sizes = {"vocab_size": width[0], "hidden_size": width[1], "projection_dim": pooled, "num_hidden_layers": layers}
    sizes |= {"intermediate_size": len(tensors[f"{stem}0.{hidden}.weight"]), "max_position_embeddings": CONTEXT}
    heads, activation = max(1, width[1] // TEXT_HEAD_WIDTH), "quick_gelu" if old else "gelu"
    text = cls(CLIPTextConfig(**sizes, num_attention_heads=heads, hidden_act=activation))
    if fresh:
        return text
    renamed = ldm.projected_clip_tensors if projected else ldm.open_clip_tensors
    return _filled(text, ldm.clip_tensors(tensors) if old else renamed(tensors, layers), f"{file}: the text tower")


def unet_geometry(tensors: Mapping[str, Tensor], old: bool) -> Geometry:
    """The size of an original U-Net, from the shapes of its tensors; ``old`` for Stable Diffusion 1.

    Raises a KeyError where a tensor that every U-Net has is not there, and as `check_first_width` does."""
    levels: list[list[int]] = [[]]
    attention: list[bool] = [False]
    transformers: list[int] = [1]  # layers of each level's
    for i in count(1):
        block = f"input_blocks.{i}"
        if f"{block}.0.op.weight" in tensors:
            levels.append([])
            attention.append(False)
            transformers.append(1)
        elif (weight := tensors.get(f"{block}.0.out_layers.3.weight")) is not None:
            levels[-1].append(weight.shape[0])
            attention[-1] = f"{block}.1.proj_in.weight" in tensors
            layer = f"{block}.1.transformer_blocks.{{}}.norm1.weight"
            transformers[-1] = next(n for n in count() if layer.format(n) not in tensors) or 1
        else:
            break
    if not all(levels):
        raise KeyError("input_blocks.*.0.out_layers.3.weight")
    channels = tuple(level[0] for level in levels)
    check_first_width(len(tensors["input_blocks.0.0.weight"]), channels[0])
    heads = tuple(SD1_HEADS if old else max(1, c // SD2_HEAD_WIDTH) for c in channels)
    text_dim = tensors["middle_block.1.transformer_blocks.0.attn2.to_k.weight"].shape[1]
    linear, latent = tensors["middle_block.1.proj_in.weight"].ndim == 2, tensors["out.2.weight"].shape[0]
    several = tuple(transformers) if max(transformers) > 1 else ()
    form = {"linear_projection": linear, "transformer_layers": several}
    return Geometry(latent, 8, channels, tuple(attention), len(levels[0]), heads, text_dim, **form)


def unet_of(geometry: Geometry, in_channels: int | None = None, pooled: int | None = None) -> UNet2DConditionModel:
    """A U-Net of this size with new weights; one of Stable Diffusion XL where it reads ``pooled`` values of text."""
    g, down = geometry, tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in geometry.attention)
    sizes: dict[str, Any] = {"block_out_channels": g.channels, "layers_per_block": g.layers, "down_block_types": down}
    sizes["up_block_types"] = tuple(name.replace("Down", "Up") for name in reversed(down))
    sizes |= {"in_channels": in_channels or g.latent_channels, "out_channels": g.latent_channels}
    sizes |= {"cross_attention_dim": g.text_dim, "attention_head_dim": g.heads}  # diffusers' name for their number
    sizes |= {"transformer_layers_per_block": g.transformer_layers or 1, "norm_num_groups": g.norm_groups}
    if pooled is not None:
        sizes |= {"addition_embed_type": "text_time", "addition_time_embed_dim": SIZE_WAVES, "sample_size": XL_SIDE}
        sizes["projection_class_embeddings_input_dim"] = pooled + 6 * SIZE_WAVES
    return UNet2DConditionModel(**sizes, use_linear_projection=g.linear_projection)


def vae_of(
    channels: tuple[int, ...], layers: int, latent_channels: int = 4, scale: float = VAE_SCALE, **settings: Any
) -> AutoencoderKL:
    """A KL autoencoder of this size with new weights; further ``settings`` are diffusers'."""
    sizes = {"block_out_channels": channels, "layers_per_block": layers, "latent_channels": latent_channels}
    down, up = ("DownEncoderBlock2D",) * len(channels), ("UpDecoderBlock2D",) * len(channels)
    return AutoencoderKL(down_block_types=down, up_block_types=up, scaling_factor=scale, **sizes, **settings)


def _vae_size(tensors: Mapping[str, Tensor]) -> tuple[tuple[int, ...], int]:
    """Width of each level and residual blocks per level."""
    place, channels = "encoder.down.{}.block.{}.conv2.weight", []
    while (weight := tensors.get(place.format(len(channels), 0))) is not None:
        channels.append(weight.shape[0])
    layers = next(block for block in count() if place.format(0, block) not in tensors)
    if not channels:
        raise KeyError(place.format(0, 0))
    return tuple(channels), layers


def _filled(model: nn.Module, weights: ldm.Renamed, what: str) -> nn.Module:
    """``model`` with ``weights``; a WeightsError where one is missing, unknown or of another shape."""
    own, new = model.state_dict(), weights.tensors
    problems = {
        "missing": sorted(own.keys() - new.keys()),
        "unknown": sorted([*weights.unknown, *(new.keys() - own.keys())]),
        "mis-shaped": sorted(key for key in own.keys() & new.keys() if own[key].shape != new[key].shape),
    }
    found = [f"{len(keys)} {kind}, for instance {', '.join(keys[:3])}" for kind, keys in problems.items() if keys]
    if found:
        misfit = f"{what} has weights that do not fit Stable Diffusion {'; '.join(found)}"
        raise WeightsError(f"{misfit}: the file is incomplete or another model")
    model.load_state_dict({key: value.float() for key, value in new.items()})
    return model
