"""Networks that score a picture for its caption as people would: PickScore, HPS v2 and ImageReward, from their authors'
files, in transformers' classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tf

from posegen.backbones.loading.ldm_keys import below, open_clip_tensors, projected_clip_tensors, rename, renamed
from posegen.backbones.loading.tokenizer import clip_tokenizer
from posegen.data.base import to_uint8
from posegen.io.weights import WeightsError, read_tensors
from posegen.metrics.clip import Clip
from posegen.metrics.feature_networks import CLIP_MEAN, CLIP_STD, verified
from posegen.metrics.network_weights import load_every_weight, read_pretrained

BICUBIC = InterpolationMode.BICUBIC


class PreferenceNetwork(ABC):
    """Pictures and their captions to scores, which can be compared for pictures of the same caption alone."""

    checkable = True  # the constructor loads nothing, see `posegen.config.checking.check.refused`
    configured: bool  # whether its weights are named

    @abstractmethod
    def scores(self, images: Tensor, captions: Sequence[str]) -> np.ndarray:
        """``[B]`` scores of ``images [B, 3, H, W]`` in [-1, 1], as the authors' program has them."""

    @abstractmethod
    def check(self) -> None:
        """Reads the weights, if they are named; a FileNotFoundError or ValueError where they are missing or wrong."""


class PickScore(PreferenceNetwork):
    """The cosine of a tuned CLIP-H times its temperature (Kirstain et al. 2023, arXiv:2305.01569).

    ``folder`` is the model in transformers' layout, with a tokenizer and ``preprocessor_config.json``."""

    def __init__(self, folder: str | None) -> None:
        self.clip, self.configured = Clip(folder, setting="protocol.pickscore"), folder is not None

    def check(self) -> None:
        self.clip.check()

    def scores(self, images: Tensor, captions: Sequence[str]) -> np.ndarray:
        return np.exp(float(self.clip.model.logit_scale)) * self.clip.cosines(images, captions)


class NetworkFromFile(PreferenceNetwork):
    """A network in one file under the names that its authors gave the weights."""

    key: str  # of the protocol, that names the file
    name: str  # of the file

    def __init__(self, path: str | None) -> None:
        self.path, self.configured = path, path is not None

    @cached_property
    def network(self) -> Any:
        """Frozen and in evaluation mode, with every weight from the file."""
        file = verified(str(self.path), None, self.key, self.name)
        try:
            tensors = self.renamed(read_tensors(file))
        except (WeightsError, KeyError) as error:
            lacks = f"{file} holds another network than {self.name}, without" if isinstance(error, KeyError) else ""
            raise ValueError(f"{self.key}={lacks} {error}".replace("= ", "=")) from error
        refusal = f"{self.key}={file} holds another network than {self.name}"
        return load_every_weight(self.empty(), {k: t.float() for k, t in tensors.items()}, refusal, "fetch it again")

    @abstractmethod
    def empty(self) -> nn.Module:
        """The network without its weights."""

    @abstractmethod
    def renamed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The file's tensors under the network's names; those that it does not have keep theirs."""

    @abstractmethod
    def prepared(self, picture: Image.Image) -> Tensor:
        """``[3, side, side]`` of a picture, whose colours are in [0, 1]."""

    def check(self) -> None:
        if self.configured:
            _ = self.network, self.tokenizer

    @cached_property
    def tokenizer(self) -> Any:
        return clip_tokenizer()

    def inputs(self, images: Tensor, captions: Sequence[str], **options: Any) -> dict[str, Tensor]:
        """Pixels and tokens where the images are; the network is moved there."""
        self.network.to(images.device)
        pictures = [tf.normalize(self.prepared(Image.fromarray(p)), CLIP_MEAN, CLIP_STD) for p in to_uint8(images)]
        tokens = self.tokenizer(list(captions), truncation=True, return_tensors="pt", **options)
        read = {name: tokens[name] for name in ("input_ids", "attention_mask")}
        return {
            name: value.to(images.device) for name, value in {"pixel_values": torch.stack(pictures), **read}.items()
        }


class Hps(NetworkFromFile):
    """The cosine of a tuned CLIP-H (HPS v2, Wu et al. 2023, arXiv:2306.09341). Versions cannot be compared.

    The longer side of a picture is the network's, and black fills up the square."""

    key, name = "protocol.hps", "HPS_v2.1_compressed.pt"
    #: Of OpenCLIP's ViT-H-14: both towers, and what they share.
    text = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    vision = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}
    patch, side, shared = 14, 224, 1024

    def empty(self) -> nn.Module:
        from transformers import CLIPConfig, CLIPModel

        marks = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407, "vocab_size": 49408}
        text = {**self.text, **marks, "hidden_act": "gelu"}
        vision = {**self.vision, "hidden_act": "gelu", "patch_size": self.patch, "image_size": self.side}
        return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=self.shared))

    def renamed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        vision = below(tensors, "visual.")
        text = {name: value for name, value in tensors.items() if not name.startswith("visual.")}
        words = projected_clip_tensors(text, self.text["num_hidden_layers"])
        blocks = open_clip_tensors(vision, self.vision["num_hidden_layers"])
        rest = renamed({name: vision[name] for name in blocks.unknown if name != "proj"}, OPEN_CLIP_PICTURES)
        weights = words.tensors | {f"vision_model.{k}": t for k, t in (blocks.tensors | rest.tensors).items()}
        weights |= {"visual_projection.weight": vision["proj"].T, "logit_scale": tensors["logit_scale"]}
        return weights | {name: text[name] for name in words.unknown} | {k: vision[k] for k in rest.unknown}

    def scores(self, images: Tensor, captions: Sequence[str]) -> np.ndarray:
        found = self.network(**self.inputs(images, captions, padding=True, max_length=77))
        return (found.image_embeds * found.text_embeds).sum(-1).cpu().numpy()

    def prepared(self, picture: Image.Image) -> Tensor:
        size = [round(self.side / max(picture.size) * length) for length in picture.size[::-1]]
        top, left = ((self.side - length) // 2 for length in size)
        edges = [left, top, self.side - size[1] - left, self.side - size[0] - top]
        return tf.pad(tf.resize(tf.to_tensor(picture), size, BICUBIC), edges)


class ImageReward(NetworkFromFile):
    """BLIP reads the caption with the picture, and five linear layers give the reward (Xu et al. 2023,
    arXiv:2304.05977), in deviations from its mean over the authors' pictures.

    ``bert`` is a folder with the tokenizer of bert-base-uncased."""

    key, name = "protocol.imagereward", "ImageReward.pt"
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    side, words = 224, {"vocab_size": 30524, "max_position_embeddings": 512, "bos_token_id": 30522}
    head = {0: 1024, 2: 128, 4: 64, 6: 16, 7: 1}  # number in the file -> width; dropout has the others
    mean, deviation, longest = 0.16717362830052426, 1.0333394966054072, 35  # of rewards; tokens of a caption

    def __init__(self, path: str | None, bert: str | None) -> None:
        super().__init__(path)
        self.bert = bert
        if self.configured and bert is None:
            fix = "set protocol.bert=FOLDER of bert-base-uncased, whose tokenizer it reads captions with"
            raise ValueError(f"protocol.imagereward={path} brings no tokenizer; {fix}")

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import BertTokenizer

        return read_pretrained(BertTokenizer, str(self.bert), "protocol.bert", "bert-base-uncased")

    def empty(self) -> nn.Module:
        from transformers import BlipTextConfig, BlipVisionConfig, BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        vision = BlipVisionConfig(**self.vision, image_size=self.side, layer_norm_eps=1e-6)
        text = BlipTextConfig(**self.text, **self.words, encoder_hidden_size=vision.hidden_size)
        widths = [text.hidden_size, *self.head.values()]
        head = {str(n): nn.Linear(*widths[i : i + 2]) for i, n in enumerate(self.head)}
        parts = {"vision": BlipVisionModel(vision), "text": BlipTextModel(text, add_pooling_layer=False)}
        return nn.ModuleDict({**parts, "head": nn.ModuleDict(head)})

    def renamed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        unused = "blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids"
        table = {**BLIP, **{f"blip.visual_encoder.blocks.{i}": f"vision.encoder.layers.{i}" for i in range(99)}}
        weights = {}
        for name, value in tensors.items():
            if not name.startswith(unused):
                new = rename(name, table) or name
                for old, ours in BLIP_LAYER.items() if name.startswith("blip.visual_encoder.blocks.") else ():
                    new = new.replace(old, ours)
                weights[new] = value
        return weights

    def scores(self, images: Tensor, captions: Sequence[str]) -> np.ndarray:
        inputs, parts = self.inputs(images, captions, padding="max_length", max_length=self.longest), self.network
        seen = parts["vision"](inputs.pop("pixel_values")).last_hidden_state
        read = parts["text"](**inputs, encoder_hidden_states=seen).last_hidden_state[:, 0]
        for layer in parts["head"].values():
            read = layer(read)
        return ((read[:, 0] - self.mean) / self.deviation).cpu().numpy()

    def prepared(self, picture: Image.Image) -> Tensor:
        return tf.to_tensor(tf.center_crop(tf.resize(picture, self.side, BICUBIC), self.side))  # type: ignore[arg-type]


#: Names in the authors' files -> in transformers' classes.
OPEN_CLIP_PICTURES = {
    "class_embedding": "embeddings.class_embedding",
    "conv1": "embeddings.patch_embedding",
    "ln_pre": "pre_layrnorm",
    "ln_post": "post_layernorm",
}
BLIP = {
    "blip.visual_encoder.cls_token": "vision.embeddings.class_embedding",
    "blip.visual_encoder.pos_embed": "vision.embeddings.position_embedding",
    "blip.visual_encoder.patch_embed.proj": "vision.embeddings.patch_embedding",
    "blip.visual_encoder.norm": "vision.post_layernorm",
    "blip.text_encoder": "text",
    "mlp.layers": "head",
}
BLIP_LAYER = {".attn.": ".self_attn.", ".proj.": ".projection.", ".norm": ".layer_norm"}
