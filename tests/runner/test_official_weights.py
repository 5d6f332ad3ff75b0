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

from posegen.adapters.base import State
from posegen.backbones.loading import ldm_keys as ldm
from posegen.cli import main
from posegen.errors import UserError
from posegen.runner.components import Components
from posegen.runner.method_folder import load_into, load_method
from posegen.runner.user_requests.conversion import convert
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
def trained(method: str, backbone: list[str]) -> Iterator[Components]:
    """A method and its backbone with weights that no fresh ones have."""
    with configured("train", *backbone, f"adapter={method}") as cfg:
        components = Components(cfg)
        with torch.no_grad():
            for p in [*components.adapter.parameters(), *components.backbone.parameters()]:
                if p.requires_grad:
                    p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
        yield components


@pytest.fixture
def official(method: str, trained: Components) -> dict[str, Tensor]:
    """The trained part under its original names."""
    table, prefix = TABLES[method]
    module = trained.adapter.branch.network if method == "controlnet" else trained.backbone.unet
    renamed = ldm.renamed(module.state_dict(), ldm.inverse(table(trained.backbone.geometry)))
    assert not renamed.unknown
    return {prefix + key: value.clone() for key, value in renamed.tensors.items()}


def whole(official: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with what lies beside it in a whole model's file."""
    return official | dict.fromkeys(
        ["first_stage_model.quant_conv.bias", "cond_stage_model.x", "betas", "alphas_cumprod"], torch.zeros(2)
    )


def unet_of(components: Components) -> dict[str, Tensor]:
    """The backbone's U-Net under its original names."""
    backbone = components.backbone
    renamed = ldm.renamed(backbone.unet.state_dict(), ldm.inverse(ldm.unet_table(backbone.geometry)))
    return {ldm.UNET + key: value.clone() for key, value in renamed.tensors.items()}


def run(method: str, backbone: list[str], source: Path | None, target: Path, *more: str) -> None:
    given = "null" if source is None else source
    with configured("convert", *backbone, f"adapter={method}", f"source={given}", f"target={target}", *more) as cfg:
        convert(cfg.adapter, cfg.backbone, cfg.source, cfg.target, cfg.get("sampler"))


def saved(tensors: dict[str, Tensor], file: Path) -> Path:
    save_file(tensors, file) if file.suffix == ".safetensors" else torch.save(
        {"state_dict": tensors, "global_step": 1}, file
    )
    return file


def test_a_converted_folder_holds_the_trained_method(
    method: str,
    backbone: list[str],
    trained: Components,
    official: dict[str, Tensor],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, target = saved(whole(official), tmp_path / "official.ckpt"), tmp_path / "method"
    run(method, backbone, source, target)
    printed = capsys.readouterr().out
    place = "controlnet/" if method == "controlnet" else "backbone/unet/"
    assert f"taken           {len(official):5}  into {place}\n" in printed
    assert (
        "ignored by rule     2  betas, ...: the noise process" in printed
        and "ignored by rule     1  first_stage_model: the autoencoder" in printed
    )
    assert (target / "backbone").exists() == (method == "humansd") and (target / "controlnet").exists() == (
        method == "controlnet"
    )
    assert not (target / "adapter.safetensors").exists(), "nothing is written twice"
    about = json.loads((target / "posegen.json").read_text())
    assert (
        about["faithful"] and about["converted"]["file"] == "official.ckpt" and len(about["converted"]["sha256"]) == 64
    )
    again = Components(trained.cfg)
    load_into(again.adapter, again.backbone, target)
    for own, wanted in ((again.adapter, trained.adapter), (again.backbone, trained.backbone)):
        assert all(torch.equal(value, wanted.state_dict()[key]) for key, value in own.state_dict().items())
    assert load_method(target, Components(trained.cfg).backbone).faithful


# The file's own U-Net.


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_backbones_own_unet_is_recognised_in_any_precision(
    backbone: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], stored: torch.dtype
) -> None:
    with configured("train", *backbone, "adapter=controlnet") as cfg:
        components = Components(cfg)
        unet = unet_of(components)
        control = {ldm.CONTROL + key: value for key, value in controlled(components).items()}
    source = saved({key: value.to(stored) for key, value in (control | unet).items()}, tmp_path / "official.ckpt")
    run("controlnet", backbone, source, tmp_path / "method")
    assert f"  identical       {len(unet):5}  to the backbone's U-Net, which is used\n" in capsys.readouterr().out
    assert not (tmp_path / "method" / "backbone").exists()


def controlled(components: Components) -> dict[str, Tensor]:
    """A ControlNet's weights under their original names."""
    renamed = ldm.renamed(
        components.adapter.branch.network.state_dict(), ldm.inverse(ldm.control_table(components.backbone.geometry))
    )
    return {key: value.clone() for key, value in renamed.tensors.items()}


def test_another_unet_comes_along_and_the_folder_stays_that_of_the_backbone(
    backbone: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with configured("train", *backbone, "adapter=controlnet") as cfg:
        components = Components(cfg)
        unet = unet_of(components)
        unet[f"{ldm.UNET}out.2.bias"] += 1
        source = saved(
            {ldm.CONTROL + key: value for key, value in controlled(components).items()} | unet,
            tmp_path / "official.ckpt",
        )
        run("controlnet", backbone, source, tmp_path / "method")
        again = Components(cfg)
        method = load_method(tmp_path / "method", again.backbone)
    printed = capsys.readouterr().out
    assert (
        f"  taken           {len(unet):5}  into backbone/unet/: the file's own U-Net, 1 of its tensors differ from the "
        "backbone's\n" in printed
    )
    assert torch.equal(again.backbone.unet.conv_out.bias, unet[f"{ldm.UNET}out.2.bias"]) and not any(
        p.requires_grad for p in again.backbone.parameters()
    )
    recorded = json.loads((tmp_path / "method" / "posegen.json").read_text())["backbone"]
    assert recorded == {"id": "sd15", "sha256": components.backbone.weights.sha256} and method.faithful


def test_half_a_unet_or_one_of_another_design_is_refused(backbone: list[str], tmp_path: Path) -> None:
    with configured("train", *backbone, "adapter=controlnet") as cfg:
        components = Components(cfg)
        control, unet = {ldm.CONTROL + key: value for key, value in controlled(components).items()}, unet_of(components)
    half = {key: value for key, value in unet.items() if "output_blocks" not in key}
    for wrong, message in (
        (half, r"missing: backbone\.unet\.up_blocks"),
        (unet | {f"{ldm.UNET}lora.up": torch.zeros(1)}, r"1 unexpected: .*lora\.up"),
    ):
        with pytest.raises(UserError, match=message):
            run("controlnet", backbone, saved(control | wrong, tmp_path / "official.ckpt"), tmp_path / "method")
    assert not (tmp_path / "method").exists()


# diffusers.


@torch.no_grad()
@pytest.mark.parametrize("form", ["folder", "file", "bin"])
def test_a_controlnet_comes_from_diffusers_and_goes_back(backbone: list[str], tmp_path: Path, form: str) -> None:
    from diffusers import ControlNetModel

    with configured("train", *backbone, "adapter=controlnet") as cfg:
        components = Components(cfg)
        adapter, body = components.adapter, components.backbone
    scrambled(adapter)
    adapter.branch.network.save_pretrained(tmp_path / "diffusers", safe_serialization=form != "bin")
    source = (
        tmp_path / "diffusers" / "diffusion_pytorch_model.safetensors" if form == "file" else tmp_path / "diffusers"
    )
    run("controlnet", backbone, source, tmp_path / "method")
    theirs = ControlNetModel.from_pretrained(tmp_path / "method" / "controlnet")
    noisy, timesteps, text = (
        torch.randn(1, *body.latent_shape((64, 64))),
        torch.tensor([500]),
        body.encode_text(["photo"]),
    )
    hint = torch.rand(1, 3, 64, 64)
    state = State(text, text).having(hint=adapter.branch.hint_features(hint), on=torch.ones(1, 1, 1, 1))
    ours = adapter.inject(state, noisy, timesteps)
    down, mid = theirs(noisy, timesteps, text.tokens, hint, return_dict=False)
    for own, other in zip(ours.residuals, (*down, mid), strict=True):
        assert own.abs().max() > 1e-3 and torch.allclose(own, other, atol=1e-5)


@torch.no_grad()
def test_a_t2i_adapter_comes_from_diffusers_and_goes_back(backbone: list[str], tmp_path: Path) -> None:
    from diffusers import T2IAdapter

    with configured("train", *backbone, "adapter=t2i_adapter") as cfg:
        adapter = Components(cfg).adapter
    adapter.network.save_pretrained(tmp_path / "diffusers")
    run("t2i_adapter", backbone, tmp_path / "diffusers", tmp_path / "method")
    hint = torch.rand(1, 3, 64, 64)
    theirs = T2IAdapter.from_pretrained(tmp_path / "method" / "t2i_adapter")(hint)
    assert all(torch.equal(own, other) for own, other in zip(adapter.features(hint), theirs, strict=True))


def scrambled(module: torch.nn.Module) -> None:
    for p in module.parameters():
        p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))


def test_a_folder_of_several_models_or_of_this_project_says_what_to_name(backbone: list[str], tmp_path: Path) -> None:
    with configured("train", *backbone, "adapter=controlnet") as cfg:
        Components(cfg).adapter.branch.network.save_pretrained(tmp_path / "pipeline" / "controlnet")
    with pytest.raises(UserError, match=r"source=.*pipeline holds several models; name one of .*pipeline/controlnet"):
        run("controlnet", backbone, tmp_path / "pipeline", tmp_path / "method")
    run("controlnet", backbone, tmp_path / "pipeline" / "controlnet", tmp_path / "method")
    with pytest.raises(UserError, match=r"source=.*method is a method folder already; use it with checkpoint="):
        run("controlnet", backbone, tmp_path / "method", tmp_path / "again")


# Starting from the backbone.


def test_without_a_source_a_method_starts_from_the_backbone(method: str, backbone: list[str], tmp_path: Path) -> None:
    run(method, backbone, None, tmp_path / "method", "sampler=ddim", "sampler.guidance=9")
    about = json.loads((tmp_path / "method" / "posegen.json").read_text())
    assert (
        about["initialised"]
        and not about["faithful"]
        and about["sampler"]["guidance"] == 9
        and "converted" not in about
    )
    with configured("train", *backbone, f"adapter={method}") as cfg:
        fresh, components = Components(cfg), Components(cfg)
        load_into(components.adapter, components.backbone, tmp_path / "method")
    if method == "controlnet":
        mid = fresh.backbone.unet.mid_block.state_dict()
        assert all(
            torch.equal(value, mid[key])
            for key, value in components.adapter.branch.network.mid_block.state_dict().items()
        )
    else:
        extra, old = (
            components.backbone.unet.conv_in.weight.split([8, 8], dim=1)[::-1],
            fresh.backbone.unet.conv_in.weight,
        )
        assert not extra[0].any() and torch.equal(extra[1], old)


SPOILT: dict[str, tuple[Callable[[dict[str, Tensor], str], object], str]] = {
    "missing": (
        lambda tensors, key: tensors.pop(key),
        r"1 missing: (adapter\.branch\.network|backbone\.unet)\.conv_in\.bias",
    ),
    "unexpected": (lambda tensors, key: tensors.update({"lora.up": torch.zeros(1)}), r"1 unexpected: lora\.up"),
    "mis-shaped": (
        lambda tensors, key: tensors.update({key: torch.zeros(5)}),
        r"1 mis-shaped: .*conv_in\.bias \[5\] instead of \[16\]",
    ),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_key_that_is_out_of_place_is_named_and_nothing_is_written(
    method: str,
    backbone: list[str],
    official: dict[str, Tensor],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    spoil, message = SPOILT[kind]
    spoil(official, f"{TABLES[method][1]}input_blocks.0.0.bias")
    fix = "the file is of another size: choose the backbone=" if kind == "mis-shaped" else "choose the adapter="
    with pytest.raises(
        UserError,
        match=rf"official\.safetensors does not fit \w+ on backbone [\w-]+: {message}\. Nothing was written; {fix}",
    ):
        run(method, backbone, saved(official, tmp_path / "official.safetensors"), tmp_path / "method")
    assert f"  {kind:15}     1\n" in capsys.readouterr().out + "\n"
    assert not (tmp_path / "method").exists()


def test_weights_of_another_method_or_with_broken_numbers_are_named(backbone: list[str], tmp_path: Path) -> None:
    other = {f"body.{i}.weight": torch.zeros(2) for i in range(3)} | {"conv_in.weight": torch.zeros(2)}
    with pytest.raises(
        UserError,
        match=r"a\.pth holds no weights of ControlNet: its keys begin with body \(3\), conv_in \(1\)\. .*choose the adapter=",
    ):
        run("controlnet", backbone, saved(other, tmp_path / "a.pth"), tmp_path / "method")
    overflowed = {"control_model.x": torch.tensor([1e6]).half(), "control_model.y": torch.zeros(1)}
    with pytest.raises(
        UserError, match=r"b\.pth holds NaN or infinity in 1 of 2 tensors: control_model\.x\. .*half precision"
    ):
        run(
            "controlnet", ["backbone.path=nowhere"], saved(overflowed, tmp_path / "b.pth"), tmp_path / "method"
        )  # said before the backbone is read
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
    with pytest.raises(
        UserError, match=r"precious exists and is no method folder, so it is not overwritten; choose a new folder"
    ):
        run("controlnet", backbone, tmp_path / "a.pth", target)
    with pytest.raises(UserError, match=r"thesis\.tex exists and is no method folder"):
        run("controlnet", backbone, tmp_path / "a.pth", target / "thesis.tex")
    assert (target / "thesis.tex").is_file()
    with configured("train", *backbone, "adapter=controlnet") as cfg:
        source = saved(dict(Components(cfg).adapter.branch.network.state_dict()), tmp_path / "a.pth")
    for _ in range(2):
        run("controlnet", backbone, source, tmp_path / "method")
    assert load_file(tmp_path / "method" / "controlnet" / "diffusion_pytorch_model.safetensors")


def test_a_backbone_must_be_named_and_the_method_must_have_weights(backbone: list[str], tmp_path: Path) -> None:
    source = saved({"control_model.x": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"backbone\.path is not set; .*backbone=sd15 backbone\.path=FOLDER_OR_FILE"):
        run("controlnet", [], source, tmp_path / "method")
    with pytest.raises(UserError, match=r"NoAdapter has no weights; choose the method"):
        run("none", backbone, source, tmp_path / "method")


def test_the_verb_ends_with_an_exit_code(
    backbone: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with configured("train", *backbone, "adapter=controlnet") as cfg:
        tensors = dict(Components(cfg).adapter.branch.network.state_dict())
    for name, content in (("good", tensors), ("bad", {"x": torch.zeros(1)})):
        words = [
            *backbone,
            "adapter=controlnet",
            f"source={saved(content, tmp_path / f'{name}.pth')}",
            f"target={tmp_path / name}",
        ]
        assert main(["convert", *words]) == (name == "bad")
    printed = capsys.readouterr()
    assert f"wrote {tmp_path / 'good'}; use it with checkpoint={tmp_path / 'good'}" in printed.out
    assert printed.err.startswith("posegen convert: ") and "Traceback" not in printed.err
    assert (tmp_path / "good" / "posegen.json").is_file() and not (tmp_path / "bad").exists()
