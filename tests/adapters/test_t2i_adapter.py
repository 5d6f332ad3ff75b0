"""T2I-Adapter: names, the steps and grids at which it acts, and diffusers' U-Net as an independent witness of where its features go."""

from __future__ import annotations

from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from posegen.adapters.t2i_adapter import T2IAdapter, original_names
from posegen.backbones.base import Geometry
from posegen.backbones.loading import ldm_keys as ldm
from posegen.backbones.text import Text
from posegen.data.base import PoseBatch
from posegen.io.weights import UnknownKeys
from posegen.runner.method_folder import save_method
from tests.adapters.cases import SD1, SD2, backbone_of, full_size, original, scrambled, sized


def attached(geometry: Geometry, faithful: bool = False, **settings: object) -> T2IAdapter:
    torch.manual_seed(0)
    adapter = T2IAdapter(**settings)  # type: ignore[arg-type]
    adapter.faithful = faithful
    adapter.attach(backbone_of(geometry))
    scrambled(adapter)
    return adapter


def batch(size: tuple[int, int], text_dim: int = 64, images: int = 2) -> PoseBatch:
    draw = torch.Generator().manual_seed(1)
    hint, text = torch.rand(images, 3, *size, generator=draw), torch.randn(images, 5, text_dim, generator=draw)
    return PoseBatch(
        [str(i) for i in range(images)],
        [""] * images,
        [np.zeros((0, 17, 3))] * images,
        size,
        hint=hint,
        text=Text(text),
        negative_text=Text(text[:1]),
    )


@torch.no_grad()
def predicted(adapter: T2IAdapter, pose: PoseBatch, timesteps: Tensor) -> Tensor:
    backbone = adapter.backbone
    latents = torch.randn(len(pose), *backbone.latent_shape(pose.size), generator=torch.Generator().manual_seed(2))
    state = adapter.encode(pose)
    return backbone.predict(latents, timesteps, state.text, adapter.inject(state, latents, timesteps))


@pytest.fixture(scope="module")
def own() -> T2IAdapter:
    return attached(SD1)


# Names.


@pytest.mark.parametrize("prefix", ["adapter.", ""], ids=["prefixed", "bare"])
def test_original_names_come_back(own: T2IAdapter, prefix: str) -> None:
    plain = ldm.below(own.network.state_dict(), "adapter.")
    converted = own.convert(
        {
            **original(plain, original_names(2, 2), prefix),
            "model.diffusion_model.out.2.bias": torch.zeros(1),
            "betas": torch.zeros(1),
        }
    )
    assert converted.keys() == {f"adapter.{key}" for key in own.state_dict()}
    assert all(torch.equal(converted[f"adapter.{key}"], value) for key, value in own.state_dict().items())


def test_original_names_number_the_blocks_of_all_levels_throughout(own: T2IAdapter) -> None:
    names = original(ldm.below(own.network.state_dict(), "adapter."), original_names(2, 2), "")
    blocks = {
        f"body.{i}.{part}.{what}" for i in range(4) for part in ("block1", "block2") for what in ("weight", "bias")
    }
    assert names.keys() == blocks | {
        f"{name}.{what}" for name in ("conv_in", "body.2.in_conv") for what in ("weight", "bias")
    }
    assert names["body.3.block1.weight"].shape == (64, 64, 3, 3) and names["body.2.in_conv.weight"].shape == (
        64,
        32,
        1,
        1,
    )


def test_diffusers_names_are_taken_and_others_named(own: T2IAdapter) -> None:
    plain = own.network.state_dict()
    assert {key: id(value) for key, value in own.convert(plain).items()} == {
        f"adapter.network.{key}": id(value) for key, value in plain.items()
    }
    with pytest.raises(UnknownKeys, match="1 keys that T2IAdapter has no place for: adapter.body.9.block1.weight"):
        own.convert({**plain, "adapter.body.9.block1.weight": torch.zeros(1)})


def test_full_size_keys() -> None:
    facts, keys = full_size("t2i_adapter_keys.json")
    sd15 = Geometry(4, 8, (320, 640, 1280, 1280), (True, True, True, False), 2, (8,) * 4, 768)
    adapter = T2IAdapter()
    adapter.attach(sized(sd15))
    with torch.device("meta"):
        adapter.network = diffusers.T2IAdapter(channels=list(sd15.channels), downscale_factor=8)
    for prefix in ("", "adapter."):
        converted = adapter.convert({prefix + key: value for key, value in keys.items()})
        assert {key: value.shape for key, value in converted.items()} == {
            f"adapter.{key}": value.shape for key, value in adapter.state_dict().items()
        }
    assert sum(p.numel() for p in adapter.parameters()) == facts["parameters"]["total"] == 77_369_280


def test_it_saves_as_a_plain_diffusers_folder(own: T2IAdapter, tmp_path: Path) -> None:
    save_method(tmp_path / "method", own, own.backbone)  # type: ignore[arg-type]
    plain = diffusers.T2IAdapter.from_pretrained(tmp_path / "method" / "t2i_adapter")
    hint = batch((64, 64)).hint
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(plain(hint), own.features(hint), strict=True))


# What it does.


def test_features_go_where_diffusers_unet_takes_them() -> None:
    """Where every level has attention, that is its own argument for T2I-Adapters."""
    adapter, pose, timesteps = attached(SD2, strength=0.7), batch((64, 128)), torch.tensor([10, 900])
    unet = adapter.backbone.unet  # type: ignore[union-attr]
    latents = torch.randn(2, 4, 8, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        features = [0.7 * feature for feature in adapter.network(pose.hint)]
        expected = unet(latents, timesteps, pose.text.tokens, down_intrablock_additional_residuals=features).sample  # type: ignore[operator]
        alone = unet(latents, timesteps, pose.text.tokens).sample  # type: ignore[operator]
    made = predicted(adapter, pose, timesteps)
    assert torch.allclose(made, expected, atol=1e-5) and not torch.allclose(made, alone, atol=1e-2)


@pytest.mark.parametrize("tau", [0.0, 0.3, 0.4, 1.0])
def test_tau_ends_the_pose_after_its_share_of_the_steps(tau: float) -> None:
    adapter, pose = attached(SD1, tau=tau), batch((64, 64))
    scheduler = diffusers.DDIMScheduler(steps_offset=1)
    scheduler.set_timesteps(20)
    state = adapter.encode(pose)
    used = [
        bool(adapter.inject(state, pose.hint, timestep.repeat(2)).encoder[0].any()) for timestep in scheduler.timesteps
    ]  # type: ignore[index, arg-type]
    assert used == [step < round(tau * 20) for step in range(20)]
    mixed = adapter.inject(state, pose.hint, torch.tensor([999, 0])).encoder[0]  # type: ignore[index, arg-type]
    assert [bool(feature.any()) for feature in mixed] == [tau > 0, tau == 1]


def test_odd_grids_fit_the_unet_unless_official_rounding_is_asked_for() -> None:
    pose = batch((40, 72))  # latents 5 x 9
    assert predicted(attached(SD1), pose, torch.tensor([10, 900])).shape == (2, 4, 5, 9)
    faithful = attached(SD1, faithful=True)
    assert [tuple(f.shape[-2:]) for f in faithful.features(pose.hint)] == [(5, 9), (2, 4)]
    with pytest.raises(
        ValueError, match=r"data.size \(40, 72\) gives odd grids.*multiples of 16, for instance \[48, 80\]"
    ):
        faithful.encode(pose)


def test_it_is_sized_by_the_backbone() -> None:
    mannequin = Geometry(8, 4, (32, 64, 128), (False, True, True), 1, (4, 4, 4), 64)
    adapter = T2IAdapter(blocks=3)
    with torch.device("meta"):
        adapter.network = diffusers.T2IAdapter(channels=list(mannequin.channels), num_res_blocks=3, downscale_factor=4)
        assert [tuple(f.shape) for f in adapter.features(torch.empty(1, 3, 64, 32))] == [
            (1, 32, 16, 8),
            (1, 64, 8, 4),
            (1, 128, 4, 2),
        ]


def test_settings_out_of_range_are_said() -> None:
    with pytest.raises(ValueError, match="adapter.tau is 1.5"):
        T2IAdapter(tau=1.5)
    with pytest.raises(ValueError, match="adapter.blocks is 0"):
        T2IAdapter(blocks=0)
