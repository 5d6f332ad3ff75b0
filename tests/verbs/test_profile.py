"""What `posegen profile` measures is what runs."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from posegen.cli import main
from posegen.config.groups import conf_dir
from posegen.errors import UserError
from posegen.runner.precision import arrange, keeping, networks
from posegen.train.profiling import (
    SHARES,
    Clock,
    MeasuredMethod,
    Phase,
    in_fresh_process,
    kernel_kind,
    measure_phase,
    timed_step,
)
from posegen.verbs import profile
from posegen.verbs.profile import PROFILE_COLUMNS, SHARE, phases_of
from tests.tiny import configured, on_transformer

SMALL = ["size=64", "batch=2", "warmup=1", "repeats=1", "optim.lr=1e-3", "optim.drop_text=0.5"]
METHODS = [
    file.stem
    for file in sorted((conf_dir() / "adapter").glob("*.yaml"))
    if get_class(OmegaConf.load(file)._target_).sample == "image"
]


@pytest.fixture
def small(world: list[str]) -> list[str]:
    return [*world, *SMALL]


def settings(*overrides: str) -> DictConfig:
    with configured("profile", *overrides) as cfg:
        return OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))


def results(side: MeasuredMethod, phase: Phase, count: int = 2) -> list[Tensor]:
    repetitions: Iterator[Tensor] = side.run(phase)
    return [timed_step(side, phase, repetitions, Clock(side.device))[1] for _ in range(count)]


def test_flops_parameters_and_seconds(small: list[str]) -> None:
    config = OmegaConf.to_container(settings(*small, "adapter=none", "sampler.guidance=3"))
    once, guided = measure_phase(config, "forward"), measure_phase(config, "sample")
    assert guided["flops"] == 2 * once["flops"] > 0  # two branches
    assert once["trained_parameters"] == once["adapter_parameters"] == 0 < once["unet_parameters"]
    assert len(once["seconds"]) == 1 and once["seconds"][0] > 0 and once["memory_mb"] > 50
    assert sum(once["shares"].values()) == pytest.approx(1) and min(once["shares"].values()) >= 0
    assert once["shares"]["convolution"] > 0.02 and once["matrix_rate"] > 1e9


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::mkldnn_convolution", "convolution"),
        ("aten::convolution_backward", "convolution"),
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64", "convolution"),
        ("aten::addmm", "matrix product"),
        ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_NNT", "matrix product"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128, 4>>", "attention"),
        ("aten::native_group_norm", "normalisation"),
        ("aten::_fused_adamw_", "optimiser"),
        ("aten::copy_", "copy"),
        ("aten::silu", "pointwise and other"),
        ("triton_poi_fused_add_mul_3", "pointwise and other"),
    ],
)
def test_operators_and_kernels_are_of_a_kind(name: str, kind: str) -> None:
    assert kernel_kind(name) == kind


def test_ways_of_computing_hold_for_any_method(small: list[str]) -> None:
    usual, other = (
        MeasuredMethod(settings(*small, "adapter=controlnet", f"compute.channels_last={flag}"), 2)
        for flag in ("false", "true")
    )
    for side, flag in ((usual, False), (other, True)):
        assert side.backbone.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last) == flag
        assert side.adapter.branch.network.conv_in.weight.is_contiguous(memory_format=torch.channels_last) == flag
    assert torch.allclose(results(usual, "forward", 1)[0], results(other, "forward", 1)[0], atol=1e-4)
    for network in (usual.adapter, usual.backbone):
        arrange(network, compile=True, checkpointing="blocks")
    blocks = [m for m in networks(usual.adapter, usual.backbone) if type(m).__name__ == "BasicTransformerBlock"]
    assert blocks and all(block._compiled_call_impl for block in blocks)
    assert usual.backbone.unet.is_gradient_checkpointing and usual.adapter.branch.network.is_gradient_checkpointing


def test_feed_forward_layers_keep_less_and_give_the_same_gradients(small: list[str]) -> None:
    kept, gradients = {}, {}
    for way in ("none", "feedforward"):
        side = MeasuredMethod(settings(*small, "adapter=controlnet", f"compute.checkpointing={way}"), 1)
        sizes: dict[int, int] = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, s=sizes: (s.update({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()}), t)[1],
            lambda t: t,
        ):
            loss = side.task.losses(side.batch)["loss"]
        loss.backward()
        kept[way] = sum(sizes.values())
        gradients[way] = {name: p.grad for name, p in side.adapter.named_parameters() if p.grad is not None}
    assert kept["feedforward"] < 0.97 * kept["none"]
    assert gradients["none"].keys() == gradients["feedforward"].keys() and all(
        torch.equal(g, gradients["feedforward"][k]) for k, g in gradients["none"].items()
    )
    with keeping(*networks(side.adapter, side.backbone)):
        assert not any("forward" in vars(m) for m in networks(side.adapter, side.backbone))
    assert any("forward" in vars(m) for m in networks(side.adapter, side.backbone))


@pytest.mark.parametrize("method", METHODS)
def test_frozen_weights_are_cast_once_and_no_bit_changes(
    small: list[str], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    words = on_transformer(small) if method == "token_control" else small

    def computed() -> tuple[MeasuredMethod, list[Tensor]]:
        side = MeasuredMethod(settings(*words, f"adapter={method}", "trainer.precision=bf16-mixed"), 2)
        return side, [*results(side, "sample"), *(results(side, "train") if side.adapter.trainable else [])]

    kept, ours = computed()
    monkeypatch.setattr("posegen.runner.precision.keep_cast", lambda *_: None)
    _, plain = computed()
    assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))
    convolutions = (m for m in kept.backbone.network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear))
    trains = any(p.requires_grad for p in kept.backbone.network.parameters())  # then all of it is saved, in full
    assert {m.weight.dtype for m in convolutions} == {torch.float32 if trains else torch.bfloat16}
    assert not any(p.dtype == torch.bfloat16 for p in kept.task.parameters() if p.requires_grad)


def test_a_way_that_nobody_knows_is_named(small: list[str]) -> None:
    with pytest.raises(
        UserError, match=r"compute\.checkpointing=some is unknown; expected one of none, feedforward, blocks"
    ):
        MeasuredMethod(settings(*small, "adapter=none", "compute.checkpointing=some"), 1)


def test_precision_is_that_of_the_trainer(small: list[str]) -> None:
    single, half = (
        results(MeasuredMethod(settings(*small, "adapter=none", f"trainer.precision={p}"), 1), "forward", 1)[0]
        for p in ("32-true", "bf16-mixed")
    )
    assert single.dtype == torch.float32 and half.dtype == torch.bfloat16
    with pytest.raises(UserError, match=r"trainer\.precision=64-true is not known"):
        results(MeasuredMethod(settings(*small, "adapter=none", "trainer.precision=64-true"), 1), "forward", 1)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("adapter=reference/real", r"adapter reference/real is a reference row"),
        ("phases=[]", r"nothing of that is done by adapter controlnet; add sample"),
    ],
)
def test_what_cannot_be_measured_is_refused(override: str, message: str) -> None:
    with configured("profile", override) as cfg, pytest.raises(UserError, match=message):
        phases_of(cfg)


def test_the_verb_prints_a_table_and_writes_it(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(profile, "in_fresh_process", lambda function, *arguments: function(*arguments))
    words = [*small, "adapter=controlnet", "phases=[train]", f"paths.output={tmp_path}"]
    assert main(["profile", *words]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[1].startswith("training step") and "parameters: U-Net" in printed
    merged = list(csv.DictReader((tmp_path / "profile" / "profile.csv").open()))
    assert [(row["method"], row["computed"], row["what"]) for row in merged] == [
        ("controlnet", "eager", "training step")
    ]
    assert list(merged[0])[8:11] == ["what", "ms", "img/s"]
    file = tmp_path / "profile" / "controlnet" / "mannequin"
    facts = json.loads(file.with_suffix(".json").read_text())
    rows = list(csv.DictReader(file.with_suffix(".csv").open()))
    assert [set(row) for row in rows] == [{*PROFILE_COLUMNS, *(kind + SHARE for kind in SHARES)}]
    assert facts["settings"]["size"] == 64
    values = {name: float(value) for name, value in rows[0].items() if name != "what"}
    assert all(value == facts["rows"][0][name] for name, value in values.items())
    assert all(value > 0 for name, value in values.items() if not name.endswith(SHARE))


@pytest.mark.parametrize(("override", "script"), [("compare=true", "against_official"), ("what=metrics", "metrics")])
def test_the_developers_benchmarks_are_named(override: str, script: str) -> None:
    with configured("profile", override) as cfg, pytest.raises(UserError, match=f"experiments/profile/{script}.py"):
        phases_of(cfg)


def test_measurements_run_in_processes_of_their_own() -> None:
    assert in_fresh_process(os.getpid) != os.getpid()
    with pytest.raises(
        UserError,
        match=r"the process that ran _exit.* was killed, most likely for want of memory; lower size= or batch=",
    ):
        in_fresh_process(os._exit, 1)
