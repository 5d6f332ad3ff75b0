"""GRPose: one Progressive Graph Integrator, the adapter's residuals, predictions with it, and the pose perception loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from posegen.adapters.base import State
from posegen.adapters.grpose import BLOCK, GRPose, PoseGraphBlock
from posegen.backbones.base import Geometry, Injection
from posegen.backbones.loading import ldm_keys as ldm
from posegen.backbones.text import Text
from posegen.errors import UserError
from posegen.metrics.estimators.mobilenetv2 import MobileNetV2
from posegen.parity.build import converted, stable_diffusion
from posegen.parity.case import Case

NORM_GROUPS, NEIGHBOURS = 32, 9  # literals of the official program


@torch.no_grad()
def compute(case: Case) -> dict[str, Tensor]:
    """Every output, by what the case's module is, and the intermediates that it holds."""
    kind = (
        perception if "percept_loss_weights" in case.config else residuals if "control_config" in case.config else block
    )
    wanted = case.expected.keys() | case.mids.keys()
    return {name: value for name, value in kind(case) if name in wanted}


def block(case: Case) -> Iterator[tuple[str, Tensor]]:
    """One graph block alone, and the values on the way."""
    config = case.config
    sizes = (config["channels"], config.get("out_channels") or config["channels"])
    module = PoseGraphBlock(
        sizes, config["emb_channels"], config["cond_channels"], NORM_GROUPS, NEIGHBOURS, "factorised"
    ).eval()
    found = ldm.renamed(case.weights, BLOCK)
    own = module.state_dict()
    if wrong := [*found.unknown, *(own.keys() ^ found.tensors.keys())]:
        raise UserError(f"keys of a graph block that are missing or have no place: {', '.join(sorted(wrong))}")
    module.load_state_dict(found.tensors)
    seen = watched(module)
    given = case.inputs
    yield "y", module(given["x"], given["emb"], module.encode(given["pose_features"]))
    yield from seen.items()


def watched(module: PoseGraphBlock) -> dict[str, Tensor]:
    """What the parts of a block return, under the case's names, filled by its next pass."""
    names = {
        "norm": "latent_nodes_in",
        "pose_in": "pose_nodes_in",
        "latent_graph": "gnn_latent",
        "pose_graph": "gnn_pose",
        "fuse": "fuse",
    }
    seen: dict[str, Tensor] = {}
    for part, name in (names | {"joint_graph": "gnn_fused"}).items():
        module.get_submodule(part).register_forward_hook(
            lambda _module, _inputs, output, name=name: seen.update({name: output})
        )
    return seen


def residuals(case: Case) -> Iterator[tuple[str, Tensor]]:
    """The adapter's residuals, and with a U-Net in the case the predictions with and without them."""
    config: dict[str, Any] = dict(case.config["control_config"])
    geometry = Geometry.from_ldm({**config, "out_channels": config["in_channels"]})
    whole = ldm.has_prefix(case.weights, ldm.UNET)
    backbone = stable_diffusion(geometry, case.weights if whole else None)
    method = converted(
        GRPose(levels=levels(config, geometry), inject_channels=config["inject_channels"]), backbone, case.weights
    )
    noisy, timesteps, hint = case.inputs["x_noisy"], case.inputs["timesteps"].long(), case.inputs["hint"]
    text = Text(case.inputs["context"])
    injection = method.inject(State(text, text).having(poses=method.poses(hint)), noisy, timesteps)
    yield from ((f"pose_features.{i}", pose) for i, pose in enumerate(method.pose_encoder(hint).values()))
    yield from ((f"residual.{i}", residual) for i, residual in enumerate(injection.residuals))
    if whole:
        yield "eps", backbone.predict(noisy, timesteps, text, injection)
        yield "eps_without_control", backbone.predict(noisy, timesteps, text, Injection())


def levels(config: dict[str, Any], geometry: Geometry) -> list[int]:
    """The levels that ``inject_layers`` means: a block is replaced where 1 + 3 level + block is in it.

    Raises:
        UserError: it means other than the first blocks of levels.
    """
    places = [
        (level, layer)
        for level in range(geometry.levels)
        for layer in range(geometry.layers)
        if 1 + 3 * level + layer in config["inject_layers"]
    ]
    if not places or any(layer for _, layer in places):
        raise UserError(
            f"inject_layers {config['inject_layers']} are other than the first blocks of levels, which GRPose here does not replace"
        )
    return [level for level, _ in places]


def perception(case: Case) -> Iterator[tuple[str, Tensor]]:
    """The pose perception loss of each sample, what it is made of, and the same without truncation to 8 bits."""
    config = case.config
    teacher = MobileNetV2(
        config["widen_factor"],
        config["out_indices"],
        config["bn_eps"],
        config["image_size"],
        config["norm_mean"],
        config["norm_std"],
    )
    teacher.load_trunk(case.weights, str(case.folder / "weights.safetensors"))
    teacher.eval()
    made, real = case.inputs["decoded_x0"], case.inputs["gt_jpg"].permute(0, 3, 1, 2)
    weight = config["percept_loss_weights"]
    released, plain = (
        GRPose(perception=mode, perception_weight=weight, teacher=teacher) for mode in ("logged", "differentiable")
    )
    difference = released.perceived(made, real)
    yield "pose_loss_per_sample", weight * case.inputs["alphas_cumprod_t"] * difference
    yield "feature_mse", difference
    for name, images in (("decoded", made), ("gt", real)):
        yield f"features_{name}_flipped_mean", teacher.features(released.seen(images))
    yield "feature_mse_noquant_flipped", plain.perceived(made.flip(-1), real.flip(-1))
    yield "feature_mse_noquant_unflipped", plain.perceived(made, real)
