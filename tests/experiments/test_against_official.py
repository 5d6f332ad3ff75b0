"""The plain form of a method costs more than posegen's and computes the same; so do the plain forms of the metrics."""

from __future__ import annotations

import csv
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from omegaconf import OmegaConf

from experiments.profile import against_official, decoding, metrics
from experiments.profile.against_official import Official, PlainMethod, compare_sides, official_of
from posegen.errors import UserError
from posegen.runner.precision import networks
from posegen.train.profiling import MeasuredMethod
from tests.tiny import on_transformer
from tests.verbs.test_profile import METHODS, SMALL, results, settings

ROOT = Path(__file__).parents[2]

WAYS = (
    {},
    {"guidance": "sequential"},
    {"guidance": "sequential", "encodes_every_pass": True},
    {"encodes_every_pass": True},
)


@pytest.fixture
def small(world: list[str]) -> list[str]:
    return [*world, *SMALL]


def both(*overrides: str) -> tuple[MeasuredMethod, PlainMethod]:
    """Both sides on the same weights, which are those of a method that has learnt something."""
    cfg = settings(*overrides)
    ours = MeasuredMethod(cfg, 2)
    with torch.no_grad():
        for p in [*ours.adapter.parameters(), *ours.backbone.parameters()]:
            if p.requires_grad:
                p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return ours, PlainMethod(cfg, 2, official_of(cfg.method), like=ours)


def words_of(small: list[str], method: str) -> list[str]:
    return [*(on_transformer(small) if method == "token_control" else small), f"adapter={method}"]


@pytest.mark.parametrize("method", METHODS)
def test_both_sides_compute_the_same(small: list[str], method: str) -> None:
    ours, plain = both(*words_of(small, method))
    expected = results(ours, "sample")
    for way in WAYS:
        plain.sampler.official = replace(plain.official, **way)
        for a, b in zip(expected, results(plain, "sample"), strict=True):
            assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "none"])
def test_both_sides_learn_the_same(small: list[str], method: str) -> None:
    ours, plain = both(*words_of(small, method))
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
        seen["plain" if side is plain else "posegen"] = (passes, len(encodings))
    assert seen["posegen"] == ([4, 4], 1)  # two steps: both branches at once, encoded before the first
    assert seen["plain"] == ([2, 2, 2, 2], 1 + 4)


def test_only_the_plain_side_computes_gradients_of_the_frozen_decoder_and_leaves_no_trace(small: list[str]) -> None:
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
    plain = PlainMethod(settings(*small, "adapter=controlnet"), 1, official_of("controlnet"))
    before = {name: p.clone() for name, p in plain.task.named_parameters()}
    results(plain, "train", 1)
    moved = {name for name, p in plain.task.named_parameters() if not torch.equal(before[name], p)}
    assert moved and all(name.startswith("adapter.") for name in moved)
    assert sum(p.numel() for group in plain.optimizer.param_groups for p in group["params"]) == sum(
        p.numel() for p in plain.adapter.parameters()
    )


def test_a_setting_that_changes_the_weights_cannot_be_compared(small: list[str]) -> None:
    cfg = settings(*small, "adapter=t2i_adapter")
    with pytest.raises(UserError, match=r"official\.settings of T2IAdapter change its weights"):
        PlainMethod(cfg, 1, Official(settings={"blocks": 1}), like=MeasuredMethod(cfg, 1))


def test_the_metrics_have_a_comparison_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    small_sizes = {
        "measure_keypoint_ap": {"images": 20, "people": 40, "detections": 60},
        "measure_distances": {"images": 40, "dimensions": 8, "subsets": 3, "size": 10},
    }
    for name, sizes in small_sizes.items():
        monkeypatch.setattr(metrics, name, partial(getattr(metrics, name), **sizes))
    monkeypatch.setattr(decoding, "SIZE", 128)
    rows = metrics.measure_metrics(repeats=1)
    assert len(rows) == 6 and all(row["ratio"] > 0 and row["difference"] < 1e-3 for row in rows)


def test_the_released_program_is_described_by_known_words() -> None:
    with pytest.raises(
        UserError, match=r"official\.guidence is no part of a released program; expected some of settings, guidance"
    ):
        official_of("controlnet", {"guidence": "batched"})


def test_the_script_prints_a_table_and_writes_it(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(against_official, "in_fresh_process", lambda function, *arguments: function(*arguments))
    words = [*small, "adapter=controlnet", "phases=[train]", f"paths.output={tmp_path}", "official.guidance=batched"]
    against_official.main(words)
    printed = capsys.readouterr().out
    assert "training step, ms" in printed and "guidance: batched" in printed and "parameters: U-Net" in printed
    rows = list(csv.DictReader((tmp_path / "profile" / "controlnet" / "mannequin-compared.csv").open()))
    assert [row["what"] for row in rows] == ["training step, ms", "peak training memory, MiB"]
    assert list(rows[0]) == ["what", "posegen", "plain", "ratio", "ratio of"] and float(rows[0]["ratio"]) > 0


def test_both_sides_are_measured_in_turn(small: list[str]) -> None:
    config: Any = OmegaConf.to_container(settings(*small, "adapter=none", "sampler.guidance=3"))
    found = compare_sides(config, ["sample"], official_of("none"))
    assert found["difference"] < 1e-4 and set(found["seconds"]["sample"]) == {"posegen", "plain"}


def test_the_scripts_start_as_programs(tmp_path: Path) -> None:
    """Their processes must find the functions that they are to run."""
    words = ["adapter=none", "phases=[sample]", "size=64", "repeats=1", "warmup=0", f"paths.output={tmp_path}"]
    script = ROOT / "experiments" / "profile" / "against_official.py"
    done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "guided sampling step, ms" in done.stdout, done.stderr
