"""Official weights become a method folder, or an error that accounts for every key."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from posegen.backbones import ldm_keys as ldm
from posegen.runner.checkpoints import load_into, load_method
from posegen.runner.convert import convert
from posegen.runner.errors import UserError
from posegen.runner.hydra_app import run_hydra
from posegen.runner.parts import Parts
from posegen.runner.verbs import VERBS
from tests.tiny import configured

TABLES = {"controlnet": (ldm.control_table, ldm.CONTROL), "humansd": (ldm.unet_table, ldm.UNET)}


class Attack:
    """Runs a command when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> object:
        return os.system, (f"touch {self.trace}",)


@pytest.fixture(params=TABLES)
def method(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def backbone(world: list[str]) -> list[str]:
    return [word for word in world if word.startswith("backbone.")]


@pytest.fixture
def trained(method: str, backbone: list[str]) -> Iterator[Parts]:
    """A method and its backbone with weights that no fresh ones have."""
    with configured("train", *backbone, f"adapter={method}") as cfg:
        parts = Parts(cfg)
        with torch.no_grad():
            for p in [*parts.adapter.parameters(), *parts.backbone.parameters()]:
                if p.requires_grad:
                    p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
        yield parts


@pytest.fixture
def official(method: str, trained: Parts) -> dict[str, Tensor]:
    """The trained part under its original names."""
    table, prefix = TABLES[method]
    module = trained.adapter.branch.network if method == "controlnet" else trained.backbone.unet
    renamed = ldm.renamed(module.state_dict(), ldm.inverse(table(trained.backbone.geometry)))
    assert not renamed.unknown
    return {prefix + key: value.clone() for key, value in renamed.tensors.items()}


def whole(official: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with what lies beside it in a whole model's file."""
    beside = dict.fromkeys(["first_stage_model.quant_conv.bias", "cond_stage_model.x", "betas", "alphas_cumprod"], torch.zeros(2))
    return official | beside | ({"model.diffusion_model.out.2.bias": torch.zeros(4)} if ldm.has_prefix(official, ldm.CONTROL) else {})


def run(method: str, backbone: list[str], source: Path, target: Path) -> None:
    with configured("convert", *backbone, f"adapter={method}", f"source={source}", f"target={target}") as cfg:
        convert(cfg.adapter, cfg.backbone, cfg.source, cfg.target)


def saved(tensors: dict[str, Tensor], file: Path) -> Path:
    save_file(tensors, file) if file.suffix == ".safetensors" else torch.save({"state_dict": tensors, "global_step": 1}, file)
    return file


def test_a_converted_folder_holds_the_trained_method(
    method: str, backbone: list[str], trained: Parts, official: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = saved(whole(official), tmp_path / "official.ckpt"), tmp_path / "method"
    run(method, backbone, source, target)
    printed = capsys.readouterr().out
    place = "adapter.safetensors" if method == "controlnet" else "backbone/unet"
    assert f"taken           {len(official):5}  into {place}\n" in printed
    assert "ignored by rule     2  betas, ...: the noise process" in printed and "ignored by rule     1  first_stage_model: the autoencoder" in printed
    assert ("model.diffusion_model: the file's own U-Net; the method runs on that of the configured backbone" in printed) == (method == "controlnet")
    about = json.loads((target / "posegen.json").read_text())
    assert about["faithful"] and about["converted"]["file"] == "official.ckpt" and len(about["converted"]["sha256"]) == 64
    again = Parts(trained.cfg)
    load_into(again.adapter, again.backbone, target)
    for own, wanted in ((again.adapter, trained.adapter), (again.backbone, trained.backbone)):
        assert all(torch.equal(value, wanted.state_dict()[key]) for key, value in own.state_dict().items())
    assert load_method(target, Parts(trained.cfg).backbone).faithful


def test_a_controlnet_is_also_a_plain_diffusers_folder(backbone: list[str], tmp_path: Path) -> None:
    from diffusers import ControlNetModel

    with configured("train", *backbone, "adapter=controlnet") as cfg:
        network = Parts(cfg).adapter.branch.network
    network.save_pretrained(tmp_path / "diffusers")
    run("controlnet", backbone, tmp_path / "diffusers" / "diffusion_pytorch_model.safetensors", tmp_path / "method")
    again = ControlNetModel.from_pretrained(tmp_path / "method" / "controlnet").state_dict()
    assert all(torch.equal(value, again[key]) for key, value in network.state_dict().items())


SPOILT: dict[str, tuple[Callable[[dict[str, Tensor], str], object], str]] = {
    "missing": (lambda tensors, key: tensors.pop(key), r"1 missing: (adapter\.branch\.network|backbone\.unet)\.conv_in\.bias"),
    "unexpected": (lambda tensors, key: tensors.update({"lora.up": torch.zeros(1)}), r"1 unexpected: lora\.up"),
    "mis-shaped": (lambda tensors, key: tensors.update({key: torch.zeros(5)}), r"1 mis-shaped: .*conv_in\.bias \[5\] instead of \[16\]"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_key_that_is_out_of_place_is_named_and_nothing_is_written(
    method: str, backbone: list[str], official: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    spoil, message = SPOILT[kind]
    spoil(official, f"{TABLES[method][1]}input_blocks.0.0.bias")
    with pytest.raises(UserError, match=rf"official\.safetensors does not fit \w+ on backbone [\w-]+: {message}\. Nothing was written; choose the adapter="):
        run(method, backbone, saved(official, tmp_path / "official.safetensors"), tmp_path / "method")
    assert f"  {kind:15}     1\n" in capsys.readouterr().out + "\n"
    assert not (tmp_path / "method").exists()


def test_a_file_that_asks_to_run_code_is_refused(backbone: list[str], tmp_path: Path) -> None:
    source, trace = tmp_path / "evil.pth", tmp_path / "trace"
    torch.save({"state_dict": {"control_model.x": torch.zeros(1)}, "hook": Attack(trace)}, source)
    with pytest.raises(UserError, match=r"evil\.pth: .*asks to run .*system.*nothing in it was run"):
        run("controlnet", backbone, source, tmp_path / "method")
    assert not trace.exists() and not (tmp_path / "method").exists()


def test_a_damaged_or_absent_file_is_named(backbone: list[str], tmp_path: Path) -> None:
    source = saved({"control_model.x": torch.zeros(100)}, tmp_path / "a.safetensors")
    source.write_bytes(source.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"a\.safetensors: cannot be read as weights"):
        run("controlnet", backbone, source, tmp_path / "method")
    with pytest.raises(UserError, match=r"b\.pth: no such file"):
        run("controlnet", backbone, tmp_path / "b.pth", tmp_path / "method")


def test_only_a_method_folder_is_overwritten(backbone: list[str], tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.mkdir()
    (target / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"precious exists and is no method folder, so it is not overwritten; set target= to a new folder"):
        run("controlnet", backbone, tmp_path / "a.pth", target)
    with pytest.raises(UserError, match=r"thesis\.tex exists and is no method folder"):
        run("controlnet", backbone, tmp_path / "a.pth", target / "thesis.tex")
    assert (target / "thesis.tex").is_file()
    with configured("train", *backbone, "adapter=controlnet") as cfg:
        source = saved(dict(Parts(cfg).adapter.branch.network.state_dict()), tmp_path / "a.pth")
    for _ in range(2):
        run("controlnet", backbone, source, tmp_path / "method")
    assert load_file(tmp_path / "method" / "adapter.safetensors")


def test_a_backbone_must_be_named_and_the_method_must_have_weights(backbone: list[str], tmp_path: Path) -> None:
    source = saved({"control_model.x": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"backbone\.path is not set; .*backbone=sd15 backbone\.path=FOLDER_OR_FILE"):
        run("controlnet", [], source, tmp_path / "method")
    with pytest.raises(UserError, match=r"NoAdapter has no weights; choose the method"):
        run("none", backbone, source, tmp_path / "method")


def test_the_verb_ends_with_an_exit_code(backbone: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verb = VERBS["convert"]
    with configured("train", *backbone, "adapter=controlnet") as cfg:
        tensors = dict(Parts(cfg).adapter.branch.network.state_dict())
    for name, content in (("good", tensors), ("bad", {"x": torch.zeros(1)})):
        words = [*backbone, "adapter=controlnet", f"source={saved(content, tmp_path / f'{name}.pth')}", f"target={tmp_path / name}"]
        assert run_hydra("convert", verb.target, words, spread=True) == (name == "bad")
    printed = capsys.readouterr()
    assert f"wrote {tmp_path / 'good'}; use it with checkpoint={tmp_path / 'good'}" in printed.out
    assert printed.err.startswith("posegen convert: ") and "Traceback" not in printed.err
    assert (tmp_path / "good" / "posegen.json").is_file() and not (tmp_path / "bad").exists()
