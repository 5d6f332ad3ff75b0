"""Preference networks of the real structure and small sizes, against OpenCLIP and against BLIP written out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from test_clip import folder as folder  # a CLIP in a folder
from test_clip import samples
from test_image_features import Watching, pictures, tensors
from torch.nn import functional as tf
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

from posegen.metrics.clip import Clip
from posegen.metrics.preference.networks import CLIP_MEAN, CLIP_STD, Hps, ImageReward, PickScore
from posegen.metrics.preference.win_rates import Preferences

CAPTIONS = ["a person dancing", "somebody in the street, standing"]


def tower(width: int, layers: int, heads: int) -> dict[str, int]:
    sizes = {"hidden_size": width, "intermediate_size": 4 * width}
    return {**sizes, "num_hidden_layers": layers, "num_attention_heads": heads}


class SmallHps(Hps):
    text, vision, patch, side, shared = tower(32, 2, 2), tower(48, 3, 3), 8, 32, 24


class SmallReward(ImageReward):
    text, vision, side = tower(32, 2, 2), tower(48, 3, 3), 32
    words, head = (
        {"vocab_size": 60, "max_position_embeddings": 40, "bos_token_id": 1, "sep_token_id": 3},
        {0: 16, 2: 8, 4: 8, 6: 4, 7: 1},
    )


def of_kind(kind: type, **sizes) -> object:
    return type("Sized", (kind,), sizes)


def test_pickscore_is_the_cosine_times_the_temperature(folder):
    given = tensors(pictures(2))
    network = PickScore(str(folder))
    network.check()
    clip, texts = Clip(str(folder)), ["a person", "dancing in the street"]
    observed = clip.observe(given, samples(*texts), Watching(), real=False)
    scale = load_file(folder / "model.safetensors")["logit_scale"].exp().item()
    with torch.no_grad():
        assert network.scores(given, texts) == pytest.approx(
            [scale * o["clean_clip"] / 100 for o in observed], rel=1e-5
        )
    with pytest.raises(FileNotFoundError, match="protocol.pickscore=/nowhere is no model folder"):
        PickScore("/nowhere").check()


def open_clip_model(text: dict, vision: dict, patch: int, side: int, shared: int):
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    sizes = {"layers": vision["num_hidden_layers"], "width": vision["hidden_size"]}
    head = vision["hidden_size"] // vision["num_attention_heads"]
    words = {"heads": text["num_attention_heads"], "layers": text["num_hidden_layers"], "width": text["hidden_size"]}
    seen = CLIPVisionCfg(**sizes, head_width=head, patch_size=patch, image_size=side)
    return CLIP(shared, seen, CLIPTextCfg(77, 49408, **words))


@pytest.mark.parametrize("size", [(40, 40), (40, 64)], ids=["square", "wide"])
def test_hps_is_what_open_clip_computes(tmp_path, size):
    """The authors' loop: the longer side is scaled, black fills up, and the embeddings' cosine is the score."""
    from open_clip import get_tokenizer

    torch.manual_seed(0)
    model = open_clip_model(SmallHps.text, SmallHps.vision, SmallHps.patch, SmallHps.side, SmallHps.shared).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "hps.pt")
    network = SmallHps(str(tmp_path / "hps.pt"))
    network.check()
    drawn = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    height, width = round(32 / max(size) * size[0]), 32
    pixels = torch.from_numpy(drawn).permute(0, 3, 1, 2) / 255
    pixels = tf.interpolate(pixels, (height, width), mode="bicubic", antialias=True)
    above = (32 - height) // 2
    pixels = tf.pad(pixels, (0, 0, above, 32 - height - above))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    with torch.no_grad():
        seen = model.encode_image((pixels - mean) / std, normalize=True)
        read = model.encode_text(get_tokenizer("ViT-H-14")(CAPTIONS), normalize=True)
        assert network.scores(tensors(drawn), CAPTIONS) == pytest.approx((seen * read).sum(-1).tolist(), abs=2e-5)


def test_hps_has_a_place_for_every_weight_of_the_published_size():
    with torch.device("meta"):
        theirs, network = open_clip_model(Hps.text, Hps.vision, Hps.patch, Hps.side, Hps.shared), Hps(None)
        ours = {name: tuple(value.shape) for name, value in network.empty().state_dict().items()}
        assert {name: tuple(value.shape) for name, value in network.renamed(theirs.state_dict()).items()} == ours


def blip_weights(kind: type[ImageReward]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the authors' file: BLIP's ViT, its BERT with cross-attention, two unused maps, the head."""
    vision, text, shapes = kind.vision["hidden_size"], kind.text["hidden_size"], {}

    def linear(name: str, out: int, into: int) -> None:
        shapes.update({f"{name}.weight": (out, into), f"{name}.bias": (out,)})

    def norm(name: str, width: int) -> None:
        shapes.update({f"{name}.weight": (width,), f"{name}.bias": (width,)})

    eyes, words = "blip.visual_encoder.", "blip.text_encoder."
    shapes |= {f"{eyes}cls_token": (1, 1, vision), f"{eyes}pos_embed": (1, (kind.side // 16) ** 2 + 1, vision)}
    shapes |= {f"{eyes}patch_embed.proj.weight": (vision, 3, 16, 16), f"{eyes}patch_embed.proj.bias": (vision,)}
    norm(f"{eyes}norm", vision)
    for i in range(kind.vision["num_hidden_layers"]):
        norm(f"{eyes}blocks.{i}.norm1", vision)
        norm(f"{eyes}blocks.{i}.norm2", vision)
        linear(f"{eyes}blocks.{i}.attn.qkv", 3 * vision, vision)
        linear(f"{eyes}blocks.{i}.attn.proj", vision, vision)
        linear(f"{eyes}blocks.{i}.mlp.fc1", 4 * vision, vision)
        linear(f"{eyes}blocks.{i}.mlp.fc2", vision, 4 * vision)
    known, longest = kind.words["vocab_size"], kind.words["max_position_embeddings"]
    shapes |= {f"{words}embeddings.position_ids": (1, longest)}
    shapes |= {f"{words}embeddings.word_embeddings.weight": (known, text)}
    shapes |= {f"{words}embeddings.position_embeddings.weight": (longest, text)}
    norm(f"{words}embeddings.LayerNorm", text)
    for i in range(kind.text["num_hidden_layers"]):
        layer = f"{words}encoder.layer.{i}"
        for attention, read in (("attention", text), ("crossattention", vision)):
            linear(f"{layer}.{attention}.self.query", text, text)
            linear(f"{layer}.{attention}.self.key", text, read)
            linear(f"{layer}.{attention}.self.value", text, read)
            linear(f"{layer}.{attention}.output.dense", text, text)
            norm(f"{layer}.{attention}.output.LayerNorm", text)
        linear(f"{layer}.intermediate.dense", 4 * text, text)
        linear(f"{layer}.output.dense", text, 4 * text)
        norm(f"{layer}.output.LayerNorm", text)
    linear("blip.vision_proj", 256, vision)
    linear("blip.text_proj", 256, text)
    into = text
    for number, out in kind.head.items():
        linear(f"mlp.layers.{number}", out, into)
        into = out
    return shapes


def blip_reward(w: dict[str, torch.Tensor], kind: type[ImageReward], pixels: torch.Tensor, ids, mask) -> torch.Tensor:
    """The authors' forward pass in double precision."""
    w = {name: value.double() if value.is_floating_point() else value for name, value in w.items()}

    def linear(x, name):
        return tf.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x, name, eps):
        return tf.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)

    def attend(q, k, v, heads, bias=0.0):
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        weight = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias).softmax(-1)
        return (weight @ v).transpose(1, 2).flatten(2)

    eyes = "blip.visual_encoder."
    x = tf.conv2d(pixels.double(), w[f"{eyes}patch_embed.proj.weight"], w[f"{eyes}patch_embed.proj.bias"], 16)
    x = (
        torch.cat([w[f"{eyes}cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1)
        + w[f"{eyes}pos_embed"]
    )
    for i in range(kind.vision["num_hidden_layers"]):
        block = f"{eyes}blocks.{i}"
        q, k, v = linear(norm(x, f"{block}.norm1", 1e-6), f"{block}.attn.qkv").chunk(3, -1)
        x = x + linear(attend(q, k, v, kind.vision["num_attention_heads"]), f"{block}.attn.proj")
        x = x + linear(tf.gelu(linear(norm(x, f"{block}.norm2", 1e-6), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
    seen = norm(x, f"{eyes}norm", 1e-6)
    words = "blip.text_encoder."
    x = w[f"{words}embeddings.word_embeddings.weight"][ids]
    x = x + w[f"{words}embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = norm(x, f"{words}embeddings.LayerNorm", 1e-12)
    bias = torch.where(mask[:, None, None] > 0, 0.0, -1e9)
    for i in range(kind.text["num_hidden_layers"]):
        layer = f"{words}encoder.layer.{i}"
        for attention, read, hidden in (("attention", None, bias), ("crossattention", seen, 0.0)):
            start, read = f"{layer}.{attention}", x if read is None else read
            q, k, v = (
                linear(x, f"{start}.self.query"),
                linear(read, f"{start}.self.key"),
                linear(read, f"{start}.self.value"),
            )
            mixed = linear(attend(q, k, v, kind.text["num_attention_heads"], hidden), f"{start}.output.dense")
            x = norm(x + mixed, f"{start}.output.LayerNorm", 1e-12)
        wide = linear(tf.gelu(linear(x, f"{layer}.intermediate.dense")), f"{layer}.output.dense")
        x = norm(x + wide, f"{layer}.output.LayerNorm", 1e-12)
    x = x[:, 0]
    for number in kind.head:
        x = linear(x, f"mlp.layers.{number}")
    return (x[:, 0] - 0.16717362830052426) / 1.0333394966054072


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer in the files of bert-base-uncased."""
    place = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "person", "dancing", "in", "the", "street", ",", "##s"]
    (place / "vocab.txt").write_text("\n".join(words))
    (place / "config.json").write_text('{"model_type": "bert"}')
    return place


@pytest.fixture(scope="module")
def reward_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    weights = {
        name: torch.randn(shape) * (0.7 if "mlp.layers" in name or "embeddings" in name else 0.2)
        for name, shape in blip_weights(SmallReward).items()
    }
    weights["blip.text_encoder.embeddings.position_ids"] = torch.arange(40)[None]
    file = tmp_path_factory.mktemp("reward") / "ImageReward.pt"
    torch.save(weights, file)
    return file


def test_imagereward_is_what_the_authors_compute(reward_file, bert):
    network = SmallReward(str(reward_file), str(bert))
    network.check()
    drawn = np.random.default_rng(0).integers(0, 256, (2, 40, 52, 3), np.uint8)
    steps = [Resize(32, InterpolationMode.BICUBIC), CenterCrop(32), ToTensor(), Normalize(CLIP_MEAN, CLIP_STD)]
    pixels = torch.stack([Compose(steps)(Image.fromarray(picture)) for picture in drawn])
    ids = torch.zeros(2, 35, dtype=torch.long)
    ids[0, :5], ids[1, :9] = torch.tensor([2, 5, 6, 7, 3]), torch.tensor([2, 1, 8, 9, 10, 11, 1, 3, 0])
    expected = blip_reward(torch.load(reward_file), SmallReward, pixels, ids, (ids > 0).long())
    with torch.no_grad():
        found = network.scores(tensors(drawn), CAPTIONS)
    assert found == pytest.approx(expected.tolist(), abs=1e-4) and abs(found[0] - found[1]) > 0.01


def test_imagereward_has_a_place_for_every_weight_of_the_published_size():
    with torch.device("meta"):
        file = {name: torch.empty(shape) for name, shape in blip_weights(ImageReward).items()}
        network = ImageReward(None, None)
        ours = {name: tuple(value.shape) for name, value in network.empty().state_dict().items()}
        assert {name: tuple(value.shape) for name, value in network.renamed(file).items()} == ours


def test_files_that_are_another_network(reward_file, bert, tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="protocol.hps=/nowhere: no such file; expected HPS_v2.1_compressed.pt"):
        Hps("/nowhere").check()
    with pytest.raises(
        ValueError,
        match=r"protocol.imagereward=.*ImageReward.pt holds another network than ImageReward.pt \(\d+ tensors differ",
    ):
        ImageReward(str(reward_file), str(bert)).check()
    with pytest.raises(
        ValueError,
        match=r"protocol.hps=.*model.safetensors holds another network than HPS_v2.1_compressed.pt, without '\w+",
    ):
        Hps(str(folder / "model.safetensors")).check()
    with pytest.raises(ValueError, match="brings no tokenizer; set protocol.bert=FOLDER of bert-base-uncased"):
        ImageReward(str(reward_file), None)
    with pytest.raises(FileNotFoundError, match="protocol.bert=/nowhere is no model folder"):
        SmallReward(str(reward_file), "/nowhere").check()
    (tmp_path / "x.pt").write_text("<html>")
    with pytest.raises(ValueError, match="protocol.hps=.*x.pt: it is a web page"):
        Hps(str(tmp_path / "x.pt")).check()
    save_file(
        {name: t for name, t in torch.load(reward_file).items() if "norm1" not in name}, tmp_path / "y.safetensors"
    )
    with pytest.raises(ValueError, match=r"vision.encoder.layers.0.layer_norm1.bias is missing"):
        SmallReward(str(tmp_path / "y.safetensors"), str(bert)).check()


def test_the_observer_looks_at_generated_pictures_with_the_networks_that_have_weights(folder):
    given = tensors(pictures(2))
    observer = Preferences(
        {"PickScore": PickScore(str(folder)), "HPSv2.1": Hps(None), "ImageReward": ImageReward(None, None)}
    )
    observer.check()
    notes = observer.observe(given, samples("a person", "street"), Watching(), real=False)
    assert [set(note) for note in notes] == [{"PickScore_score"}] * 2
    assert observer.observe(given, samples("a", "b"), Watching(), real=True) == [{}, {}]
