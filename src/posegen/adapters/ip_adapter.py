"""IP-Adapter: a person from a picture, as tokens that the cross-attentions read beside the text (Ye et al. 2023)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from diffusers.models.embeddings import ImageProjection, IPAdapterPlusImageProjection
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from posegen.adapters.base import Adapter, Paper, State
from posegen.backbones.base import Backbone, Context, Geometry, Injection
from posegen.data.base import PoseBatch
from posegen.errors import UserError
from posegen.io.hub import local_place
from posegen.io.weights import UnknownKeys, WeightsError
from posegen.ranges import NotNegative, Width, ZeroToOne

RELEASED = "hub:h94/IP-Adapter/models/image_encoder"  # OpenCLIP ViT-H/14, beside the official weights
STABLE_DIFFUSION = 320  # width of its finest level: narrower backbones are of worlds that CLIP has not seen
TOKENS = {"base": 4, "plus": 16}
Variant = Literal["base", "plus"]
Picture = Literal["source", "image", "image_in_training"]
#: Beginnings of the official names of the image projections' weights -> diffusers', several where it divides them.
BASE_NAMES: dict[str, tuple[str, ...]] = {"proj.": ("image_embeds.",)}
LAYER_NAMES: dict[str, tuple[str, ...]] = {
    "0.norm1.": ("ln0.",), "0.norm2.": ("ln1.",), "0.to_q.": ("attn.to_q.",), "0.to_out.": ("attn.to_out.0.",),
    "0.to_kv.": ("attn.to_k.", "attn.to_v."), "1.0.": ("ff.0.",), "1.1.": ("ff.1.net.0.proj.",),
    "1.3.": ("ff.1.net.2.",),
}  # fmt: skip


class IPAdapter(Adapter):
    """Tokens of a picture, with keys and values of their own in every cross-attention of the frozen backbone.

    Section 3.2: an image encoder sees the picture, a small network turns what it sees into tokens, and each
    cross-attention adds the attention to them, times ``scale``, to that to the text (equation 5). Their maps to keys
    and values start as copies of the text's, so training starts with an influence. Without a picture there are the
    tokens of an image embedding of zeros (``base``), or of a picture of the mean colour (``plus``).

    The method reads no pose: alone it draws the person in any pose, and `Composite` joins it with a method that does.

    Args:
        variant: ``base`` projects the embedding of the picture, ``plus`` has a resampler read all image patches.
        tokens: number of tokens; null: as published, 4 and 16.
        scale: strength of the picture, 1 in training; 0 is the backbone alone.
        vision: folder with a ``CLIPVisionModelWithProjection`` of transformers, or ``hub:owner/name/folder``; it stays
            frozen and is not saved with the method. null: a small one of the same kind that starts from random weights
            and trains along, for small worlds that CLIP has not seen, such as the mannequins.
        picture: the ``source``, another picture of the person; or the ``image`` itself, the published way, which needs
            no pairs; or ``image_in_training``, where sampling reads the source. Who brings a source is never asked for
            the image.
        crop: cut the middle square out of pictures, as published; false: squeeze them into a square.
        drop_image, drop_text, drop_both: shares of images that lose these conditions in training.
    """

    needs = frozenset({"source"})
    places = frozenset({"context"})
    starts_neutral = False
    paper = Paper(
        "IP-Adapter: Text Compatible Image Prompt Adapter for Text-to-Image Diffusion Models",
        "arXiv:2308.06721",
        "tencent-ailab/IP-Adapter@62e4af9d0c1a",
        "Apache-2.0",
    )

    beside = {"unet": "the frozen U-Net of the official training program"}

    def __init__(
        self,
        variant: Variant = "base",
        tokens: Width | None = None,
        scale: NotNegative = 1.0,
        vision: str | None = None,
        picture: Picture = "source",
        crop: bool = True,
        drop_image: ZeroToOne = 0.05,
        drop_text: ZeroToOne = 0.05,
        drop_both: ZeroToOne = 0.05,
    ) -> None:
        super().__init__()
        for name, value, kind in (("variant", variant, Variant), ("picture", picture, Picture)):
            if value not in get_args(kind):
                raise ValueError(f"adapter.{name} is {value!r}; expected one of {', '.join(get_args(kind))}")
        if (dropped := drop_image + drop_text + drop_both) > 1:
            expected = "expected shares of the images whose sum is at most 1"
            raise ValueError(f"adapter.drop_image, drop_text and drop_both sum to {dropped:g}; {expected}")
        self.variant, self.tokens, self.scale, self.vision, self.picture = variant, tokens, scale, vision, picture
        self.crop, self.drop_image, self.drop_text, self.drop_both = crop, drop_image, drop_text, drop_both

    @property
    def reads(self) -> frozenset[str]:
        fields = {"source": {"source"}, "image": {"images"}, "image_in_training": {"images", "source"}}
        return frozenset(fields[self.picture])

    @property
    def remark(self) -> str:
        return "reads the image that it shall draw, for lack of another picture" if self.picture == "image" else ""

    @property
    def encoder(self) -> Any:
        """The image encoder; a frozen one is no sub-module, because it is not the method's."""
        return self.__dict__.get("_frozen_encoder") or self.small_encoder

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        encoder, width = self.image_encoder(backbone.geometry), backbone.geometry.text_dim
        if self.vision is not None:
            self.__dict__["_frozen_encoder"] = encoder.requires_grad_(False).eval()
        else:
            self.small_encoder = encoder
            for part in unread(encoder) if self.variant == "plus" else ():
                part.requires_grad_(False)
        self.image_proj = self.projection(encoder.config, width)
        layers = backbone.cross_attentions()
        pairs = ({"to_k_ip": copied(layer.to_k), "to_v_ip": copied(layer.to_v)} for layer in layers.values())
        self.names, self.ip_adapter = list(layers), nn.ModuleList(map(nn.ModuleDict, pairs))

    def image_encoder(self, geometry: Geometry) -> CLIPVisionModelWithProjection:
        if self.vision is not None:
            return released_encoder(self.vision)
        if geometry.channels[0] >= STABLE_DIFFUSION:
            fix = f"name the folder of a CLIPVisionModelWithProjection, for instance adapter.vision={RELEASED}"
            raise UserError(f"adapter.vision is not set, and a small encoder is too weak for this backbone; {fix}")
        width = 4 * geometry.channels[0]
        sizes = {"hidden_size": width, "intermediate_size": 4 * width, "projection_dim": width, "hidden_act": "gelu"}
        form = {"num_hidden_layers": 4, "num_attention_heads": max(1, width // 32), "image_size": 64, "patch_size": 8}
        return CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes, **form))

    def projection(self, encoder: CLIPVisionConfig, width: int) -> nn.Module:
        """From what the encoder sees to tokens as wide as the text's."""
        tokens = TOKENS[self.variant] if self.tokens is None else self.tokens
        if self.variant == "base":
            return ImageProjection(encoder.projection_dim, width, tokens)
        inner = min(width, 1280)  # that of SDXL's
        form = {"depth": 4, "dim_head": 64, "heads": max(1, inner // 64), "num_queries": tokens}
        return IPAdapterPlusImageProjection(encoder.hidden_size, width, inner, **form)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> IPAdapter:
        """As for every module; the frozen encoder goes where the method goes."""
        if (frozen := self.__dict__.get("_frozen_encoder")) is not None:
            frozen._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def encode(self, batch: PoseBatch) -> State:
        pictures = batch.sources
        if pictures is None or (self.training and self.picture != "source"):
            if batch.images is None:
                fix = "use data with pairs, for instance data=mannequin_pairs, or adapter.picture=image"
                raise ValueError(
                    f"adapter=ip_adapter reads a picture of the person, and these samples have none; {fix}"
                )
            pictures = batch.images.unsqueeze(1)
        pixels = clip_pixels(pictures.flatten(0, 1), self.encoder.config.image_size, self.crop)
        tokens = self.image_proj(self.seen(pixels)).unflatten(0, pictures.shape[:2]).flatten(1, 2)
        nothing = self.image_proj(self.unseen()).repeat(1, pictures.shape[1], 1).expand_as(tokens)
        chance = batch.rand("dropped conditions").to(tokens.device)
        return self.text_state(batch).having(tokens=tokens, no_picture=nothing, chance=chance)

    def seen(self, pixels: Tensor) -> Tensor:
        """What the projection reads of prepared pictures: ``[B, P]`` embeddings, or ``[B, N, C]`` of the patches."""
        pixels = pixels.to(self.dtype)
        if self.variant == "base":
            return self.encoder(pixels).image_embeds
        return self.encoder(pixels, output_hidden_states=True).hidden_states[-2]

    def unseen(self) -> Tensor:
        """The same of no picture, one row."""
        config, like = self.encoder.config, {"device": self.device, "dtype": self.dtype}
        if self.variant == "base":
            return torch.zeros(1, config.projection_dim, **like)
        return self.seen(torch.zeros(1, 3, config.image_size, config.image_size, **like))

    def inject(self, state: State, latents: Tensor, timesteps: Tensor) -> Injection:
        if not self.scale:
            return Injection()
        pairs = ((layer["to_k_ip"](state["tokens"]), layer["to_v_ip"](state["tokens"])) for layer in self.ip_adapter)
        return Injection(context=(Context(dict(zip(self.names, pairs, strict=True)), self.scale),))

    def branches(self, state: State, guidance: float) -> list[tuple[float, State]]:
        """Guidance on text and picture together."""
        weighted = super().branches(state, guidance)
        return [(w, s if i == 0 else s.having(tokens=s["no_picture"])) for i, (w, s) in enumerate(weighted)]

    def drop(self, state: State, keep: Tensor) -> State:
        """Removes the text where ``keep`` is false, and the picture, the text or both by each image's chance."""
        chance, end = state["chance"], self.drop_image + self.drop_text
        texts = (chance < self.drop_image) | (chance >= end + self.drop_both)
        pictures = (chance >= self.drop_image) & (chance < end) | (chance >= end + self.drop_both)
        tokens = torch.where(pictures.view(-1, 1, 1), state["tokens"], state["no_picture"])
        return state.keep_text(keep & texts.to(keep.device)).having(tokens=tokens)

    def convert(self, official: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The published files, or the whole state that the official training program saves."""
        own, placed, unknown = self.state_dict(), {}, []
        for key, value in official.items():
            names = self.own_names(key)
            if own.keys() >= set(names) and names:
                parts = value.chunk(len(names))
                placed |= {f"adapter.{name}": part for name, part in zip(names, parts, strict=True)}
            elif key.partition(".")[0] not in self.beside:
                unknown.append(key)
        if unknown:
            raise UnknownKeys(unknown, type(self).__name__)
        small = {} if self.vision else {f"adapter.{k}": v for k, v in own.items() if k.startswith("small_encoder.")}
        return small | placed

    def own_names(self, official: str) -> list[str]:
        """The names of a weight of an official file, which may be divided into several; none where it is none."""
        name = official.replace("image_proj_model.", "image_proj.").replace("adapter_modules.", "ip_adapter.")
        part, _, rest = name.partition(".")
        if part == "image_proj":
            return [f"{part}.{each}" for each in projection_names(rest)]
        number, _, ending = rest.partition(".")
        if part == "ip_adapter" and number.isdecimal() and int(number) % 2:  # the even ones are self-attentions
            return [f"{part}.{int(number) // 2}.{ending}"]
        return []


def projection_names(official: str) -> list[str]:
    """The names of an image projection's weight in diffusers' class, of which queries, keys and values are apart."""
    layer = re.match(r"layers\.\d+\.", official)
    before, names = (layer[0], LAYER_NAMES) if layer else ("", BASE_NAMES)
    rest = official.removeprefix(before)
    for theirs, ours in names.items():
        if rest.startswith(theirs):
            return [f"{before}{each}{rest.removeprefix(theirs)}" for each in ours]
    return [official]


def projection_weights(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All weights of an image projection under diffusers' names."""
    renamed = ((projection_names(key), value) for key, value in official.items())
    return {name: part for names, value in renamed for name, part in zip(names, value.chunk(len(names)), strict=True)}


def unread(encoder: Any) -> tuple[nn.Module, ...]:
    """What of the encoder comes behind its second to last states."""
    tower = encoder.vision_model
    return tower.encoder.layers[-1], tower.post_layernorm, encoder.visual_projection


def copied(layer: nn.Linear) -> nn.Linear:
    """A trainable linear layer with the weights of another, without a bias."""
    new = nn.Linear(layer.in_features, layer.out_features, bias=False)
    new.load_state_dict({"weight": layer.weight.detach().float()})
    return new


def released_encoder(place: str) -> CLIPVisionModelWithProjection:
    """The image encoder in a folder of transformers, or on the Hub."""
    wanted = ("config.json", "model.safetensors", "pytorch_model")
    folder = local_place(place, wanted=wanted, expected="a CLIPVisionModelWithProjection of transformers")
    if not (folder / "config.json").is_file():
        fix = f"name a folder with a CLIPVisionModelWithProjection, for instance {RELEASED}"
        raise WeightsError(f"adapter.vision={place} is no model folder (no config.json); {fix}")
    try:
        options = {"local_files_only": True, "output_loading_info": True, "dtype": torch.float32}
        encoder, report = CLIPVisionModelWithProjection.from_pretrained(folder, **options)
    except Exception as error:  # transformers raises many kinds, by damage and version
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        fix = "copy its folder again"
        raise WeightsError(
            f"adapter.vision={place} cannot be read as a CLIP image encoder ({reason}); {fix}"
        ) from error
    if missing := sorted(report["missing_keys"]):
        lacking = f"{len(missing)} weights of a CLIP image encoder ({', '.join(missing[:3])})"
        raise WeightsError(f"adapter.vision={place} lacks {lacking}; name the folder of an image encoder")
    return encoder


def clip_pixels(images: Tensor, size: int, crop: bool = True) -> Tensor:
    """``[B, 3, H, W]`` in [-1, 1] as CLIP sees them: ``[B, 3, size, size]``, normalised.

    The shorter side is resized to ``size``, bicubic in 8 bits, and the middle is cut out, as `CLIPImageProcessor` does;
    without ``crop`` both sides are resized."""
    sides = [int(size * side / min(images.shape[-2:])) if crop else size for side in images.shape[-2:]]
    levels = images.float() * 127.5 + 127.5
    for shape in ((levels.shape[-2], sides[1]), sides):  # one direction after the other, each rounded to 8 bits
        levels = F.interpolate(levels, shape, mode="bicubic", antialias=True).round().clamp(0, 255)
    top, left = ((side - size) // 2 for side in sides)
    mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (levels[..., top : top + size, left : left + size] / 255 - mean) / std
