"""Joint maps: the released encoding with its quirks, the plain one, and the backbone that speaks them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from posegen.backbones.blocks import pose_maps
from posegen.backbones.pose_space import PoseSpace
from posegen.io.weights import WeightsError


def poses(count: int = 20, reach: float = 0.9) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    there = (torch.rand(count, 17, 1, generator=draw) > 0.2).float()
    return torch.cat([(2 * torch.rand(count, 17, 2, generator=draw) - 1) * reach, torch.ones(count, 17, 1)], -1) * there


def cells_off(made: Tensor, wanted: Tensor, grid: int) -> Tensor:
    """Distances in cells of the joints that are there."""
    there = (made[..., 2] > 0) & (wanted[..., 2] > 0)
    return ((made - wanted)[..., :2].norm(dim=-1) * grid / 2)[there]


@pytest.fixture(scope="module")
def folder(world: list[str]) -> Path:
    return Path(next(o for o in world if o.startswith("backbone.path")).partition("=")[2])


# Plain maps.


@pytest.mark.parametrize(("grid", "sigma"), [(16, 1.5), (32, 1.0), (20, 2.0)])
def test_plain_maps_keep_joints_exactly_up_to_the_border(grid: int, sigma: float) -> None:
    given = poses(reach=1 - 1 / grid)  # as far as the centres of the outermost cells
    made = pose_maps.decode_plain(pose_maps.encode_plain(given, grid, sigma), sigma)
    assert cells_off(made, given, grid).max() < 1e-3
    assert torch.equal(made[..., 2] > 0, given[..., 2] > 0)
    assert not made[given[..., 2] == 0].any()


def test_plain_maps_lie_between_minus_one_and_one_and_survive_noise() -> None:
    given = poses()
    maps = pose_maps.encode_plain(given, 16, 1.5)
    assert maps.min() == -1 and maps.max() <= 1
    made = pose_maps.decode_plain(maps + 0.1 * torch.randn(maps.shape, generator=torch.Generator().manual_seed(1)), 1.5)
    assert torch.equal(made[..., 2] > 0, given[..., 2] > 0)
    assert cells_off(made, given, 16).square().mean().sqrt() < 0.2


def test_the_confidence_is_the_height_of_the_peak() -> None:
    maps = pose_maps.encode_plain(torch.tensor([[[1 / 16, 1 / 16, 1.0]] * 17]), 16, 1.5)  # on the centre of a cell
    heights = torch.linspace(0.2, 1, 17).view(17, 1, 1)
    made = pose_maps.decode_plain(2 * heights * (maps + 1) / 2 - 1, 1.5)[0]
    assert torch.equal(made[:, 2] > 0, heights.flatten() >= pose_maps.LEAST_HEIGHT)
    torch.testing.assert_close(made[8, 2], heights[8, 0, 0])


def test_plain_maps_are_denoised_at_mean_zero_and_variance_one(folder: Path) -> None:
    given = torch.cat([poses(reach=0.7)[..., :2], torch.ones(20, 17, 1)], -1)
    for grid, sigma in ((16, 1.5), (32, 1.5)):
        backbone = PoseSpace(folder, grid=grid, sigma=sigma)
        latents = backbone.to_latents(given)
        assert abs(latents.mean()) < 0.03 and abs(latents.std() - 1) < 0.03
        assert cells_off(backbone.from_latents(latents), given, grid).max() < 1e-3


# Released maps.


def test_released_maps_are_low_at_joints_and_zero_without_them() -> None:
    given = poses()
    maps = pose_maps.joint_vectors(given)
    absent = maps.flatten(2).eq(0).all(-1)
    assert absent[given[..., 2] == 0].all() and absent[given[..., 2] > 0].float().mean() < 0.05
    assert maps.min() == -1 and maps.max() == 1
    b, j = (given[..., 2] > 0).nonzero()[0].tolist()
    x, y = ((given[b, j, :2] + 1) * 32).long().tolist()
    assert maps[b, j, y, x] == -1


def test_released_maps_are_decoded_to_whole_cells_near_the_joints() -> None:
    given = poses(reach=0.7)
    there = given[..., 2] > 0
    maps = pose_maps.encode_released(given, 32, 1.0)
    noisy = maps + 0.05 * torch.randn(maps.shape, generator=torch.Generator().manual_seed(1))
    made = pose_maps.decode_released(noisy, 1.0)
    assert cells_off(made, given, 32).median() < 2
    cells = (made[..., :2][made[..., 2] > 0] + 1) * 16 - 0.5
    torch.testing.assert_close(cells, cells.round())
    assert (made[..., 2] > 0)[~there].float().mean() < 0.2 < (made[..., 2] > 0)[there].float().mean()


def test_quirks_of_the_released_decoding() -> None:
    """A constant map is a joint in the middle; the first outline counts, not the largest; the centre is cut off to whole cells."""
    maps = torch.zeros(1, 2, 32, 32)
    maps[0, 1] = 1.0
    maps[0, 1, 4:8, 10:14] = -1.0  # 16 pixels
    maps[0, 1, 20:26, 3:9] = -1.0  # 36 pixels, and comes first from below
    assert pose_maps.cells(maps)[0].tolist() == [[15, 15], [5, 22]]


# The backbone.


def test_its_weights_are_random_and_its_identity_is_not(folder: Path) -> None:
    torch.manual_seed(0)
    first, second = (PoseSpace(folder, grid=16) for _ in range(2))
    assert not torch.equal(first.unet.conv_in.weight, second.unet.conv_in.weight)
    assert first.weights.sha256 == second.weights.sha256 != PoseSpace(folder, "reference", grid=16).weights.sha256
    assert first.geometry.latent_channels == 17 and first.latent_shape((64, 48)) == (17, 16, 16)
    assert torch.equal(first.encode_text(["photo"]).tokens, second.encode_text(["photo"]).tokens)


def test_a_copy_of_its_source_is_the_same_backbone(folder: Path, tmp_path: Path) -> None:
    first = PoseSpace(folder, grid=16, id="own")
    (tmp_path / "copy").mkdir()
    arguments = first.save_source(tmp_path / "copy")
    json.dumps(arguments)
    again = PoseSpace(**{**arguments, "path": tmp_path / "copy" / arguments["path"]})
    assert again.weights == first.weights


def test_stored_maps_are_taken_as_they_are(folder: Path) -> None:
    given = pose_maps.joint_vectors(poses(2))
    assert torch.equal(PoseSpace(folder, "reference", grid=32).to_latents(given), pose_maps.shrunk(given, 32))
    with pytest.raises(ValueError, match=r"set backbone\.encoding=reference"):
        PoseSpace(folder, grid=32).to_latents(given)


def test_what_it_cannot_read_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"backbone\.encoding is 'plain'; expected one of reference, corrected"):
        PoseSpace(folder, "plain")  # type: ignore[arg-type]
    (tmp_path / "file.ckpt").write_text("")
    with pytest.raises(WeightsError, match="a file; .* is a folder in diffusers' layout"):
        PoseSpace(tmp_path / "file.ckpt")
    with pytest.raises(WeightsError, match=r"config\.json: missing"):
        PoseSpace(tmp_path)
