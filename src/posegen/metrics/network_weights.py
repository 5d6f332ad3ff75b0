"""Networks filled from files and folders, with every tensor accounted for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from posegen.io.hub import local_place

Network = TypeVar("Network", bound=nn.Module)


def read_pretrained(kind: Any, place: str, key: str, what: str) -> Any:
    """An object of a class of transformers from a folder in their layout, or ``hub:owner/name``; a network is frozen,
    in evaluation mode and in single precision.

    ``key`` is the setting that named it, ``what`` the model that is expected. Raises FileNotFoundError where there is
    no such folder, ValueError where it is damaged, lacks weights or holds another model."""
    folder = local_place(place, expected=what)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{key}={place} is no model folder (no config.json); name a folder with a {what} model")
    network = issubclass(kind, nn.Module)
    options = {"output_loading_info": True, "dtype": torch.float32} if network else {}
    try:
        read = kind.from_pretrained(folder, local_files_only=True, **options)
    except Exception as error:  # transformers raises many kinds, by damage and version
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        wrong = f"{key}={place} cannot be read as a {what} model ({reason})"
        raise ValueError(f"{wrong}; copy the model's folder again") from error
    if not network:
        return read
    model, report = read
    if missing := sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}):
        lacking = f"{len(missing)} weights of {what} ({', '.join(missing[:3])})"
        raise ValueError(f"{key}={place} lacks {lacking}; copy the model's folder again")
    return model.eval().requires_grad_(False)


def load_every_weight(network: Network, tensors: Mapping[str, Tensor], refusal: str, fix: str) -> Network:
    """The network with these weights, frozen and in evaluation mode.

    Raises ValueError where weights are missing, unknown or of another shape, naming the first: ``refusal`` begins
    it, such as ``FILE holds another network``, and ``fix`` ends it."""
    expected = network.state_dict()
    wrong = [f"{key} is missing" for key in expected.keys() - tensors.keys()]
    wrong += [f"{key} is unknown" for key in tensors.keys() - expected.keys()]
    for key in expected.keys() & tensors.keys():
        if (found := tensors[key].shape) != (wanted := expected[key].shape):
            wrong.append(f"{key} is {list(found)}, not {list(wanted)}")
    if wrong:
        raise ValueError(f"{refusal} ({len(wrong)} tensors differ: {'; '.join(sorted(wrong)[:3])}); {fix}")
    network.load_state_dict(dict(tensors))
    return network.eval().requires_grad_(False)
