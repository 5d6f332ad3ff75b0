"""Ways of computing that keep the numbers, or change them by their rounding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from posegen.runner.cell import Cell
from posegen.runner.precision import arrange, autocast, casting_once, networks, unpack
from posegen.train.profiling import MeasuredMethod
from tests.tiny import configured
from tests.verbs.test_profile import SMALL, results, settings

CPU = torch.device("cpu")


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    convolutions = (nn.Conv2d(16, 32, 3, padding=1), nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.Conv2d(32, 8, 1))
    return nn.Sequential(*convolutions).requires_grad_(False)


@pytest.fixture
def pair() -> tuple[nn.Sequential, nn.Sequential]:
    """The same network as it is, and packed."""
    plain = small_network()
    packed = deepcopy(plain)
    arrange(packed, packed=True)
    return plain, packed


@pytest.mark.parametrize(("precision", "rounding"), [("32-true", 1e-6), ("bf16-mixed", 2e-2)])
def test_packed_convolutions_give_the_same_within_rounding(
    pair: tuple[nn.Sequential, nn.Sequential], precision: str, rounding: float
) -> None:
    for size in (8, 12, 8):  # the packed weights are for one size
        x = torch.randn(2, 16, size, size)
        with torch.no_grad(), autocast(precision, CPU):
            expected, found = (network(x) for network in pair)
        assert found.dtype == expected.dtype and torch.allclose(found, expected, atol=rounding)
        assert all("packed" in vars(convolution) for convolution in pair[1])
        assert found.is_contiguous(memory_format=torch.channels_last)


def test_packed_convolutions_notice_new_weights(pair: tuple[nn.Sequential, nn.Sequential]) -> None:
    x, changed = torch.randn(2, 16, 8, 8), {k: 2 * v for k, v in pair[0].state_dict().items()}
    with torch.no_grad():
        pair[1](x)
        for network in pair:
            network.load_state_dict(changed)
        assert torch.allclose(pair[0](x), pair[1](x), atol=1e-5)
        for network in pair:
            for convolution in network:
                convolution.weight.data += 1  # unseen by torch, as LoRA is fused
        unpack(pair[1])
        assert torch.allclose(pair[0](x), pair[1](x), atol=1e-3)


def test_where_something_trains_nothing_is_packed(pair: tuple[nn.Sequential, nn.Sequential]) -> None:
    x = torch.randn(2, 16, 8, 8, requires_grad=True)
    gradients = [torch.autograd.grad(network(x).square().sum(), x)[0] for network in pair]
    assert torch.equal(*gradients) and not any("packed" in vars(convolution) for convolution in pair[1])
    pair[1].requires_grad_(True)
    assert pair[1](x.detach()).requires_grad


class Casts(TorchDispatchMode):
    """Counts the casts of tensors of a shape."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, function: Any, types: Any, inputs: Any = (), named: Any = None) -> Any:
        if function is torch.ops.aten._to_copy.default and inputs[0].shape == self.shape:
            self.count += 1
        return function(*inputs, **(named or {}))


def test_weights_that_trained_are_cast_once_in_a_sampling_and_no_bit_changes(
    world: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def cast(side: MeasuredMethod) -> tuple[int, list[Tensor]]:
        blocks = side.adapter.branch.network.down_blocks
        weight = next(p for n, p in blocks.named_parameters() if n.endswith("proj.weight"))
        side.sampler.precision = "bf16-mixed"
        with Casts(weight.shape) as casts, torch.no_grad():
            made = list(side.sampler.denoising(side.adapter, side.backbone, side.batch))
        return casts.count, made

    side = MeasuredMethod(settings(*world, *SMALL, "adapter=controlnet"), 3)
    once, ours = cast(side)
    monkeypatch.setattr("posegen.runner.sampler.casting_once", nullcontext)
    every, plain = cast(side)
    assert every > once and all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))


def test_casts_end_with_the_sampling() -> None:
    layer, x = nn.Linear(8, 8), torch.randn(2, 8)
    with torch.no_grad():
        with casting_once(), autocast("bf16-mixed", CPU):
            before = layer(x)
        layer.weight.mul_(2)
        with autocast("bf16-mixed", CPU):
            assert not torch.equal(layer(x), before)


def test_a_method_samples_and_trains_the_same_with_packed_weights(world: list[str]) -> None:
    def made(flag: str) -> Iterator[Tensor]:
        side = MeasuredMethod(settings(*world, *SMALL, "adapter=controlnet", f"compute.packed={flag}"), 2)
        found = [*results(side, "sample"), *results(side, "train")]
        packed = [m for m in networks(side.adapter, side.backbone) if "packed" in vars(m)]
        assert bool(packed) == (flag == "true")
        yield from found

    for usual, other in zip(made("false"), made("true"), strict=True):
        assert torch.allclose(usual, other, atol=1e-4)


def test_cells_are_those_of_before_unless_their_weights_are_packed(world: list[str], tmp_path: Path) -> None:
    for flag, named in (("false", False), ("true", True)):
        with configured("train", *world, f"paths.output={tmp_path}", f"compute.packed={flag}") as cfg:
            assert ("packed" in Cell.of(cfg).identity["compute"]) == named


@pytest.mark.parametrize("checkpointing", ["none", "blocks"])
def test_attention_in_single_precision_is_that_of_training(checkpointing: str, world: list[str]) -> None:
    """Gradients are closer to those of single precision; whatever is computed again is computed in the same way, and
    what does not train is not touched."""
    gradients, predictions = {}, {}
    for way in ("32-true", "auto", "fp32"):
        attention, precision = ("auto", way) if way == "32-true" else (way, "bf16-mixed")
        words = [f"compute.attention={attention}", f"compute.checkpointing={checkpointing}", "size=64", "optim.lr=1e-4"]
        with configured("profile", *world, *words, "adapter=humansd", f"trainer.precision={precision}") as cfg:
            method = MeasuredMethod(cfg, 1)
        with method.running("train"):
            method.task.losses(method.batch)["loss"].backward()
        gradients[way] = torch.cat([p.grad.flatten() for p in method.backbone.unet.parameters() if p.grad is not None])
        with torch.no_grad(), autocast(precision, CPU):
            predictions[way] = method.task.losses(method.batch)["loss"]
    far, near = ((gradients[way] - gradients["32-true"]).norm() for way in ("auto", "fp32"))
    assert 0 < near < far and predictions["auto"] == predictions["fp32"]
