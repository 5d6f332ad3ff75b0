"""ControlNeXt: sizes, what trains, official files and the pipeline; what it computes is compared in `tests.parity`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from posegen.adapters.base import State
from posegen.adapters.controlnext import INCREMENTS_PART, PUBLISHED_FORMS, ControlMap, ControlNeXt, cross_normalised
from posegen.backbones.base import Geometry
from posegen.backbones.loading.single_file import unet_of
from posegen.cli import main
from posegen.io.weights import UnknownKeys
from posegen.pipeline import PoseGuidedPipeline
from posegen.runner.components import Components
from posegen.runner.generate import batch_of
from posegen.runner.method_folder import load_method
from tests.adapters.cases import SD1, backbone_of, reference, scrambled
from tests.tiny import configured
from tests.train.test_train import Stop, equal, interrupt, trained

SD15 = Geometry(4, 8, (320, 640, 1280, 1280), (True, True, True, False), 2, (8,) * 4, 768)
SDXL: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280), "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 2),
    "up_block_types": (*("CrossAttnUpBlock2D",) * 2, "UpBlock2D"), "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20), "cross_attention_dim": 2048, "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip


def attached(geometry: Geometry = SD1, **settings: Any) -> ControlNeXt:
    torch.manual_seed(0)
    adapter = ControlNeXt(**settings)
    adapter.attach(backbone_of(geometry))
    return adapter


@pytest.mark.parametrize(("place", "named"), [("level", "sd15"), ("input", "sd15"), ("middle", "sd15_mid")])
def test_full_size_keys(place: str, named: str) -> None:
    facts, form = json.loads(reference("controlnext_keys.json").read_text()), PUBLISHED_FORMS[place]
    with torch.device("meta"):
        network = ControlMap(form.stem, form.widths, 1280 if place == "middle" else 320, 256)
        unet = UNet2DConditionModel(**SDXL) if place == "input" else unet_of(SD15)
    assert {key: list(value.shape) for key, value in network.state_dict().items()} == facts[f"controlnext_{named}"]
    assert sum(p.numel() for p in network.parameters()) == facts["parameters"][f"control module {named}"]
    tensors = {name: list(p.shape) for name, p in unet.named_parameters() if re.search(form.finetuned, name)}
    assert tensors == facts["unet_trained_sdxl" if place == "input" else "unet_trained_sd15"]


def test_the_map_gets_mean_and_deviation_of_the_hidden_state_of_its_own_image() -> None:
    draw = torch.Generator().manual_seed(0)
    made, hidden = 5 + torch.randn(2, 3, 4, 4, generator=draw), 2 * torch.randn(2, 3, 4, 4, generator=draw) - 1
    result = cross_normalised(made, hidden)
    assert torch.allclose(result.mean((1, 2, 3)), hidden.mean((1, 2, 3)), atol=1e-5)
    assert torch.allclose(result.std((1, 2, 3)), hidden.std((1, 2, 3)), atol=1e-5)
    assert torch.allclose(result, cross_normalised(7 * made + 3, hidden), atol=1e-5), "scale and offset do not matter"


@pytest.mark.parametrize("place", PUBLISHED_FORMS)
def test_gradients_reach_the_network_and_the_named_weights_alone(place: str) -> None:
    adapter, pattern = attached(place=place), PUBLISHED_FORMS[place].finetuned
    backbone, draw = adapter.backbone, torch.Generator().manual_seed(0)
    x, text = torch.randn(2, 4, 8, 8, generator=draw), backbone.encode_text(["person", ""])
    hint, timesteps = torch.rand(2, 3, 64, 64, generator=draw), torch.tensor([10, 900])
    state = State(text, text).having(hint=hint)
    backbone.predict(x, timesteps, text, adapter.inject(state, x, timesteps)).square().mean().backward()
    reached = {name for name, p in backbone.unet.named_parameters() if p.grad is not None}
    assert reached == {name for name, _ in backbone.unet.named_parameters() if re.search(pattern, name)} != set()
    assert all(p.grad is not None and bool(p.grad.any()) for p in adapter.parameters())
    own, unet = adapter.parameter_groups(type("Recipe", (), {"lr": 1e-3}))
    assert len(own["params"]) == len(list(adapter.parameters())) and "lr" not in own
    assert unet["lr"] == pytest.approx(1e-4) and len(unet["params"]) == len(reached)


def test_settings_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(ValueError, match=r"adapter.place is 'end'; expected one of input, level, middle"):
        ControlNeXt(place="end")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"adapter.finetuned='to_in' matches none of .* for instance to_out"):
        attached(finetuned="to_in")
    adapter = attached(finetuned="")
    assert not any(p.requires_grad for p in adapter.backbone.parameters())
    assert len(adapter.parameter_groups(None)) == 1
    assert all(key.startswith("adapter.network.") for key in adapter.convert(adapter.network.state_dict()))


def test_increments_are_added_to_the_backbones_weights_and_unknown_keys_are_named() -> None:
    adapter = attached()
    control, unet = adapter.network.state_dict(), adapter.backbone.unet.state_dict()
    name = next(key for key in unet if "to_out" in key)
    step = torch.full_like(unet[name], 0.5)
    values, added = adapter.convert({**control, name: step}), adapter.convert({**control, INCREMENTS_PART + name: step})
    assert torch.equal(values[f"backbone.unet.{name}"], step)
    assert torch.equal(added[f"backbone.unet.{name}"], unet[name] + step)
    bare = attached(increments=True).convert({**control, name: step})
    assert torch.equal(bare[f"backbone.unet.{name}"], added[f"backbone.unet.{name}"])
    rest = [key for key in unet if key != name]
    assert all(torch.equal(values[f"backbone.unet.{key}"], unet[key]) for key in rest)
    with pytest.raises(UnknownKeys, match="2 keys that ControlNeXt has no place for: invented, unet.invented"):
        adapter.convert({**control, "invented": step, "unet.invented": step})


# In cells, method folders and the pipeline.


def test_a_resumed_training_ends_with_the_same_weights_and_moves_what_trains_alone(
    world: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(world, tmp_path / "whole", "adapter=controlnext", "budget.ema=0")
    with monkeypatch.context() as patch:
        interrupt(patch, after=3)
        with pytest.raises(Stop):
            trained(world, tmp_path / "broken", "adapter=controlnext", "budget.ema=0")
    assert equal(whole, trained(world, tmp_path / "broken", "adapter=controlnext", "budget.ema=0"))
    with configured("train", *world, "adapter=controlnext") as cfg:
        start = Components(cfg)
        unet = {f"unet.{key}": value for key, value in start.backbone.unet.state_dict().items()}
        network = {f"method.{key}": value for key, value in start.adapter.state_dict().items()}
    assert whole.keys() == unet.keys() | network.keys()
    moved = {key for key, value in {**unet, **network}.items() if not torch.equal(value, whole[key])}
    assert moved == {key for key in whole if key.startswith("method.") or "to_out" in key}


def test_the_loss_falls() -> None:
    """On two images with their own noise, as far as a random U-Net lets it."""
    adapter = attached(stem=(8, 16), widths=(16, 32), time_dim=16)
    backbone, draw = adapter.backbone, torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(2, 4, 8, 8, generator=draw) for _ in range(2))
    hint, timesteps, text = (
        torch.rand(2, 3, 64, 64, generator=draw),
        torch.tensor([300, 600]),
        backbone.encode_text([""]),
    )
    noisy, state = backbone.process.add_noise(clean, noise, timesteps), State(text.expand(2), text).having(hint=hint)
    optimizer = torch.optim.AdamW(adapter.parameter_groups(type("Recipe", (), {"lr": 5e-3})), lr=5e-3)
    losses = []
    for _ in range(20):
        prediction = backbone.predict(noisy, timesteps, state.text, adapter.inject(state, noisy, timesteps))
        loss = torch.nn.functional.mse_loss(prediction, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]


@pytest.fixture
def official(world: list[str], tmp_path: Path) -> Iterator[tuple[Components, list[str]]]:
    """A method with weights that no fresh one has, in two official files."""
    backbone = [word for word in world if word.startswith("backbone.")]
    with configured("train", *world, "adapter=controlnext", "adapter.place=middle") as cfg:
        components = Components(cfg)
        before = {key: value.clone() for key, value in components.backbone.unet.state_dict().items()}
        scrambled(components.adapter)
        changed: dict[str, Tensor] = {}
        with torch.no_grad():
            for name, p in components.backbone.unet.named_parameters():
                if p.requires_grad:
                    changed[name] = 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
                    p.copy_(before[name] + changed[name])
        save_file(components.adapter.network.state_dict(), tmp_path / "controlnext.safetensors")
        save_file(changed, tmp_path / "increments.safetensors")
        yield components, backbone


def test_two_official_files_become_a_method_folder_and_a_pipeline(
    official: tuple[Components, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    components, backbone = official
    files = f"source=[{tmp_path / 'controlnext.safetensors'},{tmp_path / 'increments.safetensors'}]"
    settings = ["adapter=controlnext", "adapter.place=middle", "adapter.increments=true", *backbone]
    assert main(["convert", *settings, files, f"target={tmp_path / 'method'}"]) == 0
    assert "controlnext.safetensors, increments.safetensors holds" in capsys.readouterr().out
    about = json.loads((tmp_path / "method" / "posegen.json").read_text())
    assert about["faithful"] and about["converted"]["file"] == "controlnext.safetensors, increments.safetensors"
    assert load_file(tmp_path / "method/adapter.safetensors").keys() == components.adapter.state_dict().keys()
    with configured("train", *backbone, "adapter=none") as cfg:
        again = load_method(tmp_path / "method", Components(cfg).backbone)
    assert isinstance(again, ControlNeXt) and again.place == "middle"
    batch = batch_of(components, components.adapter, range(2))
    made = components.adapter.eval().generate(batch, components.sampler)
    assert torch.equal(made, again.eval().generate(batch, components.sampler))
    base = dict(word.removeprefix("backbone.").split("=") for word in backbone)
    pipe = PoseGuidedPipeline.from_pretrained(tmp_path / "method", backbone=base)
    pipe.save_pretrained(tmp_path / "pipeline")
    reread = PoseGuidedPipeline.from_pretrained(tmp_path / "pipeline")
    pictures = []
    for each in (pipe, reread):
        each.set_progress_bar_config(disable=True)
        seeded = torch.Generator().manual_seed(0)
        pose = np.stack([np.linspace(10, 50, 17), np.linspace(12, 40, 17), np.full(17, 2.0)], 1)
        made_by = {"generator": seeded, "num_inference_steps": 2, "output_type": "np"}
        pictures += [each("photo", pose, **made_by).images, each("photo", pose * [0.5, 1, 1], **made_by).images]
    assert np.array_equal(pictures[0], pictures[2]) and not np.allclose(pictures[0], pictures[1], atol=1e-3)


def test_a_tensor_in_two_of_the_files_is_named(
    official: tuple[Components, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "controlnext.safetensors"
    settings = ["adapter=controlnext", "adapter.place=middle", *official[1]]
    assert main(["convert", *settings, f"source=[{file},{file}]", f"target={tmp_path / 'method'}"]) == 1
    said = capsys.readouterr().err
    assert "are in" in said and "a file before it; leave one of the files out" in said
