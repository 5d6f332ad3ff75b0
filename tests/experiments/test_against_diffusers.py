"""diffusers' pipeline and training formulation compute what posegen computes, and the GPU script survives failures."""

from __future__ import annotations

import csv
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from experiments.profile import against_diffusers, gpu
from experiments.profile.against_diffusers import sampled, type_and_compiled, with_weights_of
from experiments.profile.gpu import Measurement, Setting, work
from posegen.errors import UserError
from tests.backbones.models import SD1, parts_of

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tiny(tmp_path: Path) -> list[str]:
    parts_of(SD1).save(tmp_path / "tiny")
    sizes = ["size=64", "warmup=0", "repeats=1", "trainer.accelerator=cpu", "trainer.precision=32-true"]
    return [
        *("backbone.initialise=pretrained", f"backbone.path={tmp_path / 'tiny'}", *sizes),
        *(f"paths.output={tmp_path}", f"paths.cache={tmp_path}", "compute.packed=true"),
    ]


def rows_of(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.open()))


@pytest.mark.parametrize("phase", ["sample", "train"])
def test_both_sides_compute_the_same_and_the_ratios_are_written(
    tiny: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    phase: str,
) -> None:
    monkeypatch.setattr(against_diffusers, "in_fresh_process", lambda function, *arguments: function(*arguments))
    # packed weights change the rounding, of which AdamW's first steps make whole steps
    against_diffusers.main([phase, *tiny, *(["compute.packed=false"] if phase == "train" else [])])
    assert "medians of 1 in turns" in capsys.readouterr().out
    (file,) = tmp_path.rglob(f"*-against-diffusers-{phase}.csv")
    rows = rows_of(file)
    assert len(rows) == (2 if phase == "sample" else 3) and all(float(row["ratio"]) > 0 for row in rows)
    assert all(float(row["difference"]) < 1e-4 for row in rows)


def test_the_branch_takes_part_in_the_comparison(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal latents would prove little if the zero convolutions were zero."""
    with against_diffusers.composed("profile", (*against_diffusers.USUAL, *tiny)) as cfg:
        config: Any = OmegaConf.to_container(cfg, resolve=True)
    monkeypatch.setattr(against_diffusers, "with_weights_of", unlike)
    assert sampled(config, "fp32")["difference"] > 1e-3


def unlike(network: torch.nn.Module, *way: Any) -> Any:
    copy = with_weights_of(network, *way)
    if hasattr(copy, "controlnet_mid_block"):
        copy.controlnet_mid_block = torch.nn.Identity()
    return copy


def test_a_way_that_diffusers_has_not_is_refused() -> None:
    assert type_and_compiled("bf16-compiled") == (torch.bfloat16, True)
    with pytest.raises(UserError, match="theirs=int8 is no way of computing; expected fp32 or bf16, with or without"):
        type_and_compiled("int8")


def test_what_fails_on_a_gpu_or_finds_no_time_is_a_row(tiny: list[str], tmp_path: Path) -> None:
    def failing(_setting: Setting) -> list[dict[str, Any]]:
        raise RuntimeError("CUDA out of memory\nand more")

    def working(_setting: Setting) -> list[dict[str, Any]]:
        return [{"side": "posegen", "ms": 1.5, "ratio": 2.0}]

    listed = [Measurement("a", 1, failing), Measurement("b", 1, working), Measurement("c", 99, working)]
    overrides = [override for override in tiny if override != "trainer.accelerator=cpu"]
    out = tmp_path / "gpu.csv"
    out.write_text(",".join(gpu.COLUMNS) + "\n")
    work(listed, Setting([*overrides, "backbone=sd15"]), 0, time.time() + 50, out)
    rows = rows_of(out)
    assert [row["name"] for row in rows] == ["a", "b", "c"] and rows[1]["ratio"] == "2"
    assert rows[0]["problem"] == "RuntimeError: CUDA out of memory"
    assert rows[2]["problem"].startswith("not tried: ") and not out.with_suffix(".running").exists()


def test_the_most_important_measurements_come_first() -> None:
    names = [each.name for each in gpu.measurements()]
    assert names[0] == "matrix rate" and names.index("tests") < 6 and len(names) == len(set(names))
    methods = {name.split()[0] for name in names if name.endswith(("sample eager", "train compiled"))}
    assert methods == set(gpu.METHODS)


@pytest.mark.slow
def test_the_gpu_script_runs_on_the_cpu_and_goes_on_behind_a_process_that_died(tmp_path: Path) -> None:
    out, script = tmp_path / "gpu.csv", ROOT / "experiments" / "profile" / "gpu.sh"
    words = ["--dry-run", "--out", str(out), "--only", "none", "sample", "eager"]
    assert subprocess.run([script, *words], check=False).returncode == 0
    assert [row["problem"] for row in rows_of(out)] == [""]
    ended = subprocess.run([script, *words, "--seconds", "-100"], check=False)
    assert ended.returncode == 0 and rows_of(out)[0]["problem"]
