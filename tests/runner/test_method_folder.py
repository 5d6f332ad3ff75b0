"""Method folders: what is saved comes back, and nothing else gets in."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel
from omegaconf import DictConfig
from safetensors.torch import load_file, save_file
from torch import nn

from posegen.adapters.base import Adapter, Paper, State
from posegen.backbones.base import Backbone, Injection
from posegen.backbones.stable_diffusion import StableDiffusion
from posegen.errors import UserError
from posegen.io.atomic import write_json
from posegen.runner.cell import identity
from posegen.runner.method_folder import (
    adapter_class,
    find_checkpoint,
    load_into,
    load_method,
    read_about,
    save_method,
)
from tests.tiny import configured

UNET = Path("backbone/unet/diffusion_pytorch_model.safetensors")


class Scale(Adapter):
    """A method of one number that trains the U-Net too, with every kind of argument."""

    needs = frozenset()
    paper = Paper("A method of tests", "")

    def __init__(
        self, start: float = 1.0, sizes: tuple[int, ...] = (1, 2), unet: bool = False, teacher: object = None
    ) -> None:
        super().__init__()
        self.start, self.sizes, self.unet, self.teacher = start, sizes, unet, teacher

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        self.factor = nn.Parameter(torch.full((2, len(self.sizes)), self.start))
        self.register_buffer("seen", torch.zeros(1))
        backbone.unet.requires_grad_(self.unet)

    def encode(self, batch: Any) -> State:
        return self.text_state(batch)

    def inject(self, state: State, latents: torch.Tensor, timesteps: torch.Tensor) -> Injection:
        return Injection()


@pytest.fixture
def backbone(world: list[str]) -> StableDiffusion:
    place = dict(word.removeprefix("backbone.").split("=") for word in world if word.startswith("backbone."))
    return StableDiffusion(place["path"], autoencoder=place["autoencoder"], recipe="mannequin")


def saved(folder: Path, backbone: StableDiffusion, **settings: Any) -> Scale:
    """A trained method that was written to ``folder``."""
    adapter = Scale(**settings)
    adapter.attach(backbone)
    adapter.factor.data.uniform_(generator=torch.Generator().manual_seed(1))
    adapter.seen.fill_(5)
    save_method(folder, adapter, backbone, sampler={"steps": 2})
    return adapter


def edit(folder: Path, **entries: Any) -> None:
    about = folder / "posegen.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), **entries}))


# Saving and loading.


@pytest.mark.parametrize("unet", [False, True], ids=["adapter alone", "with the U-Net"])
def test_what_is_saved_comes_back(tmp_path: Path, world: list[str], backbone: StableDiffusion, unet: bool) -> None:
    if unet:
        with torch.no_grad():
            backbone.unet.conv_in.bias.add_(1)
    adapter = saved(tmp_path / "method", backbone, start=0.5, sizes=(3, 4, 5), unet=unet)
    fresh = StableDiffusion(*(word.partition("=")[2] for word in world[:2]), recipe="mannequin")
    again = load_method(tmp_path / "method", fresh)
    assert isinstance(again, Scale) and (again.start, list(again.sizes), again.unet) == (0.5, [3, 4, 5], unet)
    assert again.state_dict().keys() == {"factor", "seen"} and all(
        torch.equal(value, adapter.state_dict()[key]) for key, value in again.state_dict().items()
    )
    assert torch.equal(fresh.unet.conv_in.bias, backbone.unet.conv_in.bias)
    assert (tmp_path / "method" / UNET).is_file() == unet
    assert read_about(tmp_path / "method")["sampler"] == {"steps": 2}


def test_a_folder_appears_whole_or_not_at_all(
    tmp_path: Path, backbone: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = saved(tmp_path / "method", backbone)
    before = (tmp_path / "method" / "adapter.safetensors").read_bytes()
    with torch.no_grad():
        adapter.factor.add_(1)
    monkeypatch.setattr(
        "posegen.runner.method_folder.write_json", lambda *_: (_ for _ in ()).throw(OSError("disk full"))
    )
    for name in ("method", "new"):
        with pytest.raises(OSError, match="disk full"):
            save_method(tmp_path / name, adapter, backbone)
    assert [entry.name for entry in tmp_path.iterdir()] == ["method"]
    assert (tmp_path / "method" / "adapter.safetensors").read_bytes() == before


def test_arguments_that_draw_the_pose_come_back(tmp_path: Path, backbone: StableDiffusion) -> None:
    from posegen.adapters.controlnet import ControlNet
    from posegen.adapters.humansd import HumanSD

    for adapter in (
        ControlNet(style="humansd", scales=[1.0] * 6, only_mid=True),
        HumanSD(style="openpose", pose_latent="mode"),
    ):
        adapter.attach(backbone)
        folder = tmp_path / type(adapter).__name__
        save_method(folder, adapter, backbone)
        kwargs = read_about(folder)["kwargs"]
        assert vars(type(adapter)(**kwargs).hint) == vars(adapter.hint) and kwargs["style"] == adapter.style


# Plain diffusers folders.


class TwoControls(Scale):
    """A method with two of diffusers' ControlNets, of which it has changed a third, and weights of its own."""

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        copies = [
            ControlNetModel.from_unet(backbone.unet, conditioning_embedding_out_channels=(8, 8, 8)) for _ in range(3)
        ]
        copies[2].controlnet_cond_embedding = None
        self.near, self.far, self.changed = copies


def test_every_weight_is_written_once_and_comes_back(tmp_path: Path, backbone: StableDiffusion) -> None:
    adapter = TwoControls()
    adapter.attach(backbone)
    with torch.no_grad():
        for i, p in enumerate(adapter.parameters()):
            p.fill_(i)
    save_method(tmp_path / "method", adapter, backbone)
    assert {entry.name for entry in (tmp_path / "method").iterdir()} == {
        "posegen.json",
        "adapter.safetensors",
        "controlnet",
        "controlnet_1",
    }
    rest = load_file(tmp_path / "method" / "adapter.safetensors")
    assert rest.keys() == {key for key in adapter.state_dict() if not key.startswith(("near.", "far."))}
    plain = ControlNetModel.from_pretrained(tmp_path / "method" / "controlnet_1").state_dict()
    assert all(torch.equal(value, plain[key]) for key, value in adapter.far.state_dict().items())
    again = load_method(tmp_path / "method", backbone)
    assert all(torch.equal(value, adapter.state_dict()[key]) for key, value in again.state_dict().items())
    for name in ("controlnet_1", "adapter.safetensors"):
        copy = shutil.copytree(tmp_path / "method", tmp_path / f"without {name}")
        shutil.rmtree(copy / name) if (copy / name).is_dir() else (copy / name).unlink()
        with pytest.raises(
            UserError,
            match=rf"{name}.* is missing; the method folder is incomplete|does not fit TwoControls: \d+ missing: far\.",
        ):
            load_method(copy, backbone)


def test_folders_that_hold_everything_twice_are_still_read(tmp_path: Path, backbone: StableDiffusion) -> None:
    adapter = TwoControls()
    adapter.attach(backbone)
    save_method(tmp_path / "method", adapter, backbone)
    save_file(
        {key: value.contiguous() for key, value in adapter.state_dict().items()},
        tmp_path / "method" / "adapter.safetensors",
    )
    assert load_method(tmp_path / "method", backbone).state_dict().keys() == adapter.state_dict().keys()


# How official weights are used.


@pytest.mark.parametrize("official", [True, False])
def test_the_folder_says_whether_official_quirks_are_reproduced(
    tmp_path: Path, backbone: StableDiffusion, official: bool
) -> None:
    adapter = saved(tmp_path / "method", backbone)
    adapter.faithful = official
    save_method(tmp_path / "method", adapter, backbone)
    other = Scale()
    other.faithful = not official
    other.attach(backbone)
    load_into(other, backbone, tmp_path / "method")
    assert other.faithful == load_method(tmp_path / "method", backbone).faithful == official


# What does not fit.


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("unet", [False, True], ids=["adapter", "U-Net"])
def test_weights_that_are_no_numbers_are_named(
    tmp_path: Path, backbone: StableDiffusion, value: float, unet: bool
) -> None:
    saved(tmp_path / "method", backbone, unet=True)
    file, key = (
        (tmp_path / "method" / UNET, "conv_in.bias")
        if unet
        else (tmp_path / "method" / "adapter.safetensors", "factor")
    )
    tensors = load_file(file)
    tensors[key].view(-1)[0] = value
    save_file(tensors, file)
    with pytest.raises(
        UserError,
        match=rf"{file.name} holds NaN or infinity in 1 of \d+ tensors: {key}\. Its training diverged, or it overflowed",
    ):
        load_method(tmp_path / "method", backbone)


def test_weights_of_another_method_are_refused(tmp_path: Path, backbone: StableDiffusion) -> None:
    from posegen.adapters.controlnet import ControlNet

    saved(tmp_path / "method", backbone)
    other = ControlNet()
    other.attach(backbone)
    with pytest.raises(
        UserError,
        match=r"method holds weights of .*Scale, the configured adapter is posegen.adapters.controlnet.ControlNet; choose the adapter",
    ):
        load_into(other, backbone, tmp_path / "method")


def test_weights_for_another_backbone_are_refused(tmp_path: Path, backbone: StableDiffusion) -> None:
    saved(tmp_path / "method", backbone)
    edit(tmp_path / "method", backbone={"id": "sd15", "sha256": "0" * 64})
    with pytest.raises(
        UserError,
        match=r"method was trained on backbone sd15 \(sha256 000000000000\), configured is backbone \(\w{12}\); set backbone=",
    ):
        load_method(tmp_path / "method", backbone)


@pytest.mark.parametrize("file", ["adapter.safetensors", str(UNET)])
def test_damaged_or_missing_weights_are_named(tmp_path: Path, backbone: StableDiffusion, file: str) -> None:
    saved(tmp_path / "method", backbone, unet=True)
    place = tmp_path / "method" / file
    place.write_bytes(place.read_bytes()[:-10])
    with pytest.raises(UserError, match=rf"{place.name} is damaged .*; train or convert the method again"):
        load_method(tmp_path / "method", backbone)
    place.unlink()
    with pytest.raises(UserError, match=rf"{place.name} is missing; the method folder is incomplete"):
        load_method(tmp_path / "method", backbone)


def test_every_key_that_does_not_fit_is_listed(tmp_path: Path, backbone: StableDiffusion) -> None:
    saved(tmp_path / "method", backbone)
    file = tmp_path / "method" / "adapter.safetensors"
    save_file({"factor": torch.zeros(2, 3), "extra": load_file(file)["seen"]}, file)
    message = r"does not fit Scale: 1 missing: seen; 1 unexpected: extra; 1 of another shape: factor \[2, 3\] instead of \[2, 2\]\. The settings"
    with pytest.raises(UserError, match=message):
        load_method(tmp_path / "method", backbone)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"format": 99}, "has format 99, this version reads format 1"),
        ({"format": 1}, "has no class"),
        (
            {"format": 1, "class": 3, "kwargs": {}, "backbone": {"id": "", "sha256": ""}},
            "class is 3; expected a valid string",
        ),
        ([], "holds a list; expected an object"),
    ],
    ids=str,
)
def test_a_foreign_posegen_json_is_refused(tmp_path: Path, about: Any, message: str) -> None:
    with pytest.raises(UserError, match=r"no method folder \(posegen.json is missing\)"):
        read_about(tmp_path)
    (tmp_path / "posegen.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=rf"posegen.json:? {message}; delete {tmp_path} and convert"):
        read_about(tmp_path)


# Classes that a folder names.


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "torch.nn.Linear",
        "posegen.adapters.base.State",
        "posegen.io.atomic.write_json",
        "Adapter",
        "posegen.adapters.absent.X",
    ],
)
def test_only_adapters_are_built(tmp_path: Path, backbone: StableDiffusion, name: str) -> None:
    saved(tmp_path / "method", backbone)
    edit(tmp_path / "method", **{"class": name, "kwargs": {"command": f"touch {tmp_path / 'trace'}"}})
    with pytest.raises(UserError, match=rf"names the class {name}, which is no adapter; nothing was run"):
        load_method(tmp_path / "method", backbone)
    assert not (tmp_path / "trace").exists()


def test_a_folder_cannot_have_a_module_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil_method.py").write_text(
        f"open({str(tmp_path / 'trace')!r}, 'w')\nfrom posegen.adapters.none import NoAdapter as Method\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        UserError, match=r"names the class evil_method\.Method, which is no adapter; .*Import its package first"
    ):
        adapter_class("evil_method.Method", tmp_path)
    assert "evil_method" not in sys.modules and not (tmp_path / "trace").exists()


# Finding.


def cell(cfg: DictConfig, name: str, age: int, state: str = "finished", **differs: Any) -> Path:
    """A cell of ``cfg``'s identity, but for what differs, that was written ``age`` seconds ago."""
    folder = Path(cfg.paths.output) / name
    (folder / "method").mkdir(parents=True)
    write_json(folder / "status.json", {"state": state, "identity": {**identity(cfg), **differs}})
    os.utime(folder / "status.json", (10**9 - age, 10**9 - age))
    return folder


def test_the_newest_finished_cell_of_the_method_is_found(tmp_path: Path, world: list[str]) -> None:
    with configured("sample", *world, f"paths.output={tmp_path / 'outputs'}") as cfg:
        with pytest.raises(
            UserError,
            match=r"no finished cell of adapter controlnet in .*outputs; run posegen train adapter=controlnet first, or set checkpoint=FOLDER",
        ):
            find_checkpoint(cfg)
        cell(cfg, "old", 50)
        wanted = cell(cfg, "new", 40, seed=7)
        cell(cfg, "unfinished", 30, state="running")
        cell(cfg, "other method", 20, adapter={"_target_": "other"})
        cell(cfg, "other backbone", 10, backbone={"_target_": "other"})
        write_json(Path(cfg.paths.output) / "foreign" / "status.json", {"of": "another program"})
        assert find_checkpoint(cfg) == wanted / "method"


def test_a_checkpoint_is_a_cell_or_a_method_folder(tmp_path: Path, world: list[str]) -> None:
    (tmp_path / "cell" / "method").mkdir(parents=True)
    about = {"format": 1, "class": "theirs.Method", "kwargs": {}, "backbone": {"id": "", "sha256": ""}}
    write_json(tmp_path / "cell" / "method" / "posegen.json", about)
    for given in (tmp_path / "cell", tmp_path / "cell" / "method"):
        with configured("sample", *world, f"checkpoint={given}") as cfg:
            assert find_checkpoint(cfg) == tmp_path / "cell" / "method"


def test_newer_weights_are_not_mistaken_for_those_that_were_judged(
    world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from posegen.cli import main

    place = [*world, "adapter=controlnet", f"paths.output={tmp_path}"]
    assert main(["train", *place, "budget.steps=1"]) == 0
    assert main(["evaluate", *place]) == 0
    assert main(["train", *place, "budget.steps=2"]) == 0
    assert main(["evaluate", *place]) == 1
    assert "checkpoint" in capsys.readouterr().err
    assert main(["evaluate", *place, "study=again"]) == 0
