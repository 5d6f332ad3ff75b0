"""CLIP scores with a tiny CLIP of the real structure, read from a folder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from test_image_features import Watching, pictures, tensors
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from posegen.backbones.loading.tokenizer import merges_of, tokenizer_of
from posegen.data.base import Sample
from posegen.metrics.base import Judged, Poses
from posegen.metrics.clip import Clip, ClipScoreMetric, clip_score
from posegen.metrics.protocol import Protocol

WORDS = ("a", "person", "dancing", "in", "the", "street")
LONG = "a person dancing in the street " * 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("clip")
    tokenizer = tokenizer_of(merges_of(WORDS), 77)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    marks = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.eos_token_id,
    }
    config = CLIPConfig(
        text_config={**sizes, **marks, "vocab_size": len(tokenizer), "max_position_embeddings": 77},
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
        projection_dim=12,
    )
    torch.manual_seed(0)
    model = CLIPModel(config)
    for name, weight in model.named_parameters():
        if weight.ndim > 1:  # embeddings of this size hardly differ otherwise
            torch.nn.init.normal_(weight, std=0.5 if "embedding" in name else 0.3)
    model.save_pretrained(place)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, tokenizer).save_pretrained(place)
    return place


def samples(*captions: str) -> list[Sample]:
    return [
        Sample(str(i), caption, np.zeros((0, 17, 3), np.float32), np.zeros(0), None, (40, 50))
        for i, caption in enumerate(captions)
    ]


def look(folder, captions, variants=("clean", "paper"), given=None):
    given = tensors(pictures(len(captions))) if given is None else given
    return Clip(str(folder), variants).observe(given, samples(*captions), Watching(), real=False)


def test_score_by_hand(folder):
    """Bytes scaled once, the normalisation of CLIP, the projections, and the cosine."""
    clip = Clip(str(folder))
    clip.check()
    picture = np.full((1, 32, 32, 3), 100, np.uint8)
    model, tokens = CLIPModel.from_pretrained(folder), clip.processor.tokenizer("a person", return_tensors="pt")
    mean, std = (
        torch.tensor(getattr(clip.processor.image_processor, name)).view(3, 1, 1)
        for name in ("image_mean", "image_std")
    )
    pixels = ((torch.full((1, 3, 32, 32), 100.0) / 255) - mean) / std
    with torch.no_grad():
        both = model(pixel_values=pixels, **tokens)
    expected = 100 * (both.image_embeds * both.text_embeds).sum().item()
    assert look(folder, ["a person"], given=tensors(picture))[0]["clean_clip"] == pytest.approx(expected, abs=1e-3)


def test_captions_are_cut_to_tokens_and_the_papers_to_characters(folder):
    once = "a person dancing in the street "
    assert len(LONG.split()) > 77 and len(once * 2) < 77 < len(once * 3)
    long, cut, short = (look(folder, [text, "a person"])[0] for text in (LONG, LONG[:77], once))
    assert long["paper_clip"] == pytest.approx(cut["clean_clip"], abs=1e-4) and long["clean_clip"] != pytest.approx(
        long["paper_clip"], abs=1e-4
    )
    assert short["clean_clip"] == pytest.approx(short["paper_clip"], abs=1e-5)


def test_a_score_does_not_depend_on_the_other_images(folder):
    together = look(folder, ["a person", LONG])
    alone = look(folder, [LONG], given=tensors(pictures(2))[1:])
    assert together[1] == pytest.approx(alone[0], abs=1e-3)


def test_real_pictures_and_no_folder_are_not_looked_at(folder):
    given = tensors(pictures())
    assert Clip(str(folder)).observe(given, samples("a", "b"), Watching(), real=True) == [{}, {}]
    assert Clip(None).observe(given, samples("a", "b"), Watching(), real=False) == [{}, {}]
    Clip(None).check()


def test_folders_that_are_no_clip(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="protocol.clip=/nowhere is no model folder"):
        Clip("/nowhere").check()
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"protocol.clip=.* cannot be read as a CLIP model"):
        Clip(str(tmp_path)).check()
    from safetensors.torch import load_file, save_file

    partial = {
        name: value for name, value in load_file(folder / "model.safetensors").items() if "text_projection" not in name
    }
    save_file(partial, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights of CLIP \(text_projection.weight\)"):
        Clip(str(tmp_path)).check()
    with pytest.raises(ValueError, match="no variant"):
        Clip(str(folder), ["raw"])


def test_columns():
    nobody = Poses(np.zeros((0, 17, 3)), np.zeros(0))
    rows = [
        Judged(str(i), np.zeros((0, 17, 3)), np.zeros(0), nobody, observed={"clean_clip": s, "paper_clip": -s})
        for i, s in enumerate((20.0, 30.0))
    ]
    protocol = Protocol([ClipScoreMetric("clean"), ClipScoreMetric("paper")], resamples=20)
    records = protocol.records(rows)
    row = protocol.table_row([records])
    assert (
        row["clean_CLIP"] == 25 and row["paper_CLIP"] == 0 and 20 <= row["clean_CLIP_lo"] < row["clean_CLIP_hi"] <= 30
    )
    assert protocol.values(records, np.array([[3.0, 1.0]]))["clean_CLIP"] == [22.5]
    assert protocol.absent(records) == {} and not protocol.lower_is_better
    empty = protocol.records([Judged("0", np.zeros((0, 17, 3)), np.zeros(0), nobody)])
    assert np.isnan(protocol.table_row([empty])["clean_CLIP"]) and set(protocol.absent(empty)) == {
        "clean_CLIP",
        "paper_CLIP",
    }


def test_score_is_cut_at_zero_after_the_mean():
    image, text = np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([[-1.0, 0.0], [0.0, 5.0]])
    score, pairs = clip_score(image, text)
    assert pairs.tolist() == [-100, 100] and score == 0 and clip_score(image[:1], text[:1])[0] == 0
