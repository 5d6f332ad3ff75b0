"""Method folders: what training writes, ``convert`` makes, and sampling reads.

* ``posegen.json``: format, class and its arguments, backbone id and hash;
* ``adapter.safetensors``: the adapter's weights (averaged);
* ``backbone/unet/``: the U-Net in diffusers' layout, where the method trains it;
* ``controlnet/``: the adapter once more as a plain diffusers folder, where diffusers has the class.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from posegen.adapters.base import Adapter
from posegen.backbones.base import Backbone
from posegen.runner.errors import UserError
from posegen.runner.files import read_json, replacing, write_json

FORMAT = 1
UNET = Path("backbone") / "unet" / "diffusion_pytorch_model.safetensors"


def save_method(folder: Path, adapter: Adapter, backbone: Backbone, **facts: Any) -> None:
    """Writes a method folder; it appears whole or not at all.

    Args:
        adapter: attached to ``backbone``.
        facts: more entries of ``posegen.json``.
    """
    about = {
        "format": FORMAT,
        "class": f"{type(adapter).__module__}.{type(adapter).__qualname__}",
        "kwargs": arguments(adapter),
        "faithful": adapter.faithful,
        "backbone": {"id": backbone.weights.id, "sha256": backbone.weights.sha256},
        **facts,
    }
    with replacing(folder) as temporary:
        temporary.mkdir()
        tensors = {name: value.detach().cpu().contiguous() for name, value in adapter.state_dict().items()}
        save_file(tensors, temporary / "adapter.safetensors")
        if trains(backbone.unet):
            backbone.unet.save_pretrained(temporary / UNET.parent)  # type: ignore[operator]
        for name, module in plain_modules(adapter).items():
            module.save_pretrained(temporary / name)
        write_json(temporary / "posegen.json", about)


def arguments(adapter: Adapter) -> dict[str, Any]:
    """The constructor's arguments that are plain values, read back from the attributes that keep them."""
    values = {name: getattr(adapter, name) for name in inspect.signature(type(adapter)).parameters if hasattr(adapter, name)}
    return {name: value for name, value in values.items() if isinstance(value, str | int | float | bool | list | tuple | None)}


def trains(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def plain_modules(adapter: Adapter) -> dict[str, Any]:
    """Folder name -> diffusers module, for parts of the adapter that diffusers has a class for."""
    names = {"ControlNetModel": "controlnet", "T2IAdapter": "t2i_adapter"}
    return {names[type(m).__name__]: m for m in adapter.modules() if type(m).__name__ in names and type(m).__module__.startswith("diffusers.")}


def load_into(adapter: Adapter, backbone: Backbone, folder: Path) -> None:
    """Puts the weights of a method folder into an attached adapter and its backbone.

    Raises:
        UserError: the folder belongs to another class or backbone, or its weights are missing, damaged or of another shape.
    """
    about = read_about(folder)
    name = f"{type(adapter).__module__}.{type(adapter).__qualname__}"
    if about["class"] != name:
        raise UserError(
            f"{folder} holds weights of {about['class']}, the configured adapter is {name}; choose the adapter they belong to, or another checkpoint="
        )
    if about["backbone"]["sha256"] != backbone.weights.sha256:
        raise UserError(
            f"{folder} was trained on backbone {about['backbone']['id']} (sha256 {about['backbone']['sha256'][:12]}), "
            f"configured is {backbone.weights.id} ({backbone.weights.sha256[:12]}); set backbone= to that one, or train again"
        )
    put(adapter, read(folder / "adapter.safetensors"), folder / "adapter.safetensors")
    if trains(backbone.unet) or (folder / UNET).is_file():
        put(backbone.unet, read(folder / UNET), folder / UNET)


def read_about(folder: Path) -> dict[str, Any]:
    """``posegen.json`` of a method folder."""
    path = folder / "posegen.json"
    if not path.is_file():
        raise UserError(f"{folder} is no method folder (posegen.json is missing); name a finished cell, its method folder, or the target of posegen convert")
    about = read_json(path)
    version = about.get("format") if isinstance(about, dict) else None
    fields = {"class": str, "kwargs": dict, "backbone": dict}
    if version != FORMAT or not all(isinstance(about.get(name), kind) for name, kind in fields.items()) or not {"id", "sha256"} <= about["backbone"].keys():
        raise UserError(f"{path} has format {version}, this version reads format {FORMAT}; make the folder again with posegen train or convert")
    return about


def read(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        UserError: it is missing or damaged.
    """
    if not file.is_file():
        raise UserError(f"{file} is missing; the method folder is incomplete: train or convert it again")
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is damaged ({error}); train or convert the method again") from error


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
        "of another shape": [f"{key} {list(tensors[key].shape)} instead of {list(own[key].shape)}" for key in misshaped],
    }
    if any(problems.values()):
        listed = "; ".join(f"{len(keys)} {what}: {', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}" for what, keys in problems.items() if keys)
        raise UserError(f"{file} does not fit {type(module).__name__}: {listed}. The settings of the adapter or the backbone differ from those of the weights")
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
    """The class a folder names, if it is an `Adapter`; nothing else is ever called.

    The module must be a posegen adapter or one that the program has imported already: a folder cannot have foreign modules imported.
    """
    module, _, attribute = name.rpartition(".")
    found = None
    if module.startswith("posegen.adapters.") or module in sys.modules:
        try:
            found = getattr(import_module(module), attribute, None)
        except ImportError:
            found = None
    if not (isinstance(found, type) and issubclass(found, Adapter)):
        raise UserError(
            f"{folder / 'posegen.json'} names the class {name}, which is no adapter; nothing was run. "
            "Import its package first, or get the folder from its author again"
        )
    return found


def find_checkpoint(cfg: DictConfig) -> Path:
    """The method folder that ``checkpoint`` means: a cell, a method folder, or, where it is null, the newest finished cell of this adapter and backbone.

    Raises:
        UserError: there is none; names the command that makes it.
    """
    if cfg.checkpoint is not None:
        place = Path(cfg.checkpoint)
        return place / "method" if (place / "method").is_dir() else place
    finished = [cell for cell in Path(cfg.paths.output).glob("**/status.json") if made_by(cell, cfg)]
    if not finished:
        raise UserError(
            f"no finished cell of adapter {cfg.method} in {cfg.paths.output}; run posegen train adapter={cfg.method} first, or set checkpoint=FOLDER"
        )
    return max(finished, key=lambda cell: cell.stat().st_mtime).parent / "method"


def made_by(status: Path, cfg: DictConfig) -> bool:
    """Whether a cell is finished and was trained with this adapter and backbone."""
    from posegen.runner.cells import identity

    record = read_json(status)
    wanted = identity(cfg)
    same = all(record.get("identity", {}).get(key) == wanted[key] for key in ("adapter", "backbone", "task"))
    return record.get("state") == "finished" and same and (status.parent / "method").is_dir()
