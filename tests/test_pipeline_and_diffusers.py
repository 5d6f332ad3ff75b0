"""The pipeline beside diffusers' own: same arguments, same weights, same images."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.callbacks import SDCFGCutoffCallback
from PIL import Image
from torch import Tensor

from posegen.adapters.controlnet import ControlNet
from posegen.backbones.process import VARIANCE_PRESERVING
from posegen.backbones.stable_diffusion import StableDiffusion
from posegen.errors import UserError
from posegen.pipeline import PoseGuidedPipeline
from posegen.poses.drawing import DRAWING_STYLES
from posegen.runner.method_folder import save_method
from tests.backbones.models import SD1, parts_of

#: Those that draw no noise while they sample, so that the same start ends in the same image.
DETERMINISTIC = (
    "DDIM", "DDIMParallel", "DEISMultistep", "DPMSolverMultistep", "DPMSolverSinglestep", "EulerDiscrete",
    "HeunDiscrete", "KDPM2Discrete", "LMSDiscrete", "PNDM", "TCD", "UniPCMultistep",
)  # fmt: skip
STOCHASTIC = ("DDPM", "DDPMParallel", "EulerAncestralDiscrete", "KDPM2AncestralDiscrete", "LCM", "SASolver")
MISFITS = ("EDMEuler", "IPNDM", "DDIMInverse", "CMStochasticIterative", "FlowMatchEulerDiscrete", "UnCLIP")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Pair:
    """A ControlNet on a tiny Stable Diffusion in posegen's pipeline, in diffusers' ControlNet pipeline, and the prompt alone
    in its text-to-image pipeline."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        backbone = StableDiffusion.from_parts(deepcopy(parts_of(SD1)))
        method = ControlNet()
        method.attach(backbone)
        with torch.no_grad():
            for p in method.parameters():
                p.add_(0.1 * torch.randn(p.shape, generator=seeded(p.numel())))
        save_method(folder, method, backbone)
        self.ours = PoseGuidedPipeline(method)
        shared = {name: getattr(self.ours, name) for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
        nothing = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        controlnet = diffusers.ControlNetModel.from_pretrained(folder / "controlnet")
        self.theirs = diffusers.StableDiffusionControlNetPipeline(controlnet=controlnet, **shared, **nothing)
        self.text_to_image = diffusers.StableDiffusionPipeline(**shared, **nothing)
        for pipe in (self.ours, self.theirs, self.text_to_image):
            pipe.set_progress_bar_config(disable=True)
        self.keypoints = np.random.default_rng(0).uniform(12, 52, (1, 17, 3))
        self.keypoints[..., 2] = 2
        self.pose = Image.fromarray(DRAWING_STYLES["openpose"](self.keypoints, (64, 64)))

    def made(self, pipe: Any, prompt: Any = "a dancer", **settings: Any) -> Tensor:
        posed = {} if pipe is self.text_to_image else {"image": self.pose}
        usual = {"num_inference_steps": 3, "guidance_scale": 4.0, "height": 64, "width": 64, "output_type": "pt"}
        noise = torch.randn(1, 4, 8, 8, generator=seeded())
        return pipe(prompt, **{**usual, "latents": noise, **posed, **settings}).images

    def same(self, *, without_pose: bool = False, **settings: Any) -> None:
        """Both make the same image, and another one than without the settings."""
        weaker = {"controlnet_conditioning_scale": 0.0} if without_pose else {}
        ours = self.made(self.ours, **settings, **weaker)
        expected = self.made(self.text_to_image if without_pose else self.theirs, **settings)
        assert (ours - expected).abs().max() < 1e-4
        assert (ours - self.made(self.ours, **weaker)).abs().max() > 1e-3


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


def test_the_same_weights_make_the_same_images_of_keypoints_and_of_their_drawing(pair: Pair) -> None:
    settings: dict[str, Any] = {"negative_prompt": "blurred", "num_images_per_prompt": 2}
    settings["latents"] = torch.randn(2, 4, 8, 8, generator=seeded())
    expected = pair.made(pair.theirs, **settings)
    for pose in (pair.keypoints, pair.pose):
        made = pair.made(pair.ours, image=pose, **settings)
        assert made.shape == (2, 3, 64, 64) and (made - expected).abs().max() < 1e-4
    unposed = pair.made(pair.ours, image=None, **settings)
    assert (unposed - expected).abs().max() > 1e-2, "the pose matters"


def set_scheduler(pair: Pair, name: str) -> None:
    for pipe in (pair.ours, pair.theirs):
        pipe.scheduler = getattr(diffusers, f"{name}Scheduler").from_config(pipe.scheduler.config)


def test_every_deterministic_scheduler_samples_as_in_diffusers(pair: Pair) -> None:
    for name in DETERMINISTIC:
        set_scheduler(pair, name)
        ours, theirs = (pair.made(pipe, num_inference_steps=4) for pipe in (pair.ours, pair.theirs))  # PNDM's least
        difference = (ours - theirs).abs().max()
        assert difference < 1e-4, (name, float(difference))


def test_the_other_schedulers_repeat_themselves(pair: Pair) -> None:
    for name in STOCHASTIC:
        set_scheduler(pair, name)
        one, again, other = (pair.made(pair.ours, generator=seeded(seed)) for seed in (1, 1, 2))
        assert torch.equal(one, again) and not torch.equal(one, other) and one.isfinite().all(), name
    assert {f"{n}Scheduler" for n in (*DETERMINISTIC, *STOCHASTIC, "DPMSolverSDE")} == VARIANCE_PRESERVING


def test_schedulers_of_other_models_are_refused_in_a_sentence(pair: Pair) -> None:
    for name in MISFITS:
        pair.ours.scheduler = getattr(diffusers, f"{name}Scheduler")()
        with pytest.raises(UserError, match=r"does not fit the backbone, which predicts epsilon; take for instance"):
            pair.made(pair.ours)
    pair.ours.scheduler = diffusers.DDIMScheduler(prediction_type="v_prediction")
    with pytest.raises(UserError, match="DDIMScheduler for v_prediction does not fit the backbone, which predicts eps"):
        pair.made(pair.ours)
    pair.ours.scheduler = pair.backbone_scheduler = diffusers.DDIMScheduler.from_config(pair.theirs.scheduler.config)
    assert pair.made(pair.ours).isfinite().all()


@pytest.mark.parametrize(
    "settings",
    [
        {"controlnet_conditioning_scale": 0.3},
        {"control_guidance_end": 0.5},
        {"control_guidance_start": 0.4, "control_guidance_end": 0.7},
        {"timesteps": [900, 500, 100, 20], "num_inference_steps": None},
        {"negative_prompt": "blurred"},
        {"guidance_scale": 0.5},
        {"num_inference_steps": np.int64(4), "guidance_scale": np.float32(3)},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_an_argument_means_the_same(pair: Pair, settings: dict[str, Any]) -> None:
    if "timesteps" in settings:
        set_scheduler(pair, "DPMSolverMultistep")
    pair.same(**settings)


def test_guidance_rescale(pair: Pair) -> None:
    pair.same(without_pose=True, guidance_rescale=0.7)


def test_sigmas(pair: Pair) -> None:
    set_scheduler(pair, "EulerDiscrete")
    pair.same(sigmas=[14.0, 5.0, 1.0, 0.2], num_inference_steps=None)


def test_embeddings_instead_of_prompts(pair: Pair) -> None:
    states, null = pair.theirs.encode_prompt("a dancer", "cpu", 1, True)
    given = {"prompt_embeds": states, "negative_prompt_embeds": null}
    assert torch.equal(pair.made(pair.ours), pair.made(pair.ours, None, **given))
    pair.same(prompt=None, prompt_embeds=states * 0.5, negative_prompt_embeds=null)
    two = pair.made(pair.ours, None, prompt_embeds=torch.cat([states, states * 0.5]), latents=None, generator=seeded())
    assert len(two) == 2


def test_clip_skip_leaves_out_layers_of_the_text_tower(pair: Pair) -> None:
    tower, tokens = pair.ours.text_encoder, pair.ours.tokenizer("a dancer", padding="max_length", return_tensors="pt")
    hidden = tower(tokens.input_ids, output_hidden_states=True).hidden_states
    expected = tower.final_layer_norm(hidden[-2])
    skipped = pair.made(pair.ours, clip_skip=1)
    assert (skipped - pair.made(pair.ours, None, prompt_embeds=expected)).abs().max() < 1e-5
    assert (skipped - pair.made(pair.ours)).abs().max() > 1e-3


def test_noise_of_the_steps(pair: Pair) -> None:
    plain, noisy = (pair.made(pair.ours, eta=eta, generator=seeded()) for eta in (0.0, 1.0))
    assert (plain - noisy).abs().max() > 1e-3


def test_attention_processors_get_their_arguments(pair: Pair) -> None:
    seen: list[Any] = []

    class Recording(diffusers.models.attention_processor.AttnProcessor2_0):
        def __call__(self, *args: Any, mine: Any = None, **kwargs: Any) -> Tensor:
            seen.append(mine)
            return super().__call__(*args, **kwargs)

    pair.ours.unet.set_attn_processor(Recording())
    pair.made(pair.ours, cross_attention_kwargs={"mine": 5})
    assert seen and set(seen) == {5}
    seen.clear()
    pair.made(pair.ours)
    assert set(seen) == {None}, "the arguments are those of one call"


# Callbacks.


def test_official_callbacks(pair: Pair) -> None:
    pair.same(without_pose=True, callback_on_step_end=SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=0))


def test_a_callback_may_change_the_latents_and_the_text(pair: Pair) -> None:
    def changed(_pipe: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {name: value * -20 for name, value in tensors.items()} if step == 1 else tensors

    pair.same(callback_on_step_end=changed)
    pair.same(callback_on_step_end=changed, callback_on_step_end_tensor_inputs=["prompt_embeds"])


def test_a_callback_may_end_the_sampling(pair: Pair) -> None:
    steps: list[int] = []

    def enough(pipe: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        steps.append(step)
        pipe._interrupt = step == 1
        return tensors

    pair.same(callback_on_step_end=enough, num_inference_steps=4)
    assert steps[:2] == [0, 1] and pair.ours.num_timesteps == 3
    assert not pair.ours.interrupt, "the next call begins anew"


# Parts, devices and LoRA.


def test_the_parts_go_into_a_pipeline_of_diffusers(pair: Pair) -> None:
    components = pair.ours.components
    assert set(components) == {"adapter", "scheduler", "text_encoder", "tokenizer", "unet", "vae"}
    assert "ControlNet" in repr(pair.ours) and "UNet2DConditionModel" in repr(pair.ours)
    del components["adapter"]
    nothing = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    plain = diffusers.StableDiffusionPipeline(**components, **nothing)
    plain.set_progress_bar_config(disable=True)
    pair.text_to_image = plain
    pair.same(without_pose=True, negative_prompt="blurred")


def test_a_part_can_be_replaced(pair: Pair) -> None:
    before, other = pair.made(pair.ours), deepcopy(pair.ours.vae)
    with torch.no_grad():
        other.decoder.conv_out.bias += 0.5
    pair.ours.vae = other
    assert pair.ours.backbone.autoencoder is other
    assert (pair.made(pair.ours) - before).abs().max() > 1e-3
    with pytest.raises(UserError, match="vae is not the backbone's any more"):
        pair.ours.save_pretrained("never")


def test_slices_and_tiles_of_the_autoencoder(pair: Pair) -> None:
    before = pair.made(pair.ours)
    pair.ours.vae.enable_slicing()
    assert (pair.made(pair.ours) - before).abs().max() < 1e-5
    pair.ours.vae.enable_tiling()
    large = pair.made(pair.ours, height=128, width=128, latents=None, generator=seeded())
    assert large.shape == (1, 3, 128, 128)


def test_offloaded_parts_make_the_same_image(pair: Pair) -> None:
    """On the only device here; accelerate cannot offload single modules to it, in diffusers' pipelines either."""
    before = pair.made(pair.ours)
    pair.ours.enable_model_cpu_offload(device="cpu")
    assert all(hasattr(getattr(pair.ours, name), "_hf_hook") for name in ("unet", "vae", "text_encoder"))
    for _ in range(2):
        assert torch.equal(pair.made(pair.ours), before)


def test_lora_is_loaded_scaled_and_fused_as_in_diffusers(pair: Pair, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="LoRA needs peft: pip install 'posegen[lora]'")
    from diffusers.utils import convert_state_dict_to_diffusers

    pair.ours.arrange(packed=True)  # packed weights are forgotten when LoRA is fused into the others
    layers = ["to_q", "to_k", "to_v", "to_out.0", "conv1"]
    lora = diffusers.UNet2DConditionModel.from_config(pair.ours.unet.config)
    lora.add_adapter(peft.LoraConfig(r=2, init_lora_weights=False, target_modules=layers))
    state = convert_state_dict_to_diffusers(peft.get_peft_model_state_dict(lora))
    diffusers.StableDiffusionPipeline.save_lora_weights(tmp_path / "lora", unet_lora_layers=state)
    plain = pair.made(pair.ours)
    pair.ours.load_lora_weights(
        tmp_path / "lora", weight_name="pytorch_lora_weights.safetensors"
    )  # both pipelines share the U-Net
    with_lora = pair.made(pair.ours)
    assert (with_lora - plain).abs().max() > 1e-3 and (with_lora - pair.made(pair.theirs)).abs().max() < 1e-4
    pair.same(cross_attention_kwargs={"scale": 0.3})
    assert torch.allclose(pair.made(pair.ours, cross_attention_kwargs={"scale": 0.0}), plain, atol=1e-5)
    with pytest.raises(UserError, match=r"LoRA is not saved along; first fuse_lora"):
        pair.ours.save_pretrained(tmp_path / "saved")
    pair.ours.fuse_lora()
    assert pair.ours.changed == {"unet"}
    pair.ours.unload_lora_weights()
    assert torch.allclose(pair.made(pair.ours), with_lora, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance_rescale": 2}, r"guidance_rescale is 2; expected a number from 0 to 1"),
        ({"eta": -1}, r"eta is -1; expected a number from 0 to 1"),
        ({"control_guidance_end": "1"}, r"control_guidance_end is '1'; expected a number from 0 to 1"),
        ({"clip_skip": 99}, r"clip_skip is 99; expected a number from 0 to \d"),
        ({"prompt_embeds": torch.zeros(1, 77, 32)}, r"prompt and prompt_embeds are both given"),
        (
            {"prompt": None, "prompt_embeds": torch.zeros(1, 77, 7)},
            r"prompt_embeds has the shape \[1, 77, 7\]; expected",
        ),
        ({"poses": np.ones((17, 3)) * 20}, r"image and poses are two names of one argument"),
        ({"timesteps": [5], "sigmas": [1.0]}, r"takes no timesteps; give num_inference_steps"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, r"tensor_inputs has 'noise'; expected some of latents"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(pair: Pair, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pair.made(pair.ours, **settings)


def test_the_ways_of_computing_change_no_more_than_rounding(pair: Pair) -> None:
    """Those of diffusers, on the parts, and posegen's."""
    expected = pair.made(pair.ours)
    pair.ours.unet.to(memory_format=torch.channels_last)
    pair.ours.vae.to(memory_format=torch.channels_last)
    pair.ours.unet.compile_repeated_blocks(backend="eager")
    assert (pair.made(pair.ours) - expected).abs().max() < 1e-4
    pair.ours.unet.fuse_qkv_projections()
    assert (pair.made(pair.ours) - expected).abs().max() < 1e-4
    pair.ours.arrange(packed=True)
    assert (pair.made(pair.ours) - expected).abs().max() < 1e-4
    for network in (pair.ours.unet, pair.ours.vae.decoder, pair.ours.adapter):
        assert any("packed" in vars(module) for module in network.modules())


def test_a_compiled_part_is_the_same_part(pair: Pair) -> None:
    before = pair.made(pair.ours)
    pair.ours.unet = torch.compile(pair.ours.unet, backend="eager")
    assert torch.equal(pair.made(pair.ours), before) and not pair.ours.changed
