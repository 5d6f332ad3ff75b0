"""Method folders: what training writes, ``convert`` makes, and sampling reads.

* ``posegen.json``: format, class and its arguments, backbone id and hash, sampler;
* ``controlnet/``, ``t2i_adapter/``: parts of the adapter as plain diffusers folders, where diffusers has the class;
* ``adapter.safetensors``: the adapter's other weights (averaged), if any;
* ``backbone/unet/`` or ``backbone/transformer/``: the denoising network in diffusers' layout, where the method trains
  it or came with one of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from posegen.adapters.base import Adapter
from posegen.backbones.base import Backbone, ControlBranch
from posegen.config.groups import groups
from posegen.errors import UserError
from posegen.io.atomic import read_json, read_json_or_empty, replacing, write_json
from posegen.io.weights import not_finite
from posegen.runner.cell import identity
from posegen.runner.received.classes import constructed, named_class
from posegen.runner.received.state_files import MAX_STATE_BYTES, MethodFile, checked_state, read_status

FORMAT = 1
ADAPTER = "adapter.safetensors"
WEIGHTS, ONE_FILE = "diffusion_pytorch_model.safetensors", "1TB"  # whatever their size
CONTROLNETS = "ControlNetModel", "ControlNetUnionModel", "SD3ControlNetModel", "FluxControlNetModel"
PLAIN = {**dict.fromkeys(CONTROLNETS, "controlnet"), "T2IAdapter": "t2i_adapter"}


def save_method(folder: Path, adapter: Adapter, backbone: Backbone, own_unet: bool = False, **facts: Any) -> None:
    """Writes a method folder; it appears whole or not at all.

    Args:
        own_unet: write the U-Net although it does not train, because it is not the backbone's own.
        facts: more entries of ``posegen.json``, among them ``sampler``, the settings to sample the method with.
    """
    hub = {"hub": dict(found)} if (found := backbone.weights.hub) else {}
    about = {
        "format": FORMAT,
        "class": full_name(adapter),
        "kwargs": plain_arguments(adapter),
        "faithful": adapter.faithful,
        "backbone": {"id": backbone.weights.id, "sha256": backbone.weights.sha256, **hub, **backbone_class(backbone)},
        "sampler": None,
        **facts,
    }
    for network in (adapter, backbone.network):
        network.to(memory_format=torch.contiguous_format)  # files hold no other layout
    with replacing(folder) as temporary:
        temporary.mkdir()
        rest = {name: value.detach().cpu().contiguous() for name, value in adapter.state_dict().items()}
        for name, (prefix, module) in plain_modules(adapter).items():
            module.save_pretrained(temporary / name, max_shard_size=ONE_FILE)
            rest = {key: value for key, value in rest.items() if not key.startswith(prefix)}
        if rest:
            save_file(rest, temporary / ADAPTER)
        if own_unet or backbone.replaced or trains(backbone.network):
            backbone.network.save_pretrained(network_file(temporary, backbone).parent, max_shard_size=ONE_FILE)
        write_json(temporary / "posegen.json", about)


def backbone_class(backbone: Backbone) -> dict[str, str]:
    """The class of a backbone whose id is none of an option's, which says nothing else about it."""
    ids = {OmegaConf.select(OmegaConf.load(option.file), "id") for option in groups()["backbone"].values()}
    return {} if backbone.weights.id in ids else {"class": full_name(backbone)}


def network_file(folder: Path, backbone: Backbone) -> Path:
    """Where a method folder keeps the weights of the denoising network."""
    return folder / "backbone" / backbone.network_name / WEIGHTS


def plain_arguments(adapter: Adapter) -> dict[str, Any]:
    """The constructor's arguments that are plain values, read back from the attributes that keep them."""
    names = (name for name in inspect.signature(type(adapter)).parameters if hasattr(adapter, name))
    values = {name: getattr(adapter, name) for name in names}
    plain = str | int | float | bool | list | tuple | None
    found: dict[str, Any] = {name: value for name, value in values.items() if isinstance(value, plain)}
    found |= {
        name: value for name, value in values.items() if type(value) is dict and all(map(is_number, value.values()))
    }
    if isinstance(parts := values.get("methods"), nn.ModuleDict):
        found["methods"] = {name: described(part) for name, part in parts.items()}
    return found


def described(part: Any) -> dict[str, Any]:
    """A method inside another, as a configuration has it."""
    return {"_target_": full_name(part), "faithful": part.faithful, **plain_arguments(part)}


def is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def parts_of(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """The nodes of the methods that another, given by its own node or arguments, consists of."""
    parts = node.get("methods")
    whole = isinstance(parts, Mapping) and all(isinstance(p, Mapping) and "_target_" in p for p in parts.values())
    return parts if whole and parts else {}


def full_name(thing: Any) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def trains(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def plain_modules(adapter: Adapter) -> dict[str, tuple[str, Any]]:
    """Folder name -> (beginning of its keys, module), for parts of the adapter that diffusers itself can load."""
    found: dict[str, tuple[str, Any]] = {}
    for prefix, module in adapter.named_modules():
        kind = PLAIN.get(type(module).__name__)
        if kind is None or not type(module).__module__.startswith("diffusers."):
            continue
        with torch.device("meta"):
            described: Any = type(module).from_config(module.config)  # type: ignore[attr-defined]
        shapes, configured = ({k: v.shape for k, v in each.state_dict().items()} for each in (module, described))
        if shapes == configured:  # else a method has operated on the module, and its configuration describes another
            number = sum(name.startswith(kind) for name in found)
            found[f"{kind}_{number}" if number else kind] = f"{prefix}.", module
    return found


def load_into(adapter: Adapter, backbone: Backbone, folder: Path) -> None:
    """Puts the weights of a method folder into an attached adapter and its backbone; sets `Adapter.faithful`, too.

    A `UserError` says that they belong to another class or backbone, do not fit or are damaged.
    """
    about, name, own = read_about(folder), full_name(adapter), backbone.weights
    if about["class"] != name:
        fix = "choose the adapter they belong to, or another checkpoint="
        raise UserError(f"{folder} holds weights of {about['class']}, the configured adapter is {name}; {fix}")
    if (sha256 := about["backbone"]["sha256"]) != own.sha256:
        there, here = f"{about['backbone']['id']} (sha256 {sha256[:12]})", f"{own.id} ({own.sha256[:12]})"
        fix = "set backbone= to that one, or train again"
        raise UserError(f"{folder} was trained on backbone {there}, configured is {here}; {fix}")
    adapter.faithful = bool(about.get("faithful", adapter.faithful))
    tensors: dict[str, Tensor] = {}
    for part, (prefix, _) in plain_modules(adapter).items():
        if (folder / part).is_dir() or not (folder / ADAPTER).is_file():
            plain = read(folder / part / WEIGHTS)
            tensors |= {f"{prefix}{key}": value for key, value in plain.items()}
            branch = adapter.get_submodule(prefix.rstrip(".").rpartition(".")[0])
            if isinstance(branch, ControlBranch):
                branch.fit(plain, read_json_or_empty(folder / part / "config.json"))
    if adapter.state_dict().keys() - tensors.keys() or (folder / ADAPTER).is_file():
        tensors |= read(folder / ADAPTER)
    put(adapter, tensors, folder)
    file = network_file(folder, backbone)
    if trains(backbone.network) or file.is_file():
        put(backbone.network, read(file), file)
        backbone.replaced = backbone.replaced or not trains(backbone.network)


def read_about(folder: Path) -> dict[str, Any]:
    """``posegen.json`` of a method folder."""
    path = folder / "posegen.json"
    if not path.is_file():
        fix = "name a finished cell, its method folder, or the target of posegen convert"
        raise UserError(f"{folder} is no method folder (posegen.json is missing); {fix}")
    trained = folder.name == "method" and (folder.parent / "status.json").is_file()
    fix = f"delete {folder.parent} and train again" if trained else f"delete {folder} and convert or save it again"
    about = read_json(path, fix, MAX_STATE_BYTES)
    if isinstance(about, dict) and (version := about.get("format", FORMAT)) != FORMAT:
        raise UserError(f"{path} has format {repr(version)[:50]}, this version reads format {FORMAT}; {fix}")
    return checked_state(about, path, MethodFile, fix)


def read(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, all finite."""
    if not file.is_file():
        raise UserError(f"{file} is missing; the method folder is incomplete: train or convert it again")
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is damaged ({error}); train or convert the method again") from error
    require_finite(tensors, file)
    return tensors


def require_finite(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Refuses weights that no image can come from; names the file and some of the tensors."""
    if bad := not_finite(tensors):
        raise UserError(
            f"{file} holds NaN or infinity in {len(bad)} of {len(tensors)} tensors: {listed(bad)}. Its training "
            "diverged, or it overflowed when it was saved in half precision; take an earlier checkpoint or the file in "
            "full precision"
        )


def listed(names: Sequence[str]) -> str:
    """The first names, separated by commas."""
    return f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"


def misshaped(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """Keys of both with another shape, and the shapes."""
    different = sorted(key for key in own.keys() & given.keys() if own[key].shape != given[key].shape)
    return [f"{key} {list(given[key].shape)} instead of {list(own[key].shape)}" for key in different]


def put(module: nn.Module, tensors: Mapping[str, Tensor], file: Path | str) -> None:
    """Loads ``tensors``; a `UserError` lists missing, unexpected and mis-shaped keys."""
    own = module.state_dict()
    problems = {
        "missing": sorted(own.keys() - tensors.keys()),
        "unexpected": sorted(tensors.keys() - own.keys()),
        "of another shape": misshaped(own, tensors),
    }
    if any(problems.values()):
        kinds = "; ".join(f"{len(keys)} {what}: {listed(keys)}" for what, keys in problems.items() if keys)
        cause = "The settings of the adapter or the backbone differ from those of the weights"
        raise UserError(f"{file} does not fit {type(module).__name__}: {kinds}. {cause}")
    module.load_state_dict(tensors)


def load_method(folder: Path, backbone: Backbone) -> Adapter:
    """The adapter that a method folder describes, attached to ``backbone``, with its weights."""
    about = read_about(folder)
    adapter = rebuilt({"_target_": about["class"], **about["kwargs"]}, folder)
    adapter.faithful = bool(about.get("faithful", adapter.faithful))
    adapter.attach(backbone)
    load_into(adapter, backbone, folder)
    return adapter


def rebuilt(node: Mapping[str, Any], folder: Path) -> Adapter:
    """The method that a node of ``posegen.json`` describes, and so its parts, before `Adapter.attach`."""
    cls, parts = adapter_class(node["_target_"], folder), parts_of(node)
    built = {"methods": {name: rebuilt(part, folder) for name, part in parts.items()}} if parts else {}
    own = {name: value for name, value in node.items() if name not in ("_target_", *cls.declared)}
    adapter = constructed(cls, {**own, **built}, folder / "posegen.json")
    adapter.faithful = bool(node.get("faithful", adapter.faithful))
    return adapter


def adapter_class(name: str, folder: Path) -> type[Adapter]:
    """The class that a method folder names, if it is an `Adapter`."""
    return named_class(name, Adapter, "adapter", folder / "posegen.json")  # type: ignore[type-abstract]


def find_checkpoint(cfg: DictConfig) -> Path:
    """The method folder that ``checkpoint`` names, else that of the newest finished cell of adapter and backbone."""
    if cfg.checkpoint is not None:
        folder = method_folder(Path(str(cfg.checkpoint)).expanduser())
        read_about(folder)  # before its files are hashed: it may be any folder, or a disk
        return folder
    wanted = {key: value for key, value in identity(cfg).items() if key in ("adapter", "backbone", "task")}

    def usable(status: Path) -> bool:
        try:
            record = read_status(status.parent)
        except UserError as error:
            print(f"passed over: {error}", flush=True)
            return False
        known = record.get("identity") or {}
        same = all(known.get(key) == value for key, value in wanted.items())
        return record.get("state") == "finished" and same and (status.parent / "method").is_dir()

    finished = [status for status in Path(cfg.paths.output).glob("**/status.json") if usable(status)]
    if not finished:
        fix = f"run posegen train adapter={cfg.method} first, or set checkpoint=FOLDER"
        raise UserError(f"no finished cell of adapter {cfg.method} in {cfg.paths.output}; {fix}")
    return max(finished, key=lambda status: status.stat().st_mtime).parent / "method"


def method_folder(place: Path) -> Path:
    """The method folder of a cell, or ``place`` itself."""
    return place / "method" if (place / "method").is_dir() else place


def writable(folder: Path) -> Path:
    """``folder``, if writing there destroys nothing but an earlier method folder."""
    replaceable = (folder / "posegen.json").is_file() or (folder.is_dir() and not any(folder.iterdir()))
    if folder.exists() and not replaceable:
        raise UserError(f"{folder} exists and is no method folder, so it is not overwritten; choose a new folder")
    return folder
