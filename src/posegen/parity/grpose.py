"""GRPose: one Progressive Graph Integrator, the adapter's residuals, predictions, and the pose perception loss."""

from __future__ import annotations

import itertools
from typing import Any

from posegen.adapters.base import State
from posegen.adapters.grpose import BLOCK, GRPose, PoseGraphBlock
from posegen.backbones.base import Injection
from posegen.backbones.loading import ldm_keys as ldm
from posegen.backbones.text import Text
from posegen.errors import UserError
from posegen.metrics.estimators.mobilenetv2 import MobileNetV2
from posegen.parity.build import Inexpressible, Outputs, converted, geometry_of, recorded, stable_diffusion, translated
from posegen.parity.case import WEIGHTS, Case

NORM_GROUPS, NEIGHBOURS = 32, 9  # literals of the official program
#: Components of a graph block -> values on the way that they return.
BLOCK_PARTS = {
    "latent_nodes_in": "norm", "pose_nodes_in": "pose_in", "gnn_latent": "latent_graph",
    "gnn_pose": "pose_graph", "fuse": "fuse", "gnn_fused": "joint_graph",
}  # fmt: skip


def grpose_outputs(case: Case) -> Outputs:
    """Every output, by the part of the method that the case's configuration describes."""
    if "percept_loss_weights" in case.config:
        return perception_outputs(case)
    return adapter_outputs(case) if "control_config" in case.config else graph_block_outputs(case)


def graph_block_outputs(case: Case) -> Outputs:
    config, given = case.config, case.inputs
    sizes = (config["channels"], config.get("out_channels") or config["channels"])
    widths = (config["emb_channels"], config["cond_channels"])
    module = PoseGraphBlock(sizes, *widths, NORM_GROUPS, NEIGHBOURS, "factorised").eval()
    tensors = translated(case.weights, "", BLOCK, "a graph block")
    if missing := module.state_dict().keys() ^ tensors.keys():
        raise UserError(f"keys of a graph block that are missing: {', '.join(sorted(missing))}")
    module.load_state_dict(tensors)
    with recorded(**{name: module.get_submodule(part) for name, part in BLOCK_PARTS.items()}) as (_, returned):
        yield "y", module(given["x"], given["emb"], module.encode(given["pose_features"]))
    yield from returned.items()


def adapter_outputs(case: Case) -> Outputs:
    """The adapter's residuals, and with a U-Net in the case the predictions with and without them."""
    config: dict[str, Any] = dict(case.config["control_config"])
    geometry = geometry_of({**config, "out_channels": config["in_channels"]})
    backbone = stable_diffusion(geometry, case.weights)
    # A block is replaced where 1 + 3 level + block is in ``inject_layers``.
    every = itertools.product(range(geometry.levels), range(geometry.layers))
    places = [(level, layer) for level, layer in every if 1 + 3 * level + layer in config["inject_layers"]]
    if not places or any(layer for _, layer in places):
        raise Inexpressible(f"inject_layers {config['inject_layers']} mean other blocks than the first ones of levels")
    method = GRPose(levels=[level for level, _ in places], inject_channels=config["inject_channels"])
    method = converted(method, backbone, case.weights)
    noisy, timesteps, text = case.inputs["x_noisy"], case.inputs["timesteps"].long(), Text(case.inputs["context"])
    hint = case.inputs["hint"]
    injection = method.inject(State(text, text).having(poses=method.poses(hint)), noisy, timesteps)
    yield from ((f"pose_features.{i}", pose) for i, pose in enumerate(method.pose_encoder(hint).values()))
    yield from ((f"residual.{i}", residual) for i, residual in enumerate(injection.residuals))
    if ldm.has_prefix(case.weights, ldm.UNET):
        yield "eps", backbone.predict(noisy, timesteps, text, injection)
        yield "eps_without_control", backbone.predict(noisy, timesteps, text, Injection())


def perception_outputs(case: Case) -> Outputs:
    """The pose perception loss of each sample, its parts, and the same without truncation to 8 bits."""
    config, weight = case.config, case.config["percept_loss_weights"]
    settings = ("widen_factor", "out_indices", "bn_eps", "image_size", "norm_mean", "norm_std")
    teacher = MobileNetV2(*(config[name] for name in settings))
    teacher.load_trunk(case.weights, str(case.place / WEIGHTS))
    teacher.eval()
    decoded, real = case.inputs["decoded_x0"], case.inputs["gt_jpg"].permute(0, 3, 1, 2)
    shared: dict[str, Any] = {"perception_weight": weight, "teacher": teacher}
    released, plain = GRPose(perception="logged", **shared), GRPose(perception="differentiable", **shared)
    difference = released.perceived(decoded, real)
    yield "pose_loss_per_sample", weight * case.inputs["alphas_cumprod_t"] * difference
    yield "feature_mse", difference
    for name, images in (("decoded", decoded), ("gt", real)):
        yield f"features_{name}_flipped_mean", teacher.features(released.seen(images))
    yield "feature_mse_noquant_flipped", plain.perceived(decoded.flip(-1), real.flip(-1))
    yield "feature_mse_noquant_unflipped", plain.perceived(decoded, real)
