"""Networks filled from files, with every tensor accounted for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def load_every_weight(network: Network, tensors: Mapping[str, Tensor], refusal: str, fix: str) -> Network:
    """The network with these weights, frozen and in evaluation mode.

    Args:
        refusal: begins the error, such as ``FILE holds another network``.
        fix: ends it.

    Raises:
        ValueError: a weight is missing, unknown or of another shape; names the first of them.
    """
    expected = network.state_dict()
    wrong = [f"{key} is missing" for key in expected.keys() - tensors.keys()]
    wrong += [f"{key} is unknown" for key in tensors.keys() - expected.keys()]
    wrong += [
        f"{key} is {list(tensors[key].shape)}, not {list(expected[key].shape)}"
        for key in expected.keys() & tensors.keys()
        if tensors[key].shape != expected[key].shape
    ]
    if wrong:
        raise ValueError(f"{refusal} ({len(wrong)} tensors differ: {'; '.join(sorted(wrong)[:3])}); {fix}")
    network.load_state_dict(dict(tensors))
    return network.eval().requires_grad_(False)
