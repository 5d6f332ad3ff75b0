"""Networks filled from files, with every tensor accounted for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


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
