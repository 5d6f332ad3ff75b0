"""Official weights as a method folder, with every key of the file accounted for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from posegen.adapters.base import Adapter
from posegen.backbones.base import Backbone
from posegen.errors import UserError
from posegen.io.hashes import sha256_of
from posegen.io.weights import UnknownKeys, WeightsError, read_tensors, weight_files
from posegen.runner.components import Components
from posegen.runner.method_folder import ADAPTER, plain_modules, require_finite, save_method, trains, writable

SHOWN = 5  # keys of a kind in a message
UNET = "backbone.unet."  # what the converted keys of a U-Net begin with


def convert(
    adapter: DictConfig,
    backbone: DictConfig,
    source: str | None,
    target: str,
    sampler: DictConfig | None = None,
) -> None:
    """Reads official weights, prints what became of their keys, and writes a method folder.

    A file of a whole model gives the U-Net too where that differs from the backbone's; the folder still belongs to the
    backbone, whose text tower, autoencoder and noise process it is sampled with.

    Args:
        adapter: configuration of the method that the weights belong to.
        backbone: configuration of the backbone that the method folder is for.
        source: the official file, of which nothing is run, or the folder of a diffusers model; None starts the method
            from the backbone's own weights, as the official programs do before training.
        target: the method folder to write.
        sampler: how the method is to be sampled, where that is known.

    Raises:
        UserError: the file, the backbone or the target cannot be used, or a key is missing, unexpected or of another
            shape.
    """
    folder = writable(Path(target).expanduser())
    facts: dict[str, Any] = {"sampler": None if sampler is None else OmegaConf.to_container(sampler, resolve=True)}
    if source is None:
        method, body = attached(adapter, backbone)
        save_method(folder, method, body, initialised=True, **facts)
        print(
            f"{type(method).__name__} starts from the weights of backbone {body.weights.id}; what those do not give is "
            "random, from seed 0"
        )
    else:
        file = Path(source).expanduser()
        official, sha256 = read_official(file)
        method, body = attached(adapter, backbone, faithful=True)
        placed, account = accounted(method, body, official, whole=True)
        print(f"{file.name} holds {len(official)} tensors\n{account.listed()}")
        if account.wrong:
            raise UserError(complaint(file, method, body, official, account))
        put_converted(method, body, placed)
        save_method(
            folder,
            method,
            body,
            own_unet=account.different > 0,
            converted={"file": file.name, "sha256": sha256},
            **facts,
        )
    print(f"wrote {folder}; use it with checkpoint={folder} on backbone {body.weights.id}")


def read_official(source: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors of an official file or of a diffusers model's folder, and the hash of their files.

    Raises:
        UserError: they cannot be read, lie somewhere else, or hold NaN or infinity.
    """
    if (source / "posegen.json").is_file():
        raise UserError(f"source={source} is a method folder already; use it with checkpoint={source}")
    inner = sorted(place.parent for place in source.glob("*/config.json"))
    if inner and not (source / "config.json").is_file():
        raise UserError(f"source={source} holds several models; name one of {', '.join(map(str, inner))}")
    try:
        tensors = read_tensors(source)
        require_finite(tensors, source)
        return tensors, sha256_of(weight_files(source) if source.is_dir() else [source])
    except WeightsError as error:
        raise UserError(str(error)) from error


def attached(adapter: DictConfig, backbone: DictConfig, faithful: bool = False) -> tuple[Adapter, Backbone]:
    """The method, attached to its backbone.

    Args:
        faithful: the weights are official and expect official quirks.

    Raises:
        UserError: a setting without a default is not set, or the method has no weights.
    """
    nodes = {"adapter": adapter, "backbone": backbone}
    if missing := sorted(f"{name}.{key}" for name, node in nodes.items() for key in OmegaConf.missing_keys(node)):
        raise UserError(
            f"{', '.join(missing)} is not set; a method folder belongs to one backbone: name it, for instance "
            "backbone=sd15 backbone.path=FOLDER_OR_FILE"
        )
    plain = {name: OmegaConf.to_container(node, resolve=True) for name, node in nodes.items()}
    components = Components(OmegaConf.create({**plain, "method": adapter.get("_target_"), "seed": 0}))
    if not components.bare_adapter.trainable:
        raise UserError(
            f"adapter {adapter.get('_target_')} has no weights; choose the method that the file belongs to with "
            "adapter="
        )
    components.bare_adapter.faithful = (
        faithful or components.bare_adapter.faithful
    )  # before it is built: quirks may shape modules
    return components.adapter, components.backbone


def complaint(file: Path, method: Adapter, backbone: Backbone, official: Mapping[str, Tensor], account: Account) -> str:
    """Why a file cannot be used, and what to do."""
    name = type(method).__name__
    if not account.taken and not account.misshaped:
        counts = Counter(key.partition(".")[0] for key in official).most_common(SHOWN)
        begins = ", ".join(f"{begin} ({n})" for begin, n in counts)
        return (
            f"{file} holds no weights of {name}: its keys begin with {begins}. Nothing was written; choose the "
            "adapter= that the file belongs to"
        )
    fix = "choose the adapter= and the backbone= (with its backbone.path=) that the file was trained with"
    if account.misshaped:
        fix = (
            "the file is of another size: choose the backbone= (with its backbone.path=) that it was trained on, or "
            "the adapter's settings"
        )
    return (
        f"{file} does not fit {name} on backbone {backbone.weights.id}: {account.summary()}. Nothing was written; {fix}"
    )


@dataclass(frozen=True)
class Account:
    """What became of the keys of an official file.

    Attributes:
        taken: where tensors went -> how many.
        same: tensors of the file's own U-Net that are the backbone's.
        different: tensors of the file's own U-Net that are not.
        ignored: (beginning of the keys, why) -> how many.
        missing: keys of this project that the file does not fill.
        unexpected: keys of the file that have no place.
        misshaped: keys of this project with the shapes that do not agree.
    """

    taken: Mapping[str, int]
    same: int
    different: int
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
        return "; ".join(
            f"{len(keys)} {kind}: {', '.join(keys[:SHOWN])}{', ...' if len(keys) > SHOWN else ''}"
            for kind, keys in self.wrong.items()
        )

    def listed(self) -> str:
        """One line per kind and place."""
        whys: dict[str, list[str]] = {}
        for begin, why in self.ignored:
            whys.setdefault(why, []).append(begin)
        left = {
            f"{begins[0]}{', ...' * (len(begins) > 1)}: {why}": sum(self.ignored[begin, why] for begin in begins)
            for why, begins in whys.items()
        }
        rows = [("taken", n, f"into {place}") for place, n in self.taken.items()] or [("taken", 0, "")]
        if self.different:
            rows[-1] = (
                *rows[-1][:2],
                f"{rows[-1][2]}: the file's own U-Net, {self.different} of its tensors differ from the backbone's",
            )
        elif self.same:
            rows.append(("identical", self.same, "to the backbone's U-Net, which is used"))
        rows += [("ignored by rule", n, what) for what, n in left.items()] or [("ignored by rule", 0, "")]
        rows += [
            ("missing", len(self.missing), ""),
            ("unexpected", len(self.unexpected), ""),
            ("mis-shaped", len(self.misshaped), ""),
        ]
        return "\n".join(f"  {kind:15} {n:5}  {what}".rstrip() for kind, n, what in rows)


def accounted(
    method: Adapter, backbone: Backbone, official: Mapping[str, Tensor], whole: bool = False
) -> tuple[dict[str, Tensor], Account]:
    """The converted tensors of ``official``, and what became of every key.

    Args:
        whole: take the file's U-Net, too, where the method leaves it aside because it does not train it, and where it
            is not the backbone's.
    """
    unknown: tuple[str, ...] = ()
    try:
        placed = method.convert(official)
    except UnknownKeys as error:  # the rest is converted nevertheless, so that one run tells everything
        unknown = error.keys
        placed = method.convert({key: value for key, value in official.items() if key not in unknown})
    own = expected(method, backbone)
    beside = backbone.unet_keys(official) if whole and not any(key.startswith(UNET) for key in own) else {}
    unet = {f"{UNET}{name}": official[key] for key, name in beside.items() if name is not None}
    if unet:
        placed |= unet
        own |= {f"{UNET}{key}": value for key, value in backbone.unet.state_dict().items()}
    fitting = own.keys() & placed.keys()
    misshaped = {key for key in fitting if own[key].shape != placed[key].shape}
    different = {key for key in unet.keys() & fitting - misshaped if not same(own[key], placed[key])}
    places = {f"adapter.{prefix}": f"{name}/" for name, (prefix, _) in plain_modules(method).items()} | {
        UNET: "backbone/unet/",
        "": ADAPTER,
    }
    account = Account(
        taken=Counter(
            next(place for begin, place in places.items() if key.startswith(begin))
            for key in sorted(fitting - misshaped - (set() if different else unet.keys()))
        ),
        same=len(unet.keys() & fitting - misshaped - different),
        different=len(different),
        ignored=ignored((key for key in official if key not in beside), method.left_out),
        missing=tuple(sorted(own.keys() - placed.keys())),
        unexpected=(
            *dict.fromkeys(key for key in (*unknown, *beside) if beside.get(key) is None),
            *sorted(placed.keys() - own.keys()),
        ),
        misshaped=tuple(
            f"{key} {list(placed[key].shape)} instead of {list(own[key].shape)}" for key in sorted(misshaped)
        ),
    )
    return {key: value for key, value in placed.items() if different or key not in unet}, account


def same(a: Tensor, b: Tensor) -> bool:
    """Whether one of two tensors is the other, or the other rounded to half precision."""
    a, b = a.detach().cpu().float(), b.detach().cpu().float()
    return torch.equal(a, b) or any(
        torch.equal(a.to(kind).float(), b) or torch.equal(a, b.to(kind).float())
        for kind in (torch.half, torch.bfloat16)
    )


def expected(method: Adapter, backbone: Backbone) -> dict[str, Tensor]:
    """Everything that a method folder of ``method`` holds, under the names that `Adapter.convert` gives."""
    own = {f"adapter.{key}": value for key, value in method.state_dict().items()}
    return own | (
        {f"{UNET}{key}": value for key, value in backbone.unet.state_dict().items()} if trains(backbone.unet) else {}
    )


def ignored(keys: Iterable[str], rules: Mapping[str, str]) -> Counter[tuple[str, str]]:
    """How many of ``keys`` fall under each rule, a beginning of keys."""
    falling = [
        (begin, why) for key in keys for begin, why in rules.items() if key == begin or key.startswith(f"{begin}.")
    ]
    return Counter(falling)


def put_converted(method: Adapter, backbone: Backbone, placed: Mapping[str, Tensor]) -> None:
    """Puts converted tensors, all of which fit, into the method and its backbone."""
    for module, prefix in ((method, "adapter."), (backbone.unet, UNET)):
        own = {key.removeprefix(prefix): value for key, value in placed.items() if key.startswith(prefix)}
        if own:
            module.load_state_dict(own)
