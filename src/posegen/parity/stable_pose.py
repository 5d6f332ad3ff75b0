"""Stable-Pose: its transformer, its first block, and the whole method with its loss and one guided step."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor, nn

from posegen.adapters.base import State
from posegen.adapters.stable_pose import StablePose, positions
from posegen.backbones.base import Geometry, Injection, Step
from posegen.backbones.loading.ldm_keys import below
from posegen.backbones.process import VariancePreserving
from posegen.backbones.stable_diffusion import StableDiffusion
from posegen.backbones.text import Text
from posegen.data.base import PoseBatch
from posegen.errors import UserError
from posegen.parity.build import Outputs, UnknownPart, converted, geometry_of, recorded, stable_diffusion
from posegen.parity.case import FACTS, Case
from posegen.runner.sampler import Sampler

BLOCK = "branch.network.down_blocks.0.resnets.0."


def stable_pose_outputs(case: Case) -> Outputs:
    known = {"PMSAViT": transformer_outputs, "FeatureExtractor": block_outputs, "StablePoseAdapter": whole_outputs}
    part = case.module.partition(" ")[0]
    if part not in known:
        raise UnknownPart(f"module {case.module!r} of {case.place / FACTS} begins with none of {', '.join(known)}")
    yield from known[part](case)


def transformer_outputs(case: Case) -> Outputs:
    """The pose-masked transformer alone, with both masks, one sample alone, and without masks."""
    method = part_of(case, f"{BLOCK}transformer.")
    net, x, masks = method.block.transformer, case.inputs["x"], masks_of(case)
    attentions = {f"attn{i}": layer for i, layer in enumerate(net.attentions)}
    state = state_with(method, masks)
    with recorded(embed=net.embed, mlp=net.mlps[-1], **attentions) as (given, returned):
        yield "y", net(x, method.layers(state))
    yield "token_mask", state["tokens"].transpose(0, 1)
    table = positions(x.shape[-2] // net.patch, x.shape[-1] // net.patch, net.dim)
    tokens = {**returned, "tokens": given["mlp"] + returned["mlp"], "pos_embedding": table}
    for name, value in tokens.items():  # the case has as few of them, evenly spaced from the first
        yield name, value[..., :: value.shape[-2] // case.mids[name].shape[-2], :] if name in case.mids else value
    yield "y_first_alone", net(x[:1], method.layers(state_with(method, masks[:1])))
    yield "y_nomask_first", net(x, method.layers(state_with(method, torch.ones_like(masks))))[:1]


def block_outputs(case: Case) -> Outputs:
    """The residual block around the transformer, with its pose encoder, with and without masks."""
    method = part_of(case, BLOCK, "pose_encoder.")
    block, inputs, masks = method.block, case.inputs, masks_of(case)
    modules = {"pose_feature": method.pose_encoder, "cond_conv": block.pose_conv, "vit_out": block.transformer}
    with recorded(**modules) as (given, returned):
        for name, shown in (("y_nomask", torch.ones_like(masks)), ("y", masks)):
            state = method.conditioned(State(Text(inputs["emb"]), Text(inputs["emb"])), inputs["hint"], shown)
            yield name, block(inputs["x"], inputs["emb"], (state["pose"], method.layers(state)))
    yield from {**returned, "vit_in": given["vit_out"]}.items()
    yield "normed", torch.nn.functional.group_norm(returned["vit_out"], block.groups, eps=1e-5)


def whole_outputs(case: Case) -> Outputs:
    """Residuals, predictions, one guided step, and the masked loss with its gradient."""
    config, given = case.config, case.inputs
    backbone = stable_diffusion(geometry_of(config), case.weights)
    times = {"beta_start": "linear_start", "beta_end": "linear_end", "num_train_timesteps": "timesteps"}
    times = {name: config[theirs] for name, theirs in times.items()}
    backbone.process = VariancePreserving({**backbone.process.config, **times})
    method, masks = literal(converted(method_of(case), backbone, case.weights)), masks_of(case)
    text, timesteps = State(Text(given["context"]), Text(given["context_uncond"])), given["timesteps"].long()
    hint = given["hint"]

    def predicted_with(state: State) -> tuple[Injection, Tensor]:
        injection = method.inject(state, given["x"], timesteps)
        return injection, backbone.predict(given["x"], timesteps, state.text, injection)

    state = method.conditioned(text, hint, masks)
    injection, eps = predicted_with(state)
    yield "pose_feature", method.pose_encoder(hint)
    yield from ((f"res_{i:02}", residual) for i, residual in enumerate(injection.residuals))
    yield "eps", eps
    yield "eps_nocontrol", backbone.predict(given["x"], timesteps, state.text, Injection())
    yield "eps_nomask", predicted_with(method.conditioned(text, hint, torch.ones_like(masks)))[1]
    yield from guided_step(case, method, backbone, state)
    target = backbone.process.target(given["x_start"], given["noise"], timesteps)
    with torch.enable_grad():
        eps = eps.detach().requires_grad_()
        step = Step(eps, target, given["x"], given["x_start"], given["noise"], timesteps)
        loss = method.loss(step, state, PoseBatch((), (), (), (0, 0)))["loss"]  # it reads the state alone
        yield "loss", loss
        yield "loss_grad_eps", torch.autograd.grad(loss, eps)[0]


def guided_step(case: Case, method: StablePose, backbone: StableDiffusion, state: State) -> Outputs:
    """One step of the sampler, whose settings the case tells in words; the branch without text comes first there."""
    words = " ".join(case.facts["outputs"][name]["meaning"] for name in ("cfg_pair", "ddim_x_prev"))
    where = f"the outputs cfg_pair and ddim_x_prev of {case.place / FACTS}"
    numbers = []
    for pattern in (r"(\d+)-step", r"\bt=(\d+)", r"guidance ([\d.]+\d)"):
        if (number := re.search(pattern, words)) is None:
            raise UserError(f"{where} do not say their {pattern!r}")
        numbers.append(float(number[1]))
    steps, time, guidance = numbers
    scheduler = Sampler(steps=int(steps)).build(backbone)
    (w_text, with_text), (w_free, free) = method.branches(state, guidance)
    both, x = State.cat([free, with_text]), case.inputs["x_ddim"]
    repeated, timesteps = x.repeat(2, 1, 1, 1), torch.full((2 * len(x),), int(time))
    pair = backbone.predict(repeated, timesteps, both.text, method.inject(both, repeated, timesteps))
    yield "cfg_pair", pair
    without, full = pair.chunk(2)
    stepped = scheduler.step(w_text * full + w_free * without, int(time), x, eta=0.0)
    yield "ddim_x_prev", stepped.prev_sample
    yield "ddim_pred_x0", stepped.pred_original_sample


def method_of(case: Case) -> StablePose:
    """The method at the case's size, before it is attached."""
    config = {key.removeprefix("vit_"): value for key, value in case.config.items()}
    kernels = config["gaussian_kernels"]
    names = {"patch": "patch_size", "heads": "heads", "head_dim": "dim_head", "mlp": "mlp_dim"}
    sizes: dict[str, Any] = {ours: config[theirs] for ours, theirs in names.items()}
    sizes |= {"reduced": config["dim"] // config["patch_size"] ** 2}
    sizes |= {"pose_channels": config.get("inject_channels", [None])[0]}
    return StablePose(**sizes, kernels=kernels, radii=[0] * len(kernels), alpha=config.get("alpha", 5))


def part_of(case: Case, *places: str) -> StablePose:
    """The method on a small backbone with the case's first level, with official weights at and below ``places``."""
    channels, method = case.config["channels"], method_of(case)
    method.faithful = True
    groups = math.gcd(channels, 32)
    geometry = Geometry(4, 8, (channels,) * 2, (False,) * 2, 1, (1,) * 2, channels, norm_groups=groups)
    method.attach(stable_diffusion(geometry))
    if "emb_channels" in case.config:
        method.block.time_emb_proj = nn.Linear(case.config["emb_channels"], channels)
    weights = below(method.convert(case.weights), "adapter.")
    for place in places:
        method.get_submodule(place.removesuffix(".")).load_state_dict(below(weights, place))
    if beside := [key for key in weights if not key.startswith(places)]:
        raise UserError(f"{case.place} holds weights of other modules than {case.module}: {', '.join(beside)}")
    return literal(method)


def literal(method: StablePose) -> StablePose:
    """``method`` with the lowest logit of the whole batch for masked pairs, as released."""
    for attention in method.block.transformer.attentions:
        attention.lowest_over = "batch"
    return method.eval()


def masks_of(case: Case) -> Tensor:
    """``[B, K, h, w]``; in the case the layers come first."""
    return case.inputs["pose_mask"].unflatten(0, (len(case.config["gaussian_kernels"]), -1)).transpose(0, 1).bool()


def state_with(method: StablePose, masks: Tensor) -> State:
    factor = method.backbone.geometry.latent_factor
    hint = torch.zeros(len(masks), 3, factor * masks.shape[-2], factor * masks.shape[-1])
    return method.conditioned(State(Text(hint), Text(hint)), hint, masks)
