"""What saves memory while training: the weights stay the same, and the memory is really saved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from experiments.profile.memory import LiveBytes, bytes_of, memory, without_content
from posegen.backbones.stable_diffusion import StableDiffusion
from posegen.cli import main
from posegen.config.checking.check import validate
from posegen.runner.components import Components
from posegen.train.loop import build_task
from posegen.train.profiling import MeasuredMethod
from tests.backbones.models import SD2, parts_of
from tests.tiny import configured
from tests.train.test_train import Stop, equal, interrupt, trained

IN_BACKWARD = "optim.in_backward=true"


@pytest.mark.parametrize(
    "options",
    [
        ["adapter=controlnet", "optim.clip=null"],
        ["adapter=humansd", "optim.clip=0.01", "trainer.precision=bf16-mixed", "compute.checkpointing=blocks"],
        ["adapter=t2i_adapter", "optim.clip=0.01", "optim.optimizer=muon"],
    ],
)
def test_updates_in_the_backward_pass_end_at_the_same_weights(
    options: list[str], world: list[str], tmp_path: Path
) -> None:
    """Whether gradients are clipped (0.01: always) or not; the same curves, too, and the same cell."""
    every = [*options, "budget.steps=3", "trainer.log_every_n_steps=1"]
    usual = trained(world, tmp_path / "usual", *every)
    assert equal(usual, trained(world, tmp_path / "freed", *every, IN_BACKWARD))
    curves = [pd.read_csv(next((tmp_path / name).rglob("metrics.csv"))) for name in ("usual", "freed")]
    logged = [list(curve[name].dropna()) for curve in curves for name in ("train/loss", "train/grad_norm", "lr")]
    assert logged[:3] == logged[3:] and len(logged[1]) == 3
    assert equal(usual, trained(world, tmp_path / "usual", *every, IN_BACKWARD))  # it is finished: the same identity


def test_a_killed_training_with_updates_in_the_backward_pass_continues(
    world: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the other way: the checkpoint is the same."""
    whole = trained(world, tmp_path / "whole", "adapter=t2i_adapter")
    with monkeypatch.context() as patch:
        interrupt(patch, after=3)
        with pytest.raises(Stop):
            trained(world, tmp_path / "broken", "adapter=t2i_adapter", IN_BACKWARD)
    with monkeypatch.context() as patch:
        interrupt(patch, after=5)
        with pytest.raises(Stop):
            trained(world, tmp_path / "broken", "adapter=t2i_adapter")
    assert equal(whole, trained(world, tmp_path / "broken", "adapter=t2i_adapter", IN_BACKWARD))


@pytest.mark.parametrize(
    ("options", "fix"),
    [
        (["optim.accumulate=2"], "trainer.accumulate_grad_batches=1 (optim.accumulate)"),
        (["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"], "trainer=default on one device"),
        (["trainer.precision=16-mixed"], "trainer.precision=bf16-mixed or 32-true"),
        (["+trainer.gradient_clip_algorithm=value"], "trainer.gradient_clip_algorithm=norm"),
        (["compute.compile=true"], "optim.clip=null, or compute.compile=false"),
    ],
)
def test_what_needs_all_gradients_is_refused_with_the_way_out(
    options: list[str], fix: str, world: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "train", *world, IN_BACKWARD, *options]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "optim.in_backward" in said and fix in said and "optim.in_backward=false" in said
    with configured("train", *world, *options, "optim.in_backward=false") as cfg:
        assert not validate(cfg)


@pytest.mark.parametrize(
    ("options", "fix"),
    [
        (["optim.optimizer=muon"], "is a form of AdamW, not of muon; set optim.fused=false"),
        (["trainer.precision=16-mixed"], "set optim.fused=false, or trainer.precision=bf16-mixed"),
    ],
)
def test_fused_updates_are_refused_where_they_would_be_wrong(options: list[str], fix: str, world: list[str]) -> None:
    with configured("train", *world, *options, "optim.fused=true") as cfg:
        assert [fix in str(problem) for problem in validate(cfg)] == [True]


def test_fused_updates_are_those_of_adamw_up_to_rounding(world: list[str], tmp_path: Path) -> None:
    usual, fused = (
        trained(world, tmp_path / way, "adapter=t2i_adapter", f"optim.fused={way}") for way in ("false", "true")
    )
    assert usual.keys() == fused.keys() and not equal(usual, fused)
    assert all(torch.allclose(value, fused[name], atol=1e-5) for name, value in usual.items())


@pytest.mark.parametrize("method", ["controlnet", "dnaf"])
def test_activations_of_copies_inserted_blocks_and_encoders_are_computed_again(method: str, world: list[str]) -> None:
    kept, gradients = [], []
    for way in ("none", "blocks"):
        data = ["data=mannequin_pairs"] if method == "dnaf" else []
        words = [*data, *world, f"adapter={method}", f"compute.checkpointing={way}", "size=64", "optim.lr=1e-4"]
        with configured("profile", *words) as cfg:
            side = MeasuredMethod(cfg, 1)
        saved: dict[int, torch.Tensor] = {}
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda t, s=saved: s.setdefault(id(t), t), lambda t: t)
        with side.running("train"), hooks:
            loss = side.task.losses(side.batch)["loss"]
        loss.backward()
        weights = {memory(p) for p in side.task.parameters()}
        kept.append(bytes_of(t for t in saved.values() if memory(t) not in weights))
        gradients.append({name: p.grad for name, p in side.adapter.named_parameters() if p.grad is not None})
    assert kept[1] < kept[0] / 3 and gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(value, gradients[1][name]) for name, value in gradients[0].items())


@pytest.mark.parametrize("clip", ["null", "1.0"])
def test_gradients_do_not_exist_together(clip: str, world: list[str]) -> None:
    peaks = []
    for way in ("false", "true"):
        words = [*world, f"optim.clip={clip}", f"optim.in_backward={way}", "batch=1", "size=16", "optim.lr=1e-4"]
        with configured("profile", *words, "compute.checkpointing=blocks") as cfg:
            method = MeasuredMethod(cfg, 1)
        steps = method.run("train")
        with LiveBytes() as live, method.running("train"):
            next(steps)
        peaks.append(live.peak)
    gradients = bytes_of(p for p in method.task.parameters() if p.requires_grad)
    assert peaks[1] < peaks[0] - 0.4 * gradients


def test_every_byte_is_counted_once_and_while_it_lives() -> None:
    with LiveBytes() as live:
        x = torch.zeros(1000)  # 4,000 bytes
        y = x.view(10, 100)[2:]
        assert live.now == 4000
        z = y + 1
        assert live.now == 4000 + 3200
        del x, y
        assert live.now == 3200
        z.add_(1)
    assert live.now == 3200 and live.peak == 7200


def test_encoders_wait_in_the_cpus_memory_until_somebody_asks(world: list[str]) -> None:
    """On a GPU that need not exist: tensors without content."""
    with configured("train", *world, "adapter=controlnet") as cfg, without_content():
        components = Components(cfg)
        components.backbone = StableDiffusion.from_parts(replace(parts_of.__wrapped__(SD2), origin="random"))
        task = build_task(components).to("cuda:0")

        def places() -> list[str]:
            return [next(part.parameters()).device.type for part in (task.backbone.unet, *task.backbone.encoders)]

        assert places() == ["cuda", "cuda", "cuda"]
        task.on_fit_start()
        assert places() == ["cuda", "cpu", "cpu"]
        fetch(task.backbone.autoencoder)  # live validation, between steps
        assert places() == ["cuda", "cpu", "cuda"]
        task.on_train_batch_start(None, 1)
        assert places() == ["cuda", "cpu", "cpu"]
        fetch(task.backbone.text_encoder)  # the step itself: it stays from now on
        task.on_before_backward(torch.zeros(()))
        task.on_train_batch_start(None, 2)
        assert places() == ["cuda", "cuda", "cpu"]
        task.on_fit_end()
        assert not any(hasattr(part, "_hf_hook") for part in task.backbone.encoders)


def fetch(part: nn.Module) -> None:
    """What accelerate's hook does before the part runs."""
    part._hf_hook.pre_forward(part)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_live_validation_fetches_the_encoders_on_a_gpu(
    world: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from posegen.train.tasks import AdapterTask

    seen: list[str] = []
    after = AdapterTask.on_before_backward

    def watched(self: AdapterTask, loss: torch.Tensor) -> None:
        seen.extend(next(part.parameters()).device.type for part in self.backbone.encoders)
        after(self, loss)

    monkeypatch.setattr(AdapterTask, "on_before_backward", watched)
    options = ["adapter=controlnet", "trainer.accelerator=gpu", "validation.every=2", "validation.images=4"]
    assert trained(world, tmp_path, *options) and set(seen) == {"cpu"}
    assert "live/PCK@0.1" in next(tmp_path.rglob("metrics.csv")).read_text()


def test_adamw_with_moments_of_one_byte(world: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It learns nearly what AdamW does, and continues bit for bit."""
    pytest.importorskip("bitsandbytes", reason="pip install 'posegen[8bit]'")
    options = ["adapter=controlnet", "optim.lr=1e-3", "trainer.log_every_n_steps=1"]
    eight = [*options, "optim.optimizer=adamw8bit"]
    whole = trained(world, tmp_path / "whole", *eight)
    with monkeypatch.context() as patch:
        interrupt(patch, after=3)
        with pytest.raises(Stop):
            trained(world, tmp_path / "broken", *eight)
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    moments = [
        value
        for state in torch.load(checkpoint, weights_only=True)["optimizer_states"][0]["state"].values()
        for value in state.get("__bnb_optimizer_quant_state__", state).values()
        if isinstance(value, torch.Tensor)
    ]
    assert torch.uint8 in {value.dtype for value in moments}
    assert equal(whole, trained(world, tmp_path / "broken", *eight, IN_BACKWARD))
    usual = trained(world, tmp_path / "usual", *options)
    assert not equal(whole, usual)
    losses = [
        pd.read_csv(next((tmp_path / name).rglob("metrics.csv")))["train/loss"].dropna().iloc[-1]
        for name in ("whole", "usual")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_a_missing_library_is_named_with_its_install_command(
    world: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes.optim", None)
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    words = [*world, "optim.optimizer=adamw8bit", f"paths.output={tmp_path}"]
    assert main(["train", *words]) == 1
    assert "pip install 'posegen[8bit]', or use optim.optimizer=adamw" in capsys.readouterr().err


@pytest.mark.parametrize("preset", ["gpu_12gb", "gpu_24gb", "gpu_80gb"])
def test_presets_keep_the_batch(preset: str, world: list[str]) -> None:
    with configured("train", *world, "optim.batch=32", f"trainer={preset}") as cfg:
        assert not validate(cfg) and cfg.trainer.precision == "bf16-mixed"
        assert cfg.optim.batch == 32 and cfg.trainer.accumulate_grad_batches == cfg.optim.accumulate > 1
