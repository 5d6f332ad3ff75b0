"""The page on backbones: its numbers are counted again, and what it says of methods is what the check says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hydra.utils import get_class
from omegaconf import OmegaConf

from posegen.adapters.controlnet import ControlNet
from posegen.config import groups as listing
from tests.docs.blocks import DOCS

PAGE = (DOCS / "which-backbone.md").read_text(encoding="utf-8")
TRAINED_BYTES, FROZEN_BYTES = 4 + 4 + 8 + 4, 2  # weight, gradient, AdamW, average; bfloat16


def rows(first: str) -> list[list[str]]:
    """The cells of the table whose header begins with a text, header first."""
    lines = PAGE[PAGE.index(f"| {first}") :].partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])]


def class_of(group: str, option: str) -> Any:
    return get_class(OmegaConf.load(listing.groups()[group][option].file)._target_)


def published_sizes() -> list[tuple[str, str]]:
    """(option, size) of every backbone that can be built without a file."""
    nodes = {name: OmegaConf.load(option.file) for name, option in listing.groups()["backbone"].items()}
    sized = {name: get_class(node._target_).random_sizes for name, node in nodes.items() if node.get("size")}
    own = {name: [size for size in sizes if size == name] or list(sizes) for name, sizes in sized.items()}
    return [(name, size) for name, sizes in own.items() for size in sizes]


def billions(*modules: Any) -> float:
    return sum(p.numel() for module in modules for p in module.parameters()) / 1e9


@pytest.mark.parametrize(("option", "size"), published_sizes())
def test_the_weights_are_counted(option: str, size: str) -> None:
    with torch.device("meta"):
        body = class_of("backbone", option)(path=None, initialise="random", size=size)
        method = ControlNet()
        method.attach(body)
    network, text, vae, trained = (
        billions(*modules) for modules in ([body.network], body.towers, [body.autoencoder], [method])
    )
    everything = network + text + vae
    figures = [f"{weights:.2f} B" for weights in (network, text, vae)]
    figures += [f"{everything * size:.1f} GB" for size in (4, 2)]
    figures += [f"{trained:.2f} B", f"{FROZEN_BYTES * network + TRAINED_BYTES * trained:.1f} GB"]
    (found,) = [row[1:] for row in rows("`backbone=`") if row[0] == f"`{option}`, `{size}`"]
    assert found == figures


def test_what_methods_can_do_is_what_the_check_says() -> None:
    header, *table = rows("`adapter=`")
    backbones = [cell.split(",")[0].strip("`") for cell in header[1:]]
    known = listing.groups()
    methods = {name for name in known["adapter"] if "/" not in name}
    assert {row[0].strip("`") for row in table} >= methods
    for row in table:
        if (name := row[0].strip("`")) not in methods:
            continue
        adapter = class_of("adapter", name)
        for option, said in zip(backbones, row[1:], strict=True):
            if option in known["backbone"]:
                backbone = class_of("backbone", option)
                served = adapter.sample == backbone.sample and adapter.unserved(backbone) is None
                assert said == ("yes" if served else "no"), f"{name} on {option}"
