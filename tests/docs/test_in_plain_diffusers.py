"""The page on diffusers runs from top to bottom on a Stable Diffusion with small random parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionPipeline
from diffusers import DDIMScheduler as DDIM
from PIL import Image
from safetensors.torch import load_file, save_file

from posegen.cli import main
from posegen.config.resolvers import asset
from posegen.pipeline import PoseGuidedPipeline
from tests.backbones.models import SD1, parts_of
from tests.docs.blocks import blocks

PAGE = "in-plain-diffusers.md"
SMALLER = {"512": "64", "num_inference_steps=30": "num_inference_steps=2"}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder in which the page was typed, and the names of its Python code."""
    folder = tmp_path_factory.mktemp("reader")
    parts = parts_of(SD1)
    scheduler = DDIM.from_config(parts.scheduler)
    StableDiffusionPipeline(
        parts.autoencoder, parts.text_encoders["text_encoder"], parts.tokenizers["text_encoder"], parts.network, scheduler, None, None, requires_safety_checker=False
    ).save_pretrained(folder / "weights/sd15")  # fmt: skip
    joints = np.random.default_rng(0).uniform(10, 54, (17, 2)).round(1)
    person = {"image_id": 1, "category_id": 1, "keypoints": [float(x) for joint in joints for x in (*joint, 2)]}
    (folder / "pose.json").write_text(json.dumps([person]))
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in blocks(PAGE):
            text = block.text
            for old, new in SMALLER.items():
                text = text.replace(old, new)
            if block.language == "python":
                exec(compile(text, PAGE, "exec"), names)
            for words in block.commands if block.language == "bash" else ():
                assert words[0] == "posegen" and main(words[1:]) == 0, words
                target = next(word.removeprefix("target=") for word in words if word.startswith("target="))
                if "source=null" in words:
                    as_if_trained(folder / target)
    return folder, names


def as_if_trained(method: Path) -> None:
    """Moves the weights of a fresh method, whose zero convolutions would hide the pose."""
    for file in method.glob("*/diffusion_pytorch_model.safetensors"):
        dice = torch.Generator().manual_seed(0)
        tensors = {k: v + 0.05 * torch.randn(v.shape, generator=dice) for k, v in sorted(load_file(file).items())}
        save_file(tensors, file)


def test_the_images_are_those_of_posegen(ran: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = ran
    assert {Image.open(folder / name).size for name in ("dancer.png", "adapted.png")} == {(64, 64)}
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    ours = PoseGuidedPipeline.from_pretrained(folder / "weights/controlnet", backbone=folder / "weights/sd15")
    ours.set_progress_bar_config(disable=True)
    words: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 7.5, "height": 64, "width": 64}
    made = ours("a dancer on a beach", str(folder / "pose.json"), latents=noise, **words).images[0]
    assert np.abs(np.asarray(made, int) - np.asarray(Image.open(folder / "dancer.png"), int)).max() <= 1


def test_the_way_back_keeps_every_weight(ran: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = ran
    first, back = (load_file(folder / f"weights/{name}/controlnet/diffusion_pytorch_model.safetensors")
                   for name in ("controlnet", "returned"))  # fmt: skip
    assert first.keys() == back.keys() and all(torch.equal(first[key], back[key]) for key in first)


def test_the_mannequin_worlds_autoencoder_fits_no_pipeline_of_stable_diffusion(
    ran: tuple[Path, dict[str, Any]],
) -> None:
    _, names = ran
    assert isinstance(names["controlnet"], ControlNetModel)
    autoencoder = json.loads((Path(asset("mannequin-v1/autoencoder")) / "config.json").read_text())
    assert autoencoder["_class_name"] == "AutoencoderDC"
    from diffusers import AutoencoderDC

    pipe = names["pipe"]
    other = AutoencoderDC.from_pretrained(asset("mannequin-v1/autoencoder"))
    with pytest.raises((AttributeError, TypeError, ValueError)):
        StableDiffusionControlNetPipeline(
            other, pipe.text_encoder, pipe.tokenizer, pipe.unet, names["controlnet"], pipe.scheduler, None, None
        )
