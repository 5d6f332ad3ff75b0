"""Names of the same weights in the original latent-diffusion code and in diffusers.

Tables of module prefixes, made from a `Geometry`, serve every width and depth; a key that is in none is noticed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from torch import Tensor

from posegen.backbones.base import Geometry, check_first_width
from posegen.io.weights import UnknownKeys

UNET, CONTROL, VAE = "model.diffusion_model.", "control_model.", "first_stage_model."
CLIP, OPEN_CLIP = "cond_stage_model.transformer.text_model.", "cond_stage_model.model."
XL_TOWERS = "conditioner.embedders."
XL_CLIP, XL_OPEN_CLIP = f"{XL_TOWERS}0.transformer.text_model.", f"{XL_TOWERS}1.model."
SCHEDULE = frozenset({
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2", "logvar", "scale_factor",
})  # fmt: skip
#: The parts of an original file that are not the method's: beginning of the keys -> why they are left out.
LEFT_OUT = {
    "first_stage_model": "the autoencoder, which the backbone brings",
    **dict.fromkeys(("cond_stage_model", "conditioner"), "the text tower, which the backbone brings"),
    **dict.fromkeys(sorted(SCHEDULE), "the noise process, which the backbone brings"),
}
#: The same for methods that leave the U-Net as it is.
LEFT_OUT_FROZEN = {"model.diffusion_model": "the file's own U-Net; the method runs on the configured one", **LEFT_OUT}

FIRST_WIDTHS = ("input_blocks.0.0", "input_blocks.1.0.out_layers.3")  # of a U-Net: input convolution and first level
RESNET = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2", "out_layers.3": "conv2", "skip_connection": "conv_shortcut",
}  # fmt: skip
VAE_RESNET = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "nin_shortcut": "conv_shortcut"}
VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
OPEN_CLIP_LAYER = {
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}  # fmt: skip

NameTable = dict[str, str]


def unet_table(g: Geometry) -> NameTable:
    """Original module prefix -> diffusers' module prefix for the whole U-Net."""
    table = {**encoder_table(g), "out.0": "conv_norm_out", "out.2": "conv_out"}
    index = count()
    for up, level in enumerate(reversed(range(g.levels))):
        for layer in range(g.layers + 1):
            original = f"output_blocks.{next(index)}"
            table |= _block(original, f"up_blocks.{up}", layer, g.attention[level])
        if level > 0:
            table[f"{original}.{1 + g.attention[level]}.conv"] = f"up_blocks.{up}.upsamplers.0.conv"
    return table


def encoder_table(g: Geometry) -> NameTable:
    """The part of the U-Net that control branches copy: embeddings, input blocks and middle block."""
    table = {f"time_embed.{i}": f"time_embedding.linear_{i // 2 + 1}" for i in (0, 2)}
    table |= {f"label_emb.0.{i}": f"add_embedding.linear_{i // 2 + 1}" for i in (0, 2)}  # of Stable Diffusion XL
    table["input_blocks.0.0"] = "conv_in"
    index = count(1)
    for level in range(g.levels):
        for layer in range(g.layers):
            table |= _block(f"input_blocks.{next(index)}", f"down_blocks.{level}", layer, g.attention[level])
        if level < g.levels - 1:
            table[f"input_blocks.{next(index)}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
    for i in (0, 1):
        table |= _prefixed(RESNET, f"middle_block.{2 * i}", f"mid_block.resnets.{i}")
    return {**table, "middle_block.1": "mid_block.attentions.0"}


def control_table(g: Geometry) -> NameTable:
    """A ControlNet whose hint block has two convolutions per halving, besides the first and the last."""
    hints = ["conv_in", *(f"blocks.{i}" for i in range(2 * (g.latent_factor.bit_length() - 1))), "conv_out"]
    table = encoder_table(g)
    table |= {f"input_hint_block.{2 * i}": f"controlnet_cond_embedding.{name}" for i, name in enumerate(hints)}
    table |= {f"zero_convs.{i}.0": f"controlnet_down_blocks.{i}" for i in range(len(g.residual_channels))}
    return {**table, "middle_block_out.0": "controlnet_mid_block"}


def vae_table(levels: int, layers: int) -> NameTable:
    """The KL autoencoder: ``levels`` levels of ``layers`` residual blocks in the encoder, one more in the decoder."""
    table = {name: name for name in ("quant_conv", "post_quant_conv")}
    for side, blocks in (("encoder", "down"), ("decoder", "up")):
        for old, new in (("conv_in", "conv_in"), ("norm_out", "conv_norm_out"), ("conv_out", "conv_out")):
            table[f"{side}.{old}"] = f"{side}.{new}"
        for i in (0, 1):
            table |= _prefixed(VAE_RESNET, f"{side}.mid.block_{i + 1}", f"{side}.mid_block.resnets.{i}")
        table |= _prefixed(VAE_ATTENTION, f"{side}.mid.attn_1", f"{side}.mid_block.attentions.0")
        for level in range(levels):
            place = f"{side}.{blocks}_blocks.{level if side == 'encoder' else levels - 1 - level}"
            for layer in range(layers + (side == "decoder")):
                table |= _prefixed(VAE_RESNET, f"{side}.{blocks}.{level}.block.{layer}", f"{place}.resnets.{layer}")
            table[f"{side}.{blocks}.{level}.{blocks}sample.conv"] = f"{place}.{blocks}samplers.0.conv"
    return table


def _block(original: str, place: str, layer: int, attention: bool) -> NameTable:
    table = _prefixed(RESNET, f"{original}.0", f"{place}.resnets.{layer}")
    return {**table, f"{original}.1": f"{place}.attentions.{layer}"} if attention else table


def _prefixed(names: Mapping[str, str], original: str, place: str) -> NameTable:
    return {f"{original}.{old}": f"{place}.{new}" for old, new in names.items()}


def rename(key: str, table: Mapping[str, str]) -> str | None:
    """``key`` with its longest known module prefix replaced, None where there is none."""
    parts = key.split(".")
    for end in range(len(parts), 0, -1):
        if (new := table.get(".".join(parts[:end]))) is not None:
            return ".".join([new, *parts[end:]])
    return None


@dataclass(frozen=True)
class Renamed:
    """The tensors of a file by their new names, and its keys that the table does not have."""

    tensors: dict[str, Tensor]
    unknown: tuple[str, ...]


def renamed(tensors: Mapping[str, Tensor], table: Mapping[str, str]) -> Renamed:
    """All ``tensors`` under their new names."""
    pairs = [(key, rename(key, table)) for key in tensors]
    known = {new: tensors[key] for key, new in pairs if new is not None}
    return Renamed(known, tuple(key for key, new in pairs if new is None))


def rule_of(key: str, rules: Iterable[str]) -> str | None:
    """The rule that ``key`` falls under: itself, or the modules that it begins with."""
    return next((rule for rule in rules if key == rule or key.startswith(f"{rule}.")), None)


def placed(
    tensors: Mapping[str, Tensor], prefix: str, table: Mapping[str, str], place: str, beside: Iterable[str], method: str
) -> dict[str, Tensor]:
    """A method's tensors, of a whole original file, under the names that this project has for them.

    ``prefix`` begins their keys, ``table`` has the names behind it, ``place`` begins the new names. Keys that begin
    like one of ``beside`` are left out. UnknownKeys, which names ``method``, where neither ``table`` nor ``beside``
    knows a key; a UserError as from `check_first_width`."""
    stem, first = (tensors.get(f"{prefix}{name}.weight") for name in FIRST_WIDTHS)
    if stem is not None and first is not None:
        check_first_width(len(stem), len(first))
    own = {key for key in tensors if key.startswith(prefix) and not rule_of(key, beside)}
    names = {key: rename(key.removeprefix(prefix), table) for key in own}
    if unknown := [key for key in tensors if names.get(key) is None and not rule_of(key, beside)]:
        raise UnknownKeys(unknown, method)
    return {f"{place}{name}": tensors[key] for key, name in names.items()}


def inverse(table: Mapping[str, str]) -> NameTable:
    """The table in the other direction."""
    return {new: old for old, new in table.items()}


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose key begins with ``prefix``, without it."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def has_prefix(keys: Iterable[str], prefix: str) -> bool:
    return any(key.startswith(prefix) for key in keys)


def text_dim_in(shapes: Mapping[str, Sequence[int]]) -> int | None:
    """Width of the text states that the cross-attentions of a U-Net or its copy read; None where there are none."""
    return next((shape[1] for key, shape in shapes.items() if key.endswith("attn2.to_k.weight")), None)


def vae_tensors(original: Mapping[str, Tensor], table: Mapping[str, str]) -> Renamed:
    """The autoencoder's weights; diffusers has linear maps where the original's attention has 1x1 convolutions."""
    result = renamed(original, table)
    for key, value in result.tensors.items():
        if ".attentions." in key and value.ndim == 4:
            result.tensors[key] = value.flatten(1)
    return result


def clip_tensors(original: Mapping[str, Tensor]) -> Renamed:
    """The text tower of SD1 and the first of SDXL, whose names only lack the module around them in transformers 5."""
    return Renamed({key: value for key, value in original.items() if not key.endswith("position_ids")}, ())


def projected_clip_tensors(original: Mapping[str, Tensor], layers: int) -> Renamed:
    """The second text tower of SDXL, a whole OpenCLIP tower, whose projection transformers has as a linear map."""
    found = open_clip_tensors(original, layers)
    tensors = {f"text_model.{key}": value for key, value in found.tensors.items()}
    if (projection := original.get("text_projection")) is not None:
        tensors["text_projection.weight"] = projection.T.contiguous()
    return Renamed(tensors, found.unknown)


def open_clip_tensors(original: Mapping[str, Tensor], layers: int) -> Renamed:
    """The first ``layers`` layers of SD2's OpenCLIP tower with its final norm, under transformers' names.

    SD2 reads the penultimate layer; the last layer, the projection and the logit scale play no part and are known."""
    top = {f"ln_final.{part}": f"final_layer_norm.{part}" for part in ("weight", "bias")}
    top["token_embedding.weight"] = "embeddings.token_embedding.weight"
    top["positional_embedding"] = "embeddings.position_embedding.weight"
    unused = {"text_projection", "logit_scale", "attn_mask"}
    tensors: dict[str, Tensor] = {}
    unknown = []
    for key, value in original.items():
        layer, _, name = key.removeprefix("transformer.resblocks.").partition(".")
        if key in top:
            tensors[top[key]] = value
        elif key in unused or (layer.isdigit() and int(layer) >= layers):
            continue
        elif layer.isdigit() and name.startswith("attn.in_proj_"):
            for part, chunk in zip("qkv", value.chunk(3), strict=True):
                tensors[f"encoder.layers.{layer}.self_attn.{part}_proj.{name.rpartition('_')[2]}"] = chunk
        elif layer.isdigit() and (new := rename(name, OPEN_CLIP_LAYER)):
            tensors[f"encoder.layers.{layer}.{new}"] = value
        else:
            unknown.append(key)
    return Renamed(tensors, tuple(unknown))
