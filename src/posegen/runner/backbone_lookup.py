"""The backbone that a folder's method belongs to, found again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from posegen.backbones.base import Backbone
from posegen.config import groups as listing
from posegen.config import resolvers  # noqa: F401  (registers what ${...} may ask for)
from posegen.errors import UserError
from posegen.io.hub import on_hub
from posegen.runner.received.classes import constructed, named_class
from posegen.runner.received.state_files import read_cell_config

BASE = "base"  # where a saved pipeline keeps the files of its backbone
WEIGHT_PLACES = ("path", "autoencoder")  # arguments of a backbone that say where its weights are
Asked = str | Path | Mapping[str, Any] | None


def backbone_of(method: Path, about: Mapping[str, Any], asked: Asked = None) -> Backbone:
    """The backbone of a method folder.

    It is what the caller asks for, that which lies in the folder itself (a saved pipeline), that of the cell around it,
    that which was fetched from the Hub, or what its id means: ``mannequin-v1`` is shipped with posegen, others are on
    the user's disk.

    Args:
        about: ``posegen.json`` of the folder ``method``.
        asked: path of the backbone, or arguments that differ from those of the configuration with its id.

    Raises:
        UserError: nobody says where the backbone is, or a file names something else.
    """
    saved = about.get("pipeline")
    if asked is None and isinstance(saved, Mapping):
        file, node = method / "posegen.json", {"_target_": saved["class"], **inside(method / BASE, saved["kwargs"])}
    else:
        file, node = described(method, about["backbone"])
        at = {k: v for k, v in (about["backbone"].get("hub") or {}).items() if k in WEIGHT_PLACES and on_hub(v)}
        node = {**node, **at, **changes(asked, node)}
    if "???" in node.values():
        name = f"{about['backbone']['id']} (sha256 {about['backbone']['sha256'][:12]})"
        fix = "name it: from_pretrained(folder, backbone=FOLDER_OR_FILE)"
        raise UserError(f"{method} belongs to backbone {name}, which is not in it; {fix}")
    cls = named_class(node.pop("_target_", None), Backbone, "backbone", file)  # type: ignore[type-abstract]
    return constructed(cls, node, file)


def described(method: Path, backbone: Mapping[str, Any]) -> tuple[Path, dict[str, Any]]:
    """(file, arguments) of the backbone: of the cell around a method folder, or the option with its id or class.

    Folders of earlier versions do not record the class of backbones with an id of their own."""
    cell, id = method.parent / "config.yaml", backbone["id"]
    if method.name == "method" and cell.is_file():
        node = dict(read_cell_config(method.parent).get("backbone", {}))
        if Path(str(node.get("path"))).exists():
            return cell, node
    for option in listing.groups()["backbone"].values():
        found: Any = OmegaConf.load(option.file)
        if found.get("id") == id:
            return option.file, plain(found)
    for option in listing.groups()["backbone"].values() if "class" in backbone else ():
        found = OmegaConf.load(option.file)
        if OmegaConf.is_missing(found, "path") and found.get("_target_") == backbone["class"]:
            return option.file, {**plain(found), "id": id}
    usual = listing.conf_dir() / "backbone" / "sd15.yaml"
    target = {"_target_": backbone["class"], "path": "???"} if "class" in backbone else plain(OmegaConf.load(usual))
    return method / "posegen.json", {**target, "id": id}


def plain(node: Any) -> dict[str, Any]:
    values: Any = OmegaConf.to_container(node, resolve=True)
    named = ("defaults", "official")  # which are Hydra's, and addresses
    return {key: value for key, value in values.items() if key not in named}


def changes(asked: Asked, node: Mapping[str, Any]) -> dict[str, Any]:
    """What someone who names a backbone changes of its arguments."""
    if asked is None or isinstance(asked, Mapping):
        return dict(asked or {})
    place = Path(asked).expanduser()
    whole = place.is_file() or (place / "vae").is_dir() or on_hub(asked)  # it brings an autoencoder of its own
    return {"path": str(asked), "autoencoder": None if whole else node.get("autoencoder")}


def inside(base: Path, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A saved backbone's arguments with their paths, which must not lead out of the folder ``base``."""
    given = {name: str(arguments[name]) for name in WEIGHT_PLACES if arguments.get(name) is not None}
    paths = {name: (base / value).resolve() for name, value in given.items()}
    for name, path in paths.items():
        if not path.is_relative_to(base.resolve()):
            stray = f"the backbone's {name} {given[name]!r} is outside the folder"
            raise UserError(f"{base.parent / 'posegen.json'}: {stray}; nothing was read")
    return {**arguments, **{name: str(path) for name, path in paths.items()}}
