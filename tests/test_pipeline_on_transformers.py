"""The pipeline on Stable Diffusion 3 beside diffusers' own: same arguments, same weights, same images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.callbacks import SD3CFGCutoffCallback
from PIL import Image
from torch import Tensor

from posegen.adapters.controlnet import ControlNet
from posegen.backbones.stable_diffusion_3 import StableDiffusion3
from posegen.errors import UserError
from posegen.pipeline import PoseGuidedPipeline
from posegen.poses.drawing import DRAWING_STYLES
from posegen.runner.method_folder import save_method
from tests.backbones.sd3_models import fresh_parts, sd3_parts

STATES = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Pair:
    """A ControlNet on a tiny Stable Diffusion 3 in posegen's pipeline and in diffusers' ControlNet pipeline, and the prompt
    alone in its text-to-image pipeline."""

    def __init__(self, folder: Path, backbone: StableDiffusion3 | None = None) -> None:
        torch.manual_seed(0)
        backbone = backbone or StableDiffusion3.from_parts(fresh_parts())
        method = ControlNet()
        method.attach(backbone)
        with torch.no_grad():
            for p in method.parameters():
                p.add_(0.1 * torch.randn(p.shape, generator=seeded(p.numel())))
        save_method(folder, method, backbone)
        self.ours = PoseGuidedPipeline(method)
        parts = {name: part for name, part in self.ours.components.items() if name != "adapter"}
        controlnet = diffusers.SD3ControlNetModel.from_pretrained(folder / "controlnet")
        self.theirs = diffusers.StableDiffusion3ControlNetPipeline(controlnet=controlnet, **parts)
        self.text_to_image = diffusers.StableDiffusion3Pipeline(**parts)
        for pipe in (self.ours, self.theirs, self.text_to_image):
            pipe.set_progress_bar_config(disable=True)
        self.keypoints = np.random.default_rng(0).uniform(12, 52, (1, 17, 3))
        self.keypoints[..., 2] = 2
        self.pose = Image.fromarray(DRAWING_STYLES["openpose"](self.keypoints, (64, 64)))

    def made(self, pipe: Any, prompt: Any = "a person dancing", **settings: Any) -> Tensor:
        names = {self.text_to_image: {}, self.theirs: {"control_image": self.pose}, self.ours: {"image": self.pose}}
        usual = {"num_inference_steps": 3, "guidance_scale": 4.0, "height": 64, "width": 64, "output_type": "pt"}
        noise = torch.randn(1, 16, 8, 8, generator=seeded())
        return pipe(prompt, **{**usual, "latents": noise, **names[pipe], **settings}).images

    def same(self, *, without_pose: bool = False, **settings: Any) -> None:
        """Both make the same image, and another one than without the settings."""
        weaker = {"controlnet_conditioning_scale": 0.0} if without_pose else {}
        ours = self.made(self.ours, **settings, **weaker)
        expected = self.made(self.text_to_image if without_pose else self.theirs, **settings)
        assert (ours - expected).abs().max() < 1e-4
        assert (ours - self.made(self.ours, **weaker)).abs().max() > 1e-3


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path / "method")


@pytest.mark.parametrize(
    "settings",
    [
        {"controlnet_conditioning_scale": 0.3},
        {"control_guidance_start": 0.4, "control_guidance_end": 0.7},
        {"negative_prompt": "on the beach"},
        {"guidance_scale": 0.5},
        {"sigmas": [1.0, 0.6, 0.2], "num_inference_steps": None},
        {"clip_skip": 1},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_an_argument_means_the_same(pair: Pair, settings: dict[str, Any]) -> None:
    pair.same(**settings)


def test_the_drawing_of_keypoints_is_that_of_the_picture(pair: Pair) -> None:
    expected = pair.made(pair.theirs)
    assert (pair.made(pair.ours, image=pair.keypoints) - expected).abs().max() < 1e-4
    assert (pair.made(pair.ours, image=None) - expected).abs().max() > 1e-3, "the pose matters"


def test_embeddings_instead_of_prompts(pair: Pair) -> None:
    encoded = pair.theirs.encode_prompt("a person dancing", None, None)
    states, null, pooled, null_pooled = encoded
    given = dict(zip(STATES, (states, null, pooled, null_pooled), strict=True))
    assert (pair.made(pair.ours) - pair.made(pair.ours, None, **given)).abs().max() < 1e-5
    pair.same(prompt=None, **{**given, "pooled_prompt_embeds": 2 * pooled, "prompt_embeds": 0.5 * states})
    with pytest.raises(UserError, match=r"pooled_prompt_embeds is None; expected the shape \[1, 40\]"):
        pair.made(pair.ours, None, prompt_embeds=states)


def test_official_callbacks(pair: Pair) -> None:
    pair.same(without_pose=True, callback_on_step_end=SD3CFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=0))


def test_a_callback_may_change_the_latents_and_the_text(pair: Pair) -> None:
    def changed(_pipe: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {name: value * -5 for name, value in tensors.items()} if step == 1 else tensors

    pair.same(callback_on_step_end=changed)
    # Diffusers' ControlNet pipeline leaves the ControlNet's text as it was; without a pose there is no difference.
    names = ["prompt_embeds", "pooled_prompt_embeds"]
    pair.same(without_pose=True, callback_on_step_end=changed, callback_on_step_end_tensor_inputs=names)


def test_offloaded_parts_make_the_same_image(pair: Pair) -> None:
    """On the only device here."""
    before = pair.made(pair.ours)
    pair.ours.enable_model_cpu_offload(device="cpu")
    names = ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
    assert all(hasattr(getattr(pair.ours, name), "_hf_hook") for name in names)
    for _ in range(2):
        assert torch.equal(pair.made(pair.ours), before)


def test_attention_processors_get_their_arguments(pair: Pair) -> None:
    seen: list[Any] = []

    class Recording(diffusers.models.attention_processor.JointAttnProcessor2_0):
        def __call__(self, *args: Any, mine: Any = None, **kwargs: Any) -> Any:
            seen.append(mine)
            return super().__call__(*args, **kwargs)

    pair.ours.transformer.set_attn_processor(Recording())
    pair.made(pair.ours, cross_attention_kwargs={"mine": 5})
    assert seen and set(seen) == {5}


def test_saved_and_read_again(tmp_path: Path) -> None:
    sd3_parts().save(tmp_path / "sd3")
    pair = Pair(tmp_path / "method", StableDiffusion3(tmp_path / "sd3", t5_length=20, id="mine"))
    expected = pair.made(pair.ours)
    pair.ours.save_pretrained(tmp_path / "saved")
    again = PoseGuidedPipeline.from_pretrained(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    pair.ours = again
    assert again.backbone.max_length == 20 and torch.equal(pair.made(again), expected)
    assert set(again.components) == {"adapter", "scheduler", *pair.theirs.components} - {
        "controlnet", "image_encoder", "feature_extractor",
    }  # fmt: skip


def test_misfits_are_one_sentence(pair: Pair) -> None:
    pair.ours.scheduler = diffusers.DDIMScheduler()
    with pytest.raises(UserError, match="DDIMScheduler for epsilon does not fit the backbone, which predicts velocity"):
        pair.made(pair.ours)
    with pytest.raises(UserError, match="load_lora_weights reads LoRA of Stable Diffusion 1 and 2"):
        pair.ours.load_lora_weights("nothing")


def test_prompts_that_are_too_long_for_chunks_are_refused_with_a_way_out(pair: Pair) -> None:
    long = "a person on the beach " * 60
    pair.ours.backbone.t5_length = 100
    with pytest.warns(UserWarning, match="longer than the 100 tokens"):
        pair.made(pair.ours, long)
    with pytest.raises(UserError, match="reads no prompt in chunks, and .*; raise backbone.t5_length or set long_pro"):
        pair.made(pair.ours, long, long_prompts="chunk")
    pair.ours.backbone.t5_length = 400
    assert pair.made(pair.ours, long, long_prompts="chunk").isfinite().all()
