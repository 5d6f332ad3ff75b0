"""GUNet: names of the released file, the graph block in its four forms, and a conversion to poses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor

from posegen.adapters.gunet import NODES, GUNet, JointBlock, SpatialBlock, skeleton
from posegen.backbones.base import Geometry, Injection
from posegen.backbones.loading.model_parts import ModelParts
from posegen.backbones.loading.single_file import SCHEDULER as SD_SCHEDULER
from posegen.backbones.mannequin import COSINE_SCHEDULER as SCHEDULER
from posegen.backbones.mannequin import build_text, build_tokenizer, build_unet
from posegen.backbones.pose_space import PoseSpace, pose_unet
from posegen.backbones.text import Text
from posegen.data.base import PoseBatch
from posegen.io.weights import UnknownKeys
from posegen.parity.case import Case
from posegen.parity.compare import compare
from posegen.runner.official_weights import accounted
from posegen.runner.sampler import Sampler
from posegen.runner.user_requests.conversion import convert
from tests.adapters.cases import reference, scrambled, sized

GRID = 8


@pytest.fixture(scope="module")
def backbone() -> PoseSpace:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(["person"])
    unet = pose_unet(build_unet((16, 16), text_dim=16, heads=2).config, GRID)
    return PoseSpace.of(
        ModelParts.of_one_tower(
            unet, None, build_text(tokenizer, 16, layers=1, heads=1), tokenizer, dict(SCHEDULER), origin="test"
        ),
        "reference",
        GRID,
    )


def attached(backbone: PoseSpace, faithful: bool = False, **settings: object) -> GUNet:
    torch.manual_seed(0)
    method = GUNet(**settings)  # type: ignore[arg-type]
    method.faithful = faithful
    method.attach(backbone)
    scrambled(method)
    return method


def official(backbone: PoseSpace, rows: int = 4) -> dict[str, Tensor]:
    """The tensors of a released file of this size."""
    return {
        **backbone.unet.state_dict(),
        "spa_block.theta": torch.randn(rows, rows, 1),
        "spa_block.b": torch.randn(1, rows, 1, 1),
    }


@torch.no_grad()
def predicted(backbone: PoseSpace, images: int, start: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    noisy, text = torch.randn(20, NODES, GRID, GRID, generator=draw), torch.randn(20, 5, 16, generator=draw)
    rows = slice(start, start + images)
    return backbone.predict(noisy[rows], torch.full((images,), 300), Text(text[rows]), Injection())


# Names.


def test_every_key_of_a_released_file_has_its_place(backbone: PoseSpace) -> None:
    method = attached(backbone)
    placed, account = accounted(method, backbone, official(backbone))
    assert not account.wrong
    assert {key for key in placed if key.startswith("adapter.")} == {"adapter.spa_block.theta", "adapter.spa_block.b"}
    assert {key for key in placed if key.startswith("backbone.")} == {
        f"backbone.unet.{key}" for key in backbone.unet.state_dict()
    }


def test_keys_without_a_place_are_named(backbone: PoseSpace) -> None:
    method = attached(backbone)
    with pytest.raises(UnknownKeys, match="1 keys that GUNet has no place for: spa_block.align"):
        method.convert({**official(backbone), "spa_block.align": torch.zeros(1)})
    without = {key: value for key, value in official(backbone).items() if not key.startswith("spa_block")}
    wrong = accounted(method, backbone, without)[1].wrong
    assert wrong == {"missing": ["adapter.spa_block.b", "adapter.spa_block.theta"]}


def test_without_a_graph_the_block_is_left_out_by_rule(backbone: PoseSpace) -> None:
    _, account = accounted(attached(backbone, graph="off"), backbone, official(backbone))
    assert not account.wrong and sum(account.ignored.values()) == 2
    assert GUNet.beside == GUNet(graph="joint").left_out == {}


def test_full_size_keys() -> None:
    facts = json.loads(reference("gunet_keys.json").read_text())
    keys = {key: torch.empty(shape, device="meta") for key, shape in facts["state_dict"].items()}
    with torch.device("meta"):
        unet = pose_unet(facts["config"], 32)
    geometry = Geometry.from_diffusers(unet.config, 1)
    method, backbone = GUNet(), sized(geometry, unet)
    backbone.latent_shape = lambda size: (17, 32, 32)  # type: ignore[method-assign]
    method.attach(backbone)
    shapes = {key: value.shape for key, value in method.convert(keys).items()}
    own = {f"adapter.{key}": value.shape for key, value in method.state_dict().items()}
    assert shapes == own | {f"backbone.unet.{key}": value.shape for key, value in unet.state_dict().items()}
    trained = sum(p.numel() for p in [*method.parameters(), *unet.parameters()] if p.requires_grad)
    assert trained == facts["trainable_parameters"] == 859_595_877


# The graph block.


def test_the_graph_is_the_released_one() -> None:
    rows = skeleton().sum(1)
    assert [int((rows == degree).sum()) for degree in (2, 3, 4)] == [6, 7, 4]
    assert torch.equal(skeleton(), skeleton().T) and skeleton()[3, 5] == 0 and skeleton()[5, 6] == 1


def test_copies_of_one_element_are_summed_at_the_cost_of_three() -> None:
    made = SpatialBlock(4)
    scrambled(made)
    x = torch.randn(3, 8, 4, 2)
    literal = torch.stack([made.across(one.expand(NODES, -1, -1, -1)).sum(0) for one in x])
    torch.testing.assert_close(made.copied(x), literal)


def test_official_weights_take_the_sum_and_others_the_mean(backbone: PoseSpace) -> None:
    x = torch.randn(3, 16, 4, 4)
    method = attached(backbone)
    averaged = method.behind_middle(x)
    method.faithful = True
    torch.testing.assert_close(method.behind_middle(x), NODES * averaged)


@pytest.mark.parametrize("graph", ["per_sample", "joint", "off"])
def test_an_image_does_not_depend_on_its_batch(backbone: PoseSpace, graph: str) -> None:
    attached(backbone, graph=graph)
    torch.testing.assert_close(predicted(backbone, 5)[3:4], predicted(backbone, 1, start=3), rtol=1e-4, atol=1e-5)


def test_the_released_program_mixes_the_batch_and_knows_few_sizes(backbone: PoseSpace) -> None:
    literal = attached(backbone, graph="batch17", faithful=True)
    together = predicted(backbone, NODES)
    pair = predicted(backbone, 2)
    assert not torch.allclose(together[:2], pair, atol=1e-3)
    with pytest.raises(ValueError, match=r"batches of 2, 17 or a multiple of 17, not 3; set adapter\.graph=per_sample"):
        predicted(backbone, 3)
    single = attached(backbone, faithful=True)
    single.load_state_dict(literal.state_dict())
    torch.testing.assert_close(predicted(backbone, 2), pair)


def test_joint_maps_of_another_height_are_refused(backbone: PoseSpace) -> None:
    method = attached(backbone)
    with pytest.raises(ValueError, match=r"mixes 4 rows, the middle block made 3.*backbone\.grid"):
        method.behind_middle(torch.zeros(1, 16, 3, 4))


def test_a_graph_of_joints_starts_neutral_and_joins_what_bones_join() -> None:
    made, x = JointBlock(8, 4), torch.randn(2, 8, 3, 3)
    assert torch.equal(made(x), x)
    scrambled(made, seed=3)
    assert not torch.allclose(made(x), x)
    degrees = skeleton().sum(1)
    torch.testing.assert_close(made.adjacency[5, 7], 1 / (degrees[5] * degrees[7]).sqrt())


def test_a_later_method_takes_the_place_of_an_earlier_one(backbone: PoseSpace) -> None:
    plain = attached(backbone, graph="off") and predicted(backbone, 2)
    attached(backbone)
    assert not torch.allclose(predicted(backbone, 2), plain, atol=1e-3)
    attached(backbone, graph="off")
    assert torch.equal(predicted(backbone, 2), plain)


def test_an_unknown_graph_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"adapter\.graph is 'joints'; expected one of per_sample, batch17, joint, off"
    ):
        GUNet(graph="joints")  # type: ignore[arg-type]


def test_parity_fails_without_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case.read(reference("gunet_full"))
    case = replace(case, expected={"odd2.sample": case.expected["odd2.sample"]})
    assert all(line.ok for line in compare(case).lines)
    monkeypatch.setattr(GUNet, "behind_middle", lambda self, x: x)
    found = {line.output: line.outside for line in compare(case).lines}
    assert found["odd2.sample"] > 0.9 and found["mid.odd2.mid_block"] == 0


# From a released folder to poses.


def test_a_released_folder_is_converted_by_its_own_configuration_and_sampled(world: list[str], tmp_path: Path) -> None:
    """The folder's U-Net names a class that no library has; its sizes are read nevertheless."""
    shipped = Path(next(o for o in world if o.startswith("backbone.path")).partition("=")[2])
    folder = tmp_path / "released"
    folder.mkdir()
    for part in ("text_encoder", "tokenizer"):
        (folder / part).symlink_to(shipped / part)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(
        json.dumps({**SD_SCHEDULER, "_class_name": "PNDMScheduler", "skip_prk_steps": True})
    )
    torch.manual_seed(3)
    unet = UNet2DConditionModel.from_config(
        {**json.loads((shipped / "unet" / "config.json").read_text()), "in_channels": 17, "out_channels": 17}
    )
    unet.save_config(folder / "unet")
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps({**config, "_class_name": "GUNet2DConditionModel"}))
    tensors = {**unet.state_dict(), "spa_block.theta": torch.randn(4, 4, 1), "spa_block.b": torch.randn(1, 4, 1, 1)}
    save_file(tensors, folder / "unet" / "diffusion_pytorch_model.safetensors")

    body = {
        "_target_": "posegen.backbones.pose_space.PoseSpace",
        "path": str(folder),
        "encoding": "reference",
        "grid": 8,
    }
    method = {"_target_": "posegen.adapters.gunet.GUNet", "graph": "per_sample"}
    source = folder / "unet" / "diffusion_pytorch_model.safetensors"
    convert(OmegaConf.create(method), OmegaConf.create(body), str(source), str(tmp_path / "method"))

    from posegen.runner.method_folder import load_method

    torch.manual_seed(4)
    again = PoseSpace(folder, "reference", 8)
    loaded = load_method(tmp_path / "method", again)
    assert loaded.faithful
    assert torch.equal(loaded.state_dict()["spa_block.theta"], tensors["spa_block.theta"])
    assert torch.equal(again.unet.conv_in.weight, tensors["conv_in.weight"])
    batch = PoseBatch(["a", "b", "c"], ["photo"] * 3, [np.zeros((0, 17, 3))] * 3, (64, 64))
    poses = loaded.generate(batch, Sampler("PNDMScheduler", steps=3, guidance=7.5))
    assert poses.shape == (3, 17, 3) and set(poses[..., 2].unique().tolist()) <= {0.0, 1.0}
