"""What `posegen profile` measures is what runs; the plain form of a method costs more and computes the same."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
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
from posegen.verbs.profile import COLUMNS, SHARE, phases_of
from posegen.verbs.profiling import measure
from posegen.verbs.profiling.breakdown import SHARES, kind_of
from posegen.verbs.profiling.judging import measure_metrics
from posegen.verbs.profiling.measure import Clock, compare_sides, measure_phase, tick
from posegen.verbs.profiling.sides import Phase, Plain, Side, official_of
from tests.tiny import configured

SMALL = ["size=64", "batch=2", "warmup=1", "repeats=1", "optim.lr=1e-3", "optim.drop_text=0.5"]
METHODS = [
    file.stem
    for file in sorted((conf_dir() / "adapter").glob("*.yaml"))
    if get_class(OmegaConf.load(file)._target_).sample == "image"
]
WAYS = (
    {},
    {"guidance": "sequential"},
    {"guidance": "sequential", "encodes_every_pass": True},
    {"encodes_every_pass": True},
)


@pytest.fixture
def small(world: list[str]) -> list[str]:
    return [*world, *SMALL]


def settings(*overrides: str) -> DictConfig:
    with configured("profile", *overrides) as cfg:
        return OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))


def both(*overrides: str) -> tuple[Side, Plain]:
    """Both sides on the same weights, which are those of a method that has learnt something."""
    cfg = settings(*overrides)
    ours = Side(cfg, 2)
    with torch.no_grad():
        for p in [*ours.adapter.parameters(), *ours.backbone.parameters()]:
            if p.requires_grad:
                p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return ours, Plain(cfg, 2, like=ours)


def results(side: Side, phase: Phase, count: int = 2) -> list[Tensor]:
    repetitions: Iterator[Tensor] = side.run(phase)
    return [tick(side, phase, repetitions, Clock(side.device))[1] for _ in range(count)]


@pytest.mark.parametrize("method", METHODS)
def test_both_sides_compute_the_same(small: list[str], method: str) -> None:
    ours, plain = both(*small, f"adapter={method}")
    expected = results(ours, "sample")
    for way in WAYS:
        plain.sampler.official = replace(plain.official, **way)
        for a, b in zip(expected, results(plain, "sample"), strict=True):
            assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "none"])
def test_both_sides_learn_the_same(small: list[str], method: str) -> None:
    ours, plain = both(*small, f"adapter={method}")
    losses, gradients = [], []
    for side in (ours, plain):
        with side.running("train"):
            losses.append(side.task.losses(side.batch)["loss"])
            losses[-1].backward()
        gradients.append({name: p.grad.clone() for name, p in ours.task.named_parameters() if p.requires_grad})
        side.task.zero_grad()
    assert torch.allclose(*losses, atol=1e-4)
    assert gradients[0] and all(
        torch.allclose(value, gradients[1][name], atol=1e-4) for name, value in gradients[0].items()
    )


def test_the_plain_side_pays_for_what_it_says(small: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ours, plain = both(*small, "adapter=controlnet")
    seen = {}
    for side in (ours, plain):
        passes, encodings = [], []
        hook = side.backbone.unet.register_forward_pre_hook(
            lambda _module, inputs, passes=passes: passes.append(len(inputs[0]))
        )
        encode = side.adapter.encode
        monkeypatch.setattr(
            side.adapter,
            "encode",
            lambda batch, encode=encode, encodings=encodings: encodings.append(1) or encode(batch),
        )
        results(side, "sample")
        hook.remove()
        monkeypatch.undo()
        seen[side.title] = (passes, len(encodings))
    assert seen["posegen"] == ([4, 4], 1)  # two steps: both branches at once, encoded before the first
    assert seen["plain"] == ([2, 2, 2, 2], 1 + 4)


def test_only_the_plain_side_computes_gradients_of_the_frozen_decoder_and_leaves_no_trace(small: list[str]) -> None:
    from diffusers.models.attention_processor import AttnProcessor

    sides = both(*small, "adapter=controlnet")
    unet = sides[0].backbone.unet
    for side, wasted in zip(sides, (False, True), strict=True):
        encoded: list[bool] = []
        hooks = [
            b.register_forward_hook(lambda _m, _i, made, encoded=encoded: encoded.append(made[0].requires_grad))
            for b in unet.down_blocks
        ]
        with side.running("train"):
            assert (
                any(
                    isinstance(getattr(m, "processor", None), AttnProcessor)
                    for m in networks(side.adapter, side.backbone)
                )
                == wasted
            )
            side.task.losses(side.batch)["loss"].backward()
        assert encoded == [False] * len(
            unet.down_blocks
        )  # no graph reaches into the frozen encoder, so none of its activations is kept
        reached = {name.split(".")[0] for name, p in unet.named_parameters() if p.grad is not None}
        assert reached == ({"up_blocks", "conv_norm_out", "conv_out"} if wasted else set())
        unet.zero_grad()
        for hook in hooks:
            hook.remove()
    assert not any(p.requires_grad for p in unet.parameters())
    assert not any(isinstance(getattr(m, "processor", None), AttnProcessor) for m in unet.modules())


def test_an_optimiser_of_the_plain_side_updates_what_trains_alone(small: list[str]) -> None:
    """Its decoder's gradients are nobody's."""
    plain = Plain(settings(*small, "adapter=controlnet"), 1)
    before = {name: p.clone() for name, p in plain.task.named_parameters()}
    results(plain, "train", 1)
    moved = {name for name, p in plain.task.named_parameters() if not torch.equal(before[name], p)}
    assert moved and all(name.startswith("adapter.") for name in moved)
    assert sum(p.numel() for group in plain.optimizer.param_groups for p in group["params"]) == sum(
        p.numel() for p in plain.adapter.parameters()
    )


def test_a_setting_that_changes_the_weights_cannot_be_compared(small: list[str]) -> None:
    cfg = settings(*small, "adapter=t2i_adapter", "official={settings: {blocks: 1}}")
    with pytest.raises(UserError, match=r"official\.settings of T2IAdapter change its weights"):
        Plain(cfg, 1, like=Side(cfg, 1))


def test_flops_parameters_and_seconds(small: list[str]) -> None:
    config = OmegaConf.to_container(settings(*small, "adapter=none", "sampler.guidance=3"))
    once, guided = measure_phase(config, "forward"), measure_phase(config, "sample")
    assert guided["flops"] == 2 * once["flops"] > 0  # two branches
    assert once["trained_parameters"] == once["adapter_parameters"] == 0 < once["unet_parameters"]
    assert len(once["seconds"]) == 1 and once["seconds"][0] > 0 and once["memory_mb"] > 50
    assert sum(once["shares"].values()) == pytest.approx(1) and min(once["shares"].values()) >= 0
    assert once["shares"]["convolution"] > 0.02 and once["matrix_rate"] > 1e9
    found = compare_sides(config, ["sample"])
    assert found["phases"]["sample"]["difference"] < 1e-4
    assert set(found["phases"]["sample"]["seconds"]) == set(found["notes"]) == {"posegen", "plain"}


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
    assert kind_of(name) == kind


def test_ways_of_computing_hold_for_any_method(small: list[str]) -> None:
    usual, other = (
        Side(settings(*small, "adapter=controlnet", f"compute.channels_last={flag}"), 2) for flag in ("false", "true")
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
        side = Side(settings(*small, "adapter=controlnet", f"compute.checkpointing={way}"), 1)
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
    def computed() -> tuple[Side, list[Tensor]]:
        side = Side(settings(*small, f"adapter={method}", "trainer.precision=bf16-mixed"), 2)
        return side, [*results(side, "sample"), *(results(side, "train") if side.adapter.trainable else [])]

    kept, ours = computed()
    monkeypatch.setattr("posegen.runner.precision.keep_cast", lambda *_: None)
    _, plain = computed()
    assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))
    frozen = [
        m.weight
        for m in kept.backbone.unet.modules()
        if isinstance(m, torch.nn.Conv2d | torch.nn.Linear) and not m.weight.requires_grad
    ]
    assert all(weight.dtype == torch.bfloat16 for weight in frozen) and bool(frozen) == (method != "humansd")
    assert not any(p.dtype == torch.bfloat16 for p in kept.task.parameters() if p.requires_grad)


def test_the_metrics_have_a_comparison_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from posegen.metrics.timing import coco, decode, distances

    for module, sizes in (
        (coco, {"images": 20, "people": 40, "detections": 60}),
        (distances, {"images": 40, "dimensions": 8, "subsets": 3, "size": 10}),
    ):
        monkeypatch.setattr(module, "measure", partial(module.measure, **sizes))
    monkeypatch.setattr(decode, "SIZE", 128)
    rows = measure_metrics({"repeats": 1, "trainer": {"threads": 1}})
    assert len(rows) == 6 and all(row["ratio"] > 0 and row["difference"] < 1e-3 for row in rows)


def test_a_way_that_nobody_knows_is_named(small: list[str]) -> None:
    with pytest.raises(
        UserError, match=r"trainer\.checkpointing=some is unknown; expected one of none, feedforward, blocks"
    ):
        Side(settings(*small, "adapter=none", "compute.checkpointing=some"), 1)


def test_precision_is_that_of_the_trainer(small: list[str]) -> None:
    single, half = (
        results(Side(settings(*small, "adapter=none", f"trainer.precision={p}"), 1), "forward", 1)[0]
        for p in ("32-true", "bf16-mixed")
    )
    assert single.dtype == torch.float32 and half.dtype == torch.bfloat16
    with pytest.raises(UserError, match=r"trainer\.precision=64-true is not known"):
        results(Side(settings(*small, "adapter=none", "trainer.precision=64-true"), 1), "forward", 1)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("phases=[walk]", r"phases=\['walk'\]: walk is no phase; expected some of forward, train, sample"),
        ("adapter=reference/real", r"adapter reference/real is a reference row"),
        ("repeats=0", r"repeats=0: expected at least 1"),
        ("phases=[]", r"nothing of that is done by adapter controlnet; add sample"),
    ],
)
def test_what_cannot_be_measured_is_refused(override: str, message: str) -> None:
    with configured("profile", override) as cfg, pytest.raises(UserError, match=message):
        phases_of(cfg)


def test_the_released_program_is_described_by_known_words() -> None:
    cfg = settings("official={guidence: batched}")
    with pytest.raises(
        UserError, match=r"official\.guidence is no part of a released program; expected some of settings, guidance"
    ):
        official_of(cfg)


def test_the_verb_prints_a_table_and_writes_it(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure, "alone", lambda function, *arguments: function(*arguments))
    words = [*small, "adapter=controlnet", "phases=[train]", f"paths.output={tmp_path}"]
    for compare, columns in (
        ("false", {*COLUMNS, *(kind + SHARE for kind in SHARES)}),
        ("true", {"what", "posegen", "plain", "ratio", "ratio of"}),
    ):
        assert main(["profile", *words, f"compare={compare}"]) == 0
        printed = capsys.readouterr().out
        assert printed.splitlines()[1].startswith("training step") and "parameters: U-Net" in printed
        if compare == "false":
            merged = list(csv.DictReader((tmp_path / "profile" / "profile.csv").open()))
            assert [(row["method"], row["computed"], row["what"]) for row in merged] == [
                ("controlnet", "eager", "training step")
            ]
            assert list(merged[0])[8:11] == ["what", "ms", "img/s"]
        file = tmp_path / "profile" / "controlnet" / ("mannequin-compared" if compare == "true" else "mannequin")
        facts = json.loads(file.with_suffix(".json").read_text())
        rows = list(csv.DictReader(file.with_suffix(".csv").open()))
        assert [set(row) for row in rows] == [columns] * len(facts["rows"]) and facts["settings"]["size"] == 64
        values = {name: float(value) for name, value in rows[0].items() if name not in ("what", "ratio of")}
        assert all(value == facts["rows"][0][name] for name, value in values.items())
        assert all(value > 0 for name, value in values.items() if not name.endswith(SHARE))
    assert [row["what"] for row in rows] == ["training step, ms", "peak training memory, MiB"]


def test_measurements_run_in_processes_of_their_own() -> None:
    assert measure.alone(os.getpid) != os.getpid()
    with pytest.raises(
        UserError,
        match=r"the process that ran _exit.* was killed, most likely for want of memory; lower size= or batch=",
    ):
        measure.alone(os._exit, 1)
