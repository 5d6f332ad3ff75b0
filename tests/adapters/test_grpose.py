"""GRPose: its graphs, its network at every size, its losses, and the official program's tensors."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from posegen.adapters.base import State
from posegen.adapters.grpose import GRPose, PoseGraphBlock, pose_cells
from posegen.backbones.base import Geometry, Step
from posegen.backbones.blocks import pose_graph
from posegen.backbones.blocks.pose_graph import DenseEdgeConvolution, EdgeConvolution, GraphConvolution, neighbours
from posegen.backbones.loading import ldm_keys as ldm
from posegen.backbones.loading.single_file import unet_of, vae_of
from posegen.backbones.stable_diffusion import StableDiffusion
from posegen.backbones.text import Text
from posegen.data.base import PoseBatch
from posegen.io.weights import UnknownKeys
from posegen.parity.case import Case
from posegen.parity.compare import agree
from posegen.parity.grpose import grpose_outputs
from tests.adapters.cases import SD1, backbone_of, full_size, original, reference, scrambled, sized

SD15 = Geometry(4, 8, (320, 640, 1280, 1280), (True, True, True, False), 2, (8,) * 4, 768)
MANNEQUIN = Geometry(8, 4, (32, 64, 128), (False, True, True), 1, (4, 4, 4), 64, norm_groups=16)
SMALL = replace(SD1, channels=(32, 64), norm_groups=16)


# The official program; its outputs themselves are compared in tests/parity.


def test_a_flat_hint_agrees_at_the_strict_tolerance_on_the_official_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case.read(reference("grpose_flat"))
    levels = [1, 4, 7, 10]
    graphs = [f"knn.input_blocks.{i}.0.gnn_pose" for i in levels]  # all poses are encoded first
    graphs += [f"knn.input_blocks.{i}.0.{name}" for i in levels for name in ("gnn_latent", "gnn")]
    order = iter(graphs)
    monkeypatch.setattr(pose_graph, "neighbours", lambda maps, k: case.mids[next(order)].long())
    with torch.no_grad():
        made = dict(grpose_outputs(case))
    assert next(order, None) is None
    assert all(agree(name, made[name], expected, 1e-3, 1e-4).ok for name, expected in case.expected.items())


def test_the_graphs_of_well_separated_nodes_are_the_official_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    case, found = Case.read(reference("grpose_pgi")), []
    own = neighbours
    monkeypatch.setattr(pose_graph, "neighbours", lambda maps, k: found.append(own(maps, k)) or found[-1])
    with torch.no_grad():
        dict(grpose_outputs(case))
    for name, near in zip(("gnn_pose", "gnn_latent", "gnn"), found, strict=True):
        wanted = case.mids[f"knn_{name}"].long()
        same = (near.sort(-1).values == wanted.sort(-1).values).all(-1).float().mean()
        assert same == 1 if name != "gnn_pose" else same > 0.3, "flat regions of the pose leave the choice open"


def test_full_size_keys() -> None:
    facts, keys = full_size("grpose_keys.json")
    with torch.device("meta"):
        unet = unet_of(SD15)
        method = GRPose()
        method.attach(sized(SD15, unet))
    converted = method.convert(keys)
    assert {key: value.shape for key, value in converted.items()} == {
        f"adapter.{key}": value.shape for key, value in method.state_dict().items()
    }
    assert sum(p.numel() for p in method.parameters()) == facts["counts"]["control_model"] == 412_997_248
    assert sum(key.endswith("num_batches_tracked") for key in converted) == 12


# Graphs.


def test_neighbours_are_the_nearest_directions_in_chunks_of_any_size() -> None:
    maps = 1 + 0.05 * torch.randn(
        2, 6, 4, 5, generator=torch.Generator().manual_seed(0)
    )  # directions that half precision cannot tell apart
    maps = maps * torch.linspace(0.1, 9, 20).view(1, 1, 4, 5)
    nodes = nn.functional.normalize(maps.flatten(2), dim=1).mT.double()
    wanted = torch.cdist(nodes, nodes).topk(7, largest=False).indices.sort(-1).values
    for rows in (3, 20, 1024):
        assert torch.equal(neighbours(maps, 7, rows).sort(-1).values, wanted)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(neighbours(maps, 7).sort(-1).values, wanted), "distances leave the autocast"
    assert torch.equal(neighbours(maps.half(), 7).sort(-1).values, neighbours(maps.half().float(), 7).sort(-1).values)


def test_a_node_of_zeros_is_nearest_to_itself() -> None:
    """Its distance to all others is 1, not the 2 that a similarity of 0 would mean."""
    maps = torch.eye(4).view(1, 4, 2, 2).clone()
    maps[..., 1, 1] = 0
    assert neighbours(maps, 1).flatten().tolist() == [0, 1, 2, 3]


def test_the_factorised_edge_convolution_is_the_dense_one() -> None:
    torch.manual_seed(0)
    factorised, dense = EdgeConvolution(16), DenseEdgeConvolution(16)
    assert factorised.mix.weight.shape == (16, 8, 1, 1)
    dense.load_state_dict(factorised.state_dict())
    maps = [torch.randn(2, 16, 5, 7, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2)]
    near = neighbours(maps[0], 6)
    made, wanted = factorised(maps[0], near), dense(maps[1], near)
    assert torch.allclose(made, wanted, atol=1e-5)
    for output in (made, wanted):
        output.square().sum().backward()
    assert torch.allclose(maps[0].grad, maps[1].grad, atol=1e-4)
    assert torch.allclose(factorised.mix.weight.grad, dense.mix.weight.grad, atol=1e-3, rtol=1e-4)
    assert torch.allclose(factorised.mix.bias.grad, dense.mix.bias.grad, atol=1e-3, rtol=1e-4)


def test_the_layer_leaves_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    class Fresh(EdgeConvolution):
        """A class that torch-geometric has not seen yet."""

    Fresh(8)(torch.randn(1, 8, 2, 2), torch.zeros(1, 4, 1, dtype=torch.long))
    assert not list(tmp_path.iterdir())


def test_images_of_a_batch_have_graphs_of_their_own() -> None:
    graph = GraphConvolution(16, 9, "factorised").eval()
    maps = torch.randn(3, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(graph(maps)[1:2], graph(maps[1:2]), atol=1e-5)


# The network.


def batch(g: Geometry, cells: tuple[int, int] = (8, 16), images: int = 2) -> PoseBatch:
    hint = (
        torch.rand(images, 3, *(side * g.latent_factor for side in cells), generator=torch.Generator().manual_seed(2))
        * 2
        - 1
    )
    text = torch.randn(images, 5, g.text_dim, generator=torch.Generator().manual_seed(3))
    ids = [str(i) for i in range(images)]
    return PoseBatch(
        ids,
        ids,
        [],
        tuple(hint.shape[-2:]),
        hint=hint,
        text=Text(text),
        negative_text=Text(torch.zeros(1, 5, g.text_dim)),
    )  # type: ignore[arg-type]


def backbone(g: Geometry) -> StableDiffusion:
    return backbone_of(g, vae_of((32,) * g.latent_factor.bit_length(), 1, g.latent_channels))


def attached(g: Geometry = SMALL, seed: int = 0, **settings: Any) -> GRPose:
    """On a random backbone, with every weight and running statistic random."""
    torch.manual_seed(seed)
    method = GRPose(**settings)
    method.attach(backbone(g))
    scrambled(method, seed)
    for name, buffer in method.named_buffers():
        if buffer.is_floating_point():
            buffer.add_(torch.rand(buffer.shape, generator=torch.Generator().manual_seed(len(name))))
    return method


@torch.no_grad()
def residuals(method: GRPose, pose: PoseBatch, cells: tuple[int, int] = (8, 16)) -> list[Tensor]:
    g: Geometry = method.backbone.geometry  # type: ignore[union-attr, assignment]
    latents = torch.randn(1, g.latent_channels, *cells, generator=torch.Generator().manual_seed(4)).expand(
        len(pose), -1, -1, -1
    )
    state = method.encode(pose)
    found = method.inject(state, latents, torch.full((len(pose),), 300))
    return [*found.down, found.mid]  # type: ignore[misc, list-item]


GEOMETRIES = {
    "sd": SMALL,
    "mannequin": MANNEQUIN,
    "three layers": replace(SMALL, layers=3),
    "one level": replace(SMALL, channels=(32,), attention=(True,), heads=(8,)),
    "factor 2": replace(SMALL, latent_factor=2),
}


@pytest.mark.parametrize("g", GEOMETRIES.values(), ids=GEOMETRIES)
def test_any_size(g: Geometry) -> None:
    method = attached(g).eval()
    found = residuals(method, batch(g))
    assert [r.shape[1] for r in found[:-1]] == list(g.residual_channels)
    assert all(torch.isfinite(r).all() and r.any() for r in found)


@pytest.mark.parametrize("g", GEOMETRIES.values(), ids=GEOMETRIES)
def test_original_names_come_back(g: Geometry) -> None:
    method = attached(g)
    official = original(method.state_dict(), method.table(g), ldm.CONTROL)
    assert (
        "control_model.input_blocks.1.0.gnn.graph_conv.gconv.nn.0.weight" in official
        and "control_model.input_blocks.1.0.in_layers.0.weight" not in official
    )
    for given in (official, ldm.below(official, ldm.CONTROL)):
        converted = method.convert(given)
        assert converted.keys() == {f"adapter.{key}" for key in method.state_dict()}
        assert all(torch.equal(converted[f"adapter.{key}"], value) for key, value in method.state_dict().items())


def test_the_rest_of_a_whole_model_is_left_out_by_rule_and_other_keys_are_named() -> None:
    method = attached()
    official = original(method.state_dict(), method.table(SMALL), ldm.CONTROL)
    rest = [
        "model.diffusion_model.out.2.bias",
        "first_stage_model.quant_conv.bias",
        "cond_stage_model.transformer.x",
        "mmpose_model.backbone.x",
        "betas",
    ]
    assert method.convert({**official, **dict.fromkeys(rest, torch.zeros(1))}).keys() == {
        f"adapter.{key}" for key in method.state_dict()
    }
    with pytest.raises(
        UnknownKeys,
        match="2 keys that GRPose has no place for: control_model.input_blocks.1.0.in_layers.0.weight, optimizer; ",
    ):
        method.convert(
            {
                **official,
                "control_model.input_blocks.1.0.in_layers.0.weight": torch.zeros(1),
                "optimizer": torch.zeros(1),
            }
        )


def test_capacity_follows_the_geometry() -> None:
    assert GRPose().pose_channels(SD15) == (192, 256, 384, 512)
    assert GRPose().pose_channels(MANNEQUIN) == (16, 24, 40)
    assert GRPose(levels=[1]).pose_channels(MANNEQUIN) == (16, 24)
    assert GRPose(inject_channels=[8, 9, 10]).pose_channels(MANNEQUIN) == (8, 9, 10)
    encoder = attached(MANNEQUIN).pose_encoder
    assert [c.stride[0] for c in encoder.modules() if isinstance(c, nn.Conv2d)][:6] == [1, 2, 1, 2, 2, 2]
    assert [tuple(f.shape[1:]) for f in encoder(torch.zeros(1, 3, 64, 64)).values()] == [
        (16, 16, 16),
        (24, 8, 8),
        (40, 4, 4),
    ]


def test_levels_without_a_graph_keep_their_residual_blocks() -> None:
    method = attached(MANNEQUIN, levels=[2]).eval()
    blocks = [type(level.resnets[0]).__name__ for level in method.branch.network.down_blocks]
    assert blocks == ["ResnetBlock2D", "ResnetBlock2D", "PoseGraphBlock"] and list(method.pose_encoder.zeros) == ["2"]
    assert all(r.any() for r in residuals(method, batch(MANNEQUIN)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": [0, 2]}, r"adapter.levels is \[0, 2\]; expected some of the backbone's levels \[0, 1\]"),
        ({"levels": []}, r"adapter.levels is \[\]"),
        ({"inject_channels": [8]}, r"adapter.inject_channels is \[8\]; expected 2 numbers"),
        ({"edges": "sparse"}, "adapter.edges is 'sparse'; expected one of factorised, dense"),
        ({"perception": "on"}, "adapter.perception is 'on'; expected one of off, logged, differentiable"),
        ({"k": 0}, "adapter.k is 0; expected at least 1"),
    ],
)
def test_impossible_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GRPose(**settings).attach(sized(SMALL))


def test_both_forms_of_the_edge_convolution_take_the_same_weights_and_agree() -> None:
    one, other = attached().eval(), attached(edges="dense").eval()
    other.load_state_dict(one.state_dict())
    assert all(
        torch.allclose(a, b, atol=1e-4)
        for a, b in zip(residuals(one, batch(SMALL)), residuals(other, batch(SMALL)), strict=True)
    )


def test_the_copy_starts_from_the_backbone_and_its_new_parts_change_nothing() -> None:
    torch.manual_seed(0)
    method, backbone = GRPose(), backbone_of(SMALL)
    method.attach(backbone)
    for level, down in enumerate(backbone.unet.down_blocks):
        block, resnet = method.block(level), down.resnets[0]
        assert torch.equal(block.conv_in.weight, resnet.conv1.weight) and torch.equal(
            block.time.weight, resnet.time_emb_proj.weight
        )
        assert (
            isinstance(block.skip, nn.Identity)
            if resnet.conv_shortcut is None
            else torch.equal(block.skip.weight, resnet.conv_shortcut.weight)
        )
        x = torch.randn(2, resnet.in_channels, 4, 4)
        assert torch.equal(
            block(x, torch.randn(2, SMALL.time_dim), torch.randn(2, resnet.out_channels, 4, 4)), block.skip(x)
        )
    assert not any(r.any() for r in residuals(method, batch(SMALL)))


def test_what_depends_on_the_pose_alone_is_computed_once_per_image(monkeypatch: pytest.MonkeyPatch) -> None:
    method, calls = attached(MANNEQUIN).eval(), []
    own = neighbours
    monkeypatch.setattr(pose_graph, "neighbours", lambda maps, k: calls.append(len(maps)) or own(maps, k))
    state = method.encode(batch(MANNEQUIN))
    assert len(calls) == 3
    latents = torch.randn(2, 8, 8, 16)
    first = method.inject(state, latents, torch.tensor([5, 5]))
    assert len(calls) == 9 and first.mid is not None
    method.inject(State.cat([state, state.without_text()]), latents.repeat(2, 1, 1, 1), torch.tensor([5] * 4))
    assert len(calls) == 15


def test_an_image_does_not_depend_on_its_batch_in_evaluation() -> None:
    method, pose = attached().eval(), batch(SMALL)
    for (
        name,
        value,
    ) in method.state_dict().items():  # what all nodes share would leave the choice of neighbours to rounding
        if "pose" in name and name.rpartition(".")[2] in ("bias", "running_mean"):
            value.zero_()
    alone = residuals(method, replace(pose, ids=pose.ids[1:], hint=pose.hint[1:], text=pose.text[1:]))  # type: ignore[index]
    assert all(torch.allclose(a[1:], b, atol=1e-4) for a, b in zip(residuals(method, pose), alone, strict=True))


def test_training_updates_each_running_statistic_once_per_step_and_they_are_saved() -> None:
    method = attached()
    before = {name: value.clone() for name, value in method.state_dict().items() if "running" in name}
    residuals(method.train(), batch(SMALL))
    counts = [value for name, value in method.state_dict().items() if name.endswith("num_batches_tracked")]
    assert len(counts) == 6 and all(count == 1 for count in counts)
    assert len(before) == 12 and not any(
        torch.equal(method.state_dict()[name], value) for name, value in before.items()
    )
    again = attached(seed=1)
    again.load_state_dict(method.state_dict())
    assert all(
        torch.equal(a, b)
        for a, b in zip(residuals(again.eval(), batch(SMALL)), residuals(method.eval(), batch(SMALL)), strict=True)
    )


def test_fewer_nodes_than_neighbours_are_joined_completely_or_refused() -> None:
    method, pose = attached(MANNEQUIN).eval(), batch(MANNEQUIN, (8, 8))
    assert all(torch.isfinite(r).all() for r in residuals(method, pose, (8, 8)))
    method.faithful = True
    with pytest.raises(
        ValueError,
        match=r"adapter.k is 9, but level 2 of images of 32x32 pixels has only 2x2 nodes.*or adapter.k=4",
    ):
        method.encode(pose)
    residuals(method, batch(MANNEQUIN, (16, 16)), (16, 16))


def test_strength_scales_all_residuals() -> None:
    one, double = attached().eval(), attached(strength=2.0).eval()
    assert all(
        torch.allclose(2 * a, b)
        for a, b in zip(residuals(one, batch(SMALL)), residuals(double, batch(SMALL)), strict=True)
    )


def test_the_pose_reaches_the_block_through_its_graph() -> None:
    torch.manual_seed(0)
    block = PoseGraphBlock((16, 16), 8, 8, 4, 9, "factorised")
    nn.init.ones_(block.zero.weight)
    pose = torch.randn(1, 8, 4, 4, requires_grad=True)
    block(torch.randn(1, 16, 4, 4), torch.randn(1, 8), block.encode(pose)).sum().backward()
    assert pose.grad is not None and pose.grad.any() and all(p.grad is not None for p in block.parameters())


# Losses.


class Pooled(nn.Module):
    """One convolution in place of a pose network."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.images: list[Tensor] = []

    def features(self, images: Tensor) -> Tensor:
        return self.conv(images).mean((2, 3))


class Teacher(Pooled):
    """It has feature maps too, which come first."""

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        self.images.append(images.detach())
        return [self.conv(images)]


@pytest.fixture
def step() -> Iterator[Step]:
    draw = torch.Generator().manual_seed(5)
    clean, noise, error = (torch.randn(2, 4, 4, 8, generator=draw) for _ in range(3))
    backbone = backbone_of(SD1)
    timesteps = torch.tensor([50, 600])
    noisy, target = (
        backbone.process.add_noise(clean, noise, timesteps),
        backbone.process.target(clean, noise, timesteps),
    )
    yield Step((target + 0.1 * error).requires_grad_(), target, noisy, clean, noise, timesteps)


TOUCHED = [[1, 2], [1, 3], [2, 2]]


def posed() -> PoseBatch:
    hint = torch.full((2, 3, 32, 64), -1.0)
    hint[0, 1, 12, 20] = 1.0  # in cell (1, 2), and blurred over its lower and its right edge
    return replace(batch(SD1, (4, 8)), hint=hint)


def weighted(error: Tensor) -> Tensor:
    """The mean with five times the weight in the touched cells of the first image."""
    return error.mean() + sum(4 * error[0, :, y, x].sum() for y, x in TOUCHED) / error.numel()


STATE = State(Text(torch.zeros(2, 1, 1)), Text(torch.zeros(2, 1, 1)))


def test_pose_cells_are_those_that_the_blurred_drawing_touches() -> None:
    cells = pose_cells(posed().hint, 8)  # type: ignore[arg-type]
    assert cells.shape == (2, 1, 4, 8) and not cells[1].any()
    assert cells[0, 0].nonzero().tolist() == TOUCHED, "less than 5 pixels around it are above the background"
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(pose_cells(posed().hint, 8), cells)  # type: ignore[arg-type]


def test_the_loss_weighs_the_pose(step: Step) -> None:
    method, error = attached(SD1), (step.prediction - step.target).square()
    losses = method.loss(step, STATE, posed())
    expected = weighted(error)
    assert (
        losses.keys() == {"loss", "plain"}
        and torch.allclose(losses["loss"], expected)
        and torch.allclose(losses["plain"], error.mean())
    )
    assert torch.allclose(attached(SD1, alpha=1.0).loss(step, STATE, posed())["loss"], error.mean())


@pytest.mark.parametrize("teacher", [Teacher, Pooled])
@pytest.mark.parametrize("kind", ["logged", "differentiable"])
def test_only_the_differentiable_perception_loss_has_a_gradient(step: Step, kind: Any, teacher: type[Pooled]) -> None:
    torch.manual_seed(0)
    network = teacher()
    method = attached(SD1, perception=kind, perception_weight=2.0, teacher=network)
    assert not [name for name in method.state_dict() if "teacher" in name]
    losses = method.loss(step, STATE, posed())
    plain = weighted((step.prediction - step.target).square())
    assert losses["perception"] > 0 and torch.allclose(losses["loss"], plain + losses["perception"])
    (wanted,) = torch.autograd.grad(plain, step.prediction)
    losses["loss"].backward()
    assert torch.allclose(step.prediction.grad, wanted) == (kind == "logged")
    assert all(p.grad is None and not p.requires_grad for m in (network, method.backbone) for p in m.parameters())  # type: ignore[union-attr]


def test_the_perception_loss_weighs_by_signal_and_looks_at_the_right_images(step: Step) -> None:
    torch.manual_seed(0)
    teacher = Teacher()
    method = attached(SD1, perception="differentiable", teacher=teacher)
    backbone: Any = method.backbone
    images = torch.rand(2, 3, 32, 64) * 2 - 1
    found = method.loss(step, STATE, replace(posed(), images=images))["perception"]
    made = backbone.from_latents(backbone.process.clean(step.noisy, step.prediction, step.timesteps)).clamp(-1, 1)
    assert torch.allclose(teacher.images[0], made, atol=1e-5) and torch.equal(teacher.images[1], images)
    difference = (teacher.conv(made) - teacher.conv(images)).square().mean((1, 2, 3))
    assert torch.allclose(found, (0.5 * backbone.process.power(step.timesteps) * difference).mean())
    method.loss(step, STATE, posed())
    assert torch.allclose(teacher.images[3], backbone.from_latents(step.clean).clamp(-1, 1)), (
        "without images, the decoded clean latents"
    )


def test_the_logged_loss_sees_mirrored_images_of_8_bits() -> None:
    method = GRPose(perception="logged")
    images = torch.rand(1, 3, 4, 6) * 3 - 1.5
    seen = (method.seen(images) + 1) * 127.5
    assert torch.allclose(seen, seen.round(), atol=1e-4)
    assert torch.equal(seen.flip(-1).round(), ((images.clamp(-1, 1) + 1) / 2 * 255).floor())


def test_a_missing_teacher_is_said(step: Step) -> None:
    with pytest.raises(
        ValueError, match=r"adapter.perception=logged needs a pose network: adapter.teacher='\$\{estimator\}'"
    ):
        attached(SD1, perception="logged").loss(step, STATE, posed())
