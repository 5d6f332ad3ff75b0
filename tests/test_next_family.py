"""A family of backbones that is not posegen's is one class and one yaml: a transformer with cross-attention."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderDC, PixArtTransformer2DModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from posegen.backbones.loading.model_parts import ModelParts
from posegen.backbones.mannequin import COSINE_SCHEDULER
from posegen.cli import main
from posegen.runner.received.state_files import read_status

CLASS = '''
    import torch
    from diffusers import PixArtTransformer2DModel
    from transformers import T5EncoderModel

    from posegen.backbones.base import Geometry, widened
    from posegen.backbones.latent_diffusion import LatentDiffusion
    from posegen.backbones.loading.layout import Layout
    from posegen.backbones.text import Text


    class Sketch(LatentDiffusion):
        """A transformer that reads T5 by cross-attention."""

        network_name = "transformer"
        layout = Layout("a Sketch", PixArtTransformer2DModel, {"text_encoder": T5EncoderModel}, "transformer")
        places = frozenset({"latents"})
        max_length = 12

        def __init__(self, path, autoencoder=None, recipe="published", initialise="pretrained", id=None):
            super().__init__()
            self._load(path, autoencoder, recipe, initialise, id)

        def read_geometry(self):
            config = self.transformer.config
            heads, width = config.num_attention_heads, config.num_attention_heads * config.attention_head_dim
            sizes = (width,), (True,), config.num_layers, (heads,), config.caption_channels
            return Geometry(*self.latent_form, *sizes, patch=config.patch_size)

        def encode_text(self, prompts, chunks=1, clip_skip=0):
            form = {"padding": "max_length", "max_length": self.max_length, "truncation": True, "return_tensors": "pt"}
            read = self.tokenizer(list(prompts), **form).to(self.text_encoder.device)
            states = self.text_encoder(read.input_ids, read.attention_mask).last_hidden_state
            return Text(states, mask=read.attention_mask.bool())

        def widen(self, channels):
            self.transformer.pos_embed.proj = widened(self.transformer.pos_embed.proj, channels)

        def predict(self, latents, timesteps, text, injection):
            if injection.latents is not None:
                latents = torch.cat([latents, injection.latents], dim=1)
            attended = {"encoder_hidden_states": text.tokens, "encoder_attention_mask": text.mask}
            more = {"resolution": None, "aspect_ratio": None}
            return self.transformer(latents, timestep=timesteps, added_cond_kwargs=more, **attended, return_dict=False)[0]
    '''
YAML = """
    _target_: sketches.Sketch
    path: ???
    autoencoder: null
    recipe: mannequin
    id: sketch
    """


def write_sketch(folder: Path, latent_channels: int) -> None:
    """Random weights of the family, as its users would have them on disk."""
    torch.manual_seed(0)
    words = ("<pad>", "</s>", "<unk>", "a", "photo", "of", "person")
    spelling = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    spelling.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=spelling, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    t5 = T5EncoderModel(T5Config(vocab_size=len(words), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=latent_channels, out_channels=latent_channels,
        num_layers=2, cross_attention_dim=16, caption_channels=16, sample_size=16, use_additional_conditions=False,
    )  # fmt: skip
    ModelParts.of_one_tower(transformer, None, t5, tokenizer, dict(COSINE_SCHEDULER)).save(folder)


def test_the_next_family_is_one_class_and_one_yaml(
    world: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in {"package/sketches.py": CLASS, "conf/backbone/sketch.yaml": YAML}.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(textwrap.dedent(text).lstrip())
    monkeypatch.syspath_prepend(tmp_path / "package")
    monkeypatch.setenv("POSEGEN_SEARCHPATH", str(tmp_path / "conf"))
    autoencoder = Path(next(word.partition("=")[2] for word in world if word.startswith("backbone.autoencoder")))
    write_sketch(tmp_path / "weights", AutoencoderDC.from_pretrained(autoencoder).config.latent_channels)
    kept = [word for word in world if not word.startswith("backbone.")]
    place = ["backbone=sketch", f"backbone.path={tmp_path / 'weights'}", f"backbone.autoencoder={autoencoder}"]
    words = [*kept, *place, f"paths.output={tmp_path / 'out'}", "budget.steps=2", "validation.every=0"]
    assert main(["train", *words, "adapter=humansd"]) == 0
    assert main(["sample", *words, "adapter=humansd"]) == 0
    assert main(["check", "train", *words, "adapter=controlnet"]) == 1, "it says that it copies nothing"
    (cell,) = (path.parent for path in (tmp_path / "out" / "train").rglob("status.json"))
    assert read_status(cell)["identity"]["backbone"]["_target_"] == "sketches.Sketch"
    assert list((cell / "method" / "backbone" / "transformer").glob("*.safetensors"))
    assert len(list((tmp_path / "out" / "sample").rglob("*.png"))) >= 6
