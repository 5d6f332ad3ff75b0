"""The verb ``posegen convert``: official weights become a method folder, with every key of the file accounted for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from posegen.runner.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from posegen.adapters.base import Adapter
    from posegen.backbones.base import Backbone

SHOWN = 5  # keys of a kind in a message


def convert(adapter: DictConfig, backbone: DictConfig, source: str, target: str, **_: Any) -> None:
    """Reads official weights, prints what became of their keys, and writes a method folder.

    Args:
        adapter: configuration of the method that the weights belong to.
        backbone: configuration of the backbone that the method folder is for.
        source: the official file; nothing in it is run.
        target: the method folder to write.

    Raises:
        UserError: the file, the backbone or the target cannot be used, or a key is missing, unexpected or of another shape.
    """
    from posegen.backbones.files import WeightsError, read_tensors, sha256_of
    from posegen.runner.checkpoints import save_method

    folder = writable(Path(target).expanduser())
    file = Path(source).expanduser()
    try:
        official = read_tensors(file)
    except WeightsError as error:
        raise UserError(str(error)) from error
    method, body = attached(adapter, backbone)
    placed, account = accounted(method, body, official)
    print(f"{file.name} holds {len(official)} tensors\n{account.listed()}")
    if account.wrong:
        raise UserError(
            f"{file} does not fit {type(method).__name__} on backbone {body.weights.id}: {account.summary()}. Nothing was written; choose the adapter= "
            "and the backbone= (with its backbone.path=) that the file was trained with"
        )
    load(method, body, placed)
    method.faithful = True  # official weights expect official quirks
    save_method(folder, method, body, converted={"file": file.name, "sha256": sha256_of([file])})
    print(f"wrote {folder}; use it with checkpoint={folder} on backbone {body.weights.id}")


def writable(folder: Path) -> Path:
    """``folder``, if writing there destroys nothing but an earlier method folder.

    Raises:
        UserError: something else is there.
    """
    free = not folder.exists() or (folder.is_dir() and (not any(folder.iterdir()) or (folder / "posegen.json").is_file()))
    if not free:
        raise UserError(f"{folder} exists and is no method folder, so it is not overwritten; set target= to a new folder")
    return folder


def attached(adapter: DictConfig, backbone: DictConfig) -> tuple[Adapter, Backbone]:
    """The method, attached to its backbone.

    Raises:
        UserError: a setting without a default is not set, or the method has no weights.
    """
    from posegen.runner.parts import Parts

    nodes = {"adapter": adapter, "backbone": backbone}
    if missing := sorted(f"{name}.{key}" for name, node in nodes.items() for key in OmegaConf.missing_keys(node)):
        raise UserError(
            f"{', '.join(missing)} is not set; a method folder belongs to one backbone: name it, for instance backbone=sd15 backbone.path=FOLDER_OR_FILE"
        )
    plain = {name: OmegaConf.to_container(node, resolve=True) for name, node in nodes.items()}
    parts = Parts(OmegaConf.create({**plain, "method": adapter.get("_target_"), "seed": 0}))
    if not parts.bare_adapter.trainable:
        raise UserError(f"adapter {adapter.get('_target_')} has no weights; choose the method that the file belongs to with adapter=")
    return parts.adapter, parts.backbone


@dataclass(frozen=True)
class Account:
    """What became of the keys of an official file.

    Attributes:
        taken: where tensors went -> how many.
        ignored: (beginning of the keys, why) -> how many.
        missing: keys of this project that the file does not fill.
        unexpected: keys of the file that have no place.
        misshaped: keys of this project with the shapes that do not agree.
    """

    taken: Mapping[str, int]
    ignored: Mapping[tuple[str, str], int]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: tuple[str, ...]

    @property
    def wrong(self) -> dict[str, tuple[str, ...]]:
        """The kinds of keys that must not be there, with their keys."""
        kinds = {"missing": self.missing, "unexpected": self.unexpected, "mis-shaped": self.misshaped}
        return {kind: keys for kind, keys in kinds.items() if keys}

    def summary(self) -> str:
        return "; ".join(f"{len(keys)} {kind}: {', '.join(keys[:SHOWN])}{', ...' if len(keys) > SHOWN else ''}" for kind, keys in self.wrong.items())

    def listed(self) -> str:
        """One line per kind and place."""
        whys: dict[str, list[str]] = {}
        for begin, why in self.ignored:
            whys.setdefault(why, []).append(begin)
        left = {f"{begins[0]}{', ...' * (len(begins) > 1)}: {why}": sum(self.ignored[begin, why] for begin in begins) for why, begins in whys.items()}
        rows = [("taken", n, f"into {place}") for place, n in self.taken.items()] or [("taken", 0, "")]
        rows += [("ignored by rule", n, what) for what, n in left.items()] or [("ignored by rule", 0, "")]
        rows += [("missing", len(self.missing), ""), ("unexpected", len(self.unexpected), ""), ("mis-shaped", len(self.misshaped), "")]
        return "\n".join(f"  {kind:15} {n:5}  {what}".rstrip() for kind, n, what in rows)


def accounted(method: Adapter, backbone: Backbone, official: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Account]:
    """The converted tensors of ``official``, and what became of every key."""
    from posegen.backbones.files import UnknownKeys

    unexpected: tuple[str, ...] = ()
    try:
        placed = method.convert(official)
    except UnknownKeys as error:  # the rest is converted nevertheless, so that one run tells everything
        unexpected = error.keys
        placed = method.convert({key: value for key, value in official.items() if key not in unexpected})
    own = expected(method, backbone)
    fitting = own.keys() & placed.keys()
    misshaped = {key for key in fitting if own[key].shape != placed[key].shape}
    account = Account(
        taken=Counter("adapter.safetensors" if key.startswith("adapter.") else "backbone/unet" for key in fitting - misshaped),
        ignored=ignored(official, method.beside),
        missing=tuple(sorted(own.keys() - placed.keys())),
        unexpected=(*unexpected, *sorted(placed.keys() - own.keys())),
        misshaped=tuple(f"{key} {list(placed[key].shape)} instead of {list(own[key].shape)}" for key in sorted(misshaped)),
    )
    return placed, account


def expected(method: Adapter, backbone: Backbone) -> dict[str, Tensor]:
    """Everything that a method folder of ``method`` holds, under the names that `Adapter.convert` gives."""
    from posegen.runner.checkpoints import trains

    own = {f"adapter.{key}": value for key, value in method.state_dict().items()}
    return own | ({f"backbone.unet.{key}": value for key, value in backbone.unet.state_dict().items()} if trains(backbone.unet) else {})


def ignored(keys: Iterable[str], rules: Mapping[str, str]) -> Counter[tuple[str, str]]:
    """How many of ``keys`` fall under each rule, a beginning of keys."""
    falling = [(begin, why) for key in keys for begin, why in rules.items() if key == begin or key.startswith(f"{begin}.")]
    return Counter(falling)


def load(method: Adapter, backbone: Backbone, placed: Mapping[str, Tensor]) -> None:
    """Puts converted tensors, all of which fit, into the method and its backbone."""
    for module, prefix in ((method, "adapter."), (backbone.unet, "backbone.unet.")):
        own = {key.removeprefix(prefix): value for key, value in placed.items() if key.startswith(prefix)}
        if own:
            module.load_state_dict(own)
