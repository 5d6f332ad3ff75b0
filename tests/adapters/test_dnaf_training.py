"""DNAF in training: gradients, saving, its size on Stable Diffusion, refusals, and runs on the tiny world."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from posegen.adapters.dnaf import DNAF
from posegen.backbones.base import Step
from posegen.backbones.loading.single_file import unet_of
from posegen.backbones.loading.sizes import SIZES
from posegen.cli import main
from posegen.errors import UserError
from posegen.io.weights import WeightsError
from posegen.runner.batches import collate
from posegen.runner.components import Components
from posegen.runner.images import picture, read_png
from posegen.runner.method_folder import load_method, save_method
from posegen.runner.precision import arrange
from posegen.runner.user_requests.prompts import with_prompts
from posegen.train.loop import needs_of
from posegen.train.tasks import AdapterTask
from tests.adapters.cases import sized
from tests.adapters.test_dnaf import MANNEQUIN, STEPS, attached, backbone, batch, close, noisy, predicted, without
from tests.tiny import configured, making
from tests.train.test_train import Stop, equal, interrupt, trained


def gradients(adapter: DNAF, sourced: bool = True, precision: torch.dtype | None = None) -> dict[str, Tensor]:
    pose = batch((64, 128))  # the middle's grid has two tokens: queries and keys of a single one have no gradient
    latents = noisy(adapter, pose)
    adapter.train()
    with torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None):
        state = adapter.encode(pose)
        state = state if sourced else without(state, "posed")
        prediction = adapter.backbone.predict(latents, STEPS, state.text, adapter.inject(state, latents, STEPS))
        adapter.loss(Step(prediction, latents, latents, latents, latents, STEPS), state, pose)["loss"].backward()
    return {name: p.grad for name, p in adapter.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_acceptance_7_gradients_reach_all_that_trains_and_only_the_last_projections_at_first(
    precision: torch.dtype | None,
) -> None:
    """Also under autocast, whose weight copies from the pass without gradients must not be used in the other."""
    for started in (False, True):
        adapter = attached(trained=started)
        found = gradients(adapter, precision=precision)
        reached = {name for name, grad in found.items() if grad.any()}
        source = {name for name in found if not name.startswith("pose_adapter.")}
        at_first = {name for name in source if ".leave." in name}
        assert all(p.grad is None for p in adapter.backbone.parameters())
        assert source & reached == (source - {n for n in source if n.endswith("to_k.bias")} if started else at_first)
        assert any(name.startswith("pose_adapter.") for name in reached) and len(at_first) == 32


def test_a_batch_that_lost_all_sources_has_gradients_of_zero() -> None:
    found = gradients(attached(), sourced=False)
    assert all(grad is not None for grad in found.values())
    assert not any(grad.any() for name, grad in found.items() if not name.startswith("pose_adapter."))


def test_acceptance_7_what_trains_is_configurable(tmp_path: Path) -> None:
    file = tmp_path / "t2i_adapter"
    attached().pose_adapter.network.save_pretrained(file)

    def kinds(**settings: Any) -> set[str]:
        adapter = attached(trained=False, **settings)
        return {
            name.split(".")[0] + (".network" if "pyramid.network" in name else "")
            for name, p in adapter.named_parameters()
            if p.requires_grad
        }

    assert kinds() == {"pose_adapter", "blocks", "pyramid.network", "pyramid"}
    assert kinds(vision_train=False, vision_positions=0) == {"pose_adapter", "blocks"}
    assert kinds(inserted=False) == {"pose_adapter"}
    assert kinds(pose_train=False, pose_weights=str(file)) == {"blocks", "pyramid.network", "pyramid"}
    assert (
        DNAF().trains and not attached(trained=False, inserted=False, pose_train=False, pose_weights=str(file)).trains
    )


def test_the_pose_adapter_starts_from_a_file(tmp_path: Path) -> None:
    other, pose = attached(), batch()
    other.pose_adapter.network.save_pretrained(tmp_path)
    started = attached(trained=False, pose_weights=str(tmp_path))
    assert all(
        torch.equal(a, b)
        for a, b in zip(started.pose_adapter.features(pose.hint), other.pose_adapter.features(pose.hint), strict=True)
    )
    with pytest.raises(WeightsError, match="adapter.pose_weights=.*keys that T2IAdapter has no place for"):
        attached(MANNEQUIN, pose_weights=str(tmp_path))
    attached(MANNEQUIN).pose_adapter.network.save_pretrained(tmp_path / "small")
    with pytest.raises(WeightsError, match="adapter.pose_weights=.* is no T2I-Adapter for this backbone"):
        attached(pose_weights=str(tmp_path / "small"))


@pytest.mark.parametrize(("detach", "scope"), [(True, "original"), (False, "all")])
def test_checkpointing_and_compilation_change_nothing(detach: bool, scope: str) -> None:
    wanted = gradients(attached(MANNEQUIN, naf_detach=detach, naf_scope=scope))
    ways = {}
    for way in ("blocks", "feedforward", "compile"):
        adapter = attached(MANNEQUIN, naf_detach=detach, naf_scope=scope)
        for network in (adapter, adapter.backbone):
            arrange(network, checkpointing=way if way != "compile" else "none")
        if way == "compile":
            for module in adapter.backbone.unet.modules():
                if type(module).__name__ == "BasicTransformerBlock":
                    module.compile(backend="eager")
        ways[way] = gradients(adapter)
    for way, found in ways.items():
        assert all(close(found[name], grad) for name, grad in wanted.items()), way
    assert all(grad.any() for name, grad in wanted.items() if ".leave." in name)


def test_gradients_cross_the_sources_pass_where_they_may() -> None:
    with_pass, without_pass = (gradients(attached(naf_detach=detach)) for detach in (False, True))
    assert not all(
        close(with_pass[name], grad, 1e-7) for name, grad in without_pass.items() if name.startswith("blocks.")
    )


# Saving, sizes, and what is refused.


def test_a_method_folder_needs_no_other_file(tmp_path: Path) -> None:
    attached().pose_adapter.network.save_pretrained(tmp_path / "pose")
    adapter, pose = (
        attached(vision_train=False, pose_weights=str(tmp_path / "pose"), pose_train=False, levels=[0, 1, 1, 2]),
        batch(),
    )
    save_method(tmp_path / "method", adapter, adapter.backbone)
    for file in (tmp_path / "pose").iterdir():
        file.unlink()
    assert (tmp_path / "method" / "t2i_adapter").is_dir() and not (tmp_path / "method" / "backbone").exists()
    again = load_method(tmp_path / "method", backbone()).eval()
    latents = noisy(adapter, pose)
    assert torch.equal(predicted(adapter, adapter.encode(pose), latents), predicted(again, again.encode(pose), latents))  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "millions"), [("full", 259.3), ("cross_ff", 209.7), ("cross", 60.9)])
@pytest.mark.parametrize("size", ["sd15", "sd21"])
def test_it_has_the_published_size_on_stable_diffusion(kind: Any, millions: float, size: str) -> None:
    geometry = SIZES[size].unet
    with torch.device("meta"):
        unet = unet_of(geometry)
        adapter = DNAF(inserted_kind=kind)
        adapter.attach(sized(geometry, unet))
    sizes = [
        sum(p.numel() for p in part.parameters()) / 1e6
        for part in (adapter.blocks, adapter.pose_adapter, adapter.pyramid.network)
    ]
    assert (
        [round(each, 2) for each in sizes[1:]] == [77.37, 86.74]
        and round(sizes[0], 1) == millions
        and len(adapter.blocks) == 16
    )
    assert adapter.pyramid.size == 224 and adapter.stages == [0, 0, 1, 1, 2, 2, 3, 2, 2, 2, 1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"naf": False, "inserted": False}, "both off, so nothing would read the source"),
        ({"naf_strength": 0, "inserted": False}, "both off"),
        ({"naf_scope": "some"}, "adapter.naf_scope is 'some'; expected one of original, all"),
        ({"inserted_kind": "half"}, "adapter.inserted_kind is 'half'; expected one of full, cross_ff, cross"),
        ({"drop_source": 0.6, "drop_pose": 0.5}, "sum is at most 1"),
        ({"naf_strength": 1.5}, "adapter.naf_strength is 1.5"),
    ],
)
def test_settings_out_of_range_are_said(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DNAF(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": [0, 1]}, "adapter.levels has 2 stages .* the 4 levels"),
        ({"inserted_heads": 5}, r"adapter.inserted_heads is 5; .* \[32, 64\]"),
        ({"vision": "swim"}, "adapter.vision is 'swim', which timm does not know"),
        ({"vision_weights": "swin.safetensors"}, "adapter.vision_weights=swin.safetensors is of no network"),
        ({"pose_weights": "nowhere.pth"}, "nowhere.pth: no such file"),
    ],
)
def test_settings_that_do_not_fit_the_backbone_are_said(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attached(**settings)


def test_samples_without_a_source_and_parts_that_would_stay_random_are_refused() -> None:
    with pytest.raises(ValueError, match="reads a source person, and these samples have none"):
        attached().encode(replace(batch(), source=None))
    for part in ("pose", "vision"):
        with pytest.raises(ValueError, match=f"adapter.{part}_train is false and adapter.{part}_weights is not set"):
            attached(**{f"{part}_train": False}).train().encode(batch())


# Real runs.


def test_it_trains_resumes_and_samples_on_pairs(
    world: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, options = making("image", world, DNAF.needs), ["adapter=dnaf"]
    whole = trained(world, tmp_path / "whole", *options)
    with monkeypatch.context() as patch:
        interrupt(patch, after=3)
        with pytest.raises(Stop):
            trained(world, tmp_path / "cut", *options)
    assert equal(trained(world, tmp_path / "cut", *options), whole)
    assert not any(key.startswith("unet") for key in whole)
    assert main(["sample", *world, *options, f"paths.output={tmp_path / 'whole'}"]) == 0
    [samples] = (tmp_path / "whole").rglob("samples")
    assert read_png(picture(samples, 5)).shape == (64, 64, 3)
    with configured("train", *world) as cfg:
        people = Components(cfg).data("test")
    assert np.array_equal(read_png(picture(samples.parent / "sources", 5)), people.source_of(5).image)


def test_the_latents_of_sources_are_computed_once_and_are_those_of_the_sources(
    world: list[str], tmp_path: Path
) -> None:
    with configured(
        "train",
        *making("image", world, DNAF.needs),
        "adapter=dnaf",
        f"paths.cache={tmp_path}",
        "trainer.precision=32-true",
    ) as cfg:
        components = Components(cfg)
        task = AdapterTask(components)
        needs = needs_of(task, components)
        pose = collate(components.data("train"), [3, 1], needs, seed=0)
        adapter, calls = components.adapter.train(), []
        components.backbone.autoencoder.encoder.register_forward_pre_hook(lambda *_: calls.append(1))
        cached, fresh = (
            adapter.encode(pose).conditions["source"],
            adapter.encode(replace(pose, source_latents=None)).conditions["source"],
        )
        assert len(calls) == 1 and close(cached, fresh, 2e-3) and not close(cached[0], cached[1], 0.05)
        needs_of(task, components)
        assert len(calls) == 1, "a second run reads them from disk"
        for settings in ({"source_latent": "sample"}, {"naf": False}, {"naf_strength": 0}):
            assert "source_latents" not in DNAF(**settings).reads


def test_ablations_train_what_is_left_and_an_empty_run_is_refused(world: list[str], tmp_path: Path) -> None:
    world = [
        *(o for o in making("image", world, DNAF.needs) if not o.startswith("budget.steps")),
        "adapter=dnaf",
        "budget.steps=1",
    ]
    assert {key.split(".")[1] for key in trained(world, tmp_path / "b1", "adapter.naf=false")} == {
        "adapter",
        "blocks",
        "pyramid",
    }
    pose_only = trained(world, tmp_path / "b2", "adapter.inserted=false")
    assert {key.split(".")[0] for key in pose_only} == {"t2i_adapter"}
    nothing = ["adapter.inserted=false", "adapter.pose_train=false"]
    with pytest.raises(UserError, match="adapter=dnaf has nothing to train"):
        trained(world, tmp_path / "empty", *nothing)
    [file] = (tmp_path / "b2").rglob("t2i_adapter")
    free = trained(
        world, tmp_path / "free", *nothing, f"adapter.pose_weights={file.rename(tmp_path / 'pose')}"
    )  # the training-free form with a pose adapter that is there
    assert equal(free, pose_only)


def test_data_without_pairs_are_refused_before_anything_runs(
    world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *world, "adapter=dnaf", f"paths.output={tmp_path}"]) == 1
    assert "DNAF needs another image of each person" in capsys.readouterr().err


def test_a_prompt_alone_is_refused(world: list[str]) -> None:
    message = "adapter=dnaf takes a person from a picture; set source=FILE"
    with (
        configured("sample", *making("image", world, DNAF.needs), "adapter=dnaf", "prompt=a person") as cfg,
        pytest.raises(UserError, match=message),
    ):
        with_prompts(cfg)
