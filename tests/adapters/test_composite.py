"""Several methods at once: the same as diffusers' pipelines with two conditions, what trains, and what is kept."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPImageProcessor

from posegen.adapters.composite import Composite
from posegen.adapters.controlnet import ControlNet
from posegen.adapters.controlnext import ControlNeXt
from posegen.adapters.dnaf import DNAF
from posegen.adapters.ip_adapter import IPAdapter
from posegen.adapters.spctrl import SPCtrl
from posegen.adapters.stable_pose import StablePose
from posegen.backbones.stable_diffusion import StableDiffusion
from posegen.cli import main
from posegen.errors import UserError
from posegen.pipeline import PoseGuidedPipeline
from posegen.poses.drawing import DRAWING_STYLES
from posegen.runner.components import Components
from posegen.runner.method_folder import load_into, load_method, read_about, save_method
from posegen.runner.official_weights import accounted, put_converted
from tests.adapters.cases import scrambled
from tests.adapters.test_ip_adapter import official
from tests.backbones.models import SD1, parts_of
from tests.tiny import configured, on_transformer

NOTHING = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
KEYPOINTS = np.concatenate([np.random.default_rng(0).uniform(12, 52, (1, 17, 2)), np.full((1, 17, 1), 2)], -1)
PERSON = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def composite(parts: dict[str, Any] | None = None, **settings: Any) -> Composite:
    torch.manual_seed(0)
    method = Composite(parts, **settings)
    method.attach(StableDiffusion.from_parts(deepcopy(parts_of(SD1))))
    scrambled(method)
    return method


def controlnet_folders(method: Composite, folder: Path) -> list[Any]:
    save_method(folder, method, method.backbone)
    return [diffusers.ControlNetModel.from_pretrained(place) for place in sorted(folder.glob("controlnet*"))]


def latents(pipe: Any, **given: Any) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    usual = {"num_inference_steps": 3, "guidance_scale": 4.0, "height": 64, "width": 64, "output_type": "latent"}
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return pipe("a dancer", latents=noise, **usual, **given).images


def theirs(ours: PoseGuidedPipeline, controlnet: Any, **more: Any) -> diffusers.StableDiffusionControlNetPipeline:
    shared = {name: getattr(ours, name) for name in ("vae", "text_encoder", "tokenizer", "scheduler")}
    unet = deepcopy(ours.unet)  # an IP-Adapter changes it there
    return diffusers.StableDiffusionControlNetPipeline(
        controlnet=controlnet, unet=unet, **shared, **{**NOTHING, **more}
    )


@pytest.mark.parametrize("variant", ["base", "plus"])
def test_a_controlnet_with_an_ip_adapter_is_that_of_diffusers(variant: Any, tmp_path: Path) -> None:
    parts = {"pose": ControlNet(), "person": IPAdapter(variant, scale=0.6)}
    method = composite(parts, strengths={"pose": 0.7})
    (controlnet,) = controlnet_folders(method, tmp_path / "method")
    person = method.methods["person"]
    save_file(official(person), tmp_path / "ip.safetensors")
    ours = PoseGuidedPipeline(method)
    processor = CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    pipe = theirs(ours, controlnet, image_encoder=person.encoder, feature_extractor=processor)
    pipe.load_ip_adapter(str(tmp_path), subfolder="", weight_name="ip.safetensors", image_encoder_folder=None)
    pipe.set_ip_adapter_scale(0.6)
    drawn, picture = Image.fromarray(DRAWING_STYLES["openpose"](KEYPOINTS, (64, 64))), Image.fromarray(PERSON)
    given = {"image": drawn, "ip_adapter_image": picture, "controlnet_conditioning_scale": 0.7}
    made, expected = latents(ours, poses=KEYPOINTS, source=PERSON), latents(pipe, **given)
    assert (made - expected).abs().max() < 1e-4
    for part in ("pose", "person"):
        method.strengths[part] = 0.0
        assert (latents(ours, poses=KEYPOINTS, source=PERSON) - made).abs().max() > 1e-2, f"{part} took part"
        method.strengths[part] = 0.7 if part == "pose" else 1.0


def test_two_controlnets_are_those_of_diffusers(tmp_path: Path) -> None:
    method = composite({"a": ControlNet(), "b": ControlNet("humansd")}, strengths={"a": 0.8, "b": 0.5})
    with torch.no_grad():
        scrambled(method.methods["b"], seed=1)
    ours = PoseGuidedPipeline(method)
    pipe = theirs(ours, controlnet_folders(method, tmp_path / "method"))
    drawn = [Image.fromarray(DRAWING_STYLES[style](KEYPOINTS, (64, 64))) for style in ("openpose", "humansd")]
    expected = latents(pipe, image=drawn, controlnet_conditioning_scale=[0.8, 0.5])
    assert (latents(ours, poses=KEYPOINTS) - expected).abs().max() < 1e-4
    swapped = latents(pipe, image=drawn[::-1], controlnet_conditioning_scale=[0.5, 0.8])
    assert (swapped - expected).abs().max() > 1e-2, "each sees its own drawing"


def test_parts_that_live_on_a_transformer_live_there_together(world: list[str]) -> None:
    """The class's own parts, a ControlNet and an IP-Adapter, are for U-Nets."""
    with configured("train", "adapter=controlnet", "trainer.precision=32-true", *on_transformer(world)) as cfg:
        alone = Components(cfg).adapter
    scrambled(alone)
    method = Composite({"a": deepcopy(alone), "b": deepcopy(alone)}, strengths={"a": 0.75, "b": 0.25})
    method.attach(alone.backbone)
    for part in method.methods.values():
        part.load_state_dict(alone.state_dict())
    noise = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    found = [
        PoseGuidedPipeline(each)(
            "a dancer", poses=KEYPOINTS, latents=noise, num_inference_steps=2, output_type="latent"
        )
        for each in (alone, method)
    ]
    assert (found[0].images - found[1].images).abs().max() < 1e-4
    with pytest.raises(UserError, match="Composite needs .*, and StableDiffusion3 has"):
        Composite().attach(alone.backbone)


def test_a_method_folder_gives_back_parts_strengths_and_quirks(tmp_path: Path) -> None:
    parts = {"pose": ControlNet("humansd"), "person": IPAdapter("plus", tokens=3)}
    method = composite(parts, strengths={"person": 0.5}, frozen=["pose"])
    method.methods["person"].faithful = True
    save_method(tmp_path / "method", method, method.backbone)
    again: Any = load_method(tmp_path / "method", StableDiffusion.from_parts(deepcopy(parts_of(SD1))))
    assert again.strengths == {"person": 0.5} and again.frozen == ["pose"] and again.methods["pose"].style == "humansd"
    assert [part.faithful for part in again.methods.values()] == [True, False]
    pair = (PoseGuidedPipeline(each.eval()) for each in (method, again))
    assert torch.equal(*(latents(pipe, poses=KEYPOINTS, source=PERSON) for pipe in pair))


def test_a_folder_that_names_no_method_as_a_part_is_refused(tmp_path: Path) -> None:
    method = composite()
    save_method(tmp_path / "method", method, method.backbone)
    file = tmp_path / "method" / "posegen.json"
    file.write_text(file.read_text().replace("posegen.adapters.controlnet.ControlNet", "os.system"))
    with pytest.raises(UserError, match="names the class os.system, which is no adapter; nothing was run"):
        load_method(tmp_path / "method", method.backbone)


def test_what_is_frozen_does_not_train_and_the_rest_keeps_its_learning_rates() -> None:
    method = composite({"pose": ControlNet(), "map": ControlNeXt(), "person": IPAdapter()}, frozen=["pose"])
    method.init = {"pose": "somewhere"}
    groups = method.parameter_groups(type("Recipe", (), {"lr": 1e-3}))
    grouped = [id(p) for group in groups for p in group["params"]]
    trained = {id(p) for module in (method, method.backbone) for p in module.parameters() if p.requires_grad}
    assert len(grouped) == len(set(grouped)) and set(grouped) == trained
    assert not any(p.requires_grad for p in method.methods["pose"].parameters())
    unet = [group for group in groups if group.get("lr")]
    assert unet[0]["lr"] == 1e-4 and {id(p) for p in unet[0]["params"]} <= {id(p) for p in method.backbone.parameters()}
    method.init = None
    with pytest.raises(UserError, match=r"frozen has pose, whose weights would stay random; set \+adapter.init.pose"):
        method.parameter_groups(type("Recipe", (), {"lr": 1e-3}))


def test_official_files_of_the_parts_are_converted_together() -> None:
    method = composite()
    network, person = method.methods["pose"].branch.network, method.methods["person"]
    files = {k: v.clone() for k, v in {**network.state_dict(), **official(person)}.items()}
    wanted = {key: value.clone() for key, value in method.state_dict().items()}
    scrambled(method, seed=3)
    placed, account = accounted(method, method.backbone, files)
    assert not account.wrong
    put_converted(method, method.backbone, placed)
    assert all(torch.equal(method.state_dict()[key], value) for key, value in wanted.items() if "small" not in key)
    _, account = accounted(method, method.backbone, {**files, "stranger": torch.zeros(1)})
    assert account.wrong["unexpected"] == ["stranger"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"strengths": {"poes": 1.0}}, "strengths names poes; the methods are pose, person"),
        ({"methods": {"a": StablePose(), "b": SPCtrl()}}, "a and b have losses of their own"),
    ],
)
def test_what_cannot_be_joined_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Composite(**settings)


def test_guidance_of_different_kinds_is_refused() -> None:
    method = composite({"pose": ControlNet(), "person": DNAF(pose_guidance=2.0)})
    with pytest.raises(UserError, match="person and pose have guidance of different kinds"):
        latents(PoseGuidedPipeline(method), poses=KEYPOINTS, source=PERSON)


@pytest.mark.slow
def test_training_starts_parts_from_folders_and_moves_only_the_others(world: list[str], tmp_path: Path) -> None:
    few = ["data=mannequin_pairs", *world, f"paths.output={tmp_path}", "budget.steps=2"]
    with configured("train", "adapter=controlnet", *few) as cfg:
        first = Components(cfg)
        scrambled(first.adapter)
        save_method(tmp_path / "pose", first.adapter, first.backbone)
    words = ["adapter=composite", "adapter.frozen=[pose]", f"+adapter.init.pose={tmp_path / 'pose'}", *few]
    main(["train", "study=second", *words])
    (cell,) = (tmp_path / "second").rglob("method")
    with configured("train", *words) as cfg:
        second = Components(cfg)
        start = {key: value.clone() for key, value in second.adapter.state_dict().items()}
        load_into(second.adapter, second.backbone, cell)
    for key, value in second.adapter.state_dict().items():
        moved = key.startswith("methods.person.image_proj") or "_ip." in key
        assert torch.equal(value, start[key]) != moved or "small_encoder" in key, key
    pose = first.adapter.state_dict()
    assert all(torch.equal(start[f"methods.pose.{key}"], value) for key, value in pose.items())
    assert set(read_about(cell)["kwargs"]["methods"]) == {"pose", "person"}
