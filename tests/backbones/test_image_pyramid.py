"""Feature pyramids: shapes at any size, and one encoder's weights under three programs' names."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import SwinBackbone, SwinConfig, SwinForImageClassification

from posegen.backbones.blocks.image_pyramid import Pyramid, hierarchical, native_size, small_swin
from posegen.io.weights import WeightsError

NAME = "swin_tiny_patch4_window7_224"
IMAGES = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1


def features(network: torch.nn.Module, images: Tensor, size: int | None = None) -> dict[int, Tensor]:
    with torch.no_grad():
        return Pyramid(network.eval(), range(4), size, positions=0)(images)


@pytest.mark.parametrize("size", [(64, 64), (60, 44), (8, 4)])
def test_a_small_swin_takes_images_of_any_size(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    pyramid = Pyramid(small_swin(32, 3), [1, 2, 1], None)
    images = torch.rand(2, 3, *size, requires_grad=True)
    made = pyramid(images)
    cells = [(size[0] // 4, size[1] // 4)]
    for _ in range(2):
        cells.append(tuple(-(-side // 2) for side in cells[-1]))  # type: ignore[arg-type]
    assert {stage: tuple(tokens.shape) for stage, tokens in made.items()} == {
        i: (2, h * w, 32 * 2**i) for i, (h, w) in enumerate(cells) if i
    }
    torch.cat([tokens.flatten() for tokens in made.values()]).square().sum().backward()
    assert all(p.grad is not None for p in pyramid.parameters())  # nothing is kept that no map needs


def test_tokens_run_row_by_row_and_positions_are_theirs() -> None:
    """The feature maps of Swin are [B, H, W, C] inside; a mistake there would mix channels and places."""
    torch.manual_seed(0)
    pyramid = Pyramid(small_swin(16, 2), [0], None, positions=2)
    with torch.no_grad():
        pyramid.positions[0].zero_()[0, :, 0, 1] = 100.0
        grid = pyramid(torch.zeros(1, 3, 32, 32))[0][0].unflatten(0, (8, 8)).mean(-1)
    assert grid[0, 7] > 90 and grid[7, 0] < 10 and grid[0, 0] < 10
    upright = Pyramid(small_swin(16, 2), [0], None, positions=0)
    images = torch.zeros(1, 3, 32, 32)
    images[..., :8, 24:] = 1  # above, right
    with torch.no_grad():
        changed = (upright(images)[0] - upright(images * 0)[0])[0].abs().sum(-1).unflatten(0, (8, 8))
    assert changed[:4, 4:].mean() > 3 * changed[4:, :4].mean()


def test_the_weights_of_three_programs_give_the_same_features(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = SwinConfig(embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24])
    whole = SwinForImageClassification(config).eval()
    whole.save_pretrained(tmp_path / "transformers")
    stages = SwinBackbone.from_pretrained(tmp_path / "transformers", out_features=["stage1", "stage2", "stage3"]).eval()
    pixels = (IMAGES / 2 + 0.5 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    with torch.no_grad():
        wanted = [feature.flatten(2).mT for feature in stages(pixels).feature_maps] + [
            whole.swin(pixels).last_hidden_state
        ]
    network = hierarchical(NAME, tmp_path / "transformers")
    made = features(network, IMAGES)
    assert all(torch.allclose(made[i], feature, atol=1e-4) for i, feature in enumerate(wanted))
    own = {key: value.contiguous() for key, value in network.state_dict().items() if "norm." not in key[:5]}
    save_file(own, tmp_path / "timm.safetensors")
    old = {}
    for key, value in own.items():
        parts = key.split(".")
        if parts[2:3] == ["downsample"]:
            parts[1] = str(int(parts[1]) - 1)
        old[".".join(parts)] = value
    torch.save(
        {"model": {**old, "head.weight": torch.zeros(2, 768), "norm.bias": torch.zeros(768)}},
        tmp_path / "microsoft.pth",
    )
    for file in ("timm.safetensors", "microsoft.pth"):
        again = features(hierarchical(NAME, tmp_path / file), IMAGES)
        assert all(torch.equal(again[i], made[i]) for i in range(4)), file


def test_other_weights_and_stages_are_refused(tmp_path: Path) -> None:
    save_file({"conv.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(
        WeightsError, match=f"adapter.vision_weights=.*other.safetensors does not hold the weights of {NAME}"
    ):
        hierarchical(NAME, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"asks for stages \[0, 3\] of a vision network with stages 0 to 1"):
        Pyramid(small_swin(16, 2), [0, 3], None)


def test_a_network_that_does_not_train_stays_as_it_is() -> None:
    network = hierarchical("resnet10t").requires_grad_(False)
    pyramid = Pyramid(network, [0, 1], 64).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    pyramid(IMAGES)
    assert pyramid.training and all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_images_are_resized_to_what_a_network_was_made_for_and_others_than_swin_serve() -> None:
    network = hierarchical("convnext_atto")
    assert native_size(network) == 224 == native_size(hierarchical(NAME))
    made = features(network, IMAGES[..., :160, :96], size=64)
    assert [tokens.shape[1] for tokens in made.values()] == [256, 64, 16, 4] and timm.is_model("convnext_atto")
    assert all(torch.allclose(tokens.mean(-1), torch.zeros(()), atol=1e-4) for tokens in made.values())
    resized = F.interpolate(IMAGES[..., :160, :96], (64, 64), mode="bilinear", antialias=True)
    assert torch.equal(features(network, resized)[3], made[3])
