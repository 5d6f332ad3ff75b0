"""Official weights as a method folder, with every key of the file accounted for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from posegen.adapters.base import Adapter
from posegen.backbones.base import Backbone
from posegen.errors import UserError
from posegen.io.hub import HubPlace, fetched, on_hub
from posegen.runner import method_folder as methods
from posegen.runner.components import Components
from posegen.runner.official_weights import put_official, read_official


def convert(
    adapter: DictConfig,
    backbone: DictConfig,
    source: str | Sequence[str] | None,
    target: str,
    sampler: DictConfig | None = None,
) -> None:
    """Reads official weights, prints what became of their keys, and writes a method folder.

    A file of a whole model gives the U-Net too where that differs from the backbone's; the folder still belongs to the
    backbone, whose text tower, autoencoder and noise process it is sampled with.

    Args:
        source: the official file, of which nothing is run, or the folder of a diffusers model, on this disk or as
            ``hub:owner/name/file``; a list of them where the weights lie in several files; None starts the method from
            the backbone's weights, as the official programs do before training.
        sampler: how the method is to be sampled, where that is known.

    Raises:
        UserError: the file, the backbone or the target cannot be used, or a key does not fit.
    """
    folder = methods.writable(Path(target).expanduser())
    facts: dict[str, Any] = {"sampler": None if sampler is None else OmegaConf.to_container(sampler, resolve=True)}
    if source is None:
        method, body = attached(adapter, backbone)
        methods.save_method(folder, method, body, initialised=True, **facts)
        start = f"starts from the weights of backbone {body.weights.id}"
        print(f"{type(method).__name__} {start}; what those do not give is random, from seed 0")
    else:
        named = [source] if isinstance(source, str) else list(source)
        found = [fetched(HubPlace.of(name)) if on_hub(name) else (Path(name).expanduser(), None) for name in named]
        files, names = [file for file, _ in found], ", ".join(file.name for file, _ in found)
        hub = ", ".join(str(place) for _, place in found if place)
        cls: Any = get_object(str(backbone.get("_target_")))
        path = None if OmegaConf.is_missing(backbone, "path") else backbone.get("path")
        if hasattr(cls, "misfit_at") and path is not None and (misfit := cls.misfit_at(path, read_official(*files)[0])):
            raise UserError(f"{', '.join(map(str, files))} {misfit}. Nothing was loaded or written")
        method, body = attached(adapter, backbone, faithful=True)
        _, sha256 = put_official(method, body, files)
        facts["converted"] = {"file": names, "sha256": sha256, **({"hub": hub} if hub else {})}
        methods.save_method(folder, method, body, **facts)
    print(f"wrote {folder}; use it with checkpoint={folder} on backbone {body.weights.id}")


def attached(adapter: DictConfig, backbone: DictConfig, faithful: bool = False) -> tuple[Adapter, Backbone]:
    """The method, attached to its backbone; ``faithful`` for official weights, which expect official quirks."""
    nodes = {"adapter": adapter, "backbone": backbone}
    if missing := sorted(f"{name}.{key}" for name, node in nodes.items() for key in OmegaConf.missing_keys(node)):
        fix = "name it, for instance backbone=sd15 backbone.path=FOLDER_OR_FILE"
        raise UserError(f"{', '.join(missing)} is not set; a method folder belongs to one backbone: {fix}")
    plain = {name: OmegaConf.to_container(node, resolve=True) for name, node in nodes.items()}
    name = adapter.get("_target_")
    components = Components(OmegaConf.create({**plain, "method": name, "seed": 0}))
    if not components.bare_adapter.trainable:
        raise UserError(f"adapter {name} has no weights; choose the method that the file belongs to with adapter=")
    if faithful:
        components.bare_adapter.faithful = True  # before it is attached: quirks may shape modules
    return components.adapter, components.backbone
