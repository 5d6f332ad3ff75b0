"""``posegen parity`` from the command line, on a case whose expected tensors come from diffusers' own ControlNet."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hydra.utils import get_class
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from posegen.cli import main
from posegen.config.groups import conf_dir
from posegen.parity.compare import port_of
from posegen.verbs.parity import NO_PROGRAM
from tests.parity.small_case import alter, make


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("cases") / "tiny")


@pytest.fixture
def case(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "cases" / "tiny"))


def output(folder: Path, name: str) -> torch.Tensor:
    return load_file(folder / "io.safetensors")[f"out.{name}"]


def told(capsys: pytest.CaptureFixture[str], line: str) -> str:
    """The line of the report that begins with ``line``."""
    out = capsys.readouterr().out
    return next(
        (row.strip() for row in out.splitlines() if row.split() and row.split()[0] == line),
        f"no line for {line} in\n{out}",
    )


def test_what_diffusers_computes_is_computed(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parity", str(case)]) == 0
    out = capsys.readouterr().out
    assert (
        out.splitlines()[1].split()
        == ["tiny", "controlnet", "11", "of", "11", *out.splitlines()[1].split()[5:8], "passed"]
        and "passed: 11 of 11 tensors agree" in out
        and out.endswith("1 of 1 cases passed\n")
    )
    assert "FAILED" not in out


def test_one_wrong_value_fails_by_name(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = output(case, "eps_strength")
    wrong[1, 2, 3, 4] += 0.01
    alter(case, eps_strength=wrong)
    assert main(["parity", str(case)]) == 1
    out = capsys.readouterr().out
    assert "0 of 1 cases passed" in out and "FAILED: 10 of 11 tensors agree" in out
    (failed,) = [row for row in out.splitlines() if row.startswith("  ") and row.endswith("%  FAILED")]
    assert failed.split()[:3] == ["eps_strength", "abs", "1.00e-02"] and f"outside {1 / wrong.numel():7.3%}" in failed


def test_outputs_that_are_missing_or_of_another_shape_fail_by_name_and_absent_ones_are_not_asked_for(
    case: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alter(case, invented=torch.zeros(1), eps_mid_only=None, eps=output(case, "eps")[:1])
    assert main(["parity", str(case)]) == 1
    out = capsys.readouterr().out
    rows = {row.split()[0]: row.strip() for row in out.splitlines() if "FAILED:" in row}
    assert rows["invented"].endswith("FAILED: not computed")
    assert rows["eps"].endswith("FAILED: has shape [2, 4, 8, 16] instead of [1, 4, 8, 16]")
    assert "FAILED: 9 of 11 tensors agree" in out


def test_a_failed_case_does_not_hide_another(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(case, case.parent / "other")
    alter(case.parent / "other", eps=output(case, "eps") + 1)
    assert main(["parity", str(case.parent)]) == 1
    assert capsys.readouterr().out.endswith("1 of 2 cases passed\n")


def test_a_weight_without_a_place_is_named(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = load_file(case / "weights.safetensors")
    save_file({**weights, "control_model.invented.weight": torch.zeros(1)}, case / "weights.safetensors")
    assert main(["parity", str(case)]) == 1
    assert "control_model.invented.weight" in told(capsys, "FAILED:")


def test_a_method_that_posegen_does_not_have_is_named_and_counted(
    case: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(case, case.parent / "other")
    facts = json.loads((case / "case.json").read_text())
    (case / "case.json").write_text(json.dumps({**facts, "method": "invented"}))
    assert main(["parity", str(case)]) == 1, "nothing was compared"
    assert "no such method here: posegen has no method 'invented'" in told(capsys, "no")
    assert main(["parity", str(case.parent)]) == 0
    assert capsys.readouterr().out.endswith("1 of 1 cases passed; 1 of methods that posegen does not have\n")


def test_a_size_that_the_port_does_not_have_is_one_sentence(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = json.loads((case / "case.json").read_text())
    (case / "case.json").write_text(json.dumps({**facts, "method": "humansd", "config": {"parameterization": "v"}}))
    assert main(["parity", str(case), str(case)]) == 1
    out = capsys.readouterr().out
    assert "cannot be expressed: " in out and "HumanSD predicts the noise" in out
    assert out.endswith("0 of 2 cases passed; 2 cannot be expressed\n")


def test_a_case_may_be_a_zip_file(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.make_archive(str(case.parent / "packed"), "zip", case)
    shutil.rmtree(case)
    assert main(["parity", str(case.parent)]) == 0
    assert "passed: 11 of 11 tensors agree" in capsys.readouterr().out
    (case.parent / "packed.zip").write_bytes(b"PK damaged")
    assert "is no reference case" in fails_with_one_message(capsys, str(case.parent / "packed.zip"))


def test_the_shipped_cases_prove_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parity"]) == 0
    out = capsys.readouterr().out
    assert out.endswith("30 of 30 cases passed\n") and "FAILED" not in out
    methods = {row.split()[1] for row in out.splitlines()[1:] if row.endswith("passed") and " of 30 " not in row}
    trained = {
        file.stem
        for file in (conf_dir() / "adapter").glob("*.yaml")
        if get_class(OmegaConf.load(file)._target_).trainable
    }
    without = {name for names in NO_PROGRAM for name in names.split(", ")}
    assert trained - without == methods - {"metrics", "higherhrnet", "reward"}
    assert all(f"{names}: " in out for names in NO_PROGRAM) and not any(port_of(name) for name in without)


def fails_with_one_message(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Runs the command, which is to fail before it compares; returns the message."""
    assert main(["parity", *arguments]) != 0
    printed = capsys.readouterr()
    message = printed.out + printed.err
    assert "Traceback" not in message and "cases passed" not in message
    return message


@pytest.mark.parametrize("file", ["io.safetensors", "weights.safetensors", "case.json"])
def test_a_damaged_file_is_one_clear_error(case: Path, capsys: pytest.CaptureFixture[str], file: str) -> None:
    (case / file).write_bytes((case / file).read_bytes()[:40])
    message = fails_with_one_message(capsys, str(case))
    assert (
        message.count(str(case)) == 1
        and "is no reference case" in message
        and "expected case.json and io.safetensors" in message
    )


def test_a_case_that_does_not_say_its_method_is_one_clear_error(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (case / "case.json").write_text('{"module": "whole forward"}')
    assert "case.json does not say config, method" in fails_with_one_message(capsys, str(case))


def test_no_case_is_one_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"{tmp_path}: no reference case here" in fails_with_one_message(capsys, str(tmp_path))
    assert "nowhere: no reference case here" in fails_with_one_message(capsys, str(tmp_path / "nowhere"))
