"""Official weights in a method, with every key of the file accounted for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from posegen.adapters.base import Adapter
from posegen.backbones.base import Backbone, ControlBranch
from posegen.errors import UserError
from posegen.io.atomic import read_json_or_empty
from posegen.io.hashes import sha256_of
from posegen.io.weights import UnknownKeys, WeightsError, read_tensors, weight_files
from posegen.runner import method_folder as methods

PROBLEMS = ("missing", "unexpected", "mis-shaped")  # of keys
UNET = "backbone.unet."  # what the converted keys of a U-Net begin with


def put_official(method: Adapter, backbone: Backbone, files: Sequence[Path]) -> tuple[Account, str]:
    """Puts official weights into an attached method and its backbone; what became of their keys, and their hash.

    A UserError says that they are another method's, of another width or damaged."""
    official, sha256 = read_official(*files)
    beside = files[0] / "config.json" if files[0].is_dir() else files[0].with_name("config.json")
    for branch in (part for part in method.modules() if isinstance(part, ControlBranch)):
        branch.fit(official, read_json_or_empty(beside))
    placed, account = accounted(method, backbone, official, whole=True)
    print(f"{', '.join(file.name for file in files)} holds {len(official)} tensors\n{account.listed()}")
    if account.wrong:
        raise UserError(complaint(", ".join(map(str, files)), method, backbone, official, account))
    put_converted(method, backbone, placed)
    backbone.replaced = backbone.replaced or account.different > 0
    return account, sha256


def read_official(*sources: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors of official files or of diffusers models' folders, and the hash of their files."""
    tensors: dict[str, Tensor] = {}
    for source in sources:
        if (source / "posegen.json").is_file():
            raise UserError(f"source={source} is a method folder already; use it with checkpoint={source}")
        inner = sorted(place.parent for place in source.glob("*/config.json"))
        if inner and not (source / "config.json").is_file():
            raise UserError(f"source={source} holds several models; name one of {', '.join(map(str, inner))}")
        try:
            read = read_tensors(source)
        except WeightsError as error:
            raise UserError(str(error)) from error
        methods.require_finite(read, source)
        if twice := sorted(tensors.keys() & read.keys()):
            fix = "leave one of the files out"
            raise UserError(f"source: {methods.listed(twice)} are in {source} and in a file before it; {fix}")
        tensors |= read
    files = (weight_files(source) if source.is_dir() else [source] for source in sources)
    return tensors, sha256_of([*chain.from_iterable(files)])


def complaint(file: str, method: Adapter, backbone: Backbone, official: Mapping[str, Tensor], account: Account) -> str:
    """Why a file cannot be used, and what to do."""
    name = type(method).__name__
    if not account.taken and "mis-shaped" not in account.wrong:
        counts = Counter(key.partition(".")[0] for key in official).most_common(5)
        begins = ", ".join(f"{begin} ({n})" for begin, n in counts)
        fix = "choose the adapter= that the file belongs to"
        return f"{file} holds no weights of {name}: its keys begin with {begins}. Nothing was written; {fix}"
    fix = "choose the adapter= and the backbone= (with its backbone.path=) that the file was trained with"
    if "mis-shaped" in account.wrong:
        on = "choose the backbone= (with its backbone.path=) that it was trained on"
        fix = f"the file is of another size: {on}, or the adapter's settings"
    problem = f"{file} does not fit {name} on backbone {backbone.weights.id}: {account.summary()}"
    return f"{problem}. Nothing was written; {fix}"


@dataclass(frozen=True)
class Account:
    """What became of the keys of an official file.

    Attributes:
        taken: where tensors went -> how many.
        same, different: tensors of the file's own U-Net that are the backbone's, or are not.
        ignored: (beginning of the keys, why) -> how many.
        wrong: kind of problem, one of `PROBLEMS` -> its keys; only kinds that occur.
    """

    taken: Mapping[str, int]
    same: int
    different: int
    ignored: Mapping[tuple[str, str], int]
    wrong: Mapping[str, Sequence[str]]

    def summary(self) -> str:
        return "; ".join(f"{len(keys)} {kind}: {methods.listed(keys)}" for kind, keys in self.wrong.items())

    def listed(self) -> str:
        """One line per kind and place."""
        rows = [("taken", n, f"into {place}") for place, n in self.taken.items()] or [("taken", 0, "")]
        if self.different:
            kind, n, place = rows[-1]
            unet = f"the file's own U-Net, {self.different} of its tensors differ from the backbone's"
            rows[-1] = (kind, n, f"{place}: {unet}")
        elif self.same:
            rows.append(("identical", self.same, "to the backbone's U-Net, which is used"))
        for why in dict.fromkeys(why for _, why in self.ignored):
            begins = [begin for begin, reason in self.ignored if reason == why]
            n = sum(self.ignored[begin, why] for begin in begins)
            rows.append(("ignored by rule", n, f"{begins[0]}{', ...' * (len(begins) > 1)}: {why}"))
        rows += [] if self.ignored else [("ignored by rule", 0, "")]
        rows += [(kind, len(self.wrong.get(kind, ())), "") for kind in PROBLEMS]
        return "\n".join(f"  {kind:15} {n:5}  {what}".rstrip() for kind, n, what in rows)


def accounted(
    method: Adapter, backbone: Backbone, official: Mapping[str, Tensor], whole: bool = False
) -> tuple[dict[str, Tensor], Account]:
    """The converted tensors of ``official``, and what became of every key.

    ``whole`` takes the file's U-Net, too, where the method does not train it and it is not the backbone's.
    """
    unknown: tuple[str, ...] = ()
    try:
        placed = method.convert(official)
    except UnknownKeys as error:  # the rest is converted nevertheless, so that one run tells everything
        unknown = error.keys
        placed = method.convert({key: value for key, value in official.items() if key not in unknown})
    own = {f"adapter.{key}": value for key, value in method.state_dict().items()}
    unet_now = {f"{UNET}{key}": value for key, value in backbone.network.state_dict().items()}
    own |= unet_now if methods.trains(backbone.network) else {}
    beside = backbone.unet_keys(official) if whole and not any(key.startswith(UNET) for key in own) else {}
    unet = {f"{UNET}{name}": official[key] for key, name in beside.items() if name is not None}
    if unet:
        placed |= unet
        own |= unet_now
    fitting = {key for key in own.keys() & placed.keys() if own[key].shape == placed[key].shape}
    different = {key for key in unet.keys() & fitting if not same(own[key], placed[key])}
    places = {f"adapter.{prefix}": f"{name}/" for name, (prefix, _) in methods.plain_modules(method).items()}
    places |= {UNET: "backbone/unet/", "": methods.ADAPTER}
    used = sorted(fitting if different else fitting - unet.keys())
    homeless = dict.fromkeys(key for key in (*unknown, *beside) if beside.get(key) is None)
    unexpected = [*homeless, *sorted(placed.keys() - own.keys())]
    problems = zip(
        PROBLEMS, (sorted(own.keys() - placed.keys()), unexpected, methods.misshaped(own, placed)), strict=True
    )
    account = Account(
        taken=Counter(next(place for begin, place in places.items() if key.startswith(begin)) for key in used),
        same=len(unet.keys() & fitting - different),
        different=len(different),
        ignored=Counter(
            (begin, why)
            for key in official
            for begin, why in method.left_out.items()
            if key not in beside and (key == begin or key.startswith(f"{begin}."))
        ),
        wrong={kind: keys for kind, keys in problems if keys},
    )
    return {key: value for key, value in placed.items() if different or key not in unet}, account


def same(a: Tensor, b: Tensor) -> bool:
    """Whether one of two tensors is the other, or the other rounded to half precision."""
    a, b = a.detach().cpu().float(), b.detach().cpu().float()
    return torch.equal(a, b) or any(
        torch.equal(a.to(kind).float(), b) or torch.equal(a, b.to(kind).float())
        for kind in (torch.half, torch.bfloat16)
    )


def put_converted(method: Adapter, backbone: Backbone, placed: Mapping[str, Tensor]) -> None:
    """Puts converted tensors, all of which fit, into the method and its backbone."""
    for module, prefix in ((method, "adapter."), (backbone.network, UNET)):
        own = {key.removeprefix(prefix): value for key, value in placed.items() if key.startswith(prefix)}
        if own:
            module.load_state_dict(own)
