"""Training that starts from weights by path, by name on the Hub, or ``official``; and learning rates by name."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from posegen.cli import main
from posegen.config.official import with_addresses
from posegen.errors import UserError
from posegen.io.hub import local_place
from posegen.runner.backbone_lookup import backbone_of, described
from posegen.runner.cell import Cell
from posegen.runner.components import Components
from posegen.train.optimisers import with_own_rates
from tests.hub_server import Hub, Repository, connect, serving
from tests.tiny import configured

PLACE = "hub:official/t2i/t2i.safetensors"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as server:
        connect(monkeypatch, server, tmp_path / "cache")
        monkeypatch.setattr(time, "sleep", lambda _: None)
        yield server


@pytest.fixture(scope="module")
def official(world: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a T2I-Adapter of the tiny backbone, as a file."""
    with configured("train", *world, "adapter=t2i_adapter", "seed=5") as cfg:
        adapter = Components(cfg).adapter
    folder = tmp_path_factory.mktemp("official")
    tensors = {key.partition(".")[2]: value.contiguous() for key, value in adapter.state_dict().items()}
    save_file(tensors, folder / "t2i.safetensors")
    return folder / "t2i.safetensors"


def started(world: list[str], *words: str) -> Components:
    with configured("train", *world, "adapter=t2i_adapter", *words) as cfg:
        components = Components(cfg)
        assert components.adapter
        return components


def holds(components: Components, file: Path) -> bool:
    given = load_file(file)
    own = {key.partition(".")[2]: value for key, value in components.adapter.state_dict().items()}
    return all(torch.equal(own[key], value) for key, value in given.items())


def test_a_method_starts_from_a_file_as_from_its_converted_folder(
    world: list[str], official: Path, tmp_path: Path
) -> None:
    from_file = started(world, f"adapter.init={official}")
    assert holds(from_file, official) and from_file.adapter.faithful
    places = [word for word in world if word.startswith("backbone.")]
    words = ["convert", "adapter=t2i_adapter", "backbone=mannequin", *places, f"source={official}"]
    assert main([*words, f"target={tmp_path / 'converted'}"]) == 0
    from_folder = started(world, f"adapter.init={tmp_path / 'converted'}")
    assert holds(from_folder, official) and from_folder.adapter.faithful
    assert not holds(started(world), official)


def test_the_identity_has_the_content_of_what_a_method_starts_from(
    world: list[str], official: Path, tmp_path: Path
) -> None:
    copy, other = tmp_path / "copy.safetensors", tmp_path / "other.safetensors"
    shutil.copy(official, copy)
    save_file({key: value + 1 for key, value in load_file(official).items()}, other)

    def identity(word: str) -> Any:
        with configured("train", *world, "adapter=t2i_adapter", word) as cfg:
            return Cell.of(cfg).identity["adapter"].get("init")

    assert identity(f"adapter.init={official}") == identity(f"adapter.init={copy}")
    assert identity(f"adapter.init={official}").startswith("sha256:")
    assert identity(f"adapter.init={official}") != identity(f"adapter.init={other}")
    assert identity("seed=0") is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: {f"unet.{key}": value for key, value in tensors.items()}, "does not fit|holds no weights of"),
        (lambda tensors: {key: torch.cat([v, v]) for key, v in tensors.items()}, "mis-shaped.*is of another size"),
    ],
)
def test_other_weights_are_refused_before_training(
    change: Any, said: str, world: list[str], official: Path, tmp_path: Path
) -> None:
    save_file(change(load_file(official)), tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=said):
        started(world, f"adapter.init={tmp_path / 'other.safetensors'}")
    with pytest.raises(UserError, match="no such file or folder; expected a cell, a method folder"):
        started(world, "adapter.init=/nowhere/x.pth")


def test_a_method_starts_from_the_hub_and_official_is_its_address(
    world: list[str], official: Path, hub: Hub, tmp_path: Path
) -> None:
    repository = hub.repositories["official/t2i"] = Repository()
    commit = repository.commit({"t2i.safetensors": official.read_bytes()})
    given = f"+adapter.official={{mannequin-v1: '{PLACE}'}}", "backbone.id=mannequin-v1"
    words = ["adapter=t2i_adapter", "adapter.init=official", *given, f"paths.output={tmp_path / 'out'}"]
    with configured("train", *world, *words) as cfg:
        components = Components(cfg)
        assert cfg.adapter.init == PLACE and "official" not in cfg.adapter
        assert holds(components, official)
        [record] = (tmp_path / "out").glob("**/hub.json")
        assert json.loads(record.read_text()) == {PLACE: commit}
        cell = Cell.of(cfg)
        assert cell.hub == {PLACE: commit} and cell.identity["adapter"]["init"] == PLACE


def test_official_without_an_address_says_so_in_a_sentence() -> None:
    node = {"_target_": "x", "init": "official", "official": {"sd15": "hub:a/b", "sd15 style=keypose": None}}
    cfg = OmegaConf.create({"adapter": {**node, "style": "keypose"}, "backbone": {"id": "sd15"}})
    with pytest.raises(UserError, match=r"adapter.init=official: no official weights are known for backbone sd15"):
        with_addresses(cfg)
    cfg = OmegaConf.create({"adapter": {**node, "style": "openpose"}, "backbone": {"id": "mine", "size": "sd15"}})
    with_addresses(cfg)
    assert cfg.adapter == {"_target_": "x", "init": "hub:a/b", "style": "openpose"}


def test_known_addresses_are_complete_places() -> None:
    for method, backbone, more in [
        ("controlnet", "sd15", ()),
        ("controlnet", "sdxl", ()),
        ("t2i_adapter", "sd15", ()),
        ("ip_adapter", "sd15", ("adapter.variant=plus",)),
    ]:
        words = [f"adapter={method}", f"backbone={backbone}", "backbone.path=official", "source=official", "target=x"]
        with configured("convert", *words, *more) as cfg:
            assert cfg.source.startswith("hub:") and cfg.backbone.path.startswith("hub:")
            assert ("plus" in cfg.source) == bool(more) and "official" not in cfg.backbone


@pytest.mark.parametrize("failure", ["missing", "gated", "cut", "hash", "offline"])
def test_whatever_fails_is_one_clear_sentence(
    failure: str, official: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = hub.repositories["official/t2i"] = Repository(gated=failure == "gated")
    repository.commit({"t2i.safetensors": official.read_bytes()})
    said = {
        "missing": "there is no repository official/none",
        "gated": "official/t2i is gated: accept its terms",
        "cut": "the same again continues",
        "hash": "was damaged on the way or on this disk and is removed",
        "offline": "HF_HUB_OFFLINE=1 forbids to reach the Hub",
    }[failure]
    if failure == "cut":
        repository.cut["t2i.safetensors"] = 100
    if failure == "hash":
        repository.damaged.add("t2i.safetensors")
    if failure == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    place = PLACE.replace("t2i/", "none/", 1) if failure == "missing" else PLACE
    with pytest.raises(UserError, match=said) as caught:
        local_place(place)
    assert "\n" not in str(caught.value)
    if failure in ("cut", "hash"):
        repository.cut.clear()
        repository.damaged.clear()
        assert local_place(place).read_bytes() == official.read_bytes()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert local_place(place).read_bytes() == official.read_bytes()  # the cache serves


def test_an_estimator_by_name_says_what_its_file_is(hub: Hub) -> None:
    repository = hub.repositories["owner/judge"] = Repository()
    repository.commit({"judge.safetensors": b"no weights"})
    words = ["estimator=higherhrnet", "estimator.path=hub:owner/judge/judge.safetensors"]
    with configured("train", *words) as cfg, pytest.raises(Exception, match=r"judge.safetensors"):
        _ = Components(cfg).estimator
    assert "judge.safetensors" in hub.fetched()


def test_weights_have_learning_rates_of_their_own_by_name() -> None:
    network = torch.nn.ModuleDict({"backbone": torch.nn.Linear(2, 2), "adapter": torch.nn.Linear(2, 2)})
    groups = [{"params": list(network.parameters()), "weight_decay": 0.5}]
    found = with_own_rates(groups, {"*.bias": 0.1, "backbone.*": 0.2}, network.named_parameters())
    shown = [(g.get("name"), g.get("lr"), len(g["params"]), g["weight_decay"]) for g in found]
    assert shown == [(None, None, 1, 0.5), ("*.bias", 0.1, 2, 0.5), ("backbone.*", 0.2, 1, 0.5)]
    with pytest.raises(UserError, match="optim.lr_of: 'adaptor.weight' fits .*nearest are adapter.weight"):
        with_own_rates(groups, {"adaptor.weight": 0.1}, network.named_parameters())


def test_a_folder_knows_the_class_of_a_backbone_with_an_id_of_its_own(tmp_path: Path) -> None:
    family = "posegen.backbones.stable_diffusion_xl.StableDiffusionXL"
    file, node = described(tmp_path, {"id": "mine", "sha256": "0", "class": family})
    assert (file.name, node["_target_"], node["id"]) == ("sdxl.yaml", family, "mine")
    _, node = described(tmp_path, {"id": "mine", "sha256": "0", "class": "yours.Backbone"})
    assert node == {"_target_": "yours.Backbone", "path": "???", "id": "mine"}
    about = {"backbone": {"id": "mine", "sha256": "0", "class": family}}
    with pytest.raises(UserError, match=r"belongs to backbone mine .*name it: from_pretrained"):
        backbone_of(tmp_path, about)
