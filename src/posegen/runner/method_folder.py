"""Method folders: what training writes, ``convert`` makes, and sampling reads.

* ``posegen.json``: format, class and its arguments, backbone id and hash, sampler;
* ``controlnet/``, ``t2i_adapter/``: parts of the adapter as plain diffusers folders, where diffusers has the class;
* ``adapter.safetensors``: the adapter's other weights (averaged), if any;
* ``backbone/unet/``: the U-Net in diffusers' layout, where the method trains it or came with one of its own.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import torch
from omegaconf import DictConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from posegen.adapters.base import Adapter
from posegen.backbones.base import Backbone
from posegen.errors import UserError
from posegen.io.atomic import read_json, replacing, write_json
from posegen.io.weights import not_finite

FORMAT = 1
ADAPTER = "adapter.safetensors"
WEIGHTS = "diffusion_pytorch_model.safetensors"
UNET = Path("backbone") / "unet" / WEIGHTS
PLAIN = {"ControlNetModel": "controlnet", "T2IAdapter": "t2i_adapter"}
Kind = TypeVar("Kind")


def save_method(folder: Path, adapter: Adapter, backbone: Backbone, own_unet: bool = False, **facts: Any) -> None:
    """Writes a method folder; it appears whole or not at all.

    Args:
        adapter: attached to ``backbone``.
        own_unet: write the U-Net although it does not train, because it is not the backbone's own.
        facts: more entries of ``posegen.json``, among them ``sampler``, the settings that the method is to be sampled
            with, where they are known.
    """
    about = {
        "format": FORMAT,
        "class": f"{type(adapter).__module__}.{type(adapter).__qualname__}",
        "kwargs": arguments(adapter),
        "faithful": adapter.faithful,
        "backbone": {"id": backbone.weights.id, "sha256": backbone.weights.sha256},
        "sampler": None,
        **facts,
    }
    for network in (adapter, backbone.unet):
        network.to(memory_format=torch.contiguous_format)  # files hold no other layout
    with replacing(folder) as temporary:
        temporary.mkdir()
        rest = {name: value.detach().cpu().contiguous() for name, value in adapter.state_dict().items()}
        for name, (prefix, module) in plain_modules(adapter).items():
            module.save_pretrained(temporary / name)
            rest = {key: value for key, value in rest.items() if not key.startswith(prefix)}
        if rest:
            save_file(rest, temporary / ADAPTER)
        if own_unet or trains(backbone.unet):
            backbone.unet.save_pretrained(temporary / UNET.parent)  # type: ignore[operator]
        write_json(temporary / "posegen.json", about)


def arguments(adapter: Adapter) -> dict[str, Any]:
    """The constructor's arguments that are plain values, read back from the attributes that keep them."""
    values = {
        name: getattr(adapter, name) for name in inspect.signature(type(adapter)).parameters if hasattr(adapter, name)
    }
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, str | int | float | bool | list | tuple | None)
    }


def trains(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def plain_modules(adapter: Adapter) -> dict[str, tuple[str, Any]]:
    """Folder name -> (beginning of its keys, module), for parts of the adapter that diffusers itself can load.

    A module of one of diffusers' classes that a method has operated on is none of them: its configuration does not
    describe it any more.
    """
    found: dict[str, tuple[str, Any]] = {}
    for prefix, module in adapter.named_modules():
        kind = PLAIN.get(type(module).__name__)
        if kind and type(module).__module__.startswith("diffusers.") and as_configured(module):
            number = sum(name.startswith(kind) for name in found)
            found[f"{kind}_{number}" if number else kind] = f"{prefix}.", module
    return found


def as_configured(module: Any) -> bool:
    """Whether a diffusers module has the weights that its configuration gives it."""
    with torch.device("meta"):
        described = type(module).from_config(module.config).state_dict()
    return {key: value.shape for key, value in described.items()} == {
        key: value.shape for key, value in module.state_dict().items()
    }


def load_into(adapter: Adapter, backbone: Backbone, folder: Path) -> None:
    """Puts the weights of a method folder into an attached adapter and its backbone, and has official weights used as
    their authors did.

    Raises:
        UserError: the folder belongs to another class or backbone, or its weights are missing, damaged, not finite or
            of another shape.
    """
    about = read_about(folder)
    name = f"{type(adapter).__module__}.{type(adapter).__qualname__}"
    if about["class"] != name:
        raise UserError(
            f"{folder} holds weights of {about['class']}, the configured adapter is {name}; choose the adapter they "
            "belong to, or another checkpoint="
        )
    if about["backbone"]["sha256"] != backbone.weights.sha256:
        raise UserError(
            f"{folder} was trained on backbone {about['backbone']['id']} (sha256 {about['backbone']['sha256'][:12]}), "
            f"configured is {backbone.weights.id} ({backbone.weights.sha256[:12]}); set backbone= to that one, or "
            "train again"
        )
    adapter.faithful = bool(about.get("faithful", adapter.faithful))
    put(adapter, adapter_tensors(adapter, folder), folder)
    if trains(backbone.unet) or (folder / UNET).is_file():
        put(backbone.unet, read(folder / UNET), folder / UNET)


def adapter_tensors(adapter: Adapter, folder: Path) -> dict[str, Tensor]:
    """The adapter's weights in a method folder, from wherever they lie there."""
    tensors: dict[str, Tensor] = {}
    for name, (prefix, _) in plain_modules(adapter).items():
        if (folder / name).is_dir() or not (folder / ADAPTER).is_file():
            tensors |= {f"{prefix}{key}": value for key, value in read(folder / name / WEIGHTS).items()}
    if adapter.state_dict().keys() - tensors.keys() or (folder / ADAPTER).is_file():
        tensors |= read(folder / ADAPTER)
    return tensors


def read_about(folder: Path) -> dict[str, Any]:
    """``posegen.json`` of a method folder."""
    path = folder / "posegen.json"
    if not path.is_file():
        raise UserError(
            f"{folder} is no method folder (posegen.json is missing); name a finished cell, its method folder, or the "
            "target of posegen convert"
        )
    about = read_json(path)
    version = about.get("format") if isinstance(about, dict) else None
    fields = {"class": str, "kwargs": dict, "backbone": dict}
    if (
        version != FORMAT
        or not all(isinstance(about.get(name), kind) for name, kind in fields.items())
        or not {"id", "sha256"} <= about["backbone"].keys()
    ):
        raise UserError(
            f"{path} has format {version}, this version reads format {FORMAT}; make the folder again with posegen "
            "train or convert"
        )
    return about


def read(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        UserError: it is missing or damaged, or a number in it is none.
    """
    if not file.is_file():
        raise UserError(f"{file} is missing; the method folder is incomplete: train or convert it again")
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is damaged ({error}); train or convert the method again") from error
    require_finite(tensors, file)
    return tensors


def require_finite(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Refuses weights that no image can come from.

    Raises:
        UserError: names the file and some of the tensors.
    """
    if bad := not_finite(tensors):
        raise UserError(
            f"{file} holds NaN or infinity in {len(bad)} of {len(tensors)} tensors: {listed(bad)}. Its training "
            "diverged, or it overflowed when it was "
            "saved in half precision; take an earlier checkpoint or the file in full precision"
        )


def listed(names: list[str], most: int = 5) -> str:
    """The first names, separated by commas."""
    return f"{', '.join(names[:most])}{', ...' if len(names) > most else ''}"


def put(module: nn.Module, tensors: Mapping[str, Tensor], file: Path | str) -> None:
    """Loads ``tensors`` with every key accounted for.

    Raises:
        UserError: lists missing, unexpected and mis-shaped keys.
    """
    own = module.state_dict()
    misshaped = sorted(key for key in own.keys() & tensors.keys() if own[key].shape != tensors[key].shape)
    problems = {
        "missing": sorted(own.keys() - tensors.keys()),
        "unexpected": sorted(tensors.keys() - own.keys()),
        "of another shape": [
            f"{key} {list(tensors[key].shape)} instead of {list(own[key].shape)}" for key in misshaped
        ],
    }
    if any(problems.values()):
        kinds = "; ".join(f"{len(keys)} {what}: {listed(keys)}" for what, keys in problems.items() if keys)
        raise UserError(
            f"{file} does not fit {type(module).__name__}: {kinds}. The settings of the adapter or the backbone differ "
            "from those of the weights"
        )
    module.load_state_dict(tensors)


def load_method(folder: Path, backbone: Backbone) -> Adapter:
    """The adapter that a method folder describes, attached to ``backbone``, with its weights.

    Raises:
        UserError: the folder is unusable, or names a class that is not an `Adapter`.
    """
    about = read_about(folder)
    adapter = adapter_class(about["class"], folder)(**about["kwargs"])
    adapter.faithful = bool(about.get("faithful", adapter.faithful))
    adapter.attach(backbone)
    load_into(adapter, backbone, folder)
    return adapter


def adapter_class(name: str, folder: Path) -> type[Adapter]:
    """The class that a method folder names, if it is an `Adapter`."""
    return named_class(name, Adapter, "adapter", folder / "posegen.json")  # type: ignore[type-abstract]


def named_class(name: str, kind: type[Kind], what: str, file: Path) -> type[Kind]:
    """The class that a foreign file names, if it is of the right kind; nothing else is ever called.

    The module must be one of posegen's own or one that the program has imported already: a folder cannot have foreign
    modules imported.

    Args:
        kind: what the class must inherit from.
        what: the same as a word, also the beginning of posegen's package of them.
    """
    module, _, attribute = name.rpartition(".")
    found = None
    if module.startswith(f"posegen.{what}s.") or module in sys.modules:
        try:
            found = getattr(import_module(module), attribute, None)
        except ImportError:
            found = None
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise UserError(
            f"{file} names the class {name}, which is no {what}; nothing was run. Import its package first, or get the "
            "folder from its author again"
        )
    return found


def find_checkpoint(cfg: DictConfig) -> Path:
    """The method folder that ``checkpoint`` means: a cell, a method folder, or, where it is null, the newest finished
    cell of this adapter and backbone.

    Raises:
        UserError: there is none; names the command that makes it.
    """
    if cfg.checkpoint is not None:
        return method_folder(Path(cfg.checkpoint))
    finished = [cell for cell in Path(cfg.paths.output).glob("**/status.json") if made_by(cell, cfg)]
    if not finished:
        raise UserError(
            f"no finished cell of adapter {cfg.method} in {cfg.paths.output}; run posegen train adapter={cfg.method} "
            "first, or set checkpoint=FOLDER"
        )
    return max(finished, key=lambda cell: cell.stat().st_mtime).parent / "method"


def method_folder(place: Path) -> Path:
    """The method folder of a cell, or ``place`` itself."""
    return place / "method" if (place / "method").is_dir() else place


def made_by(status: Path, cfg: DictConfig) -> bool:
    """Whether a cell is finished and was trained with this adapter and backbone."""
    from posegen.runner.cell import identity

    record = read_json(status)
    wanted = identity(cfg)
    same = all(record.get("identity", {}).get(key) == wanted[key] for key in ("adapter", "backbone", "task"))
    return record.get("state") == "finished" and same and (status.parent / "method").is_dir()


def writable(folder: Path) -> Path:
    """``folder``, if writing there destroys nothing but an earlier method folder.

    Raises:
        UserError: something else is there.
    """
    free = not folder.exists() or (
        folder.is_dir() and (not any(folder.iterdir()) or (folder / "posegen.json").is_file())
    )
    if not free:
        raise UserError(f"{folder} exists and is no method folder, so it is not overwritten; choose a new folder")
    return folder
